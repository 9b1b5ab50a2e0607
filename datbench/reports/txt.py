"""The table for people: rounded, with intervals, and the doubts under it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from datbench.advice import advice
from datbench.records import PARTS, Comparison, Record
from datbench.reports import Content, report

WIDTH = 120  # columns of plain text
ROOMY = 100  # columns from which a comparison stands on one line, beside published figures


@report("txt")
def txt(content: Content) -> str:
    """Plain text, the table that the terminal shows."""
    return plain_text(show(content.records))


def plain_text(*parts: RenderableType) -> str:
    """Render for a file: no colours, a fixed width, no spaces at the ends of lines."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, no_color=True).print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def show(records: Sequence[Record], width: int = WIDTH) -> RenderableType:
    """Lay out a table with its notes; it fits 80 columns."""
    titles, rows = tabulate(records, published=width >= ROOMY)
    table = plain_table()
    for title in titles:
        wraps = title == "model" or title.startswith("time")
        table.add_column(
            Text(title),
            justify="left" if wraps else "right",
            overflow="fold",
            no_wrap=not wraps,
            min_width=13 if title.startswith("time") else None,
        )
    for record, row in zip(records, rows, strict=True):
        name = Text(row[0])
        name.append("".join(f"\n  {flag}" for flag in record.flags), "yellow")
        cells = row[1:] if width >= ROOMY else [cell.replace(" [", "\n[") for cell in row[1:]]
        table.add_row(name, *map(Text, cells), style="red" if record.error else "")
    return Group(table, "", *map(Text, notes(records)))


def plain_table(*, expand: bool = False) -> Table:
    """A table with a line under its head and two spaces between its columns."""
    return Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=expand
    )


def tabulate(
    records: Sequence[Record], *, published: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rounded cells of each record; flags are left to the caller.

    Published figures have columns of their own where there are any and `published` asks for them.
    """
    columns: dict[str, Callable[[Record], str]] = {
        "model": lambda r: r.model,
        "input": shape,
        "params\nM": lambda r: scaled(r.values.get("params"), 1e6),
        "GMACs": lambda r: scaled(r.values.get("macs"), 1e9),
        "GFLOPs": lambda r: scaled(r.values.get("flops"), 1e9),
        "GMACs\npaper": lambda r: scaled(r.published_macs, 1e9),
        "top-1\n%": lambda r: rounded(r.published_top1),
        "latency\nms [95 %]": latency,
        "forward + backward\n+ optimizer ms": parts,
        "img/s": lambda r: rounded(r.values.get("throughput_img_s")),
        "peak\nMiB": lambda r: rounded(r.values.get("peak_allocated_mib")),
        "mJ/img": lambda r: rounded(r.values.get("energy_mj_img")),
    }
    if all(record.values.get("energy_mj_img") is None for record in records):
        del columns["mJ/img"]
    if not any(map(parts, records)):
        del columns["forward + backward\n+ optimizer ms"]
    if len({shape(record) for record in records}) == 1:
        del columns["input"]
    for title, known in (("GMACs\npaper", "published_macs"), ("top-1\n%", "published_top1")):
        if not published or all(getattr(record, known) is None for record in records):
            del columns[title]
    baselines = {r.comparison.baseline for r in records if r.comparison}
    if baselines:
        columns[f"time against\n{', '.join(sorted(baselines))}"] = lambda r: (
            told(r.comparison) if r.comparison else "baseline" if r.model in baselines else ""
        )
    return list(columns), [[cell(record) for cell in columns.values()] for record in records]


def shape(record: Record) -> str:
    """Say what one input is: the side of an image, or the shape of a feature map."""
    channels, h, w = record.workload.input_shape
    return str(record.workload.img_size) if channels == 3 else f"{channels}x{h}x{w}"


def latency(record: Record) -> str:
    """Write the median latency with its interval."""
    if record.error:
        return "failed"
    values = record.values
    interval = between(values.get("latency_ms_lo"), values.get("latency_ms_hi"))
    return f"{rounded(values.get('latency_ms_median'))}{interval}"


def parts(record: Record) -> str:
    """Write the median latency of each part of a training step; nothing for a forward."""
    found = [record.values.get(f"{part}_ms_median") for part in PARTS]
    return " + ".join(map(rounded, found)) if any(found) else ""


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield what must be said under the table."""
    for record in records:
        if record.error:
            yield f"{record.model} failed: {record.error}"
        for warning in record.all_warnings:
            yield f"{record.model}: {warning}"
    compared = [r.comparison for r in records if r.comparison]
    if any(comparison.verdict is None for comparison in compared):
        pairs = max(int(record.values.get("pairs") or 0) for record in records)
        yield (
            "No verdict: one process pair, so the interval leaves out what differs from process "
            "to process."
            if pairs <= 1
            else f"No verdict: {pairs} process pairs are too few."
        )
    elif len(compared) > 1:
        yield standing(records)
    yield from advice(records)
    for calibration in dict.fromkeys(map(calibrated, records)):
        if calibration:
            yield calibration
    for record in records:
        if record.published_source:
            yield as_published(record)
    one_shape = len({shape(record) for record in records}) == 1
    yield from dict.fromkeys(conditions(record, one_shape) for record in records)


def standing(records: Sequence[Record]) -> str:
    """Say which models stand on which side of the baseline; ties stay ties."""
    sides: dict[str, list[str]] = {"FASTER": [], "SAME": [], "SLOWER": [], "INCONCLUSIVE": []}
    for record in records:
        if record.comparison and record.comparison.verdict:
            sides[record.comparison.verdict].append(record.model)
    words = {"SAME": "the same", "INCONCLUSIVE": "open"}
    parts = [
        f"{words.get(side, side.lower())}: {', '.join(models)}"
        for side, models in sides.items()
        if models
    ]
    baseline = next(r.comparison.baseline for r in records if r.comparison)
    return f"Against {baseline} - {'; '.join(parts)}. Models of one side are not ranked."


def calibrated(record: Record) -> str:
    """Say what the machine can tell apart, where that is known."""
    known = record.calibration
    if known is None:
        return ""
    sees = ", ".join(f"{tier} {found:.1%}" for tier, found in known.detectable.items())
    return (
        f"This machine finds differences of: {sees} (calibrated {known.timestamp_utc[:10]} with "
        f"{known.model}, {rounded(known.latency_ms)} ms; identical models were called different "
        f"in {known.false_verdicts} of {known.comparisons} comparisons)."
    )


def account(records: Sequence[Record]) -> RenderableType:
    """Lay out where the time of a run went, in seconds, and how much of it was timed."""
    kinds = list(dict.fromkeys(kind for record in records for kind in record.spent_s))
    table = plain_table()
    for title in ("seconds", *(record.model for record in records), "all"):
        table.add_column(Text(title), justify="left" if title == "seconds" else "right")
    for kind in kinds:
        spent = [record.spent_s.get(kind, 0.0) for record in records]
        table.add_row(kind, *(f"{s:.1f}" for s in (*spent, sum(spent))))
    after = sum(s for r in records for kind, s in r.spent_s.items() if kind != kinds[0])
    timed = sum(record.spent_s.get("timed", 0.0) for record in records)
    share = f"After {kinds[0]}, {timed / after:.0%} of it was timed iterations." if after else ""
    return Group(table, "", share)


def as_published(record: Record) -> str:
    """Tell the published figures and where they stand."""
    known = [
        f"{number / unit:{form}} {what}"
        for number, unit, form, what in (
            (record.published_params, 1e6, "g", "M parameters"),
            (record.published_macs, 1e9, "g", "GMACs"),
            (record.published_top1, 1, ".1f", "% top-1"),
        )
        if number is not None
    ]
    return f"{record.model} as published: {', '.join(known)}; {record.published_source}"


def conditions(record: Record, with_shape: bool) -> str:
    """Say under what conditions a record was measured."""
    work, environment, row = record.workload, record.environment, record.row()
    where = environment.device_name if environment else work.device
    versions = f"torch {environment.torch}, Python {environment.python}" if environment else ""
    size = f" {shape(record)}" if with_shape else ""
    set_ = {"tf32": work.tf32, "cold cache": work.cold_cache}
    set_[f"trained with {work.optimizer}"] = work.optimizer is not None
    set_["cudnn.benchmark off"] = work.device != "cpu" and not work.cudnn_benchmark
    extra = "".join(f", {name}" for name, on in set_.items() if on)
    return (
        f"{work.device} ({where}), {work.threads} threads, {row['dtype']}{extra}, "
        f"{row['runtime']}, batch {work.batch_size} of {work.image}{size}; {versions}; "
        f"run {record.run_id}"
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
