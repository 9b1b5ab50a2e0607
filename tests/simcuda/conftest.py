"""Runs programs on the simulated CUDA runtime, which is built once in a test session."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
HEADER, PROCESSES, DEVICES = 1024, 256, 8  # layout of the shared table, see cuda.c


@dataclasses.dataclass(frozen=True)
class Ran:
    """A program that has ended.

    Args:
        process: its status and output.
        counters: by name, of each process that used the device.
        used: bytes left allocated on each device, of each of these processes.
    """

    process: subprocess.CompletedProcess[str]
    counters: Sequence[dict[str, int]]
    used: Sequence[tuple[int, ...]]

    def total(self, counter: str) -> int:
        """Sum of a counter over the processes."""
        return sum(counters[counter] for counters in self.counters)

    def lines(self) -> list[Any]:
        """What the program printed: a JSON value in each line."""
        return [json.loads(line) for line in self.process.stdout.splitlines()]


class Simulator:
    """Starts programs that see a simulated GPU.

    Args:
        libraries: to load before torch.
        folder: for the tables of counters.
    """

    def __init__(self, libraries: Sequence[Path], folder: Path) -> None:
        self._libraries = libraries
        self._folder = folder
        self._number = 0

    def run(
        self, *command: object, timeout_s: float = 600, cwd: Path | None = None, **settings: object
    ) -> Ran:
        """Run a program; settings are those of simcuda.h, and other environment variables."""
        self._number += 1
        table = self._folder / f"{self._number}.bin"
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(map(str, self._libraries)),
            "SIMCUDA_SHARED": str(table),
            "SIMCUDA_VIRTUAL_CLOCK": "1",
            "PYTHONFAULTHANDLER": "1",
            "TORCH_DISABLE_NATIVE_JIT": "1",  # kernels that Triton compiles need a real driver
            **{k if k.isupper() else f"SIMCUDA_{k.upper()}": str(v) for k, v in settings.items()},
        }
        words = [str(part) for part in command]
        process = subprocess.run(
            words, env=environment, cwd=cwd, timeout=timeout_s, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return Ran(process, *_read(table))

    def python(self, *arguments: object, **settings: Any) -> Ran:
        """Run a Python program that must succeed."""
        ran = self.run(sys.executable, *arguments, **settings)
        assert ran.process.returncode == 0, ran.process.stderr
        return ran

    def datbench(self, *arguments: object, **settings: Any) -> Ran:
        """Run the command line."""
        return self.run(sys.executable, "-m", "datbench", *arguments, **settings)


def _read(table: Path) -> tuple[list[dict[str, int]], list[tuple[int, ...]]]:
    data = table.read_bytes() if table.exists() else b""
    names = data[:HEADER].rstrip(b"\0").decode().split()
    row = struct.Struct(f"{1 + len(names) + DEVICES}q")
    counters, used = [], []
    for number in range(PROCESSES if data else 0):
        pid, *values = row.unpack_from(data, HEADER + number * row.size)
        if pid:
            counters.append(dict(zip(names, values, strict=False)))
            used.append(tuple(values[len(names) :]))
    return counters, used


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    """The simulated runtime; skips where it cannot be built."""
    spec = importlib.util.spec_from_file_location("simcuda_build", HERE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    building = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(building)
    folder = tmp_path_factory.mktemp("simcuda")
    try:
        libraries = building.build(folder / "build")
    except building.CannotBuild as missing:
        pytest.skip(f"the simulated CUDA runtime cannot be built: {missing}")
    return Simulator(libraries, folder)
