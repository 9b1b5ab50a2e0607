"""Where the tests spend their time.

    python benchmarks/suite.py --slow all          # all of them, in one process
    python benchmarks/suite.py tests/simcuda

Runs pytest and sums seconds by file and by cause. A test of browsers or of Slurm is that in all;
in the others the time is cut up:

    simulated  programs on the simulated CUDA runtime
    processes  other programs that a test starts, such as the command line
    workers    answers that the parent of a measurement waits for
    building   networks and blocks of the zoo
    asleep     time.sleep
    exporting  torch.export
    rest       what the test computes itself

Fixtures count for the first test that uses them. Every test is a line of
`results/suite/durations.csv`.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FILE = Path("results/suite/durations.csv")
WHOLE = ("browser", "slurm")  # markers of tests that are not cut up
CAUSES = (
    *WHOLE, "simulated", "processes", "workers", "building", "asleep", "exporting", "rest"
)  # fmt: skip


class Causes:
    """A plug-in of pytest that keeps the seconds of each test by cause."""

    def __init__(self) -> None:
        self.tests: dict[str, Counter[str]] = {}
        self.starts: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._inside = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time a test with its fixtures."""
        self._now = self.tests[item.nodeid] = Counter()
        start = time.monotonic()
        result = yield
        seconds = time.monotonic() - start
        whole = next((name for name in WHOLE if item.get_closest_marker(name)), None)
        if whole:
            self._now.clear()
        self._now[whole or "rest"] += seconds - self._now.total()
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Watch the server that runs programs on the simulated runtime."""
        made = yield
        if fixturedef.argname == "simulator":
            self.watch(made, "_ask", "simulated")
        return made

    @contextlib.contextmanager
    def _charged(self, cause: str) -> Iterator[None]:
        """Charge the time inside to a cause, if no other is being charged."""
        if self._inside:
            yield
            return
        self._inside, start = True, time.monotonic()
        try:
            yield
        finally:
            self._inside = False
            self._now[cause] += time.monotonic() - start

    def watch(self, owner: Any, name: str, cause: Callable[..., str] | str) -> None:
        """Charge the calls of a function."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self._charged(cause if isinstance(cause, str) else cause(*args, **kwargs)):
                return function(*args, **kwargs)

        setattr(owner, name, charged)

    def program(self, *_: Any, env: Any = None, **__: Any) -> str:
        """Tell which kind of program is started."""
        kind = "simulated" if env and "simcuda" in env.get("LD_PRELOAD", "") else "processes"
        self.starts[kind] += 1
        return kind


def watched() -> Causes:
    """Make the plug-in and watch what costs time."""
    import subprocess

    import torch

    import zoo
    from datbench.pool import Worker

    causes = Causes()
    causes.watch(subprocess, "run", causes.program)
    causes.watch(subprocess.Popen, "communicate", "processes")
    causes.watch(Worker, "ask", "workers")
    for name in ("create_model", "create_block", "build_reference"):
        causes.watch(zoo, name, "building")
    causes.watch(time, "sleep", "asleep")
    causes.watch(torch.export, "export", "exporting")
    return causes


def table(files: dict[str, list[Counter[str]]]) -> None:
    """Print the sum over the tests of each file, the largest first, and that over all."""
    everything = {**files, "all": [test for tests in files.values() for test in tests]}
    sums: dict[str, Counter[str]] = {n: sum(t, Counter()) for n, t in everything.items()}
    print(f"| | tests | seconds | {' | '.join(CAUSES)} |")
    print(f"| --- {'| ---: ' * (2 + len(CAUSES))}|")
    for name in [*sorted(files, key=lambda name: -sums[name].total()), "all"]:
        found = sums[name]
        cells = " | ".join(f"{found[cause]:.0f}" if found[cause] >= 0.5 else "" for cause in CAUSES)
        print(f"| {name} | {len(everything[name])} | {found.total():.0f} | {cells} |")


def main() -> None:
    """Run the tests and print the tables."""
    causes = watched()
    status = pytest.main(["-q", *sys.argv[1:]], plugins=[causes])
    FILE.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Counter[str]]] = {}
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["test", "seconds", *CAUSES])
        for name, found in causes.tests.items():
            values = [found.total(), *(found[cause] for cause in CAUSES)]
            writer.writerow([name, *(f"{value:.3f}" for value in values)])
            files.setdefault(name.partition("::")[0], []).append(found)
    table(files)
    print("\nPrograms started:", dict(causes.starts))
    sys.exit(status)


if __name__ == "__main__":
    main()
