"""Polarized self-attention: a channel gate and a spatial gate, side by side or in turn."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("psa", source="PSA, arXiv 2107.00782", aliases=("psa_p",))
class PolarizedSelfAttention(nn.Module):
    """PSA, parallel: the map under a gate of its channels plus that of its places.

    Source: Liu et al. 2021, https://arxiv.org/abs/2107.00782, parallel form; state-dict keys of
    `PSA_p` in DeLightCMU/PSA at 20e307a, which, unlike the paper's figure, has no softmax over the
    pooled query.
    Args:
        dim: channels; 2 or more.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim is too small.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 2
        if inner < 1:
            raise ZooError(f"dim={dim} has no half; polarized attention needs 2 or more")
        self.conv_q_right = nn.Conv2d(dim, 1, 1, bias=False)
        self.conv_v_right = nn.Conv2d(dim, inner, 1, bias=False)
        self.conv_up: nn.Module = nn.Conv2d(inner, dim, 1, bias=False)
        self.conv_q_left = nn.Conv2d(dim, inner, 1, bias=False)
        self.conv_v_left = nn.Conv2d(dim, inner, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x` twice and add."""
        return x * self.spatial_gate(x) + x * self.channel_gate(x)

    def channel_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh the channels by what one query gathers from the map, (b, dim, 1, 1)."""
        weights = rearrange(self.conv_q_right(x), "b 1 h w -> b (h w) 1").softmax(1)
        values = rearrange(self.conv_v_right(x), "b c h w -> b c (h w)")
        return self.conv_up((values @ weights)[..., None]).sigmoid()

    def spatial_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh the places by how they meet the pooled query, (b, 1, h, w)."""
        query, places = self._query_and_places(x)
        return rearrange(
            (query @ places).softmax(-1), "b 1 (h w) -> b 1 h w", h=x.shape[-2]
        ).sigmoid()

    def _query_and_places(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query = rearrange(self.conv_q_left(x).mean((2, 3)), "b c -> b 1 c")
        return query, rearrange(self.conv_v_left(x), "b c h w -> b c (h w)")


@block("psa_s", source="PSA, arXiv 2107.00782")
class SequentialPolarizedSelfAttention(PolarizedSelfAttention):
    """PSA, sequential: gates the channels, then the places of the result.

    Source: Liu et al. 2021, https://arxiv.org/abs/2107.00782, sequential form; state-dict keys of
    `PSA_s` in DeLightCMU/PSA at 20e307a. The places are weighed before they meet the query, each
    channel for itself, and the channel gate is made in two steps.
    Args:
        dim: channels; 8 or more.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim is too small.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        inner, hidden = dim // 2, dim // 8
        if hidden < 1:
            raise ZooError(
                f"dim={dim} has no eighth; sequential polarized attention needs 8 or more"
            )
        self.conv_up = nn.Sequential(
            nn.Conv2d(inner, hidden, 1),
            nn.LayerNorm((hidden, 1, 1)),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate `x`, then gate the result."""
        x = x * self.channel_gate(x)
        return x * self.spatial_gate(x)

    def spatial_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh the places by how they meet the pooled query, (b, 1, h, w)."""
        query, places = self._query_and_places(x)
        return rearrange(
            query @ places.softmax(-1), "b 1 (h w) -> b 1 h w", h=x.shape[-2]
        ).sigmoid()


def _check(name: str, inplanes: int, planes: int, kernel_size: int, stride: int) -> None:
    if planes != inplanes or kernel_size != 1 or stride != 1:
        raise ZooError(
            f"{name}: inplanes={inplanes}, planes={planes}, kernel_size={kernel_size}, "
            f"stride={stride}; it works with equal planes, kernel 1 and stride 1 only"
        )


@reference("PSA_p")
def psa_p(
    *, inplanes: int, planes: int, kernel_size: int = 1, stride: int = 1
) -> PolarizedSelfAttention:
    """Build the module whose state dict the official class has."""
    _check("PSA_p", inplanes, planes, kernel_size, stride)
    return PolarizedSelfAttention(inplanes)


@reference("PSA_s")
def psa_s(
    *, inplanes: int, planes: int, kernel_size: int = 1, stride: int = 1
) -> SequentialPolarizedSelfAttention:
    """Build the module whose state dict the official class has."""
    _check("PSA_s", inplanes, planes, kernel_size, stride)
    return SequentialPolarizedSelfAttention(inplanes)
