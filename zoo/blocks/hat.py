"""Blocks of the Hybrid Attention Transformer: windows beside convolution, windows that overlap."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.blocks.window import attend, relative_index, shift_mask
from zoo.layers import head_scale, on_map
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("hat", source="HAT, arXiv 2205.04437", aliases=("hab",))
class HybridAttention(nn.Module):
    """HAB of HAT: a transformer layer, window attention beside a gated convolution.

    Source: Chen et al. 2023, https://arxiv.org/abs/2205.04437, section 3.2; state-dict keys of
    `HAB` in XPixelGroup/HAT at 1638a9a.
    Differs: a map that the windows do not fill is padded below and to the right with pixels that
    nobody attends to; the official network pads its image instead.
    Args:
        dim: channels; a multiple of `heads`, `compress` or more, `squeeze` or more.
        heads: attention heads.
        window: side of the windows in pixels.
        shift: pixels that the map is rolled by before it is cut.
        compress: of the hidden channels of the convolution.
        squeeze: of the hidden channels of its channel gate.
        conv_scale: factor of the convolution.
        mlp_ratio: hidden channels of the MLP, in `dim`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        map_size: (h, w) of the map; if the window is as large, it shrinks and is not shifted.
        drop: dropout of the projections.
        attn_drop: dropout of the attention weights.
        drop_path: share of samples for which attention or MLP is left out in training.
    Shape: (b, dim, h, w) to the same; or tokens (b, h * w, dim) with `size` (h, w) to the same
    Raises: ZooError if the channels do not divide or the shift is not inside the window.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        window: int = 7,
        shift: int = 0,
        compress: int = 3,
        squeeze: int = 30,
        conv_scale: float = 0.01,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        map_size: tuple[int, int] | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        from timm.layers import DropPath

        super().__init__()
        if map_size is not None and min(map_size) <= window:
            window, shift = min(map_size), 0
        if not 0 <= shift < window:
            raise ZooError(f"shift={shift} is not between 0 and window={window}")
        if min(compress, squeeze) < 1 or min(dim // compress, dim // squeeze) < 1:
            raise ZooError(f"compress={compress}, squeeze={squeeze} leave no channel of dim={dim}")
        self.window, self.shift, self.conv_scale = window, shift, conv_scale
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowProducts(
            dim, heads=heads, window=window, qkv_bias=qkv_bias, drop=drop, attn_drop=attn_drop
        )
        self.conv_block = nn.Sequential(OrderedDict(cab=gated_convolution(dim, compress, squeeze)))
        self.drop_path = DropPath(drop_path)
        self.mlp = mlp(dim, mlp_ratio, drop)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Add attention and convolution, then the MLP, to a map or to tokens of a map of `size`."""
        if x.ndim == 4:
            return on_map(self, x)
        h, _ = checked(x, size)
        normed = rearrange(self.norm1(x), "b (h w) c -> b h w c", h=h)
        conv = self.conv_block(rearrange(normed, "b h w c -> b c h w"))
        attended = rearrange(self._attended(normed), "b h w c -> b (h w) c")
        x = x + self.drop_path(attended) + self.conv_scale * rearrange(conv, "b c h w -> b (h w) c")
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        """Attend inside the windows of a map (b, h, w, c)."""
        h, w = x.shape[1:3]
        shift = self.shift
        x = F.pad(x, (0, 0, 0, -w % self.window, 0, -h % self.window))
        rows, columns = x.shape[1:3]
        mask = None
        if shift or (rows, columns) != (h, w):
            mask = shift_mask(rows, columns, self.window, shift, x.device, inside=(h, w))
        rolled = torch.roll(x, (-shift, -shift), (1, 2))
        cut = {"y": self.window, "x": self.window, "i": rows // self.window}
        tokens = rearrange(rolled, "b (i y) (j x) c -> b (i j) (y x) c", **cut)
        out = self.attn(tokens, mask)
        out = rearrange(out, "b (i j) (y x) c -> b (i y) (j x) c", **cut)
        return torch.roll(out, (shift, shift), (1, 2))[:, :h, :w]


class WindowProducts(nn.Module):
    """Multi-head attention inside each window, with a bias by relative position.

    Shape: (b, windows, n, dim) and a mask (windows, n, n) or None, to (b, windows, n, dim)
    """

    def __init__(
        self, dim: int, *, heads: int, window: int, qkv_bias: bool, drop: float, attn_drop: float
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_scale(dim, heads)
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("index", relative_index(window), persistent=False)
        self.index: torch.Tensor
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(drop)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend inside each window."""
        bias = rearrange(self.relative_position_bias_table[self.index], "m n a -> a m n")
        out = attend(self.qkv(x), self.scale, bias, mask, self.attn_drop)
        return self.proj_drop(self.proj(out))


@block("ocab", source="HAT, arXiv 2205.04437")
class OverlappingCrossAttention(nn.Module):
    """OCAB of HAT: a transformer layer, windows of queries see larger ones of keys.

    Outside the map stand keys and values of zero, which take part in the softmax.

    Source: Chen et al. 2023, https://arxiv.org/abs/2205.04437, section 3.2; state-dict keys of
    `OCAB` in XPixelGroup/HAT at 1638a9a, whose index into the table wraps around as here.
    Differs: a map that the windows do not fill ends in zeros below and to the right too.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads.
        window: side of a window of queries in pixels.
        overlap: how much longer the side of a window of keys is, in `window`.
        mlp_ratio: hidden channels of the MLP, in `dim`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    Shape: (b, dim, h, w) to the same; or tokens (b, h * w, dim) with `size` (h, w) to the same
    Raises: ZooError if the channels do not divide, or the windows of keys cannot be centred.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        window: int = 8,
        overlap: float = 0.5,
        mlp_ratio: float = 2,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_scale(dim, heads)
        if window < 1 or overlap < 0:
            raise ZooError(f"window={window}, overlap={overlap}: expected 1 or more, and 0 or more")
        self.window, self.outer = window, int(window * overlap) + window
        if self.outer % 2 != window % 2:
            raise ZooError(
                f"window={window}, overlap={overlap}: {self.outer} pixels of keys cannot be "
                f"centred on {window} of queries; their difference must be even"
            )
        side = window + self.outer - 1
        table = torch.zeros(side**2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("index", overlapping_index(window, self.outer), persistent=False)
        self.index: torch.Tensor
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.mlp = mlp(dim, mlp_ratio, 0.0)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Add attention, then the MLP, to a map or to tokens of a map of `size`."""
        if x.ndim == 4:
            return on_map(self, x)
        h, _ = checked(x, size)
        qkv = rearrange(self.qkv(self.norm1(x)), "b (h w) c -> b c h w", h=h)
        attended = rearrange(self._attended(qkv), "b c h w -> b (h w) c")
        x = self.proj(attended) + x
        return x + self.mlp(self.norm2(x))

    def _attended(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend from each window to the one around it, (b, 3 c, h, w) to (b, c, h, w)."""
        h, w = qkv.shape[-2:]
        window, outer = self.window, self.outer
        qkv = F.pad(qkv, (0, -w % window, 0, -h % window))
        channels = qkv.shape[1] // 3
        q, kv = qkv[:, :channels], qkv[:, channels:]
        cut = {"y": window, "x": window, "i": qkv.shape[-2] // window, "a": self.heads}
        queries = rearrange(q, "b (a d) (i y) (j x) -> b (i j) a (y x) d", **cut)
        unfolded = F.unfold(kv, outer, stride=window, padding=(outer - window) // 2)
        pattern = "b (kv a d n) l -> kv b l a n d"
        keys, values = rearrange(unfolded, pattern, kv=2, a=self.heads, n=outer**2)
        bias = rearrange(self.relative_position_bias_table[self.index], "m n a -> a m n")
        logits = queries * self.scale @ keys.transpose(-1, -2) + bias
        out = logits.softmax(-1).to(values.dtype) @ values
        out = rearrange(out, "b (i j) a (y x) d -> b (a d) (i y) (j x)", **cut)
        return out[..., :h, :w]


def overlapping_index(window: int, outer: int) -> torch.Tensor:
    """Index of the table for each query and key, (window^2, outer^2).

    The official index starts below zero and counts from the table's end there. It reaches each
    entry for one displacement, so training was sound, and checkpoints are made for it.
    """
    side = window + outer - 1
    query = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    key = torch.cartesian_prod(torch.arange(outer), torch.arange(outer))
    delta = key[None] - query[:, None] + window - outer + 1
    return (delta[..., 0] * side + delta[..., 1]) % side**2


def gated_convolution(dim: int, compress: int, squeeze: int) -> nn.Sequential:
    """Two convolutions through fewer channels, then a gate of the channels."""
    return nn.Sequential(
        nn.Conv2d(dim, dim // compress, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(dim // compress, dim, 3, padding=1),
        ChannelGate(dim, dim // squeeze),
    )


class ChannelGate(nn.Module):
    """Multiplies by a gate made of the channels' means.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate the channels."""
        return x * self.attention(x)


def mlp(dim: int, ratio: float, drop: float) -> nn.Sequential:
    """Two linear layers with GELU between them."""
    hidden = int(dim * ratio)
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(dim, hidden),
            act=nn.GELU(),
            drop1=nn.Dropout(drop),
            fc2=nn.Linear(hidden, dim),
            drop2=nn.Dropout(drop),
        )
    )


def checked(x: torch.Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the size of the map that tokens make.

    Raises:
        ZooError: it is not given or does not fit.
    """
    if size is None or size[0] * size[1] != x.shape[1]:
        raise ZooError(f"{x.shape[1]} tokens with size={size}; expected (h, w) of their map")
    return size


@reference("HAB")
def hab(
    *,
    dim: int,
    input_resolution: tuple[int, int],
    num_heads: int,
    window_size: int = 7,
    shift_size: int = 0,
    compress_ratio: int = 3,
    squeeze_factor: int = 30,
    conv_scale: float = 0.01,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    qk_scale: None = None,
    drop: float = 0.0,
    attn_drop: float = 0.0,
    drop_path: float = 0.0,
) -> HybridAttention:
    """Build the module whose state dict the official class has; it makes index and mask itself."""
    if qk_scale is not None:
        raise ZooError("HAB: only qk_scale=None is supported")
    return HybridAttention(
        dim,
        heads=num_heads,
        window=window_size,
        shift=shift_size,
        compress=compress_ratio,
        squeeze=squeeze_factor,
        conv_scale=conv_scale,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        map_size=input_resolution,
        drop=drop,
        attn_drop=attn_drop,
        drop_path=drop_path,
    )


@reference("OCAB")
def ocab(
    *,
    dim: int,
    input_resolution: tuple[int, int] | None = None,
    window_size: int,
    overlap_ratio: float,
    num_heads: int,
    qkv_bias: bool = True,
    qk_scale: None = None,
    mlp_ratio: float = 2,
) -> OverlappingCrossAttention:
    """Build the module whose state dict the official class has; any `input_resolution` will do."""
    if qk_scale is not None:
        raise ZooError("OCAB: only qk_scale=None is supported")
    return OverlappingCrossAttention(
        dim,
        heads=num_heads,
        window=window_size,
        overlap=overlap_ratio,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
    )
