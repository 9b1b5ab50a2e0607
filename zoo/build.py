"""From a name to a network: `create_model` and `create_block`."""

from __future__ import annotations

import fnmatch
import inspect
import os
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import load_checkpoint
from zoo.names import Named, parse_name
from zoo.registry import ZooError
from zoo.spec import BLOCKS, MODELS, PYRAMID, BlockSpec

if TYPE_CHECKING:
    import ultralytics
    from torch import nn


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern.

    A detector is listed with each block that takes maps of any size too; options and placements
    are left out, and other blocks can be plugged in where their sizes fit.
    """
    names = []
    for name, spec in MODELS.items():
        names.append(name)
        if spec.takes_blocks:
            names += [f"{name}+{block}" for block, found in BLOCKS.items() if found.any_size]
    return fnmatch.filter(names, pattern)


def list_blocks(pattern: str = "*") -> list[str]:
    """Names of the blocks that match a shell pattern."""
    return fnmatch.filter(BLOCKS, pattern)


def create_model(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    input_size: tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name, with random weights unless a checkpoint is given.

    Args:
        name: e.g. "dat_tiny", "dat[num_classes=10]", "yolov8n+dat".
        checkpoint: file to load the weights from, see `zoo.checkpoint`.
        input_size: (h, w) of what it will be fed; given as `img_size` to a builder that takes it.
        options: for the model's builder; they win over those in brackets. Classifiers take
            `features_only=True` too, with `out_indices=(0, 1, 2, 3)`, and return the maps of
            their stages, see `zoo.features`.
    Raises:
        ZooError: the name, an option or the checkpoint does not fit.
    """
    named = parse_name(name)
    if isinstance(named.spec, BlockSpec):
        raise ZooError(f"{name!r} is a block; build it with create_block and its channels")
    options = {**named.options, **options}
    named.spec.check_options(options)
    pyramid = {}
    if named.spec.options is not None:  # otherwise the builder takes them itself, as timm does
        ours = [k for k in PYRAMID if k in options and k not in named.spec.options]
        pyramid = {k: options.pop(k) for k in ours}
    if "out_indices" in pyramid and not pyramid.get("features_only"):
        raise ZooError("out_indices without features_only=True: there are no maps to choose from")
    if named.block is None:
        builder = named.spec.load()
        if input_size is not None and "img_size" in inspect.signature(builder).parameters:
            h, w = input_size
            options.setdefault("img_size", h if h == w else (h, w))
        model = builder(**options)
    else:
        from zoo.detection import detector

        model = detector(named, **options)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if pyramid.get("features_only"):
        from zoo.features import Features

        if not hasattr(model, "feature_info") or not hasattr(model, "forward_intermediates"):
            raise ZooError(f"{named} has no stages to take features from")
        model = Features(model, pyramid.get("out_indices"))
    return model


def create_block(name: str, channels: int, **options: Any) -> nn.Module:
    """Build an attention block, (b, channels, h, w) to the same.

    Args:
        name: e.g. "dat" or "dat[stride=2]"; the prefix "block:" may stand before it.
        channels: channels of the feature map.
        options: for the block; they win over those in brackets.
    Raises:
        ZooError: the name, an option or the channels do not fit.
    """
    named = parse_name(f"block:{name.removeprefix('block:')}")
    options = {**named.options, **options}
    named.spec.check_options(options)
    build = named.spec.load()
    if not named.spec.module.startswith("zoo."):
        return build(channels, **options)
    try:
        return build(channels, **options)
    except (TypeError, ArithmeticError, RuntimeError) as error:  # a word for a number, say
        raise ZooError(f"{named} of {channels} channels cannot be built: {error}") from error


def yolo(name: str, *, weights: str | os.PathLike[str] | None = None) -> ultralytics.YOLO:
    """Make a detector that trains, validates, predicts and exports as ultralytics' own do.

    What is saved loads with `ultralytics.YOLO("best.pt")` after `import zoo`.

    Args:
        name: e.g. "yolov8n+dat", "yolov8s[num_classes=3]+ema@neck".
        weights: checkpoint of ultralytics, e.g. "yolov8n.pt", for the plain detector or the same
            one; what is not the block's comes from it.
    Raises:
        ZooError: it is no detector, or the weights do not fit.
    """
    named = _detector(name)
    from zoo.detection import trainable

    return trainable(named, weights=weights, **named.options)


def detector_yaml(name: str) -> str:
    """Write the YAML from which `ultralytics.YOLO` builds a detector, after `import zoo`.

    Raises:
        ZooError: it is no detector, or cannot be built.
    """
    named = _detector(name)
    from zoo.detection import as_yaml, detector

    detector(named, **named.options)  # what cannot be built shows here
    return as_yaml(named, **named.options)


def _detector(name: str) -> Named:
    named = parse_name(name)
    if not named.takes_blocks:
        raise ZooError(f"{name} is not a detector of ultralytics; e.g. yolov8n+dat is")
    return named
