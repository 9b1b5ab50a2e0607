"""One figure of records, ready for a paper.

Each machine, and on it each kind of run, has a set of the panels for which there are data:
latency against multiply-adds and published accuracy, ratios, memory, and, where the samples are
at hand, their distribution and their course in time. The width is that of two columns; the height
grows with the number of rows. What is left out is told under the panels.
"""

from __future__ import annotations

import dataclasses
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from datbench.reports import Content
from datbench.reports import panels as p
from datbench.reports.placing import plain, short, text_width, write_names
from datbench.reports.protocol import counted
from datbench.reports.sets import Set, sets_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 7.2, 200  # inches; pixels an inch
MARGIN, LABELS, AXIS = 0.1, 0.52, 0.42  # inches: beside all, left of an axis, and under one
VALUES = 1.15  # inches, for a ratio with its interval
MOST_SETS = 6  # of a figure
MOST_NAMES = 30  # beside points
LINE = 0.12  # inches
TITLE, NOTES = 105, 135  # characters of a line
STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 6,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "datbench",
}


class Sheet:
    """A figure on which things stand in inches from its upper left corner.

    Args:
        height: of the figure.
    """

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure, self._height = Figure(figsize=(WIDTH, height)), height
        self.clouds: list[Cloud] = []

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without their labels."""
        low = 1 - (top + height) / self._height
        return self.figure.add_axes((left / WIDTH, low, width / WIDTH, height / self._height))

    def write(self, top: float, told: str, **how: Any) -> None:
        """Write at the left, downwards from `top`."""
        self.figure.text(MARGIN / WIDTH, 1 - top / self._height, told, va="top", **how)

    def legend(self, top: float, keys: Sequence[Any], labels: Sequence[str]) -> None:
        """Tell what lines mean, in four columns."""
        self.figure.legend(
            keys, labels, loc="upper center", bbox_to_anchor=(0.5, 1 - top / self._height),
            ncols=4, handlelength=3, borderpad=0, borderaxespad=0,
        )  # fmt: skip


Draw = Callable[[Sheet, float, Set], None]


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Points that want names, those first that need one most, and the line through their front."""

    axes: Axes
    points: Sequence[tuple[float, float, str]]
    line: Sequence[tuple[float, float]]

    def write_names(self) -> None:
        """Write them where there is room, once the layout is done."""
        if left_out := write_names(self.axes, self.points, self.line, MOST_NAMES):
            told = f"{left_out} of {counted(len(self.points), 'name')} left out for want of room"
            where = self.axes.transAxes
            self.axes.text(1, 1, told, transform=where, ha="right", va="bottom", fontsize=6)


def image(content: Content, form: str) -> bytes:
    """Draw the figure as "png" or "svg"; the same content gives the same bytes."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    data = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in any script
        drawn = draw(content)
        if form == "png":
            canvas: Any = FigureCanvasAgg(drawn)
            canvas.print_png(data, metadata={"Software": "datbench"})
        else:
            canvas = FigureCanvasSVG(drawn)
            canvas.print_svg(data, metadata={"Date": None, "Creator": "datbench"})
    return data.getvalue()


def draw(content: Content) -> Figure:
    """Put the panels of each set under those of the one before."""
    sets = sets_of(content)
    bands = [(one, band) for one in sets[:MOST_SETS] for band in _bands(one)]
    if len(sets) > MOST_SETS:
        told = f"{counted(len(sets) - MOST_SETS, 'more kind')} of runs would follow."
        bands.append((sets[-1], _words(told)))
    sheet = Sheet(2 * MARGIN + (sum(height for _, (height, _) in bands) or LINE))
    if not bands:
        sheet.write(MARGIN, "Nothing to draw: there are no records.")
    top = MARGIN
    for one, (height, draw_band) in bands:
        draw_band(sheet, top, one)
        top += height
    for cloud in sheet.clouds:
        cloud.write_names()
    return sheet.figure


def _bands(one: Set) -> list[tuple[float, Draw]]:
    """Choose what has data: heights in inches, and what draws panels side by side."""
    panels: list[tuple[float, Draw]] = []
    if any(one.clouds):
        panels.append((2.4, _draw_clouds))
    if any(one.columns):
        panels.append((_rows_height(one) + 0.75, _draw_lines))
    if one.timed:
        panels.append((2.45 + 0.13 * math.ceil(len(one.timed) / 4), _draw_samples))
    told = "no row has a ratio, memory or samples, and no two have a latency and multiply-adds"
    return [
        _words(textwrap.fill(one.title, TITLE), fontsize=7, weight="bold"),
        *(panels or [_words(f"Nothing to draw: {told}.")]),
        _words(textwrap.fill(plain(" ".join(one.notes)), NOTES)),
    ]


def _words(told: str, fontsize: int = 6, **how: Any) -> tuple[float, Draw]:
    """Text as a band of its own."""
    height = LINE * (2 + told.count("\n"))
    return height, lambda sheet, top, _: sheet.write(top, told, fontsize=fontsize, **how)


def _rows_height(one: Set) -> float:
    return 0.16 * len(one.lines)


def _halves(sheet: Sheet, top: float, height: float, count: int = 2) -> list[Axes]:
    """Add so many axes side by side."""
    each = (WIDTH - MARGIN) / count
    return [
        sheet.axes(i * each + LABELS, top, each - LABELS - MARGIN, height) for i in range(count)
    ]


def _draw_clouds(sheet: Sheet, top: float, one: Set) -> None:
    """Draw points; their names are written when everything has its place."""
    drawers = zip((p.draw_cost, p.draw_accuracy), one.clouds, strict=True)
    there = [(draw_points, points) for draw_points, points in drawers if points]
    every = _halves(sheet, top + 0.1, 2.3 - AXIS, len(there))
    for axes, (draw_points, points) in zip(every, there, strict=True):
        best, line = draw_points(axes, points)
        ordered = sorted(points, key=lambda point: (point[:2] not in best, point[2].place))
        named = [(x, y, short(row.name)) for x, y, row in ordered]
        sheet.clouds.append(Cloud(axes, named, line))


def _draw_lines(sheet: Sheet, top: float, one: Set) -> None:
    """Draw what has a line for each row: ratios, and memory."""
    labels = [short(row.name) + " †" * bool(row.record.flags) for row in one.lines]
    left = MARGIN + 0.1 + max(text_width(label, DPI) for label in labels) / DPI
    room = WIDTH - left - 2 * MARGIN
    ratios, memory = one.columns
    widths = [0.6 * (room - VALUES), 0.4 * (room - VALUES)] if memory else [room - VALUES]
    if not ratios:
        widths = [room]
    places = [left, left + widths[0] + VALUES][: len(widths)]
    drawers = [p.draw_ratios] * ratios + [p.draw_memory] * memory
    every = [
        sheet.axes(x, top + 0.25, w, _rows_height(one)) for x, w in zip(places, widths, strict=True)
    ]
    for axes, draw_rows in zip(every, drawers, strict=True):
        draw_rows(axes, one.lines)
        axes.set_ylim(len(one.lines) - 0.4, -0.6)
        axes.set_yticks([])
    every[0].set_yticks(range(len(labels)), labels)
    for y, row in enumerate(one.lines):
        if row.record.error:
            p.write_in(every[0], y, "failed")


def _draw_samples(sheet: Sheet, top: float, one: Set) -> None:
    """Draw the distribution of the samples and their course in time."""
    from matplotlib.lines import Line2D

    left, right = _halves(sheet, top + 0.1, 2.2 - AXIS)
    p.draw_distributions(left, one.timed)
    p.draw_times(right, one.timed)
    keys = [
        Line2D([], [], color=row.colour, linestyle=row.dashes, marker=row.marker, markersize=3)
        for row in one.timed
    ]
    sheet.legend(top + 2.35, keys, [short(row.name) for row in one.timed])
