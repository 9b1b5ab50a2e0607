"""HTML: one file that opens offline, with tables, plots, doubts and conditions.

The page is `page/page.html`, filled in here; its tables come from `html_tables`, what its script
draws from `html_plots`. Its policy allows one style and one script, each by its hash, and no
request, so that a name or a message can run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from typing import Any

from datbench.flags import FLAGS
from datbench.records import COLUMNS
from datbench.reports import Content, report
from datbench.reports.html_plots import MOST_PLOTTED, plotted
from datbench.reports.html_tables import (
    anchors_table,
    environment_table,
    figures_table,
    machines_table,
    published_table,
    raw_style,
    raw_table,
)
from datbench.reports.machines import NO_RATIOS, by_machine
from datbench.reports.methods import methods
from datbench.reports.notes import notes

MOST_RAW = 2000  # records whose columns are all shown
MOST_TOGGLES = 200  # models that have a box to tick
MOST_NOTES = 40  # that stand open
MOST_RUNS = 12  # that are named in the heading
SCRIPTS = ("chart.js", "plots.js", "table.js", "page.js")


@report("html", samples=True)
def html(content: Content) -> str:
    """One page that opens offline, with plots."""
    import jinja2

    loader = jinja2.FunctionLoader(_part)
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return template.get_template("page.html").render(**_parts(content))


def _parts(content: Content) -> dict[str, Any]:
    """Return what the page is filled with."""
    from markupsafe import Markup

    records = content.records
    columns = list(content.columns or COLUMNS)
    machines = by_machine(records)
    places = {id(record): place for place, record in enumerate(records)}
    style = _part("page.css") + raw_style(columns)
    script = "".join(map(_part, SCRIPTS))
    runs = list(dict.fromkeys(record.run_id for record in records))
    flags = dict.fromkeys(flag for record in records for flag in record.flags)
    commands = dict.fromkeys(record.command for record in records if record.command)
    data = plotted(content, machines) if len(records) <= MOST_PLOTTED else None
    return {
        "policy": _policy(style, script),
        "style": Markup(style),  # noqa: S704 - of this package, as is the script
        "script": Markup(script),  # noqa: S704
        "runs": runs,
        "most_runs": MOST_RUNS,
        "count": len(records),
        "machines": [
            {
                "label": label,
                "figures": figures_table(found, places, content.columns),
                "notes": list(dict.fromkeys(notes(found, published=False))),
                "environment": environment_table(found),
            }
            for label, found in machines
        ],
        "side_by_side": machines_table(machines) if len(machines) > 1 else None,
        "no_ratios": NO_RATIOS,
        "data": data,
        "toggles": data is not None and len(records) <= MOST_TOGGLES,
        "most_plotted": MOST_PLOTTED,
        "published": published_table(records),
        "anchors": anchors_table(records),
        "flags": [(flag, FLAGS.get(flag, "")) for flag in flags],
        "most_notes": MOST_NOTES,
        "methods": methods(records),
        "commands": list(commands),
        "most_raw": MOST_RAW,
        "raw": raw_table(records, columns) if len(records) <= MOST_RAW else "",
    }


def _part(name: str) -> str:
    """Read a file of the page."""
    folder = importlib.resources.files("datbench.reports") / "page"
    return (folder / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Allow one style and one script, by their hashes, and nothing from anywhere."""

    def source(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{source(style)}'; "
        f"script-src 'sha256-{source(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
