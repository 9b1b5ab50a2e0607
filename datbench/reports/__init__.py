"""One report per file: a function from content to text or bytes, registered under its suffix."""

from __future__ import annotations

import contextlib
import dataclasses
import json as codec  # `json` here is the report of that name
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datbench.errors import UserError
from datbench.records import Record
from datbench.store import RunFolder
from zoo.registry import Registry, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSpec(Spec):
    """A format.

    Args:
        binary: whether it is bytes, which a terminal cannot show.
        samples: whether it tells of single timed iterations.
    """

    binary: bool = False
    samples: bool = False


REPORTS: Registry[ReportSpec] = Registry("report format", "datbench.reports", "report", ReportSpec)
report = REPORTS.register


@dataclasses.dataclass(frozen=True)
class Content:
    """What a report is made of.

    Args:
        records: its rows, in their order.
        samples: the slots of `samples.jsonl` in the order of measurement, by run and model; their
            keys tell the workloads of one model apart.
        columns: of `datbench.records.COLUMNS`; None leaves them to the format.
    """

    records: Sequence[Record]
    samples: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]] = dataclasses.field(
        default_factory=dict
    )
    columns: Sequence[str] | None = None

    def slots(self, record: Record) -> list[Mapping[str, Any]]:
        """Slots of a record; another workload of its model has another key."""
        found = self.samples.get((record.run_id, record.model), ())
        return [slot for slot in found if slot.get("key", record.key) == record.key]


def gather(
    folders: Sequence[RunFolder | ReportFile],
    records: Sequence[Record] | None = None,
    *,
    samples: bool = True,
) -> Content:
    """Put runs together.

    Args:
        folders: of the runs, in the order of their rows.
        records: of these runs, where they are known already.
        samples: whether single timed iterations are wanted too.
    Raises:
        UserError: a folder holds no records, or those of a newer version.
    """
    if records is None:
        records = [record for folder in folders for record in folder.records()]
    if not samples:
        return Content(records)
    keys: dict[tuple[str, str], set[str]] = {}
    for record in records:
        keys.setdefault((record.run_id, record.model), set()).add(record.key)
    slots: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for folder in folders:
        for slot in folder.samples():
            place = (slot.get("run_id", folder.run_id), slot["model"])
            if place in keys and ("key" not in slot or slot["key"] in keys[place]):
                slots.setdefault(place, []).append(slot)
    return Content(records, slots)


class ReportFile:
    """A .json or .jsonl report, read as a run.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.stem
        self.damage: list[str] = []

    def records(self) -> list[Record]:
        """Read its records.

        Raises:
            UserError: it holds none, or those of a newer version.
        """
        return [self._checked(data) for data in self._parts("records")]

    def samples(self) -> list[dict[str, Any]]:
        """Read its slots; a .jsonl has none."""
        return self._parts("samples") if self.path.suffix == ".json" else []

    def _parts(self, name: str) -> list[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
            if self.path.suffix == ".jsonl":
                return [codec.loads(line) for line in text.split("\n") if line]
            return list(codec.loads(text)[name])
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds no records that can be read: {error}") from error

    def _checked(self, data: Any) -> Record:
        try:
            return Record.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} holds no records that can be read: {error}") from error


def tell_of_samples(suffixes: Iterable[str]) -> bool:
    """Whether any of these formats tells of single timed iterations."""
    return any(REPORTS[suffix].samples for suffix in suffixes if suffix in REPORTS)


def render(content: Content | Sequence[Record], suffix: str) -> str | bytes:
    """Return the content, or bare records, in the format of a file suffix."""
    if not isinstance(content, Content):
        content = Content(content)
    return REPORTS[suffix].load()(content)


def check_output(path: Path, among: Sequence[str] | None = None) -> None:
    """Refuse a report that could not be written, before anything is measured.

    Args:
        path: where it is to go.
        among: formats that there are; those of all reports by default.
    Raises:
        UserError: the suffix is unknown or the folder cannot be written to.
    """
    suffix = path.suffix.removeprefix(".")
    formats = among or list(REPORTS)
    if suffix not in formats:
        known = ", ".join(f".{name}" for name in formats)
        raise UserError(f"output {path} has no known format; end it in one of: {known}")
    if path.is_dir():
        raise UserError(f"output {path} is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output {path}: there is no folder {path.parent}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error


def write(content: Content | Sequence[Record], path: Path) -> None:
    """Write a report, its format by suffix.

    Raises:
        UserError: it cannot be written.
    """
    write_file(render(content, path.suffix.removeprefix(".")), path)


def write_file(data: str | bytes, path: Path) -> None:
    """Write a file; it is there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error
