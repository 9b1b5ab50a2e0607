"""Multi-scale convolutional attention of SegNeXt: a gate from depthwise strips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.layers import depthwise
from zoo.reference import reference
from zoo.spec import block


@block("msca", source="SegNeXt, arXiv 2209.08575")
class MultiScaleConvAttention(nn.Module):
    """MSCA: multiplies by a gate that depthwise strips of three lengths make.

    Source: Guo et al. 2022, https://arxiv.org/abs/2209.08575, section 3.1; state-dict keys of
    `AttentionModule` in the official SegNeXt code.
    Args:
        dim: channels.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv0 = depthwise(dim, 5)
        self.conv0_1, self.conv0_2 = depthwise(dim, (1, 7)), depthwise(dim, (7, 1))
        self.conv1_1, self.conv1_2 = depthwise(dim, (1, 11)), depthwise(dim, (11, 1))
        self.conv2_1, self.conv2_2 = depthwise(dim, (1, 21)), depthwise(dim, (21, 1))
        self.conv3 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x` by its surroundings."""
        near = self.conv0(x)
        strips = (
            near
            + self.conv0_2(self.conv0_1(near))
            + self.conv1_2(self.conv1_1(near))
            + self.conv2_2(self.conv2_1(near))
        )
        return self.conv3(strips) * x


@block("msca_layer", source="SegNeXt, arXiv 2209.08575")
class MultiScaleConvLayer(nn.Module):
    """SegNeXt's attention: MSCA between two projections; adds the input.

    Source: as `MultiScaleConvAttention`; state-dict keys of the official `SpatialAttention`.
    Args:
        dim: channels.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_1, self.proj_2 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.spatial_gating_unit = MultiScaleConvAttention(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project, gate, project back, add."""
        return self.proj_2(self.spatial_gating_unit(F.gelu(self.proj_1(x)))) + x


@reference("AttentionModule (MSCA)")
def attention_module(*, dim: int) -> MultiScaleConvAttention:
    """Build the module whose state dict the official class has."""
    return MultiScaleConvAttention(dim)


@reference("SpatialAttention")
def spatial_attention(*, d_model: int) -> MultiScaleConvLayer:
    """Build the module whose state dict the official class has."""
    return MultiScaleConvLayer(d_model)
