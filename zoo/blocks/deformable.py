"""Deformable attention: every query attends to points that the network moves.

Two papers use one name for two formulas. Version 1 (DAT, 2022) normalises the reference points
by the map's side, version 2 (DAT++, 2023) by the side minus one; they also differ in how offsets
are bounded and in where queries stand. Both sample with `align_corners=True` and zero padding,
although version 1 places pixel centres as if it were False: checkpoints were trained that way.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from zoo.layers import ChannelNorm, head_scale, resized_table
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block

Position = Literal["table", "dwc", "fixed", "log_cpb"]


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
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if the channels do not divide, the options do not go together, the map does
        not fit a "fixed" bias or, without offsets, the stride, or it gives a side of one point
        where the formula divides by that side minus one.
    """

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
    ) -> None:
        super().__init__()
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
        self.conv_offset = nn.Sequential(
            nn.Conv2d(group_dim, group_dim, kernel_size, stride, padding, groups=group_dim),
            ChannelNorm(group_dim),
            nn.GELU(),
            nn.Conv2d(group_dim, 2, 1, bias=False),
        )
        self.proj_q, self.proj_k = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.proj_v, self.proj_out = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
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
        h, w = x.shape[-2:]
        q = self.proj_q(x)
        if self.no_offset:
            sampled = self._pooled(x)
        else:
            pos_yx, _ = self._points(q)
            grouped = rearrange(x, "b (g c) h w -> (b g) c h w", g=self.groups)
            grid_xy = rearrange(pos_yx.flip(-1), "bg i j xy -> bg 1 (i j) xy")
            # In float32: bfloat16 places a point up to a seventh of a pixel off on an 80x80 map.
            sampled = F.grid_sample(grouped.to(grid_xy.dtype), grid_xy, align_corners=True)
            sampled = rearrange(sampled.to(x.dtype), "(b g) c 1 n -> b (g c) 1 n", g=self.groups)
        k, v = self.proj_k(sampled), self.proj_v(sampled)

        queries = rearrange(q, "b (a d) h w -> b a (h w) d", a=self.heads)
        keys = rearrange(k, "b (a d) 1 n -> b a d n", a=self.heads)
        values = rearrange(v, "b (a d) 1 n -> b a n d", a=self.heads)
        logits = queries @ keys * self.scale  # (b, heads, m, n)
        if self.position in ("table", "log_cpb"):
            logits = logits + self._moving_bias(pos_yx, h, w)
        elif self.position == "fixed":
            logits = logits + self._fixed_bias(logits, h, w)
        weights = self.attn_drop(logits.softmax(-1)).to(values.dtype)  # the bias is float32
        out = weights @ values
        out = rearrange(out, "b a (h w) d -> b (a d) h w", h=h)
        if self.position == "dwc":
            out = out + self.rpe_table(q)
        return self.proj_drop(self.proj_out(out))

    def points(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell where `x` is sampled: positions and reference points, (b, groups, i, j, yx)."""
        pos_yx, reference_yx = self._points(self.proj_q(x))
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

    def _points(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offset = self.conv_offset(rearrange(q, "b (g c) h w -> (b g) c h w", g=self.groups))
        offset = rearrange(offset, "bg yx i j -> bg i j yx")
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        rows, columns = offset.shape[1:3]
        less = self.version - 1  # version 2 divides by the side minus one
        reference_yx = _grid(rows, columns, 0.5, less, offset)
        if self.no_offset:
            offset = torch.zeros_like(offset)
        if self.version == 1:
            if self.offset_range > 0:
                offset = self._bounded(offset, rows, columns)
            pos_yx = offset + reference_yx
            return (pos_yx if self.offset_range >= 0 else pos_yx.tanh()), reference_yx
        if self.offset_range >= 0:
            if min(rows, columns) < 2:
                raise ZooError(
                    f"deformable attention has {rows}x{columns} reference points on a "
                    f"{q.shape[-2]}x{q.shape[-1]} map at stride {self.stride}; it needs 2x2: "
                    "use a larger input or a smaller stride"
                )
            return self._bounded(offset, rows, columns) + reference_yx, reference_yx
        return (offset + reference_yx).clamp(-1.0, 1.0), reference_yx

    def _bounded(self, offset: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        less = self.version - 1
        step = (self.offset_range / (rows - less), self.offset_range / (columns - less))
        dy, dx = offset.tanh().unbind(-1)
        return torch.stack((dy * step[0], dx * step[1]), -1)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
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

    def _moving_bias(self, pos_yx: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """Bias that follows from query minus point, (b, heads, h * w, points)."""
        if self.version == 2 and min(h, w) < 2:
            raise ZooError(f"the bias cannot be computed on a {h}x{w} map; it needs 2x2")
        first, less = (0.5, 0) if self.version == 1 else (0.0, 1)
        queries = rearrange(_grid(h, w, first, less, pos_yx), "i j yx -> (i j) 1 yx")
        points = rearrange(pos_yx, "bg i j yx -> bg 1 (i j) yx")
        delta_yx = queries - points
        if self.position == "log_cpb":
            far = delta_yx * 4
            spaced = far.sign() * (far.abs() + 1).log2() / math.log2(8)
            bias = self.rpe_table(spaced.to(self.rpe_table[0].weight.dtype))
            return rearrange(bias, "(b g) m n a -> b (g a) m n", g=self.groups)
        displacement_xy = (0.5 * delta_yx).flip(-1)
        batch = pos_yx.shape[0] // self.groups
        table = repeat(self.rpe_table, "(g a) i j -> (b g) a i j", g=self.groups, b=batch)
        table = table.to(displacement_xy.dtype)
        bias = F.grid_sample(table, displacement_xy, align_corners=True)
        return rearrange(bias, "(b g) a m n -> b (g a) m n", g=self.groups)

    def _fixed_bias(self, logits: torch.Tensor, h: int, w: int) -> torch.Tensor:
        if logits.shape[-2:] != self.rpe_table.shape[-2:]:
            queries, points = self.rpe_table.shape[-2:]
            raise ZooError(
                f"the fixed bias is for {queries} queries and {points} points; a {h}x{w} map at "
                f"stride {self.stride} has {h * w} and {logits.shape[-1]}: use the map it was "
                "built for, with sides that are multiples of the stride, or position='table'"
            )
        return self.rpe_table


def _grid(rows: int, columns: int, first: float, less: int, like: torch.Tensor) -> torch.Tensor:
    """Normalised (y, x) of a grid: 2 * (i + first) / (side - less) - 1, (rows, columns, 2)."""

    def axis(side: int) -> torch.Tensor:
        i = torch.arange(side, device=like.device, dtype=like.dtype)
        return (i + first) * 2 / (side - less) - 1

    return torch.stack(torch.meshgrid(axis(rows), axis(columns), indexing="ij"), -1)


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
    )
