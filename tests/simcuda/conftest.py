"""Runs programs on the simulated CUDA runtime, which is built once in a test session."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
        self._server: subprocess.Popen[str] | None = None

    def datbench(self, *arguments: object, timeout_s: float = 600, **settings: object) -> Ran:
        """Run the command line; settings are those of simcuda.h, and environment variables."""
        environment, table = self._environment(settings)
        process = subprocess.run(
            [sys.executable, "-m", "datbench", *map(str, arguments)], env=environment,
            timeout=timeout_s, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return Ran(process, *_read(table))

    def python(
        self, *arguments: object, status: int | None = 0, timeout_s: float = 600, **settings: object
    ) -> Ran:
        """Run a Python program, where torch, ultralytics and datbench have been imported before.

        Args:
            arguments: "-c" and lines of Python, or a file; what follows is the program's own.
            status: that it must end with; None if any will do.
            timeout_s: until it is killed.
            settings: those of simcuda.h, and other environment variables.
        """
        environment, table = self._environment(settings)
        files = [table.with_suffix(f".{name}") for name in ("stdout", "stderr")]
        words = [str(part) for part in arguments]
        program = {"argv": words, "environment": environment, "cwd": str(Path.cwd())}
        program |= {file.suffix[1:]: str(file) for file in files}
        returned = self._ask(json.dumps(program), timeout_s)
        process = subprocess.CompletedProcess(words, returned, *(f.read_text() for f in files))
        assert status in (None, returned), process.stderr
        return Ran(process, *_read(table))

    def close(self) -> None:
        """End the server."""
        if self._server:
            self._server.kill()
            self._server.communicate()
            self._server = None

    def _environment(self, settings: Mapping[str, object]) -> tuple[dict[str, str], Path]:
        self._number += 1
        table = self._folder / f"{self._number}.bin"
        named = {k if k.isupper() else f"SIMCUDA_{k.upper()}": v for k, v in settings.items()}
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(map(str, self._libraries)),
            "SIMCUDA_SHARED": str(table),
            "SIMCUDA_VIRTUAL_CLOCK": "1",
            "PYTHONFAULTHANDLER": "1",
            "TORCH_DISABLE_NATIVE_JIT": "1",  # kernels that Triton compiles need a real driver
            **{name: str(value) for name, value in named.items()},
        }
        return environment, table

    def _ask(self, program: str, timeout_s: float) -> int:
        if self._server is None:
            environment, _ = self._environment({})
            del environment["SIMCUDA_SHARED"]
            self._server = subprocess.Popen(
                [sys.executable, HERE / "server.py"], env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
            )  # fmt: skip
        server = self._server
        assert server.stdin
        assert server.stdout
        print(program, file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], timeout_s)[0]:
            os.killpg(server.pid, signal.SIGKILL)
            self.close()
            raise TimeoutError(f"a program has not ended within {timeout_s} s: {program}")
        return int(server.stdout.readline())


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
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
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
    simulator = Simulator(libraries, folder)
    yield simulator
    simulator.close()
