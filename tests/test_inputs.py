"""Inputs made of photographs, files and noise."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from datbench.inputs import GREY, IMAGENET_MEAN, IMAGENET_STD, load_input, photographs
from datbench.records import Workload


def make(shape, **options):
    return Workload(device="cpu", input_shape=shape, **options)


def test_the_default_is_a_real_photograph():
    assert [path.name for path in photographs()] == ["bus.jpg", "zidane.jpg"]
    batch = load_input(make((3, 64, 96), batch_size=3), "classify")
    assert batch.shape == (3, 3, 64, 96)
    assert torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])
    assert batch.std() > 0.5
    assert -2.2 < batch.min() < batch.max() < 2.7  # ImageNet's range


def test_a_classifier_gets_the_photograph_normalised(tmp_path):
    colour = (255, 128, 0)
    Image.new("RGB", (7, 5), colour).save(tmp_path / "a.png")
    x = load_input(make((3, 4, 6), image=str(tmp_path / "a.png")), "classify")[0]
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip(colour, IMAGENET_MEAN, IMAGENET_STD, strict=True)
    ]
    torch.testing.assert_close(x, torch.tensor(expected)[:, None, None].expand(3, 4, 6))


def test_a_classifier_gets_every_pixel_in_its_place(tmp_path):
    image = Image.new("RGB", (6, 4))
    image.putdata([(i * 10, 0, 0) for i in range(24)])
    image.save(tmp_path / "a.png")
    x = load_input(make((3, 4, 6), image=str(tmp_path / "a.png")), "classify")[0]
    red = (x[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255
    torch.testing.assert_close(red, torch.arange(24.0).reshape(4, 6) * 10, atol=1e-3, rtol=0)


def test_a_detector_gets_the_photograph_letterboxed():
    x = load_input(make((3, 64, 64)), "detect")[0]  # 810 x 1080, taller than wide
    assert (x[:, :, :8] == GREY).all()
    assert (x[:, :, -8:] == GREY).all()
    assert (x[:, :, 8:56] != GREY).any(0).all(1).any()
    assert 0 <= x.min() < x.max() <= 1


def test_a_block_gets_neighbouring_pixels_as_channels(tmp_path):
    image = Image.new("RGB", (8, 6))
    image.putdata([(i * 5, 0, 0) for i in range(48)])
    image.save(tmp_path / "a.png")
    work = make((10, 3, 4), image=str(tmp_path / "a.png"))  # 2 x 2 pixels in 12 channels
    x = load_input(work, "block")[0]
    assert x.shape == (10, 3, 4)
    red = x[:4, 1, 2] * 0.229 + 0.485
    expected = torch.tensor([(row * 8 + column) * 5 for row in (2, 3) for column in (4, 5)])
    torch.testing.assert_close(red, expected / 255, atol=1e-3, rtol=0)


@pytest.mark.parametrize("task", ["classify", "detect"])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_for_other_than_three_channels_gets_as_many(task, channels):
    x = load_input(Workload(device="cpu", input_shape=(channels, 12, 16)), task)
    assert x.shape == (1, channels, 12, 16)


def test_noise_follows_from_the_seed():
    first, again, other = (
        load_input(make((5, 8, 8), image="noise", seed=s, batch_size=2), "block") for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_kind_of_image_is_read(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (20, 10)).save(path)
    assert load_input(make((3, 32, 32), image=str(path)), "classify").isfinite().all()
