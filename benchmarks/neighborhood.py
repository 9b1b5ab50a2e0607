"""Neighborhood attention that copies every window, the yardstick of `block:neighborhood`.

    for stage in 64x56x56,heads=2 128x28x28,heads=4 256x14x14,heads=8; do
      datbench compare --input "${stage%,*}" --models \
        "benchmarks/neighborhood.py:unfolded[dim=${stage%%x*},${stage#*,}]" \
        "block:neighborhood[${stage#*,}]"
    done
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from zoo.blocks.neighborhood import NeighborhoodAttention


class Unfolded(NeighborhoodAttention):
    """The same operator and state dict; each query's keys and values are laid out, k x k copies.

    Shape: (b, dim, h, w) to (b, dim, h, w), sides of at least the window, no dilation
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel of `x` to its neighborhood."""
        qkv = self.qkv(rearrange(x, "b c h w -> b h w c"))
        q, k, v = rearrange(qkv, "b h w (three a d) -> three b h w a d", three=3, a=self.heads)
        first_y, entry_y = self._windows(x.shape[-2], x.device)
        first_x, entry_x = self._windows(x.shape[-1], x.device)

        def unfolded(t: torch.Tensor) -> torch.Tensor:
            windows = t.unfold(1, self.kernel_size, 1).unfold(2, self.kernel_size, 1)
            windows = windows.index_select(1, first_y).index_select(2, first_x)
            return rearrange(windows, "b h w a d y x -> b h w a d (y x)")

        bias = self.rpb[:, entry_y[:, None, :, None], entry_x[None, :, None, :]]
        logits = torch.einsum("bhwad,bhwadn->bhwan", q * self.scale, unfolded(k))
        logits = logits + rearrange(bias, "a h w y x -> h w a (y x)")
        out = torch.einsum("bhwan,bhwadn->bhwad", logits.softmax(-1), unfolded(v))
        return rearrange(self.proj(out.flatten(-2)), "b h w c -> b c h w")

    def excess_macs(self, x: torch.Tensor) -> int:
        """None: each query meets the keys of its window alone."""
        return 0

    def _windows(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """First key of each query's window, and its keys' entries in the bias table."""
        i = torch.arange(length, device=device)
        first = (i - self.kernel_size // 2).clamp(0, length - self.kernel_size)
        seen = first[:, None] + torch.arange(self.kernel_size, device=device)
        return first, seen - i[:, None] + self.kernel_size - 1


def unfolded(dim: int, heads: int = 8, kernel_size: int = 7) -> nn.Module:
    """Build it with the arguments of the block."""
    return Unfolded(dim, heads=heads, kernel_size=kernel_size)
