"""YOLO detectors as ultralytics builds them, with blocks of the zoo in their lists of layers.

A list is read from the YAML that ultralytics ships and written out at its scale: repeats and
channels as they are, no multipliers. So it means the same under any file name, from which
ultralytics otherwise takes the scale. What ultralytics saves names the layers here by their module,
so they keep their place.
"""

from __future__ import annotations

import copy
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import ultralytics
import yaml
from torch import nn
from ultralytics.nn import modules, tasks
from ultralytics.nn.modules.block import CIB, Bottleneck
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.ops import make_divisible

from zoo.build import create_block
from zoo.layers import check_shape
from zoo.names import Named
from zoo.registry import ZooError

STAGES = ("C2f", "C3k2", "C2fCIB")  # layers that hold bottlenecks and end a stage
SCALED = (*STAGES, "Conv", "SCDown", "SPPF", "PSA", "C2PSA")  # their first argument is a width
Layers = dict[str, Any]
Plugged = Mapping[str, Mapping[str, Any]]  # a block's name, and its options


class ZooBlock(nn.Module):
    """A block of the zoo as a layer: `[-1, 1, ZooBlock, [256, {dat: {stride: 2}}]]`.

    Shape: (b, channels, h, w) to (b, channels, h, w)
    Raises: ZooError if the first output has another shape.
    """

    def __init__(self, channels: int, plugged: Plugged) -> None:
        super().__init__()
        ((self.name, options),) = plugged.items()
        self.block = create_block(self.name, channels, **options)
        self.known = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        out = self.block(x)
        if not self.known:
            check_shape(self.name, x, out)
            self.known = True
        return out


class ZooBottlenecks(nn.Module):
    """A layer of bottlenecks, each with a block of the zoo before its shortcut.

    `[-1, 1, ZooBottlenecks, [256, 256, 1, {C2f: [true]}, {dat: {}}]]` is the C2f of 256 to 256
    channels with one bottleneck.

    Shape: (b, channels, h, w) to (b, out_channels, h, w)
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        repeats: int,
        layer: Mapping[str, Sequence[Any]],
        plugged: Plugged,
    ) -> None:
        super().__init__()
        ((kind, args),) = layer.items()
        self.layer = getattr(modules, kind)(channels, out_channels, repeats, *args)
        for parent in list(self.layer.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Bottleneck | CIB):
                    parent.add_module(name, PluggedBottleneck(child, plugged))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer."""
        return self.layer(x)


class PluggedBottleneck(ZooBlock):
    """A bottleneck of ultralytics, its parameters under their names, and a block behind it.

    Shape: (b, channels, h, w) to (b, out_channels, h, w)
    """

    def __init__(self, bottleneck: Bottleneck | CIB, plugged: Plugged) -> None:
        last = bottleneck.cv2 if isinstance(bottleneck, Bottleneck) else bottleneck.cv1[-1]
        super().__init__(last.conv.out_channels, plugged)
        self.convolutions = [name for name, _ in bottleneck.named_children()]
        for name in self.convolutions:
            self.add_module(name, bottleneck.get_submodule(name))
        self.add = bottleneck.add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, apply the block, add the input where the bottleneck does."""
        out = x
        for name in self.convolutions:
            out = self.get_submodule(name)(out)
        out = super().forward(out)
        return x + out if self.add else out


def detector(named: Named, num_classes: int = 80) -> DetectionModel:
    """Build a detector with random weights.

    Shape: (b, 3, h, w), sides multiples of 32, to ((b, 4 + num_classes, anchors), raw head outputs)
    Raises: ZooError if the block does not fit the channels, or the maps of a 256 x 256 image.
    """
    try:
        return DetectionModel(layers_of(named, num_classes), verbose=False)
    except ZooError as error:
        if named.block is None or named.block.any_size:
            raise
        raise ZooError(
            f"{error} (ultralytics runs each network at 256x256 to learn its strides)"
        ) from error


def layers_of(named: Named, num_classes: int = 80) -> Layers:
    """List the layers of a detector, with its block if it has one, as ultralytics reads them."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ZooError(f"{named}: num_classes={num_classes!r}; expected a whole number from 1 up")
    layers = plain(named.spec.name)
    layers["nc"] = num_classes
    layers["yaml_file"] = f"{file_name(named)}.yaml"  # names what is exported and printed
    if named.block is not None:
        plug(layers, named)
    return layers


def plain(name: str) -> Layers:
    """Read the layers of a detector from ultralytics, at the scale that the name ends in."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    found = [*folder.rglob(f"{name}.yaml"), *folder.rglob(f"{name[:-1]}.yaml")]
    if not found:
        raise ZooError(f"this version of ultralytics has no {name}; pip install -U ultralytics")
    layers: Layers = yaml.safe_load(found[0].read_text(encoding="utf-8"))
    scale = name[-1]
    depth, width, most = layers.pop("scales")[scale]
    for row in (*layers["backbone"], *layers["head"]):
        _, repeats, kind, args = row
        if repeats > 1:
            row[1] = max(round(repeats * depth), 1)
        if kind in SCALED:
            args[0] = make_divisible(min(args[0], most) * width, 8)
        if kind == "C3k2" and scale in "mlx":
            args[1:2] = [True]  # as the parser does where it knows the scale
        if kind == "C3k2" and args[1] is False:
            # The parser would set it under a file name with m, l or x. Of another scale than the
            # one that is here it knows no multipliers, and stops.
            layers |= {"scale": scale, "scales": {scale: [1.0, 1.0, math.inf]}}
    return layers


def plug(layers: Layers, named: Named) -> None:
    """Put the block of a name where it says, with the options of `Named.options_at`."""
    backbone, head = layers["backbone"], layers["head"]
    stages = [i for i, row in enumerate(backbone) if row[2] in STAGES]
    if named.placement == "c2f":
        row, before = backbone[stages[-1]], backbone[stages[-1] - 1]
        channels, (out, *args) = before[3][0], row[3]
        row[1:] = [1, "ZooBottlenecks", [channels, out, row[1], {row[2]: args}, _plugged(named, 5)]]
        return
    behind = {
        "p5": [i for i, row in enumerate(backbone) if row[2] == "SPPF"],
        "backbone": stages[-3:],
        "neck": head[-1][0],
    }[named.placement]
    for level, at in reversed([*zip(named.levels, behind, strict=True)]):
        _insert(layers, at, _plugged(named, level))


def _plugged(named: Named, level: int) -> Plugged:
    assert named.block is not None  # noqa: S101 - narrows the type
    return {named.block.name: named.options_at(level)}


def _insert(layers: Layers, at: int, plugged: Plugged) -> None:
    """Put a block behind layer `at`; what read the layer reads the block."""
    rows = [*layers["backbone"], *layers["head"]]
    for row in rows[at + 1 :]:
        sources = row[0] if isinstance(row[0], list) else [row[0]]
        moved = [source + 1 if source >= at else source for source in sources]
        row[0] = moved if isinstance(row[0], list) else moved[0]
    inserted = [-1, 1, "ZooBlock", [rows[at][3][0], plugged]]
    before = len(layers["backbone"])
    part, place = ("backbone", at + 1) if at < before else ("head", at + 1 - before)
    layers[part].insert(place, inserted)


def as_yaml(named: Named, num_classes: int = 80) -> str:
    """Write the YAML from which `ultralytics.YOLO` builds the detector, after `import zoo`."""
    layers = layers_of(named, num_classes)
    lines = [f"# {named}, at its scale, from ultralytics {ultralytics.__version__}"]
    if named.block is not None:
        own = named.block.module.startswith("zoo.")
        also = "" if own else f" and zoo.load_plugin(...) for {named.block.source}"
        lines.append(f"# import zoo{also}, before YOLO(this file)")
    facts = {key: layers[key] for key in ("nc", "scales") if key in layers}
    lines.append(yaml.safe_dump(facts, sort_keys=False).strip())
    number = 0
    for part in ("backbone", "head"):
        lines += ["", f"{part}:", "  # [from, repeats, module, arguments]"]
        for row in layers[part]:
            text = yaml.safe_dump(_as_lists(row), default_flow_style=True, width=1000)
            lines.append(f"  - {text.strip()} # {number}")
            number += 1
    return "\n".join(lines) + "\n"


def _as_lists(value: Any) -> Any:
    """Replace tuples, which safe YAML does not have."""
    if isinstance(value, dict):
        return {key: _as_lists(inner) for key, inner in value.items()}
    return [_as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def file_name(named: Named) -> str:
    """Name of a detector without what file systems mind."""
    return re.sub(r"[^\w+@=,.-]+", "_", str(named)).strip("_")


def trainable(
    named: Named, *, num_classes: int = 80, weights: str | os.PathLike[str] | None = None
) -> ultralytics.YOLO:
    """Make the `ultralytics.YOLO` of a detector, whose weights its training starts from.

    Raises:
        ZooError: the weights do not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{file_name(named)}.yaml"
        file.write_text(as_yaml(named, num_classes), encoding="utf-8")
        yolo = ultralytics.YOLO(file, task="detect")
    yolo.model.yaml["yaml_file"] = yolo.model.yaml_file = file.name
    yolo.cfg = yolo.model_name = yolo.overrides["model"] = file.name
    if weights is not None:
        base = _read(Path(weights))
        transfer(yolo.model, base.state_dict())
        if len(base.names) == num_classes:
            yolo.model.names = copy.copy(base.names)
    yolo.ckpt = {"model": yolo.model}  # says that the weights are to be kept
    return yolo


def _read(weights: Path) -> DetectionModel:
    """Read a checkpoint of ultralytics; it fetches those of its own that are not there."""
    if weights.suffix != ".pt":
        raise ZooError(f"weights {weights}: expected a checkpoint of ultralytics, e.g. best.pt")
    if not weights.is_file() and str(weights) not in GITHUB_ASSETS_NAMES:
        raise ZooError(f"weights {weights}: there is no such file")
    try:
        model = ultralytics.YOLO(weights).model
    except TypeError as error:
        raise ZooError(f"weights {weights}: no checkpoint of ultralytics: {error}") from error
    if not isinstance(model, DetectionModel):
        raise ZooError(f"weights {weights}: a {type(model).__name__}; expected a detector")
    return model


def transfer(model: DetectionModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights of the plain detector, or of the same one, into a detector with a block.

    The classifiers of the head may be of another number of classes; they are left as they are.

    Raises:
        ZooError: other weights have another shape or are missing.
    """
    own = model.state_dict()
    same = weights.keys() == own.keys()
    renamed = weights if same else dict(_behind_blocks(model, weights))
    fits = {k: v for k, v in renamed.items() if k in own and own[k].shape == v.shape}
    head = f"model.{len(model.model) - 1}."
    missing = [
        key
        for key in own
        if key not in fits
        and (same or ".block." not in key)
        and not re.match(rf"{head}(one2one_)?cv3\.", key)
    ]
    if missing:
        some = ", ".join(missing[:3])
        raise ZooError(
            f"the weights do not fit {model.yaml['yaml_file']}: {len(missing)} of {len(own)} are "
            f"missing or of another shape, e.g. {some}; give those of the same detector and scale"
        )
    model.load_state_dict(fits, strict=False)


def _behind_blocks(
    model: DetectionModel, weights: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights of the plain detector under the names that they have in this one."""
    places = []
    for i, layer in enumerate(model.model):
        if not isinstance(layer, ZooBlock):
            places.append(f"{i}.layer." if isinstance(layer, ZooBottlenecks) else f"{i}.")
    for key, value in weights.items():
        _, number, rest = key.split(".", 2)
        if int(number) < len(places):
            yield f"model.{places[int(number)]}{rest}", value


# The parser of ultralytics looks layers up among the names of its module and has no hook for
# more. Behind a layer that it does not know it keeps the channel count, and does not tell the
# layer, so the YAML carries it.
for _layer in (ZooBlock, ZooBottlenecks):
    setattr(tasks, _layer.__name__, _layer)
