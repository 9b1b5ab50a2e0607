"""CSV with the columns of `datbench.records.COLUMNS`; empty cells were not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datbench.records import COLUMNS, Record
from datbench.reports import report

FORMULA = ("=", "+", "-", "@", "\t", "\r")


@report("csv")
def csv(records: Sequence[Record]) -> str:
    """Comma-separated values, for pandas and spreadsheets."""
    import pandas as pd

    rows = [{k: inert(v) for k, v in record.row().items()} for record in records]
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)  # integers stay integers
    return frame.to_csv(index=False, lineterminator="\n")


def inert(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
