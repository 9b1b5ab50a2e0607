"""The table for people: rounded, with intervals, and the doubts under it."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from datbench.records import Record
from datbench.reports import Content, report
from datbench.reports.cells import VISIBLE, is_words, tabulate
from datbench.reports.machines import NO_RATIOS, by_machine, side_by_side
from datbench.reports.notes import notes

WIDTH = 120  # columns of plain text
ROOMY = 100  # columns from which a comparison stands on one line, beside published figures
MANY = 1000  # rows from which a table is laid out without rich, which takes a millisecond a row
WIDEST = 60  # columns of a cell in such a table
LABEL = 13  # columns of a model's name, at least, where it ends in "(onnxruntime)"


@report("txt")
def txt(content: Content) -> str:
    """Plain text, the table that the terminal shows."""
    return plain_text(show(content.records, columns=content.columns))


def plain_text(*parts: RenderableType) -> str:
    """Render for a file: no colours, a fixed width, no spaces at the ends of lines."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, no_color=True).print(*parts, sep="\n", crop=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def show(
    records: Sequence[Record], width: int = WIDTH, columns: Sequence[str] | None = None
) -> RenderableType:
    """Lay out a table with its notes for each machine; it fits 80 columns.

    Tables of many rows, or of `columns` that were asked for, are as wide as they need to be:
    print them with `crop=False`.
    """
    machines = by_machine(records)
    parts: list[RenderableType] = []
    for label, group in machines:
        if len(machines) > 1:
            parts += [plain(label), ""]
        parts += [_table(group, width, columns), "", _notes(group, width), ""]
    if len(machines) > 1:
        parts += [Lines(straight(*side_by_side(machines))), "", Text(NO_RATIOS), ""]
    return Group(*parts[:-1])


def _table(records: Sequence[Record], width: int, columns: Sequence[str] | None) -> RenderableType:
    titles, rows = tabulate(records, published=width >= ROOMY, columns=columns)
    if columns is not None or len(records) > MANY:
        for record, row in zip(records, rows, strict=True):
            row[0] += "".join(f"\n  {flag}" for flag in record.flags)
        return Lines(straight(titles, rows))
    table = plain_table()
    runtimes = len({record.workload.runtime for record in records}) > 1
    least = {"model": LABEL} if runtimes or "conditions" in titles else {}
    for title in titles:
        wraps = title == "model" or title.startswith("time")
        table.add_column(
            plain(title),
            justify="left" if wraps else "right",
            overflow="fold",
            no_wrap=not wraps,
            min_width=13 if title.startswith("time") else least.get(title),
        )
    for record, row in zip(records, rows, strict=True):
        name = plain(row[0])
        name.append("".join(f"\n  {flag}" for flag in record.flags), "yellow")
        cells = row[1:] if width >= ROOMY else [cell.replace(" [", "\n[") for cell in row[1:]]
        table.add_row(name, *map(plain, cells), style="red" if record.error else "")
    return table


def _notes(records: Sequence[Record], width: int) -> RenderableType:
    if len(records) <= MANY:
        return Group(*map(plain, notes(records)))
    return Lines(
        line
        for note in notes(records)
        for line in textwrap.wrap(note.translate(VISIBLE), width, break_on_hyphens=False)
    )


def plain(text: str) -> Text:
    """Text without markup, its control characters made visible."""
    return Text(text.translate(VISIBLE))


class Lines:
    """Lines that rich prints as they are.

    Args:
        lines: text without line ends.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield Segment(f"{line}\n")


def straight(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out a table as wide as it needs to be, in a fraction of the time that rich takes."""
    cells = [[_folded(cell) for cell in row] for row in rows]
    head = [title.translate(VISIBLE).split("\n") for title in titles]
    widths = [
        max(cell_len(line) for cell in (name, *(row[i] for row in cells)) for line in cell)
        for i, name in enumerate(head)
    ]
    words = [is_words(title) for title in titles]
    height = max(map(len, head))
    yield from _lines([[""] * (height - len(name)) + name for name in head], widths, words)
    yield "─" * (sum(widths) + 2 * len(widths) - 2)
    for row in cells:
        yield from _lines(row, widths, words)


def _lines(row: Sequence[list[str]], widths: list[int], words: list[bool]) -> Iterator[str]:
    for line in itertools.zip_longest(*row, fillvalue=""):
        padded = [
            text + " " * (width - cell_len(text)) if left else " " * (width - cell_len(text)) + text
            for text, width, left in zip(line, widths, words, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def _folded(cell: str) -> list[str]:
    """Lines of a cell, the longest of them in pieces."""
    cell = cell.translate(VISIBLE)
    if len(cell) <= WIDEST // 2 and "\n" not in cell:  # a character takes two columns at most
        return [cell]
    return [piece for line in cell.split("\n") for piece in chop_cells(line, WIDEST) or [""]]


def plain_table(*, expand: bool = False) -> Table:
    """A table with a line under its head and two spaces between its columns."""
    return Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=expand
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
