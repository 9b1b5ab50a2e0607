"""From a name to a network: `create_model`, `create_block`, and their checkpoints."""

from __future__ import annotations

import fnmatch
import os
from typing import TYPE_CHECKING, Any

from zoo.names import parse_name
from zoo.registry import ZooError
from zoo.spec import BLOCKS, MODELS, PYRAMID, BlockSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

# Entries of official checkpoints that follow from the sizes: the model's own are kept.
DERIVED = ("relative_position_index", "attn_mask", "q_grid", "reference")


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern.

    A detector is listed with each block that takes maps of any size too; options and placements
    are left out, and other blocks can be plugged in where their sizes fit.
    """
    names = []
    for name, spec in MODELS.items():
        names.append(name)
        if spec.task == "detect":
            names += [f"{name}+{block}" for block, found in BLOCKS.items() if found.any_size]
    return fnmatch.filter(names, pattern)


def list_blocks(pattern: str = "*") -> list[str]:
    """Names of the blocks that match a shell pattern."""
    return fnmatch.filter(BLOCKS, pattern)


def create_model(
    name: str, *, checkpoint: str | os.PathLike[str] | None = None, **options: Any
) -> nn.Module:
    """Build a model by name, with random weights unless a checkpoint is given.

    Args:
        name: e.g. "dat_tiny", "dat[num_classes=10]", "yolov8n+dat".
        checkpoint: file to load the weights from, see `load_checkpoint`.
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
        pyramid = {k: options.pop(k) for k in PYRAMID if k in options}
    if "out_indices" in pyramid and not pyramid.get("features_only"):
        raise ZooError("out_indices without features_only=True: there are no maps to choose from")
    if named.block is None:
        model = named.spec.load()(**options)
    else:
        from zoo.models.yolo import detector

        plugged = (named.block.name, dict(named.block_options), named.placement)
        model = detector(named.spec.name, plugged=plugged, **options)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if pyramid.get("features_only"):
        from zoo.features import Features

        if not hasattr(model, "feature_info"):
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
    return named.spec.load()(channels, **options)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load weights from a safetensors file or a file of `torch.save`, without running its code.

    The weights may stand under "model" or "state_dict", as official checkpoints have them.

    Raises:
        ZooError: the file cannot be read, holds code, or its keys or shapes are not the model's.
    """
    given = _read_state(os.fspath(path))
    own = model.state_dict()
    given = {k: v for k, v in given.items() if k.rpartition(".")[2] not in DERIVED}
    expected = {k for k in own if k.rpartition(".")[2] not in DERIVED}
    faults = [
        *(f"{k} is missing" for k in sorted(expected - given.keys())),
        *(f"{k} is not in the model" for k in sorted(given.keys() - expected)),
        *(
            f"{k} is {tuple(given[k].shape)}, expected {tuple(own[k].shape)}"
            for k in sorted(expected & given.keys())
            if given[k].shape != own[k].shape
        ),
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ZooError(f"checkpoint {path} does not fit the model: {'; '.join(faults[:5])}{more}")
    model.load_state_dict({**own, **given})


def _read_state(path: str) -> dict[str, Tensor]:
    import pickle

    import torch
    from safetensors.torch import load_file

    if not os.path.isfile(path):  # noqa: PTH113 - `path` is a string for safetensors
        raise ZooError(f"checkpoint {path} is not a file")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ZooError(
            f"checkpoint {path} is refused: it holds code or is damaged; save tensors alone, "
            "with torch.save(model.state_dict(), FILE) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything
        reason = f"{type(error).__name__} {error}".partition("\n")[0]
        raise ZooError(f"checkpoint {path} cannot be read: {reason}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise ZooError(f"checkpoint {path} holds no state dict of tensors")
    return content
