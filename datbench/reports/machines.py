"""Records of several machines: apart where times are compared, side by side where they are not."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence

from datbench.records import Record
from datbench.reports.cells import conditions_of, rounded, shape

NO_RATIOS = (
    "No ratios between machines: two times can be compared only where they took turns on one "
    "machine, in one run."
)


def by_machine(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Group records by machine, in order of first appearance, each with a label of its own.

    Nodes of one kind that measured a sweep count as one: its ratios are between models that took
    turns on one of them. A record without an environment, of a model that failed early, stands
    with its run.
    """
    known: dict[str, tuple[str, ...]] = {}
    for record in records:
        if record.environment:
            known.setdefault(record.run_id, _kind(record))
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        machine = _kind(record) if record.environment else known.get(record.run_id, ("", "", ""))
        groups.setdefault(machine, []).append(record)
    names = [_name(group) for group in groups.values()]
    letters = _letters()
    labels = [f"machine {next(letters)}: {n}" if names.count(n) > 1 else n for n in names]
    return list(zip(labels, groups.values(), strict=True))


def side_by_side(
    groups: Sequence[tuple[str, Sequence[Record]]],
) -> tuple[list[str], list[list[str]]]:
    """Median latencies in ms, a model a row and a machine a column: titles and rounded cells.

    Models that were measured under several workloads have a row for each; where a machine
    measured one several times, all medians stand in the cell.
    """
    everyone = [record for _, group in groups for record in group]
    told = [_workload(record) for record in everyone]
    same = [len(set(values)) == 1 for values in zip(*told, strict=True)]
    medians: dict[str, dict[str, list[str]]] = {}
    for label, group in groups:
        for record in group:
            parts = [p for p, one in zip(_workload(record), same, strict=True) if not one]
            row = medians.setdefault(", ".join([record.model, *parts]), {})
            if median := rounded(record.values.get("latency_ms_median")):
                row.setdefault(label, []).append(median)
    labels = [label for label, _ in groups]
    rows = [
        [model, *(", ".join(row.get(label, ())) for label in labels)]
        for model, row in medians.items()
    ]
    return ["model", *(f"{label}\nms" for label in labels)], rows


def _kind(record: Record) -> tuple[str, ...]:
    """A machine; of a sweep, the run and the kind of its machine."""
    return (record.run_id, *record.machine[1:]) if record.unit else record.machine


def _name(records: Sequence[Record]) -> str:
    """Name the device, and the threads of a CPU."""
    first = next((r for r in records if r.environment), records[0])
    device = first.environment.device_name if first.environment else first.workload.device
    if first.workload.device != "cpu":
        return device
    threads = sorted({record.workload.threads for record in records})
    return f"{device}, {' and '.join(map(str, threads))} thread{'s' * (threads != [1])}"


def _letters() -> Iterator[str]:
    """Yield A to Z, AA to ZZ, and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def _workload(record: Record) -> tuple[str, ...]:
    """What a latency depends on besides model and machine."""
    facts = conditions_of(record)
    del facts["host"], facts["device"]  # of the column
    return (shape(record), *facts.values())
