"""Rows of figures as text for other programs."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# What needs quotes: also the semicolon and the tab, which other spreadsheets split cells at.
QUOTED = re.compile(r"[\",;\t\r\n]")
PARTS = re.compile(r"(?<=[;\t\r\n])")


def as_text(rows: Sequence[Mapping[str, Any]], form: str, columns: Sequence[str]) -> str:
    """Write rows as "csv", a None as an empty cell, or as "json"; `columns` are those of a row."""
    if form == "json":
        return json.dumps(rows, indent=2, allow_nan=False) + "\n"
    lines = [",".join(columns), *(",".join(_cell(row[c]) for c in columns) for row in rows)]
    if len(columns) == 1:  # an empty line would be no row
        lines = [line or '""' for line in lines]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """Write a value with its quotes, numbers in full."""
    text = "" if value is None else str(inert(value))
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if QUOTED.search(text) else text


def inert(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula.

    Signs of any width count, also behind what is blank or does not show; a tab or line end always.
    Where other spreadsheets split cells, inside of a text, the same goes for each part.
    """
    if not isinstance(value, str) or (value[:1].isalnum() and not QUOTED.search(value)):
        return value
    start = _start(value)
    first, *rest = PARTS.split(value[start:])
    parts = (f"'{part}" if _formula(part) else part for part in rest)
    text = "".join((value[:start], first, *parts))
    return f"'{text}" if value.startswith(("\t", "\r", "\n")) or _formula(first) else text


def _start(text: str) -> int:
    """Place of the first character that shows."""
    return next((i for i, c in enumerate(text) if c.isprintable() and c != " "), len(text))


def _formula(text: str) -> bool:
    sign = text[_start(text) :][:1]
    return unicodedata.normalize("NFKC", sign).startswith(("=", "+", "-", "@"))
