"""Deformable attention in one compiled kernel, which reads the bias table at each pair it meets.

Nothing of queries times points is stored. On CUDA it is compiled once for maps of any size. On a
CPU it is compiled for each size, until torch's limit of recompilations, and then runs as it is
written: there the code generator of torch 2.14 fails on sizes that vary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention

from zoo.blocks._positions import TableBias
from zoo.sampling import per_axis


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: TableBias, scale: float
) -> torch.Tensor:
    """Attend from the map q (b, heads, h, w, d) to k and v (b, heads, n, d), as q."""
    h, w = q.shape[2:4]
    table, points = positions.table.to(q.dtype), positions.points
    length_y, length_x = table.shape[1:]
    half = per_axis((length_y - 1) / 2, (length_x - 1) / 2, points)
    last_y, last_x = half * 2
    at = torch.stack(torch.meshgrid(*positions.queries, indexing="ij")).flatten(1) / 2
    query_y, query_x = (at + 1) * half[:, None]  # where a point in the middle reads the table
    moved = points.repeat_interleave(positions.heads_per_group, 2) / 2 * half[:, None, None, None]
    point_y, point_x = (axis.permute(2, 0, 1).contiguous() for axis in moved)

    def with_bias(
        score: torch.Tensor, b: torch.Tensor, head: torch.Tensor, m: torch.Tensor, n: torch.Tensor
    ) -> torch.Tensor:
        y, x = query_y[m] - point_y[n, b, head], query_x[m] - point_x[n, b, head]
        top, left = y.floor(), x.floor()
        bias = torch.zeros_like(score)
        for i, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            for j, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
                row, column = i.clamp(min=0).minimum(last_y), j.clamp(min=0).minimum(last_x)
                entry = table[head, row.int(), column.int()]
                inside = (row == i) & (column == j)
                bias = bias + torch.where(inside, entry * (weight_y * weight_x), 0.0)
        return score + bias

    run: Any = flex_attention if torch.compiler.is_compiling() else _compiled(q.is_cuda)
    out = run(q.flatten(2, 3), k, v, score_mod=with_bias, scale=scale)
    return out.unflatten(2, (h, w))


@functools.cache
def _compiled(dynamic: bool) -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=dynamic)
