"""Records cut into the sets of panels of a figure, with names and notes of their rows."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from datbench.records import Record
from datbench.reports import Content
from datbench.reports import panels as p
from datbench.reports.cells import shape
from datbench.reports.machines import by_machine
from datbench.reports.panels import Row
from datbench.reports.placing import plain, short
from datbench.reports.protocol import some

MOST_ROWS = 50  # with a line of their own


@dataclasses.dataclass(frozen=True)
class Set:
    """Panels of records whose times can stand on one axis.

    Args:
        title: of what they are.
        rows: all of them.
        notes: what must be said.
    """

    title: str
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def lines(self) -> Sequence[Row]:
        """Rows that have a line of their own."""
        return self.rows[:MOST_ROWS]

    @property
    def columns(self) -> tuple[bool, bool]:
        """Whether there are ratios, and memory."""
        compared = any(row.record.comparison and not row.record.error for row in self.lines)
        return compared, any(row.value("peak_allocated_mib") for row in self.lines)

    @property
    def clouds(self) -> tuple[Sequence[p.Point], Sequence[p.Point]]:
        """Points of latency and multiply-adds, and of accuracy and latency; none if alone."""
        both = p.cost_points(self.rows), p.accuracy_points(self.rows)
        return both[0] if len(both[0]) > 1 else [], both[1] if len(both[1]) > 1 else []

    @property
    def timed(self) -> Sequence[Row]:
        """Rows whose samples are drawn."""
        timed = [row for row in self.rows if not all(slot["redone"] for slot in row.slots)]
        return timed[: len(p.MARKERS)]


def sets_of(content: Content) -> list[Set]:
    """Cut records into sets: machine by machine, and there by what a latency depends on."""
    found = []
    for label, group in by_machine(content.records):
        kinds: dict[str, list[Record]] = {}
        threads = len({record.workload.threads for record in group})
        for record in group:
            kinds.setdefault(_conditions(record, threads > 1), []).append(record)
        for conditions, records in kinds.items():
            rows = _rows(records, content)
            pretended = any(record.simulated for record in records)
            title = "SIMULATED, nothing here was measured: " * pretended + label
            found.append(Set(plain(f"{title}; {conditions}"), rows, list(_notes(rows))))
    return found


def _conditions(record: Record, with_threads: bool) -> str:
    """What a latency depends on besides model, input size and machine."""
    work = record.workload
    on_gpu = work.device != "cpu"
    told = {
        work.arithmetic: True,
        "TF32": work.tf32,
        f"trained with {work.optimizer}": work.mode == "train",
        work.runtime: True,
        "fused": work.fuse,
        work.scope: work.scope != "forward",
        "channels-last": work.channels_last,
        "cudnn.benchmark off": on_gpu and not work.cudnn_benchmark,
        "cold cache": work.cold_cache,
        f"batch {work.batch_size}": True,
        f"{work.threads} threads": with_threads and not on_gpu,
    }
    return ", ".join(name for name, holds in told.items() if holds)


def _rows(records: Sequence[Record], content: Content) -> list[Row]:
    """Give each record a name of its own, and its samples."""
    runs = {run: number for number, run in enumerate(dict.fromkeys(r.run_id for r in records), 1)}
    several = len({record.workload.input_shape for record in records}) > 1
    forms = []
    for record in records:
        name = plain(record.model)
        sized = f"{name} {shape(record)}" if several else name
        forms.append((name, sized, f"{sized}, run {runs[record.run_id]}"))
    used = collections.Counter(name for known in forms for name in set(known))
    rows = []
    for place, (record, known) in enumerate(zip(records, forms, strict=True)):
        name = next((name for name in known if used[name] == 1), known[-1])
        rows.append(Row(record, name, place, content.slots(record)))
    return rows


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what must be said of a set."""
    if len(p.cost_points(rows)) > 1:
        yield "Grey steps: no other model is better in both."
    if any(row.record.comparison for row in rows):
        yield "Lines through marks: intervals of the ratios."
    if failed := [short(row.name) for row in rows if row.record.error]:
        yield f"Failed: {some(failed)}."
    flags: dict[str, list[str]] = {}
    for row in rows:
        for flag in row.record.flags:
            flags.setdefault(flag, []).append(short(row.name))
    if flags:
        yield f"† {'; '.join(f'{flag}: {some(of)}' for flag, of in flags.items())}."
    if len(rows) > MOST_ROWS:
        yield f"Of {len(rows)} rows the first {MOST_ROWS} have a line; points are those of all."
    timed = sum(bool(row.slots) for row in rows)
    if timed > (most := len(p.MARKERS)):
        yield f"Of {timed} models with samples those of the first {most} are drawn."
