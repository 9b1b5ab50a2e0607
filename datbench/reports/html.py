"""HTML: one file that opens offline, with the table, the doubts, and the conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from datbench.records import COLUMNS
from datbench.reports import Content, report
from datbench.reports.txt import notes, tabulate

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>datbench {{ runs }}</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
  body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; }
  th { vertical-align: bottom; }
  th:first-child, td:first-child, .text { text-align: left; }
  .failed { color: light-dark(#a40000, #ff8f8f); }
  .raw { font-size: .8rem; white-space: nowrap; }
</style>
</head>
<body>
<h1>datbench</h1>
<p>{{ runs }}</p>
<div class="wide"><table>
<thead><tr>{% for title in titles %}<th scope="col">{{ title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for failed, row in rows -%}
<tr{% if failed %} class="failed"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</tbody>
</table></div>
<h2>Notes</h2>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<p>MACs are multiply-adds of one image; what papers call FLOPs. Intervals are 95 %. Peak is the most
memory of tensors alive at once, weights and input included.</p>
<h2>Environment</h2>
<div class="wide"><table class="raw">
{% for name, value in environment if value -%}
<tr><th scope="row">{{ name }}</th><td class="text">{{ value }}</td></tr>
{% endfor %}</table></div>
<h2>All columns</h2>
<div class="wide"><table class="raw">
<thead><tr>{% for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in raw -%}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</tbody>
</table></div>
</body>
</html>
"""


@report("html")
def html(content: Content) -> str:
    """One page that opens offline."""
    import jinja2

    records = content.records
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    titles, rows = tabulate(records)
    environments = [dataclasses.asdict(r.environment) for r in records if r.environment]
    return template.from_string(PAGE).render(
        runs=", ".join(dict.fromkeys(r.run_id for r in records)),
        titles=[*titles, "flags"],
        rows=[
            (record.error, [*row, " ".join(record.flags)])
            for record, row in zip(records, rows, strict=True)
        ],
        notes=list(notes(records)),
        environment=[(k, _flat(v)) for k, v in environments[0].items()] if environments else [],
        columns=COLUMNS,
        raw=[["" if v is None else v for v in record.row().values()] for record in records],
    )


def _flat(value: Any) -> str:
    """Write a dictionary as words, None as nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None)
    return "" if value is None else str(value)
