"""Run folders: `results/<timestamp>-<command>/` with plan.toml, records.jsonl and samples.jsonl.

Both files are only appended to, a line at a time, under a lock, so that several processes may
write to one folder. A model's record is written again as its samples grow; the last one of a key
and label counts. `samples.jsonl` holds every timed iteration in the order of measurement, one slot
a line. A line that a kill or a full disk cut off is left out and reported.

A sweep has such files for each of its units, in `parts/<unit>/`, so that machines that share the
folder never write to one file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datbench.errors import UserError
from datbench.records import Record

try:
    import fcntl
except ImportError:  # not on Windows: one process a folder there
    fcntl = None  # type: ignore[assignment]

RECORDS, SAMPLES, PARTS = "records.jsonl", "samples.jsonl", "parts"
ENCODER = json.JSONEncoder(allow_nan=False)
NAME = re.compile(r"(\d{8}T\d{6})Z-\w")


class RunFolder:
    """One run on disk.

    Args:
        path: the folder.
        run_id: of the run that it is a part of; its own name by default.

    Its `damage` tells of lines that could not be read.
    """

    def __init__(self, path: Path, run_id: str = "") -> None:
        self.path = path
        self.run_id = run_id or path.name
        self.unit = path.name if run_id else ""
        self.damage: list[str] = []
        self._open: dict[str, Any] | None = None  # files, while this process measures here

    def part(self, name: str) -> RunFolder:
        """Return the part of a unit, whose folder is made if it is not there."""
        path = self.path / PARTS / name
        path.mkdir(parents=True, exist_ok=True)
        return RunFolder(path, self.run_id)

    def parts(self) -> list[RunFolder]:
        """Return the parts in the order of their names, but those that were set aside."""
        if self.unit:
            return []
        folder = self.path / PARTS
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [RunFolder(folder / name, self.run_id) for name in names if "." not in name]

    def set_aside(self) -> None:
        """Leave a part out from now on, because others do not go on with what it holds."""
        numbers = itertools.count(1)
        paths = (self.path.with_suffix(f".aside{number}") for number in numbers)
        self.path.rename(next(path for path in paths if not path.exists()))
        self.path.mkdir()

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

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Keep others from measuring the same run meanwhile, and its files open.

        Raises:
            UserError: another process does.
        """
        with contextlib.ExitStack() as stack:
            if fcntl is not None:
                self._reserve(stack)
            self._open = {}
            try:
                yield
            finally:
                for file in self._open.values():
                    file.close()
                self._open = None

    def _reserve(self, stack: contextlib.ExitStack) -> None:
        """Lock the folder until `stack` is closed."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network file systems have no such locks
            if isinstance(error, BlockingIOError):
                os.close(folder)
                raise UserError(
                    f"{self.path} is being measured by another datbench; wait for it, or leave "
                    "--resume out for a run of its own"
                ) from None
        stack.callback(os.close, folder)

    @property
    def has_records(self) -> bool:
        """Whether anything was measured here."""
        return (self.path / RECORDS).is_file() or any(part.has_records for part in self.parts())

    def append(self, record: Record) -> None:
        """Write a record; wait until one that is finished and its samples are on disk."""
        if record.finished and self._open and SAMPLES in self._open:
            os.fsync(self._open[SAMPLES].fileno())
        self._append(RECORDS, record.to_json(), sync=bool(record.finished))

    def append_samples(self, slot: Mapping[str, Any]) -> None:
        """Write the samples of one slot."""
        self._append(SAMPLES, slot, sync=False)

    @property
    def size(self) -> int:
        """Bytes of its own records; a file that another machine wrote is asked for anew."""
        with contextlib.suppress(FileNotFoundError), (self.path / RECORDS).open("rb") as file:
            return file.seek(0, os.SEEK_END)
        return 0

    def records(self, since: int = 0) -> list[Record]:
        """Read the latest record of each model, in order of first appearance.

        Args:
            since: bytes of its own records that are passed over.
        Raises:
            UserError: the folder holds no records, or those of a newer version.
        """
        if not self.has_records:
            raise UserError(f"{self.path} is no run folder: it has no {RECORDS}")
        latest: dict[tuple[str, str], Record] = {}
        for place, data in self._lines(RECORDS, since):
            try:
                record = Record.from_json(data)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{place} cannot be read: {error}") from error
            latest[record.model, record.key] = record
        return list(latest.values())

    def samples(self) -> list[dict[str, Any]]:
        """Read the timed slots in the order of measurement."""
        return [slot for _, slot in self._lines(SAMPLES)]

    def _lines(self, name: str, since: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield place and content of each line that is whole, those of parts at the end."""
        own = self.path / name
        if own.is_file():
            with own.open("rb") as file:
                file.seek(since)
                for number, line in enumerate(file, start=1):
                    try:
                        if line.strip():
                            yield f"{own}, line {number}", json.loads(line)
                    except ValueError:
                        told = f"{own}, line {number} is damaged and was left out"
                        if told not in self.damage:
                            self.damage.append(told)
        for part in self.parts():
            yield from part._lines(name)
            self.damage += [told for told in part.damage if told not in self.damage]

    def _append(self, name: str, data: Mapping[str, Any], *, sync: bool) -> None:
        line = ENCODER.encode(data).encode() + b"\n"
        held = self._open or {}
        file = held.get(name) or (self.path / name).open("ab+", buffering=0)
        try:
            _lock(file, fcntl and fcntl.LOCK_EX)
            if _cut_off(file):
                line = b"\n" + line
            while line:
                line = line[file.write(line) :]
            if sync:
                os.fsync(file.fileno())
        finally:
            if self._open is None:
                file.close()
            else:
                _lock(file, fcntl and fcntl.LOCK_UN)
                self._open[name] = file


def _lock(file: Any, kind: Any) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some network file systems have no such locks
            fcntl.lockf(file, kind)


def _cut_off(file: Any) -> bool:
    """Whether the last line has no end, because a kill came before it."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def run_folders(results: Path) -> list[RunFolder]:
    """Return the runs under `results`, the one last written to at the end."""
    written: dict[Path, float] = {}
    for pattern in (RECORDS, f"{PARTS}/*/{RECORDS}"):
        for file in results.glob(f"*/{pattern}"):
            folder = results / file.relative_to(results).parts[0]
            written[folder] = max(written.get(folder, 0.0), file.stat().st_mtime)
    return [RunFolder(path) for path in sorted(written, key=lambda path: (written[path], path))]


def latest_run(results: Path) -> RunFolder:
    """Return the newest run folder under `results`.

    Raises:
        UserError: there is none.
    """
    found = run_folders(results)
    if not found:
        raise UserError(
            f"no run under {results}; make one with `datbench compare --models dat swin`"
        )
    return found[-1]


def find_run(name: Path, results: Path) -> RunFolder:
    """Return the run folder of a path, or of a name under `results`.

    A run that was killed before its first record is one by its name.

    Raises:
        UserError: there is none.
    """
    for path in (name, results / name):
        if path.is_dir():
            folder = RunFolder(path)
            if not folder.has_records and not NAME.match(path.resolve().name):
                raise UserError(f"{path} is no run folder: it has no {RECORDS}")
            return folder
    raise UserError(f"no run folder {name}, nor {results / name}; `datbench runs` lists the runs")
