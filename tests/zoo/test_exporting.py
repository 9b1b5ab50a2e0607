"""Blocks in the form in which files hold them, and batch norms folded away."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.ops import deform_conv2d

import zoo
from zoo.blocks.dlka import sampled_conv2d
from zoo.exporting import portable
from zoo.fusing import fuse
from zoo.registry import ZooError


@pytest.mark.parametrize(("kernel_size", "dilation"), [(5, 1), (7, 3)])
@pytest.mark.parametrize("size", [(9, 14), (20, 20)])
def test_sampling_is_deformable_convolution(kernel_size, dilation, size, noise):
    x = noise("x", 2, 4, *size).double()
    offset = 3 * noise("offset", 2, 2 * kernel_size**2, *size).double()
    weight = noise("weight", 4, 1, kernel_size, kernel_size).double()
    padding = dilation * (kernel_size // 2)
    found = sampled_conv2d(x, offset, weight, padding, dilation)
    expected = deform_conv2d(x, offset, weight, padding=padding, dilation=dilation)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["dat", "dat[version=1]", "dlka"])
def test_the_portable_form_gives_the_same_and_is_taken_back(name, fill, noise):
    block = fill(zoo.create_block(name, 32)).double()
    x = noise("x", 1, 32, 12, 14).double()
    forms = {name: module.impl for name, module in block.named_modules() if hasattr(module, "impl")}
    with torch.no_grad():
        expected = block(x)
        with portable(block):
            inside = {module.impl for module in block.modules() if hasattr(module, "portable_impl")}
            found = block(x)
    assert inside <= {"reference", "sampled"}
    assert {n: m.impl for n, m in block.named_modules() if hasattr(m, "impl")} == forms
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)


def test_the_portable_form_ends_with_an_error_too():
    block = zoo.create_block("dat", 32)
    with pytest.raises(RuntimeError, match="stop"), portable(block):
        raise RuntimeError("stop")
    assert block.impl == "fast"


class Net(nn.Module):
    """A convolution, and a norm that may not be the only one to take its output."""

    def __init__(self, twice=False, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3), norm(4), twice
        self.norm.running_mean += 0.3
        self.norm.running_var *= 2.0

    def forward(self, x):
        out = self.conv(x)
        return self.norm(out) + out if self.twice else self.norm(out)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_norm_is_folded_into_its_convolution(norm):
    model, x = Net(norm=norm).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert fuse(model, x) == 1
        torch.testing.assert_close(model(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_a_convolution_whose_output_is_used_twice_is_refused():
    with pytest.raises(ZooError, match="cannot be folded"):
        fuse(Net(twice=True).eval(), torch.randn(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["yolov8n", "yolov8n+sea", "yolov10n"])
def test_a_detectors_own_fusion_comes_first_and_blocks_after_it(name):
    model, x = zoo.create_model(name).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)[0]
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        gone = fuse(model, x)
        torch.testing.assert_close(model(x)[0], expected, rtol=1e-3, atol=1e-3)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert gone == norms - left > 50
    assert left == 0
