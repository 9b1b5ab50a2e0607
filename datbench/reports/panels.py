"""The panels of a figure: each draws rows on axes, and says beforehand whether they have data."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from datbench.records import Record
from datbench.reports.cells import between, rounded
from datbench.reports.placing import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Colours that stay apart for colour-blind readers (Okabe and Ito, yellow left out).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX*<>ph"
DASHES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
GREY, BAND = "#808080", "#DDDDDD"
SHAPES = {"FASTER": "<", "SLOWER": ">", "SAME": "s", "INCONCLUSIVE": "o", "no verdict": "D"}
HOLLOW = ("INCONCLUSIVE", "no verdict")
WIDE = 5.0  # ratio of the largest to the smallest value, from which an axis is logarithmic
STEPS = 512  # of a distribution's curve
RASTER = 3000  # marks, from which they are pixels in a drawing of lines too


@dataclasses.dataclass(frozen=True)
class Row:
    """One record of a set of panels.

    Args:
        record: what was measured.
        name: that is written, in one line.
        place: in the set, from 0.
        slots: of its samples, those left out that are of another key.
    """

    record: Record
    name: str
    place: int
    slots: Sequence[Mapping[str, Any]] = ()

    @property
    def colour(self) -> str:
        """Colour of its marks; grey where there are more rows than marks to tell them apart."""
        return COLOURS[self.place % len(COLOURS)] if self.place < len(MARKERS) else GREY

    @property
    def marker(self) -> str:
        """Shape of its marks."""
        return MARKERS[self.place] if self.place < len(MARKERS) else "."

    @property
    def dashes(self) -> Literal["-", "--", "-.", ":"]:
        """Style of its lines."""
        return DASHES[self.place % len(DASHES)]

    def value(self, name: str) -> float | None:
        """A measured number; None where it was not, and for a model that failed."""
        found = self.record.values.get(name)
        return None if self.record.error or not found or found <= 0 else float(found)

    @property
    def top1(self) -> float | None:
        """Published accuracy in percent."""
        return self.record.published_top1


Point = tuple[float, float, Row]
Front = tuple[list[tuple[float, float]], list[tuple[float, float]]]  # its points; its line


def cost_points(rows: Sequence[Row]) -> list[Point]:
    """GMACs and latency of the rows that have both."""
    both = ((row.value("macs"), row.value("latency_ms_median"), row) for row in rows)
    return [(macs / 1e9, ms, row) for macs, ms, row in both if macs and ms]


def accuracy_points(rows: Sequence[Row]) -> list[Point]:
    """Latency and published accuracy of the rows that have both."""
    both = ((row.value("latency_ms_median"), row.top1, row) for row in rows)
    return [(ms, top1, row) for ms, top1, row in both if ms and top1]


def front(points: Sequence[tuple[float, float]], *, high: bool) -> list[tuple[float, float]]:
    """Points that no other beats in both: least x, and greatest y if `high`, else least y."""
    found: list[tuple[float, float]] = []
    sign = -1 if high else 1
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not found or sign * y < sign * found[-1][1]:
            found.append((x, y))
    return found


def draw_cost(axes: Axes, points: Sequence[Point]) -> Front:
    """Draw latency against multiply-adds, and return the front."""
    spread(axes, "x", [x for x, _, _ in points])
    spread(axes, "y", [y for _, y, _ in points])
    axes.set(xlabel="GMACs of one image", ylabel="latency, ms")
    return _scatter(axes, points, high=False)


def draw_accuracy(axes: Axes, points: Sequence[Point]) -> Front:
    """Draw published accuracy against latency, and return the front."""
    spread(axes, "x", [x for x, _, _ in points])
    axes.set(xlabel="latency, ms", ylabel="published top-1, %")
    return _scatter(axes, points, high=True)


def _scatter(axes: Axes, points: Sequence[Point], *, high: bool) -> Front:
    best = front([(x, y) for x, y, _ in points], high=high)
    turns = [(x, y) for (_, y), (x, _) in itertools.pairwise(best)]
    line = [best[0], *itertools.chain.from_iterable(zip(turns, best[1:], strict=True))]
    axes.plot(*zip(*line, strict=True), color=GREY, linewidth=0.8, zorder=1)
    plain = [(x, y) for x, y, row in points if row.colour == GREY]
    if plain:
        raster = len(plain) > RASTER
        xs, ys = zip(*plain, strict=True)
        axes.scatter(xs, ys, s=7, color=GREY, linewidths=0, rasterized=raster)
    for x, y, row in points:
        if row.colour != GREY:
            axes.plot(x, y, row.marker, color=row.colour, markersize=4, zorder=3)
    axes.margins(0.14)
    axes.autoscale_view()  # now: names are placed by it
    return best, line


def draw_ratios(axes: Axes, rows: Sequence[Row]) -> None:
    """Ratios to the baseline, with intervals, the margin and verdicts."""
    from matplotlib.lines import Line2D

    margins = {row.record.min_effect for row in rows if row.record.comparison}
    margin = margins.pop() if len(margins) == 1 else None
    axes.axvline(1, color=GREY, linewidth=0.8, zorder=1)
    references = {(r.record.run_id, c.baseline) for r in rows if (c := r.record.comparison)}
    ends = [1.0]
    shown = dict.fromkeys(SHAPES, False)
    for y, row in enumerate(rows):
        compared = row.record.comparison
        if (row.record.run_id, row.record.model) in references:
            _beside(axes, y, "baseline")
        if compared is None or row.record.error:
            continue
        kind = compared.verdict or "no verdict"
        shown[kind] = True
        if compared.lo is not None and compared.hi is not None:
            axes.plot([compared.lo, compared.hi], [y, y], "k-", linewidth=1)
            ends += [compared.lo, compared.hi]
        axes.plot(compared.ratio, y, **_mark(kind))
        ends.append(compared.ratio)
        _beside(axes, y, f"{rounded(compared.ratio)}{between(compared.lo, compared.hi)}")
    if margin:
        axes.axvspan(1 / (1 + margin), 1 + margin, color=BAND, linewidth=0, zorder=0)
        ends += [1 / (1 + margin), 1 + margin]
    spread(axes, "x", ends)
    kinds = [kind for kind, is_there in shown.items() if is_there]
    axes.legend(
        [Line2D([], [], **_mark(kind)) for kind in kinds], [kind.lower() for kind in kinds],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.1, columnspacing=1,
    )  # fmt: skip
    band = f" (band: the same within {100 * margin:g} %)" if margin else ""
    axes.set_xlabel(f"time against {_baselines(rows)}{band}")


def write_in(axes: Axes, y: float, told: str) -> None:
    """Write at the left end of a row."""
    axes.text(0.02, y, told, transform=axes.get_yaxis_transform(), va="center", fontsize=6)


def _beside(axes: Axes, y: float, told: str) -> None:
    """Write to the right of a row."""
    axes.text(1.02, y, told, transform=axes.get_yaxis_transform(), va="center", fontsize=6)


def _mark(kind: str) -> dict[str, Any]:
    fill = "white" if kind in HOLLOW else "black"
    shape = {"marker": SHAPES[kind], "markersize": 4.5, "linestyle": "none"}
    return {**shape, "color": "black", "markerfacecolor": fill, "zorder": 3}


def _baselines(rows: Sequence[Row]) -> str:
    """Name the baseline; of several, what they have in common."""
    names = {row.record.comparison.baseline for row in rows if row.record.comparison}
    return plain(names.pop()) if len(names) == 1 else "the baseline of the run"


def draw_memory(axes: Axes, rows: Sequence[Row]) -> None:
    """Peak memory as bars, weights in them darker."""
    found = [(y, row.value("peak_allocated_mib"), row) for y, row in enumerate(rows)]
    peaks = [(y, peak, row.value("weights_mib") or 0) for y, peak, row in found if peak]
    places = [y for y, _, _ in peaks]
    axes.barh(places, [peak for _, peak, _ in peaks], 0.6, color="#9ECAE1", label="peak")
    axes.barh(places, [weights for _, _, weights in peaks], 0.6, color="#0072B2", label="weights")
    most = max(peak for _, peak, _ in peaks)
    for y, peak, _ in peaks:
        axes.text(peak + 0.02 * most, y, rounded(peak), va="center", fontsize=6)
    axes.set_xlim(0, 1.22 * most)
    axes.set_xlabel("peak memory of tensors, MiB")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1)


def draw_distributions(axes: Axes, rows: Sequence[Row]) -> None:
    """Empirical distribution of the timed iterations of each row."""
    ends = []
    for row in rows:
        times = sorted(t for slot in row.slots if not slot["redone"] for t in slot["latency_ms"])
        if not times:
            continue
        last = len(times) - 1
        kept = sorted({round(i * last / (STEPS - 1)) for i in range(STEPS)})
        axes.step(
            [times[0], *(times[i] for i in kept)], [0.0, *((i + 1) / len(times) for i in kept)],
            where="post", color=row.colour, linestyle=row.dashes, linewidth=1.1,
        )  # fmt: skip
        ends += [times[0], times[-1]]
    spread(axes, "x", ends)
    axes.set(xlabel="latency, ms", ylabel="share of iterations", ylim=(0, 1.02))


def draw_times(axes: Axes, rows: Sequence[Row]) -> None:
    """Median of each slot over time; lines end with a process pair, crosses are disturbed."""
    raster = sum(len(row.slots) for row in rows) > RASTER
    starts: dict[str, float] = {}
    for row in rows:
        began = _ended(row.slots[0])
        starts[row.record.run_id] = min(began, starts.get(row.record.run_id, began))
    ends, crosses = [], []
    for row in rows:
        start = starts[row.record.run_id]
        slots = [(_ended(s) - start, statistics.median(s["latency_ms"]), s) for s in row.slots]
        ends += [median for _, median, _ in slots]
        crosses += [(second, median) for second, median, slot in slots if slot["disturbed"]]
        kept = (slot for slot in slots if not slot[2]["redone"])
        for _, of_pair in itertools.groupby(kept, key=lambda slot: slot[2]["pair"]):
            seconds, medians, _ = zip(*of_pair, strict=True)
            axes.plot(
                seconds, medians, marker=row.marker, color=row.colour, linestyle=row.dashes,
                linewidth=0.6, markersize=2, rasterized=raster,
            )  # fmt: skip
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "kx", markersize=4, markeredgewidth=0.8, zorder=4)
    spread(axes, "y", ends)
    told = "; crosses: disturbed slots" if crosses else ""
    axes.set(xlabel=f"seconds into the run{told}", ylabel="median of a slot, ms")


def _ended(slot: Mapping[str, Any]) -> float:
    """When a slot ended, in seconds since 1970."""
    return datetime.fromisoformat(slot["ended_utc"]).timestamp()


def spread(axes: Axes, name: str, values: Sequence[float]) -> None:
    """Make the axis "x" or "y" logarithmic where values lie far apart, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis: Axis = getattr(axes, f"{name}axis")
    if min(values) > 0 and max(values) / min(values) > WIDE:
        getattr(axes, f"set_{name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
