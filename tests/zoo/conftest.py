"""The weight recipe of the goldens, and the goldens themselves."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

GOLDENS = Path(__file__).parents[1] / "goldens"


def standard_normal(name: str, shape: Sequence[int]) -> np.ndarray:
    """Numbers that depend on a name and a shape alone."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def recipe(name: str, shape: Sequence[int]) -> np.ndarray:
    """Value of the parameter or running statistic of this name and shape."""
    z = standard_normal(name, shape)
    last = name.rpartition(".")[2]
    if last in ("running_mean", "bias"):
        return 0.1 * z
    if last == "running_var":
        return 0.5 + np.abs(z)
    if last == "weight":
        norm = len(shape) in (1, 3)
        return 1 + 0.1 * z if norm else z / math.sqrt(max(1, math.prod(shape[1:])))
    if last in ("rate1", "rate2"):
        return 0.5 + 0.1 * z
    return 0.5 * z


def filled(module: nn.Module) -> nn.Module:
    """Overwrite float parameters and running statistics by the recipe; switch to eval."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
            if tensor.is_floating_point() and (name in parameters or statistic):
                tensor.copy_(torch.from_numpy(recipe(name, tensor.shape)))
    return module.eval()


@pytest.fixture
def fill() -> Callable[[nn.Module], nn.Module]:
    return filled


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Seeded standard-normal float32 tensors: noise("name", 2, 3, 4)."""
    return lambda name, *shape: torch.from_numpy(standard_normal(name, shape).astype(np.float32))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The golden case named by the test's parameter."""
    return json.loads((GOLDENS / f"{request.param}.json").read_text())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        pattern = "dattn_*.json" if "deformable" in metafunc.function.__name__ else "*.json"
        cases = sorted(path.stem for path in GOLDENS.glob(pattern))
        metafunc.parametrize("golden", cases, indirect=True)


# The two photographs that ultralytics ships, with boxes checked by eye.
CLASSES = ["person", "bus", "tie"]
# Class, then left, top, right, bottom in pixels.
BOXES = {
    "bus": [(0, 48, 398, 245, 902), (0, 669, 392, 810, 877), (0, 221, 405, 345, 860),
            (0, 0, 550, 64, 874), (1, 20, 229, 806, 756)],
    "zidane": [(0, 123, 197, 1113, 712), (0, 745, 41, 1147, 712), (2, 437, 436, 527, 717)],
}  # fmt: skip


def write_photographs(folder: Path, copies: int) -> Path:
    """Write images, labels and the YAML that names them; every other copy is mirrored."""
    from PIL import Image, ImageOps
    from ultralytics.utils import ASSETS

    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
    for name, boxes in BOXES.items():
        photograph = Image.open(ASSETS / f"{name}.jpg").convert("RGB")
        w, h = photograph.size
        for i in range(copies):
            mirrored = i % 2 == 1
            image = ImageOps.mirror(photograph) if mirrored else photograph
            lines = []
            for kind, left, top, right, bottom in boxes:
                x = (left + right) / 2 / w
                box = (1 - x if mirrored else x, (top + bottom) / 2 / h)
                size = ((right - left) / w, (bottom - top) / h)
                lines.append(" ".join(map(str, (kind, *box, *size))))
            part = "val" if i == 0 else "train"
            image.save(folder / "images" / part / f"{name}{i}.jpg", quality=90)
            (folder / "labels" / part / f"{name}{i}.txt").write_text("\n".join(lines))
    data = folder / "photographs.yaml"
    facts = {"path": str(folder), "train": "images/train", "val": "images/val", "names": CLASSES}
    data.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in facts.items()))
    return data


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set for ultralytics: 16 photographs to train on, 2 to validate."""
    return write_photographs(tmp_path_factory.mktemp("photographs"), copies=9)
