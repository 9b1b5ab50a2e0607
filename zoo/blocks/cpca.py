"""Channel prior convolutional attention: a channel gate, then a spatial one made by strips."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from zoo.layers import depthwise
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("cpca", source="CPCA, arXiv 2306.05196")
class ChannelPriorAttention(nn.Module):
    """CPCA: gates the channels, then multiplies by a map that depthwise strips make.

    Source: Huang et al. 2023, https://arxiv.org/abs/2306.05196, section 3; state-dict keys of the
    official `RepBlock`, whose one 1 x 1 convolution does three jobs.
    Args:
        dim: channels.
        reduction: of the hidden channels of the channel gate.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if the reduction leaves no channel.
    """

    def __init__(self, dim: int, *, reduction: int = 4) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ZooError(f"reduction={reduction} leaves no channel of dim={dim}")
        hidden = dim // reduction
        self.ca = nn.Sequential(
            OrderedDict(fc1=nn.Conv2d(dim, hidden, 1), act=nn.ReLU(), fc2=nn.Conv2d(hidden, dim, 1))
        )
        self.dconv5_5 = depthwise(dim, 5)
        self.dconv1_7, self.dconv7_1 = depthwise(dim, (1, 7)), depthwise(dim, (7, 1))
        self.dconv1_11, self.dconv11_1 = depthwise(dim, (1, 11)), depthwise(dim, (11, 1))
        self.dconv1_21, self.dconv21_1 = depthwise(dim, (1, 21)), depthwise(dim, (21, 1))
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x` by channel, then by place."""
        x = F.gelu(self.conv(x))
        average, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * (self.ca(average).sigmoid() + self.ca(most).sigmoid())
        near = self.dconv5_5(x)
        strips = (
            near
            + self.dconv7_1(self.dconv1_7(near))
            + self.dconv11_1(self.dconv1_11(near))
            + self.dconv21_1(self.dconv1_21(near))
        )
        return self.conv(self.conv(strips) * x)


@reference("RepBlock (CPCA)")
def rep_block(
    *, in_channels: int, out_channels: int, channelAttention_reduce: int = 4
) -> ChannelPriorAttention:
    """Build the module whose state dict the official class has."""
    if in_channels != out_channels:
        raise ZooError(f"RepBlock: {in_channels} to {out_channels} channels; they must be equal")
    return ChannelPriorAttention(in_channels, reduction=channelAttention_reduce)
