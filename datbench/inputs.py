"""The input of a workload: photographs, noise, or feature maps made of photographs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

from datbench.errors import UserError
from datbench.records import Workload

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = 114 / 255  # what YOLO pads with


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
    """Make the batch on the CPU, in float32.

    Classifiers get the whole photograph resized, normalised by ImageNet's mean and deviation;
    detectors get it letterboxed, from 0 to 1. Where the input has more than three channels, as
    that of blocks has, they are neighbouring pixels of the normalised photograph. A batch takes
    the photographs in turn.

    Shape: (batch_size, *work.input_shape)
    """
    import torch

    channels, h, w = work.input_shape
    if work.image == "noise":
        generator = torch.Generator().manual_seed(work.seed)
        return torch.randn(work.batch_size, channels, h, w, generator=generator)
    paths = photographs() if work.image == "photo" else [Path(work.image)]
    images = [_prepared(open_image(path), task, channels, h, w) for path in paths]
    return torch.stack([images[i % len(images)] for i in range(work.batch_size)])


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

    scale = min(h / image.height, w / image.width)
    rows, columns = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    top, left = (h - rows) // 2, (w - columns) // 2
    canvas = torch.full((3, h, w), GREY)
    canvas[:, top : top + rows, left : left + columns] = _pixels(image, rows, columns)
    return canvas


def _pixels(image: Image, h: int, w: int) -> torch.Tensor:
    """Resize to h x w and return (3, h, w) from 0 to 1."""
    import numpy as np
    import torch
    from PIL.Image import Resampling

    array = np.asarray(image.resize((w, h), Resampling.BICUBIC))
    return torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
