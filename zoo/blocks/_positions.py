"""The position terms of deformable attention, a block of queries at a time.

Along one axis the bias table is read at `i * step + c`, where i is the query's row or column and
c follows from the point, the key, alone. So place and weight depend on row and point, and on
column and point, never on all three. Where the table was made for the map (version 2), the step
is 1: then the bias of a point is a window of the table, cut out between its entries.

Places are normalised to -1 to 1, as (y, x). Each term is one of `zoo.chunked.Positions`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from zoo.chunked import LOG2E, Positions, Strip, strip_columns
from zoo.prepared import Prepared, kind
from zoo.sampling import Taps, crossed, gathered, neighbours, per_axis

HIDDEN = 2**18  # hidden units of `LogBias` at a time
FEW = 2**19  # logits, below which windows do not pay
BAND = 40  # entries of a band, at most; longer ones gain nothing
KEPT = 2**20  # entries of windows that are kept, at most
Axes = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class TableBias(Positions):
    """A table read at query minus point, bilinearly, zero outside of it.

    Args:
        table: (heads, th, tw).
        points: (yx, b, groups, n).
        queries: (h,) and (w,).
        prepared: keeps what is made of the table.
    """

    table: torch.Tensor
    points: torch.Tensor
    queries: Axes
    prepared: Prepared

    @property
    def heads_per_group(self) -> int:
        """Heads that share their points."""
        return len(self.table) // self.points.shape[2]

    @property
    def least_heads(self) -> int:
        """Two groups: `grid_sample` gives each thread a group of its own."""
        return 2 * self.heads_per_group

    def strip(self, heads: slice, columns: slice) -> Strip:
        """Table of each group; where its points and the columns meet it, from -1 to 1."""
        groups, within = _groups(heads, self.heads_per_group)
        batch = self.points.shape[1]

        def make() -> torch.Tensor:
            table = self.table.unflatten(0, (-1, self.heads_per_group))[groups, within]
            return (table.to(self.points.dtype) * LOG2E).repeat(batch, 1, 1, 1)

        key = (heads.start, heads.stop, batch, *kind(self.points))
        table = self.prepared(f"table {heads.start}", make, self.table, key=key)
        points_y, points_x = self.points[:, :, groups].flatten(1, 2)[..., None, None]
        return table, points_y, (self.queries[1][columns] - points_x) / 2

    def block(self, strip: Strip, rows: slice) -> torch.Tensor:
        """Sample the table at each point and query."""
        table, points_y, x = strip
        y = (self.queries[0][rows, None] - points_y) / 2
        if torch.compiler.is_compiling():
            grid_xy = torch.stack(torch.broadcast_tensors(x, y), -1)
        else:
            grid_xy = torch.view_as_real(x + y * 1j)  # the quickest way to pair all x with all y
        return F.grid_sample(table, grid_xy.flatten(2, 3), align_corners=True).flatten(0, 1)


@dataclasses.dataclass(frozen=True)
class WindowBias(TableBias):
    """A table of 2h - 1 by 2w - 1 entries, of which each point sees a window of h x w.

    Args:
        table, points, queries, prepared: as of `TableBias`.
        reach: how far a point may lie outside of the map at most, in pixels of each axis.
        band: rows of a window that lie side by side, a divisor of h; 1 if the table learns.
    """

    reach: tuple[float, float] = (0.0, 0.0)
    band: int = 1

    @property
    def least_heads(self) -> int:
        """One: every head is cut out by all threads."""
        return 1

    @property
    def margins(self) -> tuple[int, int]:
        """Zeros beside the table that the windows reach, on each axis."""
        sides = zip(self.queries, self.reach, strict=True)
        margin_y, margin_x = (min(math.ceil(far) + 1, len(axis)) for axis, far in sides)
        return margin_y, margin_x

    @property
    def starts(self) -> int:
        """Columns of the padded table at which a window can begin."""
        return len(self.queries[1]) + 2 * self.margins[1] + 1

    @property
    def height(self) -> int:
        """Rows of the padded table at which a band can begin."""
        return 2 * (len(self.queries[0]) + self.margins[0]) - self.band + 1

    @property
    def worthwhile(self) -> bool:
        """Whether laying out windows costs less than it saves, against sampling the table."""
        height, width = map(len, self.queries)
        pairs = height * width * self.points.shape[1] * self.points.shape[-1]
        size = self.strip_size // self.band * -(-width // strip_columns(width))
        return size <= pairs and len(self.table) * pairs >= FEW

    @property
    def strip_size(self) -> int:
        """Elements of the windows of a head."""
        return self.height * self.starts * self.band * strip_columns(len(self.queries[1]))

    def strip(self, heads: slice, columns: slice) -> Strip:
        """Lay out the table's bands as rows; row and weight of each point's taps."""
        row, weight = self.corners
        groups, within = _groups(heads, self.heads_per_group)
        shared = len(range(self.heads_per_group)[within])
        count = heads.stop - heads.start
        first = self._from(0, count, self.height * self.starts).view(-1, shared, 1, 1)
        row = (row[:, groups, None] + first).flatten(1, 2)
        weight = weight[:, groups, None].expand(-1, -1, shared, -1, -1).flatten(1, 2)
        windows = self._windows(heads, columns)
        learned = torch.is_grad_enabled() and windows.requires_grad
        if not learned or torch.compiler.is_compiling():
            return windows, row, weight
        return windows, row, weight, *self._by_corner(row, weight)

    def _by_corner(self, row: torch.Tensor, weight: torch.Tensor) -> Strip:
        """Taps in the order of the table: the point, and the weight, of each; their edges."""
        ordered, order = row.flatten().sort()
        corners = (self.height - len(self.queries[0]) + 1) * self.starts
        first = torch.arange(row.shape[1], device=row.device) * (self.height * self.starts)
        corner = torch.arange(corners, device=row.device)
        edges = torch.searchsorted(
            ordered, (first[:, None] + corner).flatten().int(), out_int32=True
        )
        ends = edges.new_full((1,), len(order))
        return (order // 4).int(), weight.flatten()[order].detach(), torch.cat((edges, ends))

    def block(self, strip: Strip, rows: slice) -> torch.Tensor:
        """Cut the rows of each point's window out of the table."""
        windows, row, weight, *by_corner = strip
        first, last = rows.start // self.band, rows.stop // self.band
        bands = self._from(first, last, self.band * self.starts)
        row = row[..., None, :] + bands[:, None]
        taps = Taps(row, weight[..., None, :])
        if by_corner:
            bias = _Cut.apply(
                gathered(windows.detach(), taps), windows, rows, self.starts, *by_corner
            )
        else:
            bias = gathered(windows, taps)
        return bias.flatten(0, 1).flatten(-2)

    def _from(self, start: int, stop: int, step: int) -> torch.Tensor:
        """First rows of some tables that stand one below another."""

        def make() -> torch.Tensor:
            device = self.points.device
            return torch.arange(start * step, stop * step, step, device=device, dtype=torch.int32)

        return self.prepared(f"from {start} by {step}", make, key=(stop, self.points.device))

    @functools.cached_property
    def corners(self) -> Taps:
        """Taps of the first entry of each point's window, (b, groups, n, 4)."""

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            height, width = map(len, self.queries)
            half = per_axis((height - 1) / 2, (width - 1) / 2, self.points, 4)
            return half, half + per_axis(*self.margins, self.points, 4)

        key = (*map(len, self.queries), self.margins, *kind(self.points))
        half, middle = self.prepared("corners", make, key=key)
        corner = middle - self.points * half
        if self.margins[0] == len(self.queries[0]) or self.margins[1] == len(self.queries[1]):
            corner = corner.clamp(min=0).minimum(middle * 2)  # beyond, no entry is seen
        return crossed(neighbours(corner), self.starts)

    def _windows(self, heads: slice, columns: slice) -> torch.Tensor:
        """Bands of the table that begin at each row and column, (heads * rows * columns, band)."""
        margin_y, margin_x = self.margins
        margins = (margin_x, margin_x + 1, margin_y, margin_y + 1)

        def make() -> torch.Tensor:
            table = F.pad(self.table[heads].to(self.points.dtype) * LOG2E, margins)
            seen = table[..., columns.start : columns.stop + self.starts - 1]
            seen = seen.unfold(1, self.band, 1).unfold(2, columns.stop - columns.start, 1)
            return seen.flatten(3).flatten(0, 2)

        if self.strip_size * len(self.table) > KEPT:
            return make()
        key = (heads.stop, columns.stop, self.margins, self.band, *kind(self.points))
        return self.prepared(f"windows {heads.start} {columns.start}", make, self.table, key=key)


class _Cut(torch.autograd.Function):
    """Gives the gradient of a block's bias to the windows that it was cut out of.

    The taps of all rows of a point lie one below another. So those with the same corner are
    summed first, all rows at once, and each row is added where it belongs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bias: torch.Tensor,
        windows: torch.Tensor,
        rows: slice,
        starts: int,
        *by_corner: torch.Tensor,
    ) -> torch.Tensor:
        """Return the bias (b, heads, n, rows, columns) as it is."""
        ctx.save_for_backward(*by_corner)
        ctx.shape, ctx.rows, ctx.starts = windows.shape, rows, starts
        return bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Pass the gradient on, and sum it for the windows."""
        point, weight, edges = ctx.saved_tensors
        heads = grad.shape[1]
        sums = F.embedding_bag(
            point,
            grad.flatten(3).flatten(0, 2),
            edges,
            mode="sum",
            per_sample_weights=weight,
            include_last_offset=True,
        )
        sums = sums.view(heads, -1, ctx.starts, *grad.shape[3:])
        windows = grad.new_zeros(ctx.shape).view(heads, -1, ctx.starts, ctx.shape[1])
        for i in range(ctx.rows.stop - ctx.rows.start):
            top = ctx.rows.start + i
            windows[:, top : top + sums.shape[1]] += sums[..., i, :]
        return grad, windows.view(ctx.shape), None, None, None, None, None


@dataclasses.dataclass(frozen=True)
class LogBias(Positions):
    """A small network on the log-spaced distance of query and point.

    The distances along the axes are made apart; only the network sees all pairs.

    Args:
        weight, bias: of the first layer, (units, yx) and (units,); a ReLU follows.
        last: weight of the second layer, (heads of a group, units).
        points: (yx, b, groups, n).
        queries: (h,) and (w,).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    last: torch.Tensor
    points: torch.Tensor
    queries: Axes

    @property
    def heads_per_group(self) -> int:
        """Heads that share their points."""
        return len(self.last)

    @property
    def least_heads(self) -> int:
        """A group, whose heads share the hidden units."""
        return self.heads_per_group

    @property
    def width(self) -> int:
        """Hidden units for each of a group's heads."""
        return -(-len(self.bias) // self.heads_per_group)

    def strip(self, heads: slice, columns: slice) -> Strip:
        """Distances along x; y of the points; the weights of the network."""
        groups, within = _groups(heads, self.heads_per_group)
        points_y, points_x = self.points[:, :, groups]
        x = log_spaced(self.queries[1][columns] - points_x[..., None])[..., None, :]
        return x, points_y, self.weight, self.bias, self.last[within] * LOG2E

    def block(self, strip: Strip, rows: slice) -> torch.Tensor:
        """Pair the distances along both axes, and run the network on all pairs."""
        x, points_y, weight, bias, last = strip
        y = log_spaced(self.queries[0][rows] - points_y[..., None])[..., None]
        fits = max(1, HIDDEN // (y.shape[-2] * x.shape[-1] * len(weight)))  # points
        parts = zip(y.split(fits, 2), x.split(fits, 2), strict=True)
        out = [self._run(*part, weight, bias, last) for part in parts]
        return torch.cat(out, 3).flatten(0, 2)

    def _run(self, y: torch.Tensor, x: torch.Tensor, *network: torch.Tensor) -> torch.Tensor:
        """Run the network on all pairs, (b, groups, heads, n, queries)."""
        weight, bias, last = network
        pairs = torch.stack(torch.broadcast_tensors(y, x), 2).to(weight.dtype)
        pairs = pairs.flatten(3).flatten(0, 1)
        weight, last = (t.expand(len(pairs), -1, -1) for t in (weight, last))
        hidden = torch.baddbmm(bias[:, None], weight, pairs).relu_()  # (b * groups, units, pairs)
        return torch.bmm(last, hidden).view(*y.shape[:2], -1, y.shape[2], y.shape[3] * x.shape[4])


@dataclasses.dataclass(frozen=True)
class FixedBias(Positions):
    """A bias of its own for each query and point.

    Args:
        table: (heads, h * w, n).
        batch: images.
        side: w.
    """

    table: torch.Tensor
    batch: int
    side: int

    @property
    def heads_per_group(self) -> int:
        """One: there are no places to share."""
        return 1

    def strip(self, heads: slice, columns: slice) -> Strip:
        """Take the columns of the table."""
        return (self.table[heads].unflatten(1, (-1, self.side))[:, :, columns],)

    def block(self, strip: Strip, rows: slice) -> torch.Tensor:
        """Take the rows of the strip."""
        bias = strip[0][:, rows].permute(0, 3, 1, 2).flatten(-2) * LOG2E
        return bias.repeat(self.batch, 1, 1)


def band_rows(h: int, w: int) -> int:
    """Rows of a window that lie side by side: sums of few entries are slow."""
    most = max(1, BAND // strip_columns(w))
    return max(rows for rows in range(1, most + 1) if h % rows == 0)


def log_spaced(delta: torch.Tensor) -> torch.Tensor:
    """Normalised distances on the scale of `LogBias`."""
    far = delta * 4
    return far.sign() * (far.abs() + 1).log2() / math.log2(8)


def _groups(heads: slice, per_group: int) -> tuple[slice, slice]:
    """Groups that some heads belong to; which heads of each of these groups they are."""
    first, inside = divmod(heads.start, per_group)
    count = heads.stop - heads.start
    return slice(first, first - (-count // per_group)), slice(inside, inside + count)
