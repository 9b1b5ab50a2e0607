"""Bilinear sampling as weighted sums of rows.

A point between pixels is the sum of four neighbours, each a row of channels with a weight. So is
a window cut out of a table at a point between its entries: each of its rows is a sum of four rows.
`F.embedding_bag` sums weighted rows, at the speed of memory, and its gradients reach the rows and
the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Taps(NamedTuple):
    """Which rows of a matrix are summed, and their weights.

    Args:
        index: int32, (..., taps).
        weight: (..., taps).
    """

    index: torch.Tensor
    weight: torch.Tensor


def neighbours(position: torch.Tensor, length: int | None = None) -> Taps:
    """Find the two entries around each position on an axis, (...) to (..., 2).

    Args:
        position: 0 is the middle of the first entry; NaN gives weights of NaN.
        length: of the axis; what is outside gets the weight 0. None if nothing is.
    """
    low = position.detach().floor()
    fraction = position - low
    weight = torch.stack((1 - fraction, fraction), -1)
    if length is not None:
        low = low.clamp(-2, length)
    first = low.nan_to_num(0).int()
    index = torch.stack((first, first + 1), -1)
    if length is None:
        return Taps(index, weight)
    return Taps(index.clamp(0, length - 1), weight * ((index >= 0) & (index < length)))


def crossed(rows: Taps, columns: Taps, width: int) -> Taps:
    """Combine taps along both axes of a map whose rows have `width` entries."""
    index = rows.index[..., :, None] * width + columns.index[..., None, :]
    weight = rows.weight[..., :, None] * columns.weight[..., None, :]
    return Taps(index.flatten(-2), weight.flatten(-2))


def gathered(rows: torch.Tensor, taps: Taps) -> torch.Tensor:
    """Sum weighted rows, (n, c) to (..., c); the weights have the type of the rows."""
    *lead, count = taps.index.shape
    index, weight = taps.index.reshape(-1, count), taps.weight.expand(taps.index.shape)
    out = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight.reshape(-1, count))
    return out.unflatten(0, lead)


def interpolated(rows: torch.Tensor, taps: Taps) -> torch.Tensor:
    """`gathered` in float32 or the wider type of the weights, returned in the type of the rows.

    bfloat16 would place a point up to a seventh of a pixel off on an 80x80 map.
    """
    return gathered(rows.to(taps.weight.dtype), taps).to(rows.dtype)
