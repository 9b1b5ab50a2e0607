"""Deformable attention in one compiled kernel, which reads the bias table at each pair it meets.

Nothing of queries times points is stored. It is compiled for each size of a map, until torch's
limit of recompilations, and then runs as it is written: on a CPU the code generator of torch 2.14
fails on sizes that vary. Sizes are numbers and no tensors inside, which Inductor of torch 2.11
cannot capture on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention


def attend(  # noqa: PLR0917 - what attention takes, and its position term
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    points: torch.Tensor,
    queries: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Attend from q (b, heads, h * w, d) to k and v (b, heads, n, d), as q.

    Args:
        q, k, v: queries, keys and values.
        table: read at query minus point, (heads, th, tw).
        points: (yx, b, groups, n).
        queries: places of the rows and columns of the map, (h,) and (w,).
        scale: of the products of queries and keys.
    """
    table, per_group = table.to(q.dtype), len(table) // points.shape[2]
    length_y, length_x = table.shape[1:]
    half_y, half_x = (length_y - 1) / 2, (length_x - 1) / 2
    at_y, at_x = torch.meshgrid(*queries, indexing="ij")
    # Where a point in the middle reads the table.
    query_y, query_x = (at_y.flatten() / 2 + 1) * half_y, (at_x.flatten() / 2 + 1) * half_x
    moved_y, moved_x = points.repeat_interleave(per_group, 2) / 2
    point_y = (moved_y * half_y).permute(2, 0, 1).contiguous()
    point_x = (moved_x * half_x).permute(2, 0, 1).contiguous()

    def with_bias(
        score: torch.Tensor, b: torch.Tensor, head: torch.Tensor, m: torch.Tensor, n: torch.Tensor
    ) -> torch.Tensor:
        y, x = query_y[m] - point_y[n, b, head], query_x[m] - point_x[n, b, head]
        top, left = y.floor(), x.floor()
        bias = torch.zeros_like(score)
        for i, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            for j, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
                row, column = i.clamp(0, length_y - 1), j.clamp(0, length_x - 1)
                entry = table[head, row.int(), column.int()]
                inside = (row == i) & (column == j)
                bias = bias + torch.where(inside, entry * (weight_y * weight_x), 0.0)
        return score + bias

    run: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
    out: torch.Tensor = run(q, k, v, score_mod=with_bias, scale=scale)
    return out


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
