"""Deformable attention as the papers write it, the yardstick of the other implementations.

Everything exists in full: the grid of displacements of all queries and points, the bias that is
sampled from it, the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from zoo.blocks._positions import log_spaced

if TYPE_CHECKING:
    from zoo.blocks.deformable import DeformableAttention


def attend(block: DeformableAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend from every pixel of `x` to its group's sampled points, (b, dim, h, w)."""
    h, w = x.shape[-2:]
    q = block.proj_q(x)
    if block.no_offset:
        sampled = block.pooled(x)
    else:
        pos_yx, _ = block.place(offset(block, q))
        grouped = rearrange(x, "b (g c) h w -> (b g) c h w", g=block.groups)
        grid_xy = rearrange(pos_yx.flip(-1), "bg i j xy -> bg 1 (i j) xy")
        # In float32: bfloat16 places a point up to a seventh of a pixel off on an 80x80 map.
        sampled = F.grid_sample(grouped.to(grid_xy.dtype), grid_xy, align_corners=True)
        sampled = rearrange(sampled.to(x.dtype), "(b g) c 1 n -> b (g c) 1 n", g=block.groups)
    k, v = block.proj_k(sampled), block.proj_v(sampled)

    queries = rearrange(q, "b (a d) h w -> b a (h w) d", a=block.heads)
    keys = rearrange(k, "b (a d) 1 n -> b a d n", a=block.heads)
    values = rearrange(v, "b (a d) 1 n -> b a n d", a=block.heads)
    logits = queries @ keys * block.scale  # (b, heads, m, n)
    if block.position in ("table", "log_cpb"):
        logits = logits + moving_bias(block, pos_yx, h, w)
    elif block.position == "fixed":
        logits = logits + block.fixed_table(h, w, keys.shape[-1])
    weights = block.attn_drop(logits.softmax(-1)).to(values.dtype)  # the bias is float32
    out = rearrange(weights @ values, "b a (h w) d -> b (a d) h w", h=h)
    if block.position == "dwc":
        out = out + block.rpe_table(q)
    return block.proj_drop(block.proj_out(out))


def offset(block: DeformableAttention, q: torch.Tensor) -> torch.Tensor:
    """Predict how far the points move, (b * groups, i, j, yx)."""
    moved = block.conv_offset(rearrange(q, "b (g c) h w -> (b g) c h w", g=block.groups))
    return rearrange(moved, "bg yx i j -> bg i j yx")


def moving_bias(block: DeformableAttention, pos_yx: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Bias that follows from query minus point, (b, heads, h * w, points)."""
    queries_y, queries_x = block.query_axes(h, w, pos_yx)
    queries = torch.stack(torch.meshgrid(queries_y, queries_x, indexing="ij"), -1)
    queries = rearrange(queries, "i j yx -> (i j) 1 yx")
    delta_yx = queries - rearrange(pos_yx, "bg i j yx -> bg 1 (i j) yx")
    if block.position == "log_cpb":
        bias = block.rpe_table(log_spaced(delta_yx).to(block.rpe_table[0].weight.dtype))
        return rearrange(bias, "(b g) m n a -> b (g a) m n", g=block.groups)
    displacement_xy = (0.5 * delta_yx).flip(-1)
    batch = pos_yx.shape[0] // block.groups
    table = repeat(block.rpe_table, "(g a) i j -> (b g) a i j", g=block.groups, b=batch)
    bias = F.grid_sample(table.to(displacement_xy.dtype), displacement_xy, align_corners=True)
    return rearrange(bias, "(b g) a m n -> b (g a) m n", g=block.groups)
