"""Self-attention inside the windows of a map, plain and shifted, as DAT (2022) uses it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.chunked import LOGITS
from zoo.layers import (
    Linear,
    aligned,
    checked_impl,
    head_scale,
    in_channels_last,
    init_linear,
    resized_table,
    sides,
)
from zoo.prepared import Prepared, kind
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block

Impl = Literal["fast", "reference"]


@block(
    "window",
    source="DAT, arXiv 2201.00520, after Swin, arXiv 2103.14030",
    any_size=False,
)
class WindowAttention(nn.Module):
    """Multi-head attention inside `window` x `window` pixel windows.

    Source: Xia et al. 2022, https://arxiv.org/abs/2201.00520, local attention; state-dict keys of
    LeapLabTHU/DAT at 566a593.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads.
        window: window side in pixels; must divide h and w.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        impl: "fast" for few copies and fused attention, "reference" for what the paper writes;
            the same result.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if h or w is not a multiple of `window`, or dim not one of `heads`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        window: int = 7,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        self.impl = checked_impl(impl, Impl)
        self.scale = head_scale(dim, heads)
        self.heads, self.window = heads, window
        linear = nn.Linear if impl == "reference" else Linear
        self.proj_qkv, self.proj_out = linear(dim, 3 * dim), linear(dim, dim)
        self.prepared = Prepared()
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.register_buffer("relative_position_index", relative_index(window))
        self.relative_position_index: torch.Tensor
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend inside each window."""
        h, w = x.shape[-2:]
        if h % self.window or w % self.window:
            raise ZooError(f"input is {h}x{w}, not a multiple of window={self.window}")
        if self.impl == "reference":
            return self._reference(x, self._mask(h, w, x))
        return in_channels_last(self._channels_last, x)

    def _reference(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend as the papers write it; `mask` (windows, m, n) is added to the logits."""
        rows, window = x.shape[-2] // self.window, self.window
        tokens = rearrange(x, "b c (i y) (j x) -> b (i j) (y x) c", y=window, x=window)
        out = self.proj_out(
            attend(self.proj_qkv(tokens), self.scale, self._bias(), mask, self.attn_drop)
        )
        out = rearrange(out, "b (i j) (y x) c -> b c (i y) (j x)", i=rows, y=window)
        return self.proj_drop(out)

    def _channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """Attend with the channels of each pixel side by side in memory, which moves twice."""
        h, w = x.shape[-2:]
        order, back = self.prepared(
            "order", lambda: self._order(h, w, x.device), key=(h, w, x.device)
        )
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, order)
        qkv = self.proj_qkv(tokens.unflatten(1, (-1, self.window**2)))
        mask = self._mask(h, w, x)
        if x.device.type != "cpu":
            dropout = self.attn_drop.p if self.training else 0.0
            out = fused(qkv, self.scale, self._aligned_bias(mask, qkv), dropout)
        elif qkv.dtype == self._bias().dtype and Prepared.keeps(self.relative_position_bias_table):
            out = by_parts(qkv, self.scale, self._bias(), mask)
        else:
            out = attend(qkv, self.scale, self._bias(), mask, self.attn_drop)
        out = self.proj_out(out).flatten(1, 2).index_select(1, back)
        return self.proj_drop(out.unflatten(1, (h, w)).permute(0, 3, 1, 2))

    def _order(self, h: int, w: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels of a map, window by window; and where each pixel then stands."""
        pixels = self._rolled(torch.arange(h * w, device=device).view(h, w))
        window = self.window
        order = rearrange(pixels, "(i y) (j x) -> (i j y x)", y=window, x=window)
        return order.int(), order.argsort().int()

    def _bias(self) -> torch.Tensor:
        """Bias of each query and key of a window, (heads, m, n)."""
        table, index = self.relative_position_bias_table, self.relative_position_index
        return self.prepared(
            "bias", lambda: rearrange(table[index], "m n a -> a m n").contiguous(), table
        )

    def _aligned_bias(self, mask: torch.Tensor | None, qkv: torch.Tensor) -> torch.Tensor:
        """What is added to the logits of all windows, (1, heads, m, n), or of each, for `fused`."""
        table, index = self.relative_position_bias_table, self.relative_position_index
        if mask is None:
            return self.prepared(
                "aligned bias",
                lambda: aligned(rearrange(table[index], "m n a -> 1 a m n"), qkv.dtype),
                table,
                key=qkv.dtype,
            )
        added = rearrange(table[index], "m n a -> a m n") + mask[:, None]
        return aligned(added.expand(len(qkv), -1, -1, -1, -1), qkv.dtype).flatten(0, 1)

    def _mask(self, h: int, w: int, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to the logits of each window of a map, (windows, m, n)."""
        return None

    def _rolled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels of a map (h, w), moved to where windows are cut."""
        return pixels

    def fit_entry(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Resize a bias table of a checkpoint that was made for another window."""
        side = math.isqrt(value.shape[0])
        if name != "relative_position_bias_table" or value.ndim != 2 or side**2 != value.shape[0]:
            return value
        table = rearrange(value, "(i j) a -> a i j", i=side)
        own = 2 * self.window - 1
        return rearrange(resized_table(table, (own, own)), "a i j -> (i j) a")


@block(
    "shifted_window",
    source="DAT, arXiv 2201.00520, after Swin, arXiv 2103.14030",
    any_size=False,
)
class ShiftedWindowAttention(WindowAttention):
    """Window attention on a map rolled by `shift` pixels, wrapped regions kept apart.

    Source: as `WindowAttention`.
    Differs: Swin shifts by floor(window / 2), DAT by ceil(window / 2), the default here.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads.
        window: window side in pixels; must divide h and w.
        shift: pixels that the map is rolled by; 0 < shift < window.
        map_size: (h, w) for which the mask is stored, as official checkpoints have it. Other
            sizes work; their mask is made on the fly.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        impl: "fast" for few copies and fused attention, "reference" for what the paper writes;
            the same result.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if a size or the shift does not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        window: int = 7,
        shift: int | None = None,
        map_size: tuple[int, int] | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        impl: Impl = "fast",
    ) -> None:
        super().__init__(
            dim, heads=heads, window=window, attn_drop=attn_drop, proj_drop=proj_drop, impl=impl
        )
        self.shift = -(-window // 2) if shift is None else shift
        if not 0 < self.shift < window:
            raise ZooError(f"shift={self.shift} is not between 0 and window={window}")
        self.map_size = None if map_size is None else (int(map_size[0]), int(map_size[1]))
        if any(side % window for side in self.map_size or ()):
            raise ZooError(f"map_size={self.map_size} is not a multiple of window={window}")
        mask = None if self.map_size is None else shift_mask(*self.map_size, window, self.shift)
        self.register_buffer("attn_mask", mask)
        self.attn_mask: torch.Tensor | None

    def _reference(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Roll, attend inside each window without crossing the seam, roll back."""
        rolled = torch.roll(x, (-self.shift, -self.shift), (-2, -1))
        return torch.roll(super()._reference(rolled, mask), (self.shift, self.shift), (-2, -1))

    def _mask(self, h: int, w: int, like: torch.Tensor) -> torch.Tensor | None:
        if (h, w) == self.map_size:
            return self.attn_mask

        def make() -> torch.Tensor:
            return shift_mask(h, w, self.window, self.shift, like.device).to(like.dtype)

        return self.prepared("mask", make, key=(h, w, *kind(like)))

    def _rolled(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.roll((-self.shift, -self.shift), (0, 1))


def attend(
    qkv: torch.Tensor,
    scale: float,
    bias: torch.Tensor,
    mask: torch.Tensor | None,
    drop: nn.Module,
) -> torch.Tensor:
    """Attend inside each window, (b, windows, n, 3 dim) to (b, windows, n, dim).

    Args:
        qkv: queries, keys and values, the heads of each side by side.
        scale: of the logits.
        bias: of the logits of each query and key, (heads, n, n).
        mask: added to the logits of each window, (windows, n, n).
        drop: dropout of the attention weights.
    """
    q, k, v = rearrange(qkv, "b l n (three a d) -> three b l a n d", three=3, a=len(bias))
    logits = q * scale @ k.transpose(-1, -2) + bias  # (b, windows, heads, m, n)
    if mask is not None:
        logits = logits + mask[:, None].to(logits.dtype)
    out = drop(logits.softmax(-1)).to(v.dtype) @ v
    return rearrange(out, "b l a n d -> b l n (a d)")


def fused(qkv: torch.Tensor, scale: float, bias: torch.Tensor, dropout: float) -> torch.Tensor:
    """`attend` in one kernel, where the device has one that takes a bias.

    Args:
        qkv, scale: as of `attend`.
        bias: of the logits of all windows, (1, heads, n, n), or of each of each image,
            (b * windows, heads, n, n), see `aligned`.
        dropout: of the attention weights.
    """
    pattern = "b l n (three a d) -> three (b l) a n d"
    q, k, v = rearrange(qkv, pattern, three=3, a=bias.shape[1])
    out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
    return rearrange(out, "(b l) a n d -> b l n (a d)", b=len(qkv))


def by_parts(
    qkv: torch.Tensor, scale: float, bias: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """`attend` for a CPU, with as many windows at a time as the cache holds logits of."""
    b, windows, n, _ = qkv.shape
    heads = len(bias)
    if mask is not None:
        mask = mask.repeat(b, 1, 1)
    tokens = rearrange(qkv, "b l n (three a d) -> (b l) three a n d", three=3, a=heads)
    out = qkv.new_empty(b * windows, n, heads, tokens.shape[-1])
    step = max(1, LOGITS // 2 // (heads * n * n))
    for i in range(0, b * windows, step):
        part = slice(i, min(i + step, b * windows))
        q, k, v = tokens[part].transpose(0, 1).flatten(1, 2)
        if mask is None:
            logits = bias.repeat(part.stop - i, 1, 1)
        else:
            logits = (bias + mask[part, None]).flatten(0, 1)
        logits.baddbmm_(q, k.transpose(1, 2), alpha=scale)
        attended = torch.bmm(logits.softmax(-1), v)
        out[part] = rearrange(attended, "(l a) n d -> l n a d", a=heads)
    return out.view(b, windows, n, -1)


def relative_index(window: int) -> torch.Tensor:
    """Index of the bias table for each query and key pixel of a window, (window^2, window^2)."""
    pos_yx = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    delta = pos_yx[:, None] - pos_yx[None] + window - 1
    return delta[..., 0] * (2 * window - 1) + delta[..., 1]


def shift_mask(
    h: int,
    w: int,
    window: int,
    shift: int,
    device: torch.device | None = None,
    *,
    inside: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Mask of 0 and -100 that separates what rolling brought together, (windows, m, n).

    Args:
        h, w: sides of the map, multiples of `window`.
        window: side of the windows.
        shift: pixels that the map was rolled by, up and to the left.
        device: of the result.
        inside: (h, w) of the map before it was padded; what lies beyond is kept apart too.
    """
    inside = inside or (h, w)

    def part(length: int, filled: int) -> torch.Tensor:
        i = torch.arange(length, device=device)
        seam = (i >= length - window).int() + (i >= length - shift).int()
        return torch.where((i + shift) % length < filled, seam, 3)

    rows, columns = part(h, inside[0])[:, None], part(w, inside[1])[None]
    region = rows * 4 + columns
    tokens = rearrange(region, "(i y) (j x) -> (i j) (y x)", y=window, x=window)
    return -100.0 * (tokens[:, :, None] != tokens[:, None, :]).float()


@reference("LocalAttention")
def local_attention(
    *,
    dim: int,
    heads: int,
    window_size: int,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    impl: Impl = "fast",
) -> WindowAttention:
    """Build the module whose state dict the official `LocalAttention` has."""
    return WindowAttention(
        dim,
        heads=heads,
        window=window_size,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
        impl=impl,
    )


@reference("ShiftWindowAttention")
def shift_window_attention(
    *,
    dim: int,
    heads: int,
    window_size: int,
    shift_size: int,
    fmap_size: int | tuple[int, int],
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    impl: Impl = "fast",
) -> ShiftedWindowAttention:
    """Build the module whose state dict the official `ShiftWindowAttention` has."""
    return ShiftedWindowAttention(
        dim,
        heads=heads,
        window=window_size,
        shift=shift_size,
        map_size=sides(fmap_size),
        attn_drop=attn_drop,
        proj_drop=proj_drop,
        impl=impl,
    )
