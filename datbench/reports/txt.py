"""The table for people: rounded, with intervals, and the doubts under it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from datbench.records import Comparison, Record
from datbench.reports import report


@report("txt")
def txt(records: Sequence[Record]) -> str:
    """Plain text, the table that the terminal shows."""
    file = io.StringIO()
    Console(file=file, width=160, no_color=True).print(show(records))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def show(records: Sequence[Record]) -> RenderableType:
    """Lay out a table with its notes."""
    table = Table()
    baselines = {r.comparison.baseline for r in records if r.comparison}
    table.add_column("model", overflow="fold")
    for title in ("input", "params M", "GMACs", "latency ms [95 %]", "img/s", "peak MiB"):
        table.add_column(title, justify="right", no_wrap=title != "latency ms [95 %]")
    if baselines:
        table.add_column(f"time against {escape(', '.join(sorted(baselines)))}", overflow="fold")
    table.add_column("flags", overflow="fold")
    for record in records:
        table.add_row(*(escape(cell) for cell in cells(record, baselines)))
    return Group(table, *(escape(line) for line in notes(records)))


def cells(record: Record, baselines: set[str]) -> Iterator[str]:
    """Yield the cells of a row."""
    values = record.values
    channels, h, w = record.workload.input_shape
    yield record.model
    yield f"{record.workload.batch_size}x{channels}x{h}x{w}"
    yield scaled(values.get("params"), 1e6)
    yield scaled(values.get("macs"), 1e9)
    interval = between(values.get("latency_ms_lo"), values.get("latency_ms_hi"))
    latency = f"{rounded(values.get('latency_ms_median'))}{interval}"
    yield "failed" if record.error else latency
    yield rounded(values.get("throughput_img_s"))
    yield rounded(values.get("peak_allocated_mib"))
    if baselines:
        own = "baseline" if record.model in baselines else ""
        yield told(record.comparison) if record.comparison else own
    yield " ".join(record.flags)


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield what must be said under the table."""
    for record in records:
        if record.error:
            yield f"{record.model} failed: {record.error}"
        for warning in record.all_warnings:
            yield f"{record.model}: {warning}"
    if any(r.comparison and r.comparison.verdict is None for r in records):
        yield (
            "No verdict: one process pair (--quick), so the interval leaves out what differs "
            "from process to process."
        )
    yield from dict.fromkeys(conditions(record) for record in records)


def conditions(record: Record) -> str:
    """Say under what conditions a record was measured."""
    work, environment, row = record.workload, record.environment, record.row()
    where = environment.device_name if environment else work.device
    versions = f"torch {environment.torch}, Python {environment.python}" if environment else ""
    return (
        f"{work.device} ({where}), {work.threads} threads, {row['dtype']}, {row['runtime']}, "
        f"input: {work.image}; {versions}; run {record.run_id}"
    )


def told(comparison: Comparison) -> str:
    """Put a comparison into words: a verdict with the ratio and its interval."""
    ratio, lo, hi = comparison.ratio, comparison.lo, comparison.hi
    if comparison.verdict == "FASTER":
        flipped = (1 / hi, 1 / lo) if lo and hi else (None, None)
        return f"{rounded(1 / ratio)}x faster{between(*flipped)}"
    words = {"SLOWER": "x slower", "SAME": "x, the same", "INCONCLUSIVE": "x, inconclusive"}
    return f"{rounded(ratio)}{words.get(comparison.verdict or '', 'x')}{between(lo, hi)}"


def between(lo: float | None, hi: float | None) -> str:
    """Write an interval, with a space before it, or nothing."""
    return "" if lo is None or hi is None else f" [{rounded(lo)}, {rounded(hi)}]"


def scaled(value: float | None, unit: float) -> str:
    """Round a value in a larger unit; nothing where it was not measured."""
    return "" if value is None else rounded(value / unit)


def rounded(value: float | None) -> str:
    """Round to three significant digits without an exponent; nothing where not measured."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
