"""The input of a workload: photographs, noise, or feature maps made of photographs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from datbench.errors import UserError
from datbench.records import Workload

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = 114 / 255  # what YOLO pads with
# What is on the photographs: a class of ImageNet, and boxes drawn by hand, each with its class of
# COCO, then left, top, right and bottom in pixels.
LABELS = {"bus.jpg": 874, "zidane.jpg": 834}
BOXES = {
    "bus.jpg": (
        (5, 3, 229, 806, 745), (0, 49, 399, 245, 903), (0, 222, 405, 345, 858),
        (0, 668, 391, 810, 879), (0, 0, 551, 64, 874),
    ),
    "zidane.jpg": ((0, 743, 42, 1148, 715), (0, 122, 197, 1115, 715), (27, 437, 437, 525, 717)),
}  # fmt: skip
RANDOM_BOXES = 4  # in an image whose boxes nobody has drawn


def check_image(image: str) -> None:
    """Refuse what cannot be an input, before anything is built.

    Raises:
        UserError: the file is missing or is no image.
    """
    if image in ("photo", "noise"):
        return
    open_image(Path(image))


def open_image(path: Path) -> Image:
    """Read an image file as RGB.

    Raises:
        UserError: the file is missing or is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise UserError(f"image {path} is not a file; give a photograph, or 'noise'")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, ImportError) as error:
        # ImportError: ultralytics, once imported, makes Pillow look for a HEIF reader
        raise UserError(f"image {path} cannot be read as an image: {error}") from error


def photographs() -> list[Path]:
    """The photographs that ultralytics ships."""
    found = importlib.util.find_spec("ultralytics")
    if found is None or not found.submodule_search_locations:
        raise UserError("ultralytics is not installed; it ships the default photographs")
    assets = Path(found.submodule_search_locations[0]) / "assets"
    return [assets / "bus.jpg", assets / "zidane.jpg"]


def load_input(work: Workload, task: str) -> torch.Tensor:
    """Make the batch on the CPU, in float32: noise, or photographs as `prepared` gives them.

    Shape: (batch_size, *work.input_shape)
    """
    import torch

    channels, h, w = work.input_shape
    if work.image == "noise":
        generator = torch.Generator().manual_seed(work.seed)
        return torch.randn(work.batch_size, channels, h, w, generator=generator)
    images = [_prepared(image, task, channels, h, w) for image in opened(work)]
    return torch.stack([images[i % len(images)] for i in range(work.batch_size)])


def opened(work: Workload) -> list[Image]:
    """Read the photographs of a workload, as RGB."""
    return [open_image(path) for path in _paths(work)]


def prepared(images: Sequence[Image], work: Workload, task: str) -> Iterator[torch.Tensor]:
    """Make what a network takes of each image of a batch, on the CPU, in float32.

    Classifiers get the whole photograph resized, normalised by ImageNet's mean and deviation;
    detectors get it letterboxed, from 0 to 1. Where the input has more than three channels, as
    that of blocks has, they are neighbouring pixels of the normalised photograph. A batch takes
    the photographs in turn.

    Shape: `work.input_shape` each
    """
    for i in range(work.batch_size):
        yield _prepared(images[i % len(images)], task, *work.input_shape)


def load_targets(work: Workload, task: str) -> dict[str, torch.Tensor]:
    """Make what a training step compares the outputs with, on the CPU.

    Classifiers get "labels"; detectors "cls", "bboxes" (centre, width and height relative to the
    input) and "batch_idx", as ultralytics' losses take them. They are true for the photographs
    that ultralytics ships, and drawn at random, by the seed, for all else.

    Shape: labels (b,); cls (n, 1), bboxes (n, 4), batch_idx (n,) for n boxes in the batch
    """
    import torch

    generator = torch.Generator().manual_seed(work.seed)
    names = [path.name for path in _paths(work)] if work.image == "photo" else [""]
    of = [names[i % len(names)] for i in range(work.batch_size)]
    if task != "detect":
        drawn = torch.randint(1000, (work.batch_size,), generator=generator).tolist()
        return {"labels": torch.tensor([LABELS.get(n, d) for n, d in zip(of, drawn, strict=True)])}
    boxes = [_boxes(name, work, generator) for name in of]
    index = [torch.full((len(found),), float(i)) for i, found in enumerate(boxes)]
    every = torch.cat(boxes)
    return {"cls": every[:, :1], "bboxes": every[:, 1:], "batch_idx": torch.cat(index)}


def _paths(work: Workload) -> list[Path]:
    return photographs() if work.image == "photo" else [Path(work.image)]


def _boxes(name: str, work: Workload, generator: torch.Generator) -> torch.Tensor:
    """Class, centre x and y, width and height of each box, the last four relative to the input."""
    import torch

    if name not in BOXES:
        drawn = torch.rand(RANDOM_BOXES, 5, generator=generator)
        classes = (80 * drawn[:, :1]).floor()
        return torch.cat((classes, 0.25 + 0.5 * drawn[:, 1:3], 0.1 + 0.4 * drawn[:, 3:]), 1)
    _, h, w = work.input_shape
    image = open_image(next(path for path in photographs() if path.name == name))
    rows, columns, top, left = _place(image, h, w)
    scale_x, scale_y = columns / image.width, rows / image.height
    found = []
    for kind, x0, y0, x1, y1 in BOXES[name]:
        centre = ((x0 + x1) / 2 * scale_x + left, (y0 + y1) / 2 * scale_y + top)
        size = ((x1 - x0) * scale_x, (y1 - y0) * scale_y)
        found.append([kind, centre[0] / w, centre[1] / h, size[0] / w, size[1] / h])
    return torch.tensor(found)


def _prepared(image: Image, task: str, channels: int, h: int, w: int) -> torch.Tensor:
    import torch
    import torch.nn.functional as F

    if task == "detect" and channels == 3:
        return _letterboxed(image, h, w)
    patch = math.ceil(math.sqrt(channels / 3))
    pixels = _pixels(image, h * patch, w * patch)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    return F.pixel_unshuffle(pixels, patch)[:channels]


def _letterboxed(image: Image, h: int, w: int) -> torch.Tensor:
    import torch

    rows, columns, top, left = _place(image, h, w)
    canvas = torch.full((3, h, w), GREY)
    canvas[:, top : top + rows, left : left + columns] = _pixels(image, rows, columns)
    return canvas


def _place(image: Image, h: int, w: int) -> tuple[int, int, int, int]:
    """Rows, columns, top and left of a letterboxed image in an input of h x w."""
    scale = min(h / image.height, w / image.width)
    rows, columns = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    return rows, columns, (h - rows) // 2, (w - columns) // 2


def _pixels(image: Image, h: int, w: int) -> torch.Tensor:
    """Resize to h x w and return (3, h, w) from 0 to 1."""
    import numpy as np
    import torch
    from PIL.Image import Resampling

    array = np.asarray(image.resize((w, h), Resampling.BICUBIC))
    return torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
