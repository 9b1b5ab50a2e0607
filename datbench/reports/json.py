"""JSON: the records as they stand in the run folder, with the version of their schema."""

from __future__ import annotations

import json as codec
from collections.abc import Sequence

from datbench.records import SCHEMA, Record
from datbench.reports import report


@report("json")
def json(records: Sequence[Record]) -> str:
    """JSON, everything that is known of each model."""
    content = {"schema": SCHEMA, "records": [record.to_json() for record in records]}
    return codec.dumps(content, indent=2, allow_nan=False) + "\n"
