"""One report per file: a function from records to text, registered under its file suffix."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datbench.errors import UserError
from datbench.records import Record
from zoo.registry import Registry, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSpec(Spec):
    """A format."""


REPORTS: Registry[ReportSpec] = Registry("report format", "datbench.reports", "report", ReportSpec)
report = REPORTS.register


def render(records: Sequence[Record], suffix: str) -> str:
    """Return the records in the format of a file suffix."""
    return REPORTS[suffix].load()(records)


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


def write(records: Sequence[Record], path: Path) -> None:
    """Write a report, its format by suffix.

    Raises:
        UserError: it cannot be written.
    """
    write_text(render(records, path.suffix.removeprefix(".")), path)


def write_text(text: str, path: Path) -> None:
    """Write a file; it is there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"output {path} cannot be written: {error.strerror}") from error
