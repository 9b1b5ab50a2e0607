"""JSON lines: one record a line, each with its schema, as in a run folder's records.jsonl.

The timed iterations stay in samples.jsonl beside it: a file whose lines are all of one kind can be
cut, joined and read by the line.
"""

from __future__ import annotations

import json

from datbench.reports import Content, report


@report("jsonl")
def jsonl(content: Content) -> str:
    """JSON lines, a record a line, for jq and logs."""
    return "".join(json.dumps(r.to_json(), allow_nan=False) + "\n" for r in content.records)
