"""Deformable attention: every query attends to points that the network moves.

Two papers use one name for two formulas. Version 1 (DAT, 2022) normalises the reference points
by the map's side, version 2 (DAT++, 2023) by the side minus one; they also differ in how offsets
are bounded and in where queries stand. Both sample with `align_corners=True` and zero padding,
although version 1 places pixel centres as if it were False: checkpoints were trained that way.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from zoo.blocks import _deformable_fused, _deformable_reference
from zoo.blocks._positions import FixedBias, LogBias, TableBias, WindowBias, band_rows
from zoo.chunked import Positions, attend
from zoo.exporting import traced
from zoo.layers import (
    ChannelNorm,
    checked_impl,
    head_scale,
    in_channels_last,
    pointwise,
    resized_table,
)
from zoo.prepared import Prepared, kind
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.sampling import Taps, crossed, interpolated, neighbours, per_axis
from zoo.spec import block

Position = Literal["table", "dwc", "fixed", "log_cpb"]
Impl = Literal["fast", "reference", "masked", "flex", "triton"]


@block(
    "dat",
    source="DAT++, arXiv 2309.01430; DAT, arXiv 2201.00520",
    minimum=2,
    level_option="stride",
)
class DeformableAttention(nn.Module):
    """Multi-head attention to a grid of sampled points, shifted by offsets learned per group.

    Source: Xia et al. 2022, https://arxiv.org/abs/2201.00520, section 3; Xia et al. 2023,
    https://arxiv.org/abs/2309.01430; state-dict keys of LeapLabTHU/DAT. The defaults are those
    with which the block is put into YOLOv8.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads; a multiple of `groups`.
        groups: offset groups; each has its own sampled points.
        stride: pixels between reference points; the map has ceil(h / stride) rows of them.
        kernel_size: side of the depthwise convolution that predicts offsets.
        offset_range: largest offset in reference points; negative: unbounded offsets, points
            clamped to the map (version 2) or squashed by tanh (version 1).
        position: "table" samples a relative bias table at query minus point; "dwc" adds a
            depthwise convolution of the queries to the output; "log_cpb" (version 2) computes
            the bias from the log-spaced distance with a small network; "fixed" (version 2)
            learns one bias for each query and point, for maps of `table_size` alone; None leaves
            positions out.
        table_size: (h, w) of the map for which "table" and "fixed" are made; other sizes sample
            "table" too.
        no_offset: (version 2) take keys and values from the average-pooled map instead of moved
            points; no position term. The offset network stays, frozen, as in the official code.
        version: 1 or 2, see above.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        impl: how it is computed; the result is the same. "masked" samples the position term for
            all pairs, as a mask of torch's fused attention; "flex" and "triton" read a table
            inside of a kernel, and where they cannot (other terms, dropout, a CPU) are "masked";
            "fast" takes a block of queries at a time on a CPU and is "masked" elsewhere;
            "reference" does what the papers write.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if the channels do not divide, the options do not go together, the map does
        not fit a "fixed" bias or, without offsets, the stride, or it gives a side of one point
        where the formula divides by that side minus one.
    """

    portable_impl = "reference"

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        groups: int = 4,
        stride: int = 1,
        kernel_size: int = 3,
        offset_range: float = 4.0,
        position: Position | None = "dwc",
        table_size: tuple[int, int] | None = None,
        no_offset: bool = False,
        version: int = 2,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        self.impl = checked_impl(impl, Impl)
        if impl == "triton" and not importlib.util.find_spec("triton"):
            raise ZooError("impl='triton' needs Triton, which torch's wheels for CUDA bring along")
        if heads < 1 or groups < 1:
            raise ZooError(f"heads={heads}, groups={groups}: expected 1 or more of each")
        self.scale = head_scale(dim, heads)
        if heads % groups:
            raise ZooError(f"heads={heads} is not a multiple of groups={groups}")
        known = (*get_args(Position), None)
        if stride < 1 or version not in (1, 2) or position not in known:
            raise ZooError(
                f"stride={stride}, version={version}, position={position!r}: expected a positive "
                f"stride, version 1 or 2, and a position of {', '.join(map(str, known))}"
            )
        if version == 1 and (no_offset or position in ("fixed", "log_cpb")):
            raise ZooError(
                f"no_offset={no_offset}, position={position!r}: version 1 has offsets, and "
                "position 'table', 'dwc' or None; use version 2"
            )
        if no_offset and position is not None:
            raise ZooError(f"position={position!r} with no_offset: there is no position term")
        self.no_offset = no_offset
        self.heads, self.groups, self.stride = heads, groups, stride
        self.offset_range, self.position, self.version = offset_range, position, version
        group_dim = dim // groups
        padding = 0 if version == 2 and kernel_size == stride else kernel_size // 2
        self.overhang = kernel_size - 2 * padding
        self.conv_offset: Any = nn.Sequential(
            nn.Conv2d(group_dim, group_dim, kernel_size, stride, padding, groups=group_dim),
            ChannelNorm(group_dim),
            nn.GELU(),
            nn.Conv2d(group_dim, 2, 1, bias=False),
        )
        self.prepared = Prepared()
        self.proj_q, self.proj_k = pointwise(dim, dim, impl), pointwise(dim, dim, impl)
        self.proj_v, self.proj_out = pointwise(dim, dim, impl), pointwise(dim, dim, impl)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        for parameter in self.conv_offset.parameters() if no_offset else ():
            parameter.requires_grad_(False)
        self.rpe_table: Any
        if position == "dwc":
            self.rpe_table = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        elif position == "log_cpb":
            self.rpe_table = nn.Sequential(
                nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, heads // groups, bias=False)
            )
        elif position is not None:
            if table_size is None:
                raise ZooError(f"position={position!r} needs table_size=(h, w), the map's size")
            h, w = table_size
            entries = (2 * h - 1, 2 * w - 1)
            if position == "fixed":
                entries = (h * w, (h // stride) * (w // stride))
            table = torch.zeros(heads, *entries)
            self.rpe_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.01))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel of `x` to its group's sampled points."""
        if self.impl == "reference" or traced():
            return _deformable_reference.attend(self, x)
        if self.impl == "fast" and x.device.type == "cpu":
            return in_channels_last(self._channels_last, x)
        return _deformable_fused.attend(self, x)

    def _channels_last(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, with the channels of each pixel side by side in memory."""
        q, points = self.proj_q(x), None
        if self.no_offset:
            sampled = self.pooled(x)
        else:
            pos_yx, _ = self.place(self.offset(q))
            points = rearrange(pos_yx, "(b g) i j yx -> yx b g (i j)", g=self.groups)
            sampled = self._sampled(x, points)
        queries = rearrange(q, "b (a d) h w -> b a h w d", a=self.heads)
        keys, values = (
            rearrange(project(sampled), "b (a d) 1 n -> b a n d", a=self.heads)
            for project in (self.proj_k, self.proj_v)
        )
        out = self._attend(queries, keys, values, points)
        out = rearrange(out, "b a h w d -> b h w (a d)").permute(0, 3, 1, 2)
        if self.position == "dwc":
            out = out + self.rpe_table(q)
        return self.proj_drop(self.proj_out(out))

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, points: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from the map q (b, heads, h, w, d) to k and v (b, heads, n, d)."""
        b, _, h, w, _ = q.shape
        dropout = self.attn_drop.p if self.training else 0.0
        if points is None or self.position in ("dwc", None):
            out = F.scaled_dot_product_attention(
                q.flatten(2, 3), k, v, dropout_p=dropout, scale=self.scale
            )
            return out.unflatten(2, (h, w))
        if self.position == "fixed":
            positions: Positions = FixedBias(self.fixed_table(h, w, k.shape[2]), b, w)
        else:
            positions = self._moving_bias(points, h, w)
        return attend(q, k, v, positions, scale=self.scale, dropout=dropout)

    def points(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell where `x` is sampled: positions and reference points, (b, groups, i, j, yx)."""
        pos_yx, reference_yx = self.place(_deformable_reference.offset(self, self.proj_q(x)))
        pattern = "(b g) i j yx -> b g i j yx"
        reference_yx = repeat(reference_yx, "i j yx -> bg i j yx", bg=pos_yx.shape[0])
        return (
            rearrange(pos_yx, pattern, g=self.groups),
            rearrange(reference_yx, pattern, g=self.groups),
        )

    def fit_entry(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Resize a bias table of a checkpoint that was made for another map."""
        if name == "rpe_table" and self.position == "table" and value.ndim == 3:
            return resized_table(value, self.rpe_table.shape[-2:])
        return value

    def place(self, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the reference points (i, j, yx) by offsets of (b * groups, i, j, yx)."""
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        rows, columns = offset.shape[1:3]
        reference_yx, step = self.prepared(
            "places",
            lambda: self._places(rows, columns, offset),
            key=(rows, columns, *kind(offset)),
        )
        if self.no_offset:
            return reference_yx.expand_as(offset), reference_yx
        if self.offset_range > 0 or (self.offset_range == 0 and self.version == 2):
            offset = offset.tanh() * step
        pos_yx = offset + reference_yx
        if self.offset_range < 0:
            pos_yx = pos_yx.tanh() if self.version == 1 else pos_yx.clamp(-1.0, 1.0)
        return pos_yx, reference_yx

    def _places(
        self, rows: int, columns: int, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference points (i, j, yx), and how far they may move, (yx,)."""
        less = self.version - 1  # version 2 divides by the side minus one
        if self.version == 2 and self.offset_range >= 0 and min(rows, columns) < 2:
            raise ZooError(
                f"deformable attention has {rows}x{columns} reference points at stride "
                f"{self.stride}; it needs 2x2: use a larger input or a smaller stride"
            )
        axes = _axis(rows, 0.5, less, like), _axis(columns, 0.5, less, like)
        far = max(self.offset_range, 0)
        steps = (far / max(rows - less, 1), far / max(columns - less, 1))
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1), per_axis(*steps, like)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Average the pixels of each stride, (b, dim, 1, points)."""
        h, w = x.shape[-2:]
        pooled = F.avg_pool2d(x, self.stride, self.stride)
        points = tuple((side - self.overhang) // self.stride + 1 for side in (h, w))
        if tuple(pooled.shape[-2:]) != points:
            raise ZooError(
                f"without offsets a {h}x{w} map is not a multiple of stride={self.stride}; use a "
                "size that is, or another stride"
            )
        return rearrange(pooled, "b c i j -> b c 1 (i j)")

    def query_axes(self, h: int, w: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised y and x of the queries of a map, in the type of `like`."""
        if self.version == 2 and min(h, w) < 2:
            raise ZooError(f"the bias cannot be computed on a {h}x{w} map; it needs 2x2")
        first, less = (0.5, 0) if self.version == 1 else (0.0, 1)

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            return _axis(h, first, less, like), _axis(w, first, less, like)

        return self.prepared("queries", make, key=(h, w, *kind(like)))

    def fixed_table(self, h: int, w: int, points: int) -> torch.Tensor:
        """Bias of each query and point of a map, if it is the one of the table."""
        if (h * w, points) != tuple(self.rpe_table.shape[-2:]):
            queries, own = self.rpe_table.shape[-2:]
            raise ZooError(
                f"the fixed bias is for {queries} queries and {own} points; a {h}x{w} map at "
                f"stride {self.stride} has {h * w} and {points}: use the map it was "
                "built for, with sides that are multiples of the stride, or position='table'"
            )
        return self.rpe_table

    def _moving_bias(self, points: torch.Tensor, h: int, w: int) -> LogBias | TableBias:
        """Position term that follows from query minus point, for points (yx, b, groups, n)."""
        queries = self.query_axes(h, w, points)
        if self.position == "log_cpb":
            first, _, last = self.rpe_table
            return LogBias(first.weight, first.bias, last.weight, points, queries)
        if self.version == 2 and self.rpe_table.shape[1:] == (2 * h - 1, 2 * w - 1):
            reach = (self._outside(h), self._outside(w))
            band = 1 if torch.is_grad_enabled() else band_rows(h, w)
            windows = WindowBias(self.rpe_table, points, queries, self.prepared, reach, band)
            if windows.worthwhile:
                return windows
        return TableBias(self.rpe_table, points, queries, self.prepared)

    def _outside(self, side: int) -> float:
        """How many pixels beyond a side of the map points may lie at most (version 2)."""
        if self.offset_range < 0:
            return 0.0  # clamped to the map
        padding, kernel = self.conv_offset[0].padding[0], self.conv_offset[0].kernel_size[0]
        points = (side + 2 * padding - kernel) // self.stride + 1
        return (self.offset_range + 1) / (points - 1) * (side - 1) / 2

    def offset(self, q: torch.Tensor) -> torch.Tensor:
        """Predict how far the points move, (b * groups, i, j, yx), all groups at once."""
        conv, norm, activation, last = self.conv_offset
        weight, bias = self.prepared(
            "offset",
            lambda: (conv.weight.repeat(self.groups, 1, 1, 1), conv.bias.repeat(self.groups)),
            conv.weight,
            conv.bias,
        )
        out = F.conv2d(q, weight, bias, conv.stride, conv.padding, groups=len(weight))
        out = norm.norm(rearrange(out, "b (g c) i j -> b i j g c", g=self.groups))
        out = F.linear(activation(out), last.weight.flatten(1))
        return rearrange(out, "b i j g yx -> (b g) i j yx")

    def _sampled(self, x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Sample each group of channels at its points (yx, b, groups, n), (b, dim, 1, n)."""
        b, _, h, w = x.shape
        half, lengths, first = self.prepared(
            "map", lambda: self._map(b, h, w, points), key=(b, h, w, *kind(points))
        )
        pixel, weight = crossed(neighbours(points * half + half, lengths), w)  # (b, g, n, 4)
        taps = Taps(pixel * self.groups + first, weight)
        pixels = rearrange(x, "b (g c) h w -> (b h w g) c", g=self.groups)
        return rearrange(interpolated(pixels, taps), "b g n c -> b 1 n (g c)").permute(0, 3, 1, 2)

    def _map(self, b: int, h: int, w: int, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Half and whole sides of a map, and the first row of each image and group in it."""
        image, group = (
            torch.arange(count, device=like.device, dtype=torch.int32) for count in (b, self.groups)
        )
        first = image[:, None] * (h * w * self.groups) + group
        half = per_axis((h - 1) / 2, (w - 1) / 2, like, 4)
        return half, per_axis(h, w, like, 5), first[..., None, None]


def _axis(side: int, first: float, less: int, like: torch.Tensor) -> torch.Tensor:
    """Normalised places 2 * (i + first) / (side - less) - 1 along an axis."""
    i = torch.arange(side, device=like.device, dtype=like.dtype)
    return (i + first) * 2 / (side - less) - 1


def _position(use_pe: bool, dwc_pe: bool, fixed_pe: bool, log_cpb: bool) -> Position | None:
    """Translate the official switches, in the order in which they are looked at."""
    if not use_pe:
        return None
    return "dwc" if dwc_pe else "fixed" if fixed_pe else "log_cpb" if log_cpb else "table"


@reference("DAttentionBaseline (v1)")
def dattention_v1(
    *,
    q_size: tuple[int, int],
    kv_size: tuple[int, int],
    n_heads: int,
    n_head_channels: int,
    n_groups: int,
    stride: int,
    offset_range_factor: float,
    use_pe: bool,
    dwc_pe: bool,
    no_off: bool,
    fixed_pe: bool,
    stage_idx: int,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    impl: Impl = "fast",
) -> DeformableAttention:
    """Build the module whose state dict the official class of 2022 has."""
    if use_pe and not dwc_pe and list(q_size) != list(kv_size):
        raise ZooError(
            f"DAttentionBaseline (v1): q_size={q_size}, kv_size={kv_size}; the table of positions "
            "is for queries and keys of one size"
        )
    if no_off or (use_pe and fixed_pe and not dwc_pe):
        raise ZooError(
            f"DAttentionBaseline (v1) with no_off={no_off}, fixed_pe={fixed_pe}: the official "
            "code fails there; version 2 has both"
        )
    return DeformableAttention(
        n_heads * n_head_channels,
        heads=n_heads,
        groups=n_groups,
        stride=stride,
        kernel_size=(9, 7, 5, 3)[stage_idx],
        offset_range=offset_range_factor,
        position=_position(use_pe, dwc_pe, False, False),
        table_size=(kv_size[0], kv_size[1]),
        version=1,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
        impl=impl,
    )


@reference("DAttentionBaseline (v2)")
def dattention_v2(
    *,
    q_size: tuple[int, int],
    kv_size: tuple[int, int],
    n_heads: int,
    n_head_channels: int,
    n_groups: int,
    stride: int,
    offset_range_factor: float,
    use_pe: bool,
    dwc_pe: bool,
    no_off: bool,
    fixed_pe: bool,
    ksize: int,
    log_cpb: bool,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    impl: Impl = "fast",
) -> DeformableAttention:
    """Build the module whose state dict the official class of 2023 has."""
    del kv_size  # the official code derives it from q_size and stride
    if no_off and use_pe and dwc_pe:
        raise ZooError(
            "DAttentionBaseline (v2) with no_off, use_pe and dwc_pe: the official code fails "
            "there; leave one of them out"
        )
    return DeformableAttention(
        n_heads * n_head_channels,
        heads=n_heads,
        groups=n_groups,
        stride=stride,
        kernel_size=ksize,
        offset_range=offset_range_factor,
        position=_position(use_pe and not no_off, dwc_pe, fixed_pe, log_cpb),
        no_offset=no_off,
        table_size=(q_size[0], q_size[1]),
        version=2,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
        impl=impl,
    )
