"""Deformable attention for GPUs: all queries at once, in one fused kernel.

By default the position term is sampled for all pairs of query and point in one go, and handed to
`scaled_dot_product_attention` as its mask. It is the one thing of that size that exists, and the
number of kernels does not grow with the batch. `impl=flex` and `impl=triton` read the table inside
the kernel instead, so nothing of that size exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange

from zoo.blocks import _deformable_flex
from zoo.blocks._positions import log_spaced
from zoo.layers import ALIGNED, aligned
from zoo.prepared import kind
from zoo.sampling import per_axis

if TYPE_CHECKING:
    from zoo.blocks.deformable import DeformableAttention


def attend(block: DeformableAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend from every pixel of `x` to its group's sampled points, (b, dim, h, w)."""
    h, w = x.shape[-2:]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    q, grid_xy = block.proj_q(channels_last), None
    if block.no_offset:
        sampled = block.pooled(x)
    else:
        pos_yx, _ = block.place(block.offset(q))
        grid_xy = rearrange(pos_yx.flip(-1), "bg i j xy -> bg 1 (i j) xy")
        # In float32, as the papers' form.
        maps = x.to(grid_xy.dtype, memory_format=torch.contiguous_format)
        grouped = rearrange(maps, "b (g c) h w -> (b g) c h w", g=block.groups)
        sampled = F.grid_sample(grouped, grid_xy, align_corners=True).to(x.dtype)
        sampled = rearrange(sampled, "(b g) c 1 n -> b (g c) 1 n", g=block.groups)
    sampled = sampled.contiguous(memory_format=torch.channels_last)

    queries = rearrange(q, "b (a d) h w -> b a (h w) d", a=block.heads)
    keys, values = (
        rearrange(project(sampled), "b (a d) 1 n -> b a n d", a=block.heads)
        for project in (block.proj_k, block.proj_v)
    )
    out = _attend(block, queries, keys, values, grid_xy, (h, w))
    out = rearrange(out, "b a (h w) d -> b h w (a d)", h=h).permute(0, 3, 1, 2)
    if block.position == "dwc":
        out = out + block.rpe_table(q)
    out = block.proj_drop(block.proj_out(out))
    return out if x is channels_last else out.contiguous()


def _attend(  # noqa: PLR0917 - what attention takes, and its position term
    block: DeformableAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid_xy: torch.Tensor | None,
    size: tuple[int, int],
) -> torch.Tensor:
    """Attend from q (b, heads, h * w, d) to k and v (b, heads, n, d), as q.

    Args:
        block: has the position term.
        q, k, v: queries, keys and values.
        grid_xy: points of each group, (b * groups, 1, n, xy); None without offsets.
        size: sides of the map.
    """
    dropout = block.attn_drop.p if block.training else 0.0
    mask = None
    if grid_xy is not None and block.position == "table":
        if not dropout and block.impl in ("flex", "triton"):
            out = _by_kernel(block, q, k, v, grid_xy, size)
            if out is not None:
                return out
        mask = _from_table(block, grid_xy, size)
    elif grid_xy is not None and block.position == "log_cpb":
        mask = _from_distance(block, grid_xy, size)
    elif block.position == "fixed":
        mask = aligned(block.fixed_table(*size, k.shape[2]), q.dtype)[None]
    if mask is not None and len(mask) > 1:
        mask = rearrange(mask, "(b g) a m n -> b (g a) m n", b=len(q))
    if mask is not None:
        mask = mask.to(q.dtype)[..., : k.shape[2]]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=block.scale)


def _by_kernel(  # noqa: PLR0917 - as `_attend`
    block: DeformableAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid_xy: torch.Tensor,
    size: tuple[int, int],
) -> torch.Tensor | None:
    """Attend by a kernel that reads the table; None where it cannot."""
    table, learns = block.rpe_table, _learns(q, block.rpe_table)
    points_yx = rearrange(grid_xy, "(b g) 1 n xy -> xy b g n", g=block.groups).flip(0)
    if block.impl == "flex":
        if learns and not q.is_cuda:
            return None
        axes = block.query_axes(*size, grid_xy)
        return _deformable_flex.attend(q, k, v, table, points_yx, axes, block.scale)
    from zoo.blocks import _deformable_triton

    if not _deformable_triton.runs(q, learns):
        return None

    def entries() -> tuple[torch.Tensor, torch.Tensor]:
        half_y, half_x = ((length - 1) / 2 for length in table.shape[1:])
        queries_yx = rearrange(_queries_xy(block, grid_xy, size), "m 1 xy -> xy m").flip(0)
        half = per_axis(half_y, half_x, grid_xy, 2)
        return (queries_yx / 2 + 1) * half, per_axis(half_y / 2, half_x / 2, grid_xy, 4)

    # A displacement of -2 is the table's first entry, one of 2 its last.
    key = (*size, *table.shape, *kind(grid_xy))
    queries, factor = block.prepared("entries", entries, key=key)
    return _deformable_triton.attend(q, k, v, table, points_yx * factor, queries, block.scale)


def _learns(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _from_table(
    block: DeformableAttention, grid_xy: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Table at query minus point, (b * groups, heads of a group, h * w, points and padding)."""
    batch, missing = len(grid_xy) // block.groups, -grid_xy.shape[2] % ALIGNED
    points_xy = F.pad(grid_xy, (0, 0, 0, missing)) if missing else grid_xy

    def half() -> torch.Tensor:
        return _queries_xy(block, grid_xy, size) * 0.5

    def tables() -> torch.Tensor:
        table = block.rpe_table.unflatten(0, (block.groups, -1))
        return table.to(grid_xy.dtype).repeat(batch, 1, 1, 1)

    queries_xy = block.prepared("half queries", half, key=(*size, *kind(grid_xy)))
    table = block.prepared("tables", tables, block.rpe_table, key=(batch, *kind(grid_xy)))
    displacement_xy = torch.sub(queries_xy, points_xy, alpha=0.5)
    return F.grid_sample(table, displacement_xy, align_corners=True)


def _from_distance(
    block: DeformableAttention, grid_xy: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Network on the log-spaced distance, as `_from_table`."""
    first, _, last = block.rpe_table
    queries_xy = block.prepared(
        "all queries", lambda: _queries_xy(block, grid_xy, size), key=(*size, *kind(grid_xy))
    )
    delta_yx = (queries_xy - grid_xy).flip(-1)
    pairs = log_spaced(delta_yx).flatten(1, 2).to(first.weight.dtype)
    hidden = F.relu(first(pairs), inplace=not torch.is_grad_enabled())
    bias = torch.bmm(last.weight.expand(len(pairs), -1, -1), hidden.transpose(1, 2))
    return aligned(bias.unflatten(2, (delta_yx.shape[1], -1)), bias.dtype)


def _queries_xy(
    block: DeformableAttention, like: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Places of all queries of a map, (h * w, 1, xy)."""
    axes = torch.meshgrid(*block.query_axes(*size, like), indexing="ij")
    return torch.stack(axes[::-1], -1).flatten(0, 1)[:, None]
