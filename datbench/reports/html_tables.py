"""The tables of the HTML report, joined from strings: a page may have 100,000 rows."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from datbench.published import show
from datbench.records import Record
from datbench.reports.cells import TEXT, differences, rounded, scaled, tabulate
from datbench.reports.machines import side_by_side

if TYPE_CHECKING:
    from markupsafe import Markup

LONG = 20  # letters of a cell that wraps where it must
MOST_ENVIRONMENTS = 12  # columns of a machine's environments

# What stands in full precision behind a rounded cell, and its unit, by title of the table.
FULL = {
    "params\nM": ("params", ""),
    "GMACs": ("macs", "MACs"),
    "GFLOPs": ("flops", "FLOPs"),
    "GMACs\npaper": ("published_macs", "MACs, published"),
    "top-1\n%": ("published_top1", "%, published"),
    "latency\nms [95 %]": ("latency_ms_median", "ms"),
    "img/s": ("throughput_img_s", "img/s"),
    "peak\nMiB": ("peak_allocated_mib", "MiB"),
    "mJ/img": ("energy_mj_img", "mJ/img"),
    "host\nms": ("host_ms_median", "ms until the host could go on"),
    "off from\neager": ("parity_rel", "of the largest magnitude of a channel"),
}


def figures_table(
    records: Sequence[Record], places: Mapping[int, int], columns: Sequence[str] | None = None
) -> Markup:
    """Lay out the rounded figures of one machine, the full ones in titles.

    Args:
        records: of one machine.
        places: of each record on the page, by its identity.
        columns: of `COLUMNS`, instead of those that `tabulate` chooses.
    """
    titles, rows = tabulate(records, columns=columns)
    makers = (
        [_full_of(title, records) for title in titles]
        if columns is None
        else [_full_column(column) for column in columns]
    )
    told = dict(zip(map(id, records), differences(records), strict=True))
    more = _more(records) if columns is None else {}
    heads = [_head(title, make is not None) for title, make in zip(titles, makers, strict=True)]
    body = []
    for record, row in zip(records, rows, strict=True):
        cells = [
            _text(cell) if make is None else _rounded(cell, make(record))
            for cell, make in zip(row, makers, strict=True)
        ]
        cells[0] = f'<th scope="row">{escape(row[0])}</th>'
        cells += [_text(make(record)) for make in more.values()]
        failed = ' class="failed"' if record.error else ""
        find = " ".join((record.model, record.family, told[id(record)], *record.flags)).lower()
        place = f'data-record="{places[id(record)]}" data-find="{escape(find)}"'
        body.append(f"<tr{failed} {place}>{''.join(cells)}</tr>\n")
    return _table("figures", [*heads, *(_head(title) for title in more)], body)


def _more(records: Sequence[Record]) -> dict[str, Callable[[Record], str]]:
    """Columns of words behind the figures, those that say something."""
    more: dict[str, Callable[[Record], str]] = {}
    if any(record.flags for record in records):
        more["flags"] = lambda record: " ".join(record.flags)
    if any(record.error for record in records):
        more["error"] = lambda record: record.error or ""
    return more


def _full_of(title: str, records: Sequence[Record]) -> Callable[[Record], str] | None:
    """What writes the number behind a cell of a title, and what else belongs to it."""
    if title.startswith("time against"):
        against = {(r.run_id, r.comparison.baseline) for r in records if r.comparison}
        return functools.partial(_full_ratio, against)
    return functools.partial(_full, *FULL[title]) if title in FULL else None


def _full_column(column: str) -> Callable[[Record], str] | None:
    """The same for one of `COLUMNS`."""
    if column in TEXT:
        return None
    return lambda record: "" if (value := record.row()[column]) is None else str(value)


def _full_ratio(against: Container[tuple[str, str]], record: Record) -> str:
    compared = record.comparison
    if compared is None:
        return "1, as the baseline" if (record.run_id, record.model) in against else ""
    interval = _interval(compared.lo, compared.hi)
    return f"{compared.ratio!r} times the time of {compared.baseline}{interval}"


def _full(name: str, unit: str, record: Record) -> str:
    value = getattr(record, name) if name.startswith("published") else record.values.get(name)
    if value is None:
        return ""
    ends = record.values.get("latency_ms_lo"), record.values.get("latency_ms_hi")
    interval = _interval(*ends) if name == "latency_ms_median" else ""
    return f"{value!r} {unit}{interval}".rstrip()


def _interval(lo: float | None, hi: float | None) -> str:
    return "" if lo is None or hi is None else f", interval {lo!r} to {hi!r}"


def published_table(records: Sequence[Record]) -> Markup | None:
    """Set published figures beside ours; None where there are none."""
    titles = [
        "model", "params M\npublished", "ours", "GMACs\npublished", "ours", "top-1 %\npublished",
        "source",
    ]  # fmt: skip
    rows = dict.fromkeys(
        (
            record.model,
            scaled(record.published_params, 1e6),
            scaled(record.values.get("params"), 1e6),
            scaled(record.published_macs, 1e9),
            scaled(record.values.get("macs"), 1e9),
            rounded(record.published_top1),
            record.published_source,
        )
        for record in records
        if any((record.published_params, record.published_macs, record.published_top1))
    )
    return _plain(titles, rows) if rows else None


def anchors_table(records: Sequence[Record]) -> Markup | None:
    """Set what timm publishes beside ours, with a ratio only where the two can be compared."""
    titles = ["model", "figure", "published", "ours", "ours /\npublished", "source and conditions"]
    rows = [
        (
            figure.model,
            figure.what,
            rounded(figure.published),
            rounded(figure.ours),
            rounded(figure.ratio),
            figure.source,
        )
        for figure in show(records)
    ]
    return _plain(titles, rows) if rows else None


def machines_table(machines: Sequence[tuple[str, Sequence[Record]]]) -> Markup:
    """Lay out median latencies, a machine a column."""
    titles, rows = side_by_side(machines)
    return _plain(titles, rows)


def environment_table(records: Sequence[Record]) -> Markup | None:
    """Lay out the environments of one machine, one a column; None where none is known."""
    found = {id(record.environment): record.environment for record in records}
    distinct = list({repr(environment): environment for environment in found.values()}.values())
    known = [dataclasses.asdict(environment) for environment in distinct if environment]
    shown = known[:MOST_ENVIRONMENTS]
    rows = [
        [name, *(_flat(facts[name]) for facts in shown)]
        for name in (known[0] if known else ())
        if any(_flat(facts[name]) for facts in shown)
    ]
    if len(known) > len(shown):
        rows.append([f"and {len(known) - len(shown)} more: the json report has them"])
    heads = ["", *(f"environment {i + 1}" for i in range(len(shown)))] if len(shown) > 1 else []
    return _plain(heads, rows, "environment") if rows else None


def raw_table(records: Sequence[Record], columns: Sequence[str]) -> Markup:
    """Lay out the columns of every record in full precision."""
    body = []
    for record in records:
        row = record.row()
        cells = "".join(_text("" if row[c] is None else str(row[c])) for c in columns)
        body.append(f"<tr>{cells}</tr>\n")
    return _table("raw", [_head(column) for column in columns], body)


def raw_style(columns: Sequence[str]) -> str:
    """Style of the raw table on paper: each cell behind the name of its column."""
    names = [re.sub(r"\W", "", column) for column in columns]
    rules = [
        f'.raw td:nth-child({place})::before{{content:"{name} "}}\n'
        for place, name in enumerate(names, start=1)
    ]
    return f"@media print {{\n{''.join(rules)}}}\n"


def _plain(titles: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "plain") -> Markup:
    """Lay out rows of text, the first cell of each as its head."""
    body = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(_text(cell) for cell in row[1:])
        + "</tr>\n"
        for row in rows
    ]
    return _table(kind, [_head(title) for title in titles], body)


def _table(kind: str, heads: Sequence[str], body: Sequence[str]) -> Markup:
    from markupsafe import Markup

    top = f"<thead><tr>{''.join(heads)}</tr></thead>\n" if heads else ""
    table = f'<table class="{kind}">\n{top}<tbody>\n{"".join(body)}</tbody>\n</table>'
    return Markup(table)  # noqa: S704 - every cell is escaped above


def _head(title: str, number: bool = False) -> str:
    kind = ' data-kind="number"' if number else ""
    return f'<th scope="col"{kind}>{escape(title)}</th>'


def _text(cell: str) -> str:
    long = ' class="long"' if len(cell) > LONG else ""
    return f"<td{long}>{escape(cell)}</td>"


def _rounded(cell: str, full: str) -> str:
    title = f' title="{escape(full)}"' if full else ""
    return f'<td class="number"{title}>{escape(cell)}</td>'


def _flat(value: Any) -> str:
    """Write a dictionary as words, None as nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v is not None)
    return "" if value is None else str(value)
