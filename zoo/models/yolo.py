"""YOLO detectors, built by ultralytics, with an attention block of the zoo plugged in or not."""

from __future__ import annotations

import copy
from typing import Any

import torch
import ultralytics.nn.tasks
from torch import nn
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.ops import make_divisible

from zoo.build import create_block
from zoo.registry import ZooError
from zoo.spec import model


class ZooBlock(nn.Module):
    """A block of the zoo as a layer of an ultralytics YAML: `[-1, 1, ZooBlock, [dat, 256, {}]]`.

    Shape: (b, channels, h, w) to (b, channels, h, w)
    """

    def __init__(self, name: str, channels: int, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.block = create_block(name, channels, **(options or {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return self.block(x)


def register() -> None:
    """Add `ZooBlock` to the names in which ultralytics looks up the layers of a YAML.

    Its parser has no hook. It keeps the channel count for a layer that it does not know, and
    does not tell the layer, so the YAML carries it.
    """
    ultralytics.nn.tasks.ZooBlock = ZooBlock


def detector(
    name: str,
    *,
    num_classes: int = 80,
    plugged: tuple[str, dict[str, Any], str] | None = None,
) -> nn.Module:
    """Build an ultralytics detector with random weights.

    Args:
        name: of the YAML that ultralytics ships, e.g. "yolov8n".
        num_classes: classes of the detection head.
        plugged: block, its options and its placement; None for the detector as it is.
    Shape: (b, 3, h, w) to ((b, 4 + num_classes, anchors), raw head outputs), sides multiples of 32
    """
    register()
    layers = {**config(name), "nc": num_classes}
    if plugged is not None:
        layers = with_block(layers, *plugged)
    return DetectionModel(layers, verbose=False)


def config(name: str) -> dict[str, Any]:
    """Read the YAML of a detector, with its scale, from ultralytics."""
    return yaml_model_load(f"{name}.yaml")


def with_block(
    layers: dict[str, Any], block: str, options: dict[str, Any], placement: str
) -> dict[str, Any]:
    """Insert a block into a detector's layers and shift the indices that point behind it.

    Args:
        layers: as `config` returns it.
        block: name of the block.
        options: its options.
        placement: "p5" for behind SPPF.
    """
    if placement != "p5":
        raise ZooError(f"no placement {placement!r}; there is: p5")
    layers = copy.deepcopy(layers)
    backbone = layers["backbone"]
    at = 1 + max(i for i, (_, _, kind, _) in enumerate(backbone) if kind == "SPPF")
    channels = _scaled(layers, backbone[at - 1][3][0])
    backbone.insert(at, [-1, 1, "ZooBlock", [block, channels, options]])

    def shifted(source: int) -> int:
        return source + 1 if source >= at - 1 else source  # SPPF's readers take the block

    for layer in (*backbone[at + 1 :], *layers["head"]):
        source = layer[0]
        layer[0] = [shifted(s) for s in source] if isinstance(source, list) else shifted(source)
    return layers


def _scaled(layers: dict[str, Any], channels: int) -> int:
    """Channels of a layer at the detector's scale, by the rule of ultralytics' parser."""
    _, width, most = layers["scales"][layers["scale"]]
    return make_divisible(min(channels, most) * width, 8)


@model(
    "yolov8n",
    aliases=("yolov8",),
    family="yolov8",
    source="ultralytics yolov8.yaml, AGPL-3.0",
    task="detect",
    img_size=640,
    params=3_157_200,
    published_params=3.2e6,
    published_macs=4.35e9,
    published_source="ultralytics docs: 8.7 GFLOPs of the fused model, two to a multiply-add",
)
def yolov8n(*, num_classes: int = 80) -> nn.Module:
    """YOLOv8 nano."""
    return detector("yolov8n", num_classes=num_classes)
