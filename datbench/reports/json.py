"""JSON: the records as they stand in the run folder, the timed slots, the schema's version.

A record is a line, so that a text comparison shows which ones differ.
"""

from __future__ import annotations

import json as codec
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datbench.errors import UserError
from datbench.records import SCHEMA, Record
from datbench.reports import Content, report


@report("json", samples=True)
def json(content: Content) -> str:
    """JSON, everything that is known of each model, with every timed iteration."""
    records = (record.to_json() for record in content.records)
    slots = (
        {"run_id": run_id, **slot} for (run_id, _), of in content.samples.items() for slot in of
    )
    parts = (f'"schema": {SCHEMA}', _lines("records", records), _lines("samples", slots))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(name: str, items: Iterable[Mapping[str, Any]]) -> str:
    lines = ",\n".join(codec.dumps(item, allow_nan=False) for item in items)
    return f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []'


def read(path: Path) -> list[Record]:
    """Read the records of a .json or .jsonl report back.

    Raises:
        UserError: it cannot be read, holds something else, or comes from a newer version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [Record.from_json(codec.loads(line)) for line in text.split("\n") if line]
        return list(map(Record.from_json, codec.loads(text)["records"]))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no records that can be read: {error}") from error
