"""Spatial-reduction attention of the Pyramid Vision Transformer: keys from a shrunken map."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from zoo.layers import ChannelNorm, head_scale, init_linear, on_map
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("sra", source="PVT, arXiv 2102.12122", minimum=2)
class SpatialReductionAttention(nn.Module):
    """Multi-head attention whose keys and values come from a map shrunk `reduction` times.

    Source: Wang et al. 2021, https://arxiv.org/abs/2102.12122, section 3.3; state-dict keys of
    whai362/PVT at 57e2dfa.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads.
        reduction: side of the patches that a convolution turns into one key; 1 leaves it out.
        qkv_bias: whether the query and key-value projections have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
    Shape: (b, dim, h, w) to the same; or tokens (b, n, dim) with `size` (h, w) to the same.
        Without reduction n may be anything, a class token included.
    Raises: ZooError if dim is not a multiple of heads, or a side is smaller than `reduction`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        reduction: int = 2,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = head_scale(dim, heads)
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Attend over a map, or over tokens whose map has `size` (h, w)."""
        if x.ndim == 4:
            return on_map(self, x)
        q = rearrange(self.q(x), "b m (a d) -> b a m d", a=self.heads)
        if self.reduction > 1:
            x = self._reduced(x, size)
        k, v = rearrange(self.kv(x), "b n (two a d) -> two b a n d", two=2, a=self.heads)
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-1)
        out = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(rearrange(out, "b a m d -> b m (a d)")))

    def _reduced(self, x: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
        if size is None:
            raise ZooError("tokens need size=(h, w), the size of their map")
        h, w = size
        if min(h, w) < self.reduction:
            raise ZooError(f"input is {h}x{w}, smaller than reduction={self.reduction}")
        feature = self.sr(rearrange(x, "b (h w) c -> b c h w", h=h, w=w))
        return self.norm(rearrange(feature, "b c h w -> b (h w) c"))


class PyramidAttention(nn.Module):
    """The same operator on maps, as DAT++ spells it: 1 x 1 convolutions for linear layers.

    Source: letter P of Xia et al. 2023, https://arxiv.org/abs/2309.01430; state-dict keys of
    `PyramidAttention` in LeapLabTHU/DAT at 32173fc.
    Args: as `SpatialReductionAttention`.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim is not a multiple of heads, or a side is smaller than `reduction`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        reduction: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = head_scale(dim, heads)
        self.heads, self.reduction = heads, reduction
        self.q, self.kv = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, 2 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        if reduction > 1:
            self.proj_ds = nn.Sequential(
                nn.Conv2d(dim, dim, reduction, reduction), ChannelNorm(dim)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel to the reduced map."""
        h, w = x.shape[-2:]
        if min(h, w) < self.reduction:
            raise ZooError(f"input is {h}x{w}, smaller than reduction={self.reduction}")
        reduced = self.proj_ds(x) if self.reduction > 1 else x
        pattern = "b (a d) h w -> b a (h w) d"
        q = rearrange(self.q(x) * self.scale, pattern, a=self.heads)
        k, v = rearrange(self.kv(reduced), pattern, a=2 * self.heads).chunk(2, 1)
        out = self.attn_drop((q @ k.transpose(-1, -2)).softmax(-1)) @ v
        return self.proj_drop(self.proj(rearrange(out, "b a (h w) d -> b (a d) h w", h=h)))


@reference("PyramidAttention")
def pyramid_attention(
    *,
    dim: int,
    num_heads: int = 8,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    sr_ratio: int = 1,
) -> PyramidAttention:
    """Build the module whose state dict the official class has."""
    return PyramidAttention(
        dim, heads=num_heads, reduction=sr_ratio, attn_drop=attn_drop, proj_drop=proj_drop
    )


@reference("Attention (SRA)")
def sra(
    *,
    dim: int,
    num_heads: int = 8,
    qkv_bias: bool = False,
    qk_scale: None = None,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    sr_ratio: int = 1,
) -> SpatialReductionAttention:
    """Build the module whose state dict the official `Attention` of PVT has."""
    if qk_scale is not None:
        raise ZooError("Attention (SRA): only qk_scale=None is supported")
    return SpatialReductionAttention(
        dim,
        heads=num_heads,
        reduction=sr_ratio,
        qkv_bias=qkv_bias,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
    )
