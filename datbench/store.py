"""Run folders: `results/<timestamp>-<command>/` with records.jsonl and samples.jsonl.

Both files are only appended to. A model's record is written again as its samples grow; the last
one of a key and label counts. `samples.jsonl` holds every timed iteration in the order of
measurement, one slot a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datbench.errors import UserError
from datbench.records import Record

RECORDS, SAMPLES = "records.jsonl", "samples.jsonl"


class RunFolder:
    """One run on disk.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def run_id(self) -> str:
        """Name of the folder."""
        return self.path.name

    @classmethod
    def create(cls, results: Path, command: str) -> RunFolder:
        """Make a folder that no other run has.

        Raises:
            UserError: `results` cannot be written to.
        """
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{command}"
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = results / (name + suffix)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir():
                    raise UserError(f"{path} is not a folder; choose another --results") from None
                continue
            except OSError as error:
                raise UserError(
                    f"cannot make the run folder {path}: {error.strerror}; choose another --results"
                ) from error
            return cls(path)
        raise UserError(f"{results} holds 1000 runs of this second")

    def append(self, record: Record) -> None:
        """Write a record and wait until it is on disk."""
        self._append(RECORDS, record.to_json(), sync=True)

    def append_samples(self, slot: Mapping[str, Any]) -> None:
        """Write the samples of one slot."""
        self._append(SAMPLES, slot, sync=False)

    def records(self) -> list[Record]:
        """Read the latest record of each model, in order of first appearance.

        Raises:
            UserError: the folder holds no records, or those of another version.
        """
        path = self.path / RECORDS
        if not path.is_file():
            raise UserError(f"{self.path} is no run folder: it has no {RECORDS}")
        latest: dict[tuple[str, str], Record] = {}
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                record = Record.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} cannot be read: {error}") from error
            latest[record.model, record.key] = record
        return list(latest.values())

    def samples(self) -> list[dict[str, Any]]:
        """Read the timed slots in the order of measurement."""
        path = self.path / SAMPLES
        return [json.loads(line) for line in _whole_lines(path)] if path.is_file() else []

    def _append(self, name: str, data: Mapping[str, Any], *, sync: bool) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(data, allow_nan=False) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file, without a last one that a kill cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def latest_run(results: Path) -> RunFolder:
    """Return the newest run folder under `results`.

    Raises:
        UserError: there is none.
    """
    found = sorted(results.glob(f"*/{RECORDS}"), key=lambda p: (p.stat().st_mtime, p))
    if not found:
        raise UserError(
            f"no run under {results}; make one with `datbench compare --models dat swin`"
        )
    return RunFolder(found[-1].parent)
