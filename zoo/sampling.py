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
        row: int32, (..., taps).
        weight: (..., taps).
    """

    row: torch.Tensor
    weight: torch.Tensor


def neighbours(position: torch.Tensor, length: torch.Tensor | None = None) -> Taps:
    """Find the two entries around each position on an axis, (...) to (..., 2).

    Args:
        position: 0 is the middle of the first entry; NaN gives weights of NaN.
        length: of the axis, against `position` with one axis more; what is outside gets the
            weight 0. None if nothing is.
    """
    low = position.detach().floor()
    fraction = position - low
    weight = torch.stack((1 - fraction, fraction), -1)
    index = torch.stack((low, low + 1), -1).nan_to_num(0)
    if length is None:
        return Taps(index.int(), weight)
    seen = index.clamp(min=0).minimum(length - 1)
    return Taps(seen.int(), weight * (seen == index))


def crossed(taps: Taps, width: int) -> Taps:
    """Combine taps along both axes, (yx, ..., 2) to (..., 4), of a map `width` entries wide."""
    (row_y, row_x), (weight_y, weight_x) = taps
    row = (row_y * width)[..., :, None] + row_x[..., None, :]
    weight = weight_y[..., :, None] * weight_x[..., None, :]
    return Taps(row.flatten(-2), weight.flatten(-2))


def gathered(rows: torch.Tensor, taps: Taps) -> torch.Tensor:
    """Sum weighted rows, (n, c) to (..., c); the weights have the type of the rows."""
    *lead, count = taps.row.shape
    row, weight = taps.row.reshape(-1, count), taps.weight.expand(taps.row.shape)
    out = F.embedding_bag(row, rows, mode="sum", per_sample_weights=weight.reshape(-1, count))
    return out.unflatten(0, lead)


def per_axis(y: float, x: float, like: torch.Tensor, axes: int = 1) -> torch.Tensor:
    """Two numbers as a tensor (2, 1, ...) of so many axes, made on the device of `like`."""
    numbers = torch.cat((like.new_full((1,), y), like.new_full((1,), x)))
    return numbers.view(-1, *[1] * (axes - 1))


def interpolated(rows: torch.Tensor, taps: Taps) -> torch.Tensor:
    """`gathered` in float32 or the wider type of the weights, returned in the type of the rows.

    bfloat16 would place a point up to a seventh of a pixel off on an 80x80 map.
    """
    return gathered(rows.to(taps.weight.dtype), taps).to(rows.dtype)
