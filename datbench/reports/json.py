"""JSON: the records as they stand in the run folder, the timed slots, the schema's version.

A record is a line, so that a text comparison shows which ones differ.
"""

from __future__ import annotations

import json as codec
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from datbench.records import SCHEMA
from datbench.reports import Content, report


@report("json", samples=True)
def json(content: Content) -> str:
    """JSON, everything that is known of each model, with every timed iteration."""
    records = (record.to_json() for record in content.records)
    slots = (
        {"run_id": run_id, **slot} for (run_id, _), of in content.samples.items() for slot in of
    )
    parts = (*_lines("records", records, "],"), *_lines("samples", slots, "]"))
    return "\n".join(["{", f'"schema": {SCHEMA},', *parts, "}", ""])


def _lines(name: str, items: Iterable[Mapping[str, Any]], end: str) -> Iterator[str]:
    """Yield a list, an item a line, with commas between them."""
    yield f'"{name}": ['
    before = ""
    for item in items:
        if before:
            yield f"{before},"
        before = codec.dumps(item, allow_nan=False)
    if before:
        yield before
    yield end
