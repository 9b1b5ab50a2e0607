"""What changed from one run to another: models, figures, versions, environment.

Counts and memory compare plainly. Latencies of two runs were never measured beside each other, so
their ratio is told with an interval and no verdict: the half widths of both medians' intervals
and what one more process pair scatters by the machine's calibration, added in squares, of
log(B / A). Across machines there is no ratio.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datbench.gate import Gate
from datbench.records import Calibration, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

FIGURES = ("params", "macs", "peak_allocated_mib", "peak_reserved_mib")
GROWING = {"params": "params", "macs": "macs", "memory": "peak_allocated_mib"}  # by condition
COLUMNS = (
    "model", "img_size", "batch_size",
    *(f"{figure}_{side}" for figure in FIGURES for side in "ab"),
    "latency_ms_a", "latency_ms_b", "ratio", "ratio_lo", "ratio_hi", "error_a", "error_b",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """One model under one workload in both runs.

    Args:
        a, b: its records.
        ratio: latency of B over A; None across machines and where one is missing.
        lo, hi: 95 % interval of the ratio; None where a run has too few samples for one.
    """

    a: Record
    b: Record
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None

    @property
    def model(self) -> str:
        """Label of the model."""
        return self.b.model

    def grown(self, what: str) -> float | None:
        """Relative growth of what a condition is about; None where it is not known."""
        a, b = (record.values.get(GROWING[what]) for record in (self.a, self.b))
        if a is None or b is None:
            return None
        return b / a - 1 if a else math.inf if b else 0.0

    def row(self) -> dict[str, Any]:
        """Return the change by `COLUMNS`."""
        work = self.b.workload
        sides = {"a": self.a, "b": self.b}
        row: dict[str, Any] = {
            "model": self.model,
            "img_size": work.img_size,
            "batch_size": work.batch_size,
            "ratio": self.ratio,
            "ratio_lo": self.lo,
            "ratio_hi": self.hi,
        }
        for side, record in sides.items():
            row |= {f"{name}_{side}": record.values.get(name) for name in FIGURES}
            row[f"latency_ms_{side}"] = record.values.get("latency_ms_median")
            row[f"error_{side}"] = record.error
        return {column: row[column] for column in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Difference:
    """What changed from run A to run B.

    Args:
        changes: models that both have, under the same workload.
        only_a, only_b: names of those that one of them has.
        environment: what differs, with both values.
        calibration: by which the intervals allow for noise.
    """

    changes: Sequence[Change]
    only_a: Sequence[str]
    only_b: Sequence[str]
    environment: Sequence[tuple[str, str, str]]
    calibration: Calibration | None


def difference(a: Sequence[Record], b: Sequence[Record]) -> Difference:
    """Match the records of two runs by model and workload, and compare them."""
    found = {(record.model, record.workload): record for record in b}
    known = [record.calibration for record in (*b, *a) if record.calibration]
    calibration = known[0] if known else None
    pairs = [(x, found.pop((x.model, x.workload), None)) for x in a]
    return Difference(
        changes=[change(x, y, calibration) for x, y in pairs if y is not None],
        only_a=[_named(x) for x, y in pairs if y is None],
        only_b=[_named(y) for y in found.values()],
        environment=_environments([x for x, y in pairs if y], [y for _, y in pairs if y]),
        calibration=calibration,
    )


def change(a: Record, b: Record, calibration: Calibration | None) -> Change:
    """Compare two records of one model; latencies only where they are of one machine."""
    of_a, of_b = (record.values.get("latency_ms_median") for record in (a, b))
    if not of_a or not of_b or a.machine != b.machine:
        return Change(a, b)
    middle = math.log(of_b / of_a)
    halves = [_half(a), _half(b)]
    if None in halves:
        return Change(a, b, of_b / of_a)
    if calibration is not None:
        from scipy.special import stdtrit

        halves.append(float(stdtrit(calibration.pairs - 1, 0.975)) * calibration.deviation)
    half = math.hypot(*(h for h in halves if h is not None))
    return Change(a, b, of_b / of_a, math.exp(middle - half), math.exp(middle + half))


def _half(record: Record) -> float | None:
    """Half width of the interval of a median latency, as a logarithm."""
    lo, hi = (record.values.get(f"latency_ms_{end}") for end in ("lo", "hi"))
    return math.log(hi / lo) / 2 if lo and hi else None


def _named(record: Record) -> str:
    work = record.workload
    shape = "x".join(map(str, work.input_shape))
    return f"{record.model} (batch {work.batch_size} of {shape}, {work.dtype}, {work.device})"


def _environments(a: Sequence[Record], b: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Yield what differs between the environments of two runs, packages and settings apart."""
    sides = []
    for records in (a, b):
        told: dict[str, dict[str, None]] = {}
        for record in records:
            for name, value in _flat(record).items():
                told.setdefault(name, {})[str(value)] = None
        sides.append({name: ", ".join(values) for name, values in told.items()})
    names = dict.fromkeys((*sides[0], *sides[1]))
    pairs = [(name, sides[0].get(name, ""), sides[1].get(name, "")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _flat(record: Record) -> dict[str, Any]:
    if record.environment is None:
        return {}
    facts = dataclasses.asdict(record.environment)
    nested = {k: facts.pop(k) for k in ("packages", "settings")}
    return facts | {k: v for values in nested.values() for k, v in values.items()}


def failures(found: Difference, gates: Sequence[Gate]) -> Iterator[str]:
    """Yield what to say for each change on which a condition holds."""
    for entry in found.changes:
        for gate in gates:
            if gate.direction in ("slower", "faster"):
                holds = gate.beyond(entry.lo, entry.hi)
            else:
                growth = entry.grown(gate.direction)
                holds = growth is not None and growth > gate.percent / 100
            if holds:
                yield f"{entry.model}: {_told(entry, gate)}, beyond {gate}"


def _told(entry: Change, gate: Gate) -> str:
    from datbench.reports.cells import between, rounded

    if gate.direction in ("slower", "faster"):
        return f"{rounded(entry.ratio)}x the latency{between(entry.lo, entry.hi)}"
    return f"{entry.grown(gate.direction):+.1%} {gate.direction}"


def unjudged(found: Difference, gates: Sequence[Gate]) -> list[str]:
    """Say of which models no condition can be judged, and why."""
    told = [f"{name} is missing in B" for name in found.only_a]
    for entry in found.changes:
        grows = [gate.direction for gate in gates if gate.direction in GROWING]
        unknown = [what for what in grows if entry.grown(what) is None]
        if entry.b.error:
            told.append(f"{entry.model} failed in B")
        elif unknown:
            told.append(f"{entry.model} has no {' and '.join(unknown)} in one of the runs")
        elif len(grows) < len(gates) and entry.lo is None:
            apart = entry.a.machine != entry.b.machine
            why = "was measured on different machines" if apart else "has too few samples"
            told.append(f"{entry.model} {why}")
    return told


def show(found: Difference) -> RenderableType:
    """Lay the difference out as a table with its notes."""
    from rich.console import Group

    from datbench.reports.cells import between, rounded, scaled, shape
    from datbench.reports.txt import plain, plain_table

    table = plain_table()
    several = len({entry.b.workload for entry in found.changes}) > 1
    titles = ["model", "params M", "GMACs", "peak MiB", "ms A", "ms B", "B / A [95 %]", "reading"]
    for title in [titles[0], *(["input"] if several else []), *titles[1:]]:
        table.add_column(title, justify="left" if title in ("model", "reading") else "right")
    for entry in found.changes:
        a, b = entry.a.values, entry.b.values
        sizes = [f"{entry.b.workload.batch_size} x {shape(entry.b)}"] if several else []
        ratio = rounded(entry.ratio)
        cells = [
            entry.model,
            *sizes,
            _arrow(scaled(a.get("params"), 1e6), scaled(b.get("params"), 1e6)),
            _arrow(scaled(a.get("macs"), 1e9), scaled(b.get("macs"), 1e9)),
            _arrow(*(rounded(values.get(GROWING["memory"])) for values in (a, b))),
            "failed" if entry.a.error else rounded(a.get("latency_ms_median")),
            "failed" if entry.b.error else rounded(b.get("latency_ms_median")),
            f"{ratio}{between(entry.lo, entry.hi)}" if ratio else "",
            reading(entry),
        ]
        table.add_row(*map(plain, cells))
    return Group(table, "", *map(plain, notes(found)))


def _arrow(before: str, after: str) -> str:
    return after if before == after else f"{before or 'none'} -> {after or 'none'}"


def reading(entry: Change) -> str:
    """Say what a ratio of two sessions can say."""
    if entry.a.machine != entry.b.machine:
        return "another machine, no ratio"
    if entry.lo is None or entry.hi is None:
        return ""
    if entry.lo <= 1 <= entry.hi:
        return "within the noise"
    return "slower than noise explains" if entry.lo > 1 else "faster than noise explains"


def notes(found: Difference) -> Iterator[str]:
    """Yield what must be said under the table."""
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            yield f"Only in {side}: {', '.join(names)}."
    for entry in found.changes:
        for side, record in (("A", entry.a), ("B", entry.b)):
            if record.error:
                yield f"{entry.model} failed in {side}: {record.error}"
            if record.flags:
                yield f"{entry.model} in {side}: {' '.join(record.flags)}"
    if found.environment:
        yield "Environment, A -> B:"
        yield from (f"  {name}: {a or 'none'} -> {b or 'none'}" for name, a, b in found.environment)
    elif found.changes:
        yield "Environment: the same in both."
    if not any(entry.ratio for entry in found.changes):
        return
    yield (
        "Latencies of different sessions are not a fair comparison: what the machine did in "
        "between is part of the ratio. For a verdict measure both in one run, with `datbench "
        "compare --models A B`."
    )
    known = found.calibration
    yield (
        f"The intervals allow for {known.deviation:.1%} from process pair to process pair, as "
        f"calibrated on {known.timestamp_utc[:10]}."
        if known
        else "This machine was not calibrated, so the intervals leave out what differs from "
        "session to session: `datbench calibrate`."
    )
