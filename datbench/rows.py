"""Rows of figures as text for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_text(rows: Sequence[Mapping[str, Any]], form: str, columns: Sequence[str]) -> str:
    """Write rows as "csv", a None as an empty cell, or as "json"; `columns` are those of a row."""
    if form == "json":
        return json.dumps(rows, indent=2, allow_nan=False) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: inert(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def inert(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
