"""Efficient multi-scale attention: groups of channels gated along both axes and by place."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("ema", source="EMA, arXiv 2305.13563")
class EfficientMultiScaleAttention(nn.Module):
    """EMA: weighs the places of each group of channels by two branches that meet.

    One branch gates the group by the means of its rows and columns, the other is a 3 x 3
    convolution; each one's pooled channels weigh the other's map. All groups share the weights.

    Source: Ouyang et al. 2023, https://arxiv.org/abs/2305.13563, section 3; state-dict keys of
    YOLOonMe/EMA-attention-module at afc37ec.
    Args:
        dim: channels; a multiple of `groups`.
        groups: groups of channels; YOLO has 8, the official code 32 by default.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim is no multiple of the groups.
    """

    def __init__(self, dim: int, *, groups: int = 8) -> None:
        super().__init__()
        if groups < 1 or dim % groups:
            raise ZooError(f"dim={dim} is not a multiple of groups={groups}")
        self.groups, group_dim = groups, dim // groups
        self.gn = nn.GroupNorm(group_dim, group_dim)
        self.conv1x1 = nn.Conv2d(group_dim, group_dim, 1)
        self.conv3x3 = nn.Conv2d(group_dim, group_dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the places of each group."""
        h, w = x.shape[-2:]
        group = rearrange(x, "b (g c) h w -> (b g) c h w", g=self.groups)
        means = torch.cat((group.mean(3), group.mean(2)), 2)[..., None]  # (b g, c, h + w, 1)
        rows, columns = self.conv1x1(means).sigmoid().split((h, w), 2)
        axial = self.gn(group * rows * columns.transpose(2, 3))
        local = self.conv3x3(group)
        weights = _met(axial, local) + _met(local, axial)
        out = group * rearrange(weights, "bg 1 (h w) -> bg 1 h w", h=h).sigmoid()
        return rearrange(out, "(b g) c h w -> b (g c) h w", g=self.groups)


def _met(pooled: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Weigh the places of one map by the pooled channels of another, (b, 1, h * w)."""
    query = pooled.mean((2, 3)).softmax(1)[:, None]
    return query @ places.flatten(2)


@reference("EMA")
def ema(*, channels: int, c2: int | None = None, factor: int = 32) -> EfficientMultiScaleAttention:
    """Build the module whose state dict the official class has; it ignores `c2` too."""
    return EfficientMultiScaleAttention(channels, groups=factor)
