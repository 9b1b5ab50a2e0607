"""CSV with the columns of `datbench.records.COLUMNS`; empty cells were not measured."""

from __future__ import annotations

from datbench.records import COLUMNS
from datbench.reports import Content, report
from datbench.rows import inert


@report("csv")
def csv(content: Content) -> str:
    """Comma-separated values, for pandas and spreadsheets."""
    import pandas as pd

    rows = [{k: inert(v) for k, v in record.row().items()} for record in content.records]
    columns = list(content.columns or COLUMNS)
    frame = pd.DataFrame(rows, columns=columns, dtype=object)  # integers stay integers
    return frame.to_csv(index=False, lineterminator="\n")
