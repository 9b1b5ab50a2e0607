"""The runs that a results folder holds."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.records import Record
from datbench.store import NAME, RunFolder, run_folders

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    "run", "started_utc", "models", "failed", "state", "device_name", "command", "path", "damage",
)  # fmt: skip


def rows(results: Path) -> list[dict[str, Any]]:
    """Facts of each run, the one last written to at the end.

    Raises:
        UserError: there is none.
    """
    found = [facts(folder) for folder in run_folders(results)]
    if not found:
        raise UserError(f"no run under {results}; `datbench compare --models dat swin` makes one")
    return found


def facts(folder: RunFolder) -> dict[str, Any]:
    """Facts of a run, by `COLUMNS`; of one that cannot be read, why."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"run": folder.run_id}
    try:
        records = folder.records()
    except UserError as error:
        return row | {"state": "unreadable", "damage": str(error)}
    damage = "; ".join(folder.damage) or None
    if not records:
        return row | {"models": "", "state": "empty", "damage": damage}
    return row | {
        "started_utc": _started(folder),
        "models": " ".join(dict.fromkeys(record.model for record in records)),
        "failed": sum(record.error is not None for record in records),
        "state": state(records, planned(folder, records[-1])),
        "path": str(folder.path),
        "device_name": records[0].environment.device_name if records[0].environment else None,
        "command": records[0].command or None,
        "damage": damage,
    }


def state(records: Sequence[Record], cases: int) -> str:
    """Say how far a run of so many cases came.

    Returns:
        "finished", "unfinished", or "unknown" for an older version's.
    """
    if any(record.finished is None for record in records):
        return "unknown"
    done = all(record.finished for record in records) and len(records) >= cases
    return "finished" if done else "unfinished"


def planned(folder: RunFolder, record: Record) -> int:
    """Number of cases of a run, by its plan; by the command of a record where it has none."""
    from datbench.request import PLAN, read_request
    from datbench.sweep import cases_of

    try:
        return cases_of(read_request(folder.path / PLAN))
    except UserError:
        pass
    words = itertools.dropwhile("--models".__eq__, shlex.split(record.command)[2:])
    return sum(1 for _ in itertools.takewhile(lambda word: not word.startswith("--"), words))


def _started(folder: RunFolder) -> str | None:
    """When a run began, by the name of its folder."""
    match = NAME.match(folder.run_id)
    if match is None:
        return None
    return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).isoformat()


def show(found: Sequence[dict[str, Any]]) -> RenderableType:
    """Lay the runs out as a table, with how to go on with those that did not come to their end."""
    from rich.console import Group

    from datbench.reports.txt import plain, plain_table

    table = plain_table()
    for title in ("run", "state", "failed", "device", "models"):
        table.add_column(
            title,
            justify="right" if title == "failed" else "left",
            overflow="fold",
            no_wrap=title in ("run", "state"),
        )
    for row in found:
        failed = str(row["failed"] or "")
        cells = (row["run"], row["state"], failed, row["device_name"] or "", row["models"] or "")
        table.add_row(*map(plain, cells))
    notes = [
        f"{row['run']} goes on with: {row['command']} --resume {shlex.quote(row['path'])}"
        for row in found
        if row["state"] == "unfinished" and row["command"]
    ]
    notes += [f"{row['run']}: {row['damage']}" for row in found if row["damage"]]
    return Group(table, *([""] if notes else []), *map(plain, notes))
