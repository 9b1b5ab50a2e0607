"""JSON: the records as they stand in the run folder, with the version of their schema."""

from __future__ import annotations

import json as codec

from datbench.records import SCHEMA
from datbench.reports import Content, report


@report("json")
def json(content: Content) -> str:
    """JSON, everything that is known of each model."""
    everything = {"schema": SCHEMA, "records": [record.to_json() for record in content.records]}
    return codec.dumps(everything, indent=2, allow_nan=False) + "\n"
