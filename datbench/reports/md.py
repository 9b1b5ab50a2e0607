"""Markdown as GitHub reads it: a table for each machine, its notes under it as a list.

Names and messages are text of others. Names stand in code, where nothing is a mention, a reference
or a link; prose has its punctuation as character references.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from datbench.records import Record
from datbench.reports import Content, report
from datbench.reports.cells import VISIBLE, is_words, tabulate
from datbench.reports.machines import NO_RATIOS, by_machine, side_by_side
from datbench.reports.notes import notes

PLAIN = re.compile(r"[\w.+:/,@=#()%\[\] -]+", re.ASCII)  # what stands in backticks as it is
# A space of no width ends mentions, references, addresses and emoji at their first character.
STARTS = re.compile(
    r"(?<!\w)@(?=\w)|@(?=[\w.-]+\.\w)|#(?=\w)|:(?=//)|:(?=\w+:)|\b(?:mailto|xmpp):|\bwww(?=\.)"
    r"|\bgh(?=-\d)",
    re.IGNORECASE,
)
# Underscores inside words and intervals in brackets are no markup.
MARKUP = re.compile(r"[\\`*#<>|&~$]|(?<![^\W_])_|_(?![^\W_])|\[(?!\d[\d., ]*%?\])|\](?=[:(\[])")


@report("md")
def md(content: Content) -> str:
    """A table for a README, an issue or a pull request."""
    machines = by_machine(content.records)
    blocks: list[str] = []
    for label, group in machines:
        blocks += [f"### {prose(label)}"] if len(machines) > 1 else []
        blocks += [_table(group, content.columns), _list(notes(group))]
    if len(machines) > 1:
        titles, rows = side_by_side(machines)
        blocks += [_rows(titles, [[code(name), *cells] for name, *cells in rows]), NO_RATIOS]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _table(records: Sequence[Record], columns: Sequence[str] | None) -> str:
    titles, rows = tabulate(records, columns=columns)
    if columns is None:
        rows = [[code(name), *map(prose, cells)] for name, *cells in rows]
        if any(record.flags for record in records):
            titles.append("flags")
            for record, row in zip(records, rows, strict=True):
                row.append(prose(", ".join(record.flags)))
        return _rows(titles, rows)
    writes = [code if column in ("model", "baseline") else prose for column in columns]
    return _rows(titles, [[w(cell) for w, cell in zip(writes, row, strict=True)] for row in rows])


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells that are Markdown already; the titles are not."""
    rule = [":--" if is_words(title) else "--:" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (list(map(prose, titles)), rule, *rows))


def _list(lines: Iterator[str]) -> str:
    """Lay out notes; what looks like the start of a list or of a title in one is none."""
    items = (re.sub(r"^(\d*)([-+=.)])", r"\1&#8203;\2", prose(line)) for line in lines)
    return "\n".join(f"- {item}" for item in items)


def code(text: str) -> str:
    """Write a name as code."""
    text = _line(text)
    if not text or PLAIN.fullmatch(text):
        return text and f"`{text}`"
    inside = re.sub(r"[^\w .-]", _reference, text)
    return f"<code>{inside}</code>"


def prose(text: str) -> str:
    """Write text on one line so that nothing in it is markup, a mention or a link."""
    text = STARTS.sub(lambda match: f"{match[0]}\N{ZERO WIDTH SPACE}", _line(text))
    return MARKUP.sub(_reference, text).replace("\N{ZERO WIDTH SPACE}", "&#8203;")


def _line(text: str) -> str:
    return " ".join(text.split()).translate(VISIBLE)


def _reference(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"
