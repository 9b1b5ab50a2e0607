"""CSV with the columns of `datbench.records.COLUMNS`; empty cells were not measured."""

from __future__ import annotations

from datbench.records import COLUMNS
from datbench.reports import Content, report
from datbench.rows import as_text


@report("csv")
def csv(content: Content) -> str:
    """Comma-separated values, for pandas and spreadsheets."""
    columns = content.columns or COLUMNS
    rows = (record.row() for record in content.records)
    return as_text([{c: row[c] for c in columns} for row in rows], "csv", columns)
