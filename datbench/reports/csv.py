"""CSV with the columns of `datbench.records.COLUMNS`; empty cells were not measured."""

from __future__ import annotations

from collections.abc import Sequence

from datbench.records import COLUMNS, Record
from datbench.reports import report
from datbench.rows import inert


@report("csv")
def csv(records: Sequence[Record]) -> str:
    """Comma-separated values, for pandas and spreadsheets."""
    import pandas as pd

    rows = [{k: inert(v) for k, v in record.row().items()} for record in records]
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)  # integers stay integers
    return frame.to_csv(index=False, lineterminator="\n")
