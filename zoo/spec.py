"""What the zoo knows of a model or a block before building it, and the two registries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo.registry import Registry, Spec, ZooError

PYRAMID = ("features_only", "out_indices")  # options that `create_model` itself takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """A network of the zoo.

    Args:
        family: networks of one paper or code base share it.
        source: where the architecture comes from, and its licence.
        task: "classify" (square, ImageNet normalised input) or "detect" (letterboxed, 0 to 1).
        img_size: side in pixels of the input it is meant for.
        multiple: each side of the input must be a multiple of this, in pixels.
        minimum: smallest side of the input in pixels.
        channels: of the input; None if it is not known.
        params: parameters of the official implementation, exactly.
        published_params: parameters as published, rounded.
        published_macs: multiply-adds for one image of `img_size`, as published.
        published_top1: ImageNet-1k top-1 accuracy in percent, as published.
        published_source: where the published figures stand.
        published_fused: whether the published multiply-adds are those of the network with its
            batch norms folded into the convolutions, by its own `fuse()`.
    """

    family: str = "external"
    source: str = ""
    task: str = "classify"
    img_size: int = 224
    multiple: int = 32
    minimum: int = 32
    channels: int | None = 3
    params: int | None = None
    published_params: float | None = None
    published_macs: float | None = None
    published_top1: float | None = None
    published_source: str = ""
    published_fused: bool = False

    @property
    def takes_blocks(self) -> bool:
        """Whether a block can be plugged in: it is one of ultralytics' detectors."""
        return self.module == "zoo.models.yolo"

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options; every classifier of the zoo takes those of a pyramid too.

        Raises:
            ZooError: an option is unknown.
        """
        if self.task == "classify":
            options = {k: v for k, v in options.items() if k not in PYRAMID}
        super().check_options(options)

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input size that the network cannot take.

        Raises:
            ZooError: a side is too small or not a multiple of `multiple`.
        """
        check_sides(self.name, height, width, self.minimum, self.multiple)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec(Spec):
    """An attention block of the zoo, (b, c, h, w) to (b, c, h, w).

    Args:
        source: where it comes from, and its licence.
        minimum: smallest side of the feature map.
        any_size: whether every map from `minimum` up works.
        level_option: option that keeps large maps affordable, see `zoo.names.Named.options_at`.
    """

    source: str = ""
    minimum: int = 1
    any_size: bool = True
    level_option: str = ""


def check_sides(name: str, height: int, width: int, minimum: int, multiple: int = 1) -> None:
    """Refuse a size with a side below `minimum` or off the `multiple`.

    Raises:
        ZooError: says what was given and what would work.
    """
    for side in (height, width):
        if side < minimum:
            raise ZooError(
                f"{name} needs an input of at least {minimum}x{minimum}; got {height}x{width}"
            )
        if side % multiple:
            near = max(minimum, round(side / multiple) * multiple)
            raise ZooError(
                f"{name} takes input sides that are multiples of {multiple}; "
                f"got {height}x{width}, try {near}"
            )


MODELS: Registry[ModelSpec] = Registry(
    "model", "zoo.models", "model", ModelSpec, group="datbench.models"
)
BLOCKS: Registry[BlockSpec] = Registry(
    "block", "zoo.blocks", "block", BlockSpec, group="datbench.blocks", leading=1
)
model = MODELS.register
block = BLOCKS.register
