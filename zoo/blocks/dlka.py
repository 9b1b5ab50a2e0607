"""Deformable large kernel attention: a gate from convolutions whose taps move."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import DeformConv2d, deform_conv2d

from zoo.reference import reference
from zoo.spec import block


@block("dlka", source="D-LKA, arXiv 2309.00121")
class DeformableLargeKernelAttention(nn.Module):
    """D-LKA: a gate of two depthwise convolutions with moved taps; adds the input.

    The first is 5 x 5, the second 7 x 7 at dilation 3: together they see 23 x 23 pixels.

    Source: Azad et al. 2024, https://arxiv.org/abs/2309.00121, section 3; state-dict keys of
    `deformable_LKA_Attention` in xmindflow/deformableLKA at d2d2992.
    Args:
        dim: channels.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1, self.proj_2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.spatial_gating_unit = nn.Sequential(
            OrderedDict(
                conv0=DeformableDepthwise(dim, 5),
                conv_spatial=DeformableDepthwise(dim, 7, dilation=3),
                conv1=nn.Conv2d(dim, dim, 1),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate a projection of `x`, project back, add."""
        u = F.gelu(self.proj_1(x))
        return self.proj_2(u * self.spatial_gating_unit(u)) + x


class DeformableDepthwise(nn.Module):
    """A depthwise convolution whose taps a dense one moves, for all channels alike.

    Args:
        dim: channels.
        kernel_size: side of the kernel; odd.
        dilation: pixels between its taps.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    portable_impl = "sampled"

    def __init__(self, dim: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.impl = "stock"
        padding, moves = dilation * (kernel_size // 2), 2 * kernel_size**2
        self.offset_net = nn.Conv2d(dim, moves, kernel_size, 1, padding, dilation)
        self.deform_conv = DeformConv2d(
            dim, dim, kernel_size, 1, padding, dilation, dim, bias=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Move the taps and convolve, in float32: half types round the places of a large map."""
        layer, exact = self.deform_conv, torch.promote_types(x.dtype, torch.float32)
        pixels, offset = x.to(exact), self.offset_net(x).to(exact)
        weight = layer.weight.to(exact)
        if self.impl == "sampled" or torch.onnx.is_in_onnx_export():
            out = sampled_conv2d(pixels, offset, weight, layer.padding[0], layer.dilation[0])
        else:
            out = deform_conv2d(
                pixels, offset, weight, padding=layer.padding, dilation=layer.dilation
            )
        return out.to(x.dtype)


def sampled_conv2d(
    x: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, padding: int, dilation: int
) -> torch.Tensor:
    """Depthwise deformable convolution by bilinear sampling, for files that have no other way.

    Args:
        x: (b, c, h, w).
        offset: (b, 2 * k * k, h, w), y before x of each tap.
        weight: (c, 1, k, k).
        padding: zeros on each side, so many that the map keeps its size.
        dilation: pixels between taps.
    Shape: (b, c, h, w)
    """
    (b, c, h, w), k = x.shape, weight.shape[-1]
    along = torch.arange(k, device=x.device, dtype=x.dtype) * dilation - padding
    taps = torch.stack(torch.meshgrid(along, along, indexing="ij")).view(2, k * k, 1, 1)
    rows, columns = (torch.arange(side, device=x.device, dtype=x.dtype) for side in (h, w))
    moved_y, moved_x = (offset.view(b, k * k, 2, h, w).transpose(1, 2) + taps).unbind(1)
    y, xs = moved_y + rows[:, None], moved_x + columns
    grid_xy = torch.stack(((2 * xs + 1) / w - 1, (2 * y + 1) / h - 1), -1)
    sampled = F.grid_sample(x, grid_xy.view(b, k * k * h, w, 2), align_corners=False)
    return (sampled.view(b, c, k * k, h, w) * weight.view(c, k * k, 1, 1)).sum(2)


@reference("deformable_LKA_Attention")
def deformable_lka_attention(*, d_model: int) -> DeformableLargeKernelAttention:
    """Build the module whose state dict the official class has."""
    return DeformableLargeKernelAttention(d_model)
