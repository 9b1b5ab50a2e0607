"""Deformable attention in one compiled kernel, which reads the bias table at each pair it meets.

Nothing of queries times points is stored. It is compiled once for maps of any size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention

from zoo.blocks._positions import TableBias


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: TableBias, scale: float
) -> torch.Tensor:
    """Attend from the map q (b, heads, h, w, d) to k and v (b, heads, n, d), as q."""
    h, w = q.shape[2:4]
    table = positions.table
    # Where a query at 0 reads the table for each point, and how far the next one reads from there.
    (from_y, step_y), (from_x, step_x) = (
        ((axis[0] - at + 2) / 4 * (length - 1), (axis[1] - axis[0]) / 4 * (length - 1))
        for axis, at, length in zip(
            positions.queries, positions.points, table.shape[1:], strict=True
        )
    )
    shared, (_, rows, columns) = positions.heads_per_group, table.shape
    table = table.to(q.dtype)

    def with_bias(
        score: torch.Tensor, b: torch.Tensor, head: torch.Tensor, m: torch.Tensor, n: torch.Tensor
    ) -> torch.Tensor:
        group = head // shared
        y = from_y[b, group, n] + m // w * step_y
        x = from_x[b, group, n] + m % w * step_x
        top, left = y.floor(), x.floor()
        bias = torch.zeros_like(score)
        for i, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            for j, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
                inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
                row, column = i.clamp(0, rows - 1).int(), j.clamp(0, columns - 1).int()
                entry = table[head, row, column]
                bias = bias + torch.where(inside, entry * (weight_y * weight_x), 0.0)
        return score + bias

    run = flex_attention if torch.compiler.is_compiling() else _compiled()
    out = run(q.flatten(2, 3), k, v, score_mod=with_bias, scale=scale)
    return out.unflatten(2, (h, w))


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)
