"""Which tests run and which stay together; records and fakes that several tests use."""
# ruff: noqa: E402 - the core of this process comes before torch

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

# Each process of xdist has a core of its own, and one thread on it, since threads on one core wait
# for each other. OpenMP and MKL count the cores as they are loaded: after that it is too late.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker.removeprefix("gw").isdecimal() and hasattr(os, "sched_setaffinity"):
    assert "torch" not in sys.modules
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import pytest
from click.testing import CliRunner
from hypothesis import settings

from datbench.cli import cli
from datbench.records import Comparison, Environment, Measurement, Record, Workload
from zoo.spec import BLOCKS, MODELS

settings.register_profile("any_machine", deadline=None)  # a busy one may take its time
settings.load_profile("any_machine")
# Fixtures that cost more than their tests: a process that sets one up runs all tests that use it.
DEAR = {"failed", "interpreted", "measured", "modules", "regimes", "trained"}


def part(text: str) -> tuple[int, int]:
    """Read which part of the slow tests runs: (number, of how many)."""
    whole = {"none": (0, 1), "all": (1, 1)}
    if text in whole:
        return whole[text]
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise pytest.UsageError(f"--slow {text}: give none, all, or 2/4 for the second of four")
    return int(number), int(parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", type=part, default="none", metavar="none|all|N/PARTS",
        help="Which of the tests marked slow to run: none (the default), all, or a part of them.",
    )  # fmt: skip


def pytest_report_header(config: pytest.Config) -> str:
    number, parts = config.getoption("slow")
    return f"slow tests: part {number} of {parts}" if number else "slow tests: none (--slow all)"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests together that share a dear fixture."""
    if name := _dear(item):
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests that are not asked for, and begin with the others."""
    number, parts = config.getoption("slow")
    chosen, left = [], []
    for item in items:
        name = _dear(item) or item.nodeid
        runs = not _slow(item) or zlib.crc32(name.encode()) % parts + 1 == number
        (chosen if runs else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = sorted(chosen, key=_slow, reverse=True)


def _dear(item: pytest.Item) -> str | None:
    """Name the dear fixture of a test, with its parameter."""
    for name in sorted(DEAR & {*item.fixturenames}):
        return f"{Path(item.fspath).stem} {name} {_values(item).get(name, '')}".strip()
    return None


def _slow(item: pytest.Item) -> bool:
    """Tell whether a test is slow: `slow(but=NAMES)` leaves those with one of NAMES fast."""
    values = _values(item).values()
    fast = [mark.kwargs.get("but", ()) for mark in item.iter_markers("slow")]
    return any(not any(value in names for value in values) for names in fast)


def _values(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(autouse=True, scope="session")
def turns_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let no test wait until one of another process has measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)  # which is found anew
        yield


@pytest.fixture(scope="session")
def datbench() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a folder, in this process: datbench(tmp_path, "list").

    Torch and the fork server are there already, which a process of its own would start anew.
    """

    def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        with (
            contextlib.chdir(folder),
            warnings.catch_warnings(),
            pytest.MonkeyPatch.context() as patch,
        ):
            warnings.simplefilter("ignore")
            patch.setattr("datbench.runner.PAUSES_S", (0.0,))  # before a disturbed slot is redone
            result = CliRunner().invoke(cli, words, prog_name="datbench")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let forecasts be made in this process, not in those of a pool."""

    class Inline(Executor):
        def __init__(self, *_: object) -> None:
            pass

        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                future.set_result(function(*args, **kwargs))
            return future

    monkeypatch.setattr("datbench.forecast.ProcessPoolExecutor", Inline)


@pytest.fixture
def environment() -> Environment:
    return Environment(
        device_name="Test CPU", cpu_name="Test CPU", host="bench-1", python="3.11.7",
        torch="2.14.1", datbench_version="0.2.0", threads=2, git_commit="f" * 40,
        settings={"cudnn_benchmark": True},
    )  # fmt: skip


@pytest.fixture
def make_record(environment):
    """Make a record: make_record("dat_tiny", latency_ms_median=3.0, comparison=...)."""

    def make(model="dat_tiny", *, comparison=None, error=None, warnings=(), work=None, **values):
        numbers = {
            "params": 28_319_138,
            "macs": 4_588_903_776,
            "latency_ms_median": 76.5631,
        } | values
        return Record(
            run_id="20261122T110000Z-compare",
            key="k0123456789abcde",
            model=model,
            family="dat",
            source="CVPR 2022, arXiv 2201.00520",
            workload=work or Workload(device="cpu", input_shape=(3, 224, 224), threads=2),
            timestamp_utc="2026-11-22T11:00:00+00:00",
            environment=environment,
            measurements=tuple(Measurement(k, v) for k, v in numbers.items()),
            comparison=comparison,
            warnings=tuple(warnings),
            error=error,
            published_macs=4.6e9,
            published_top1=82.0,
        )

    return make


@pytest.fixture
def three_records(make_record):
    """A baseline, a slower model with a flag, and one that failed."""
    slower = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")
    return [
        make_record(latency_ms_lo=75.9, latency_ms_hi=78.0, samples=180, pairs=5),
        make_record("swin_tiny", comparison=slower, warnings=["noisy: the interval is wide"]),
        make_record("yolov8n+dat", error="out of memory: tried 3 GiB", latency_ms_median=None),
    ]


@pytest.fixture
def zoo_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget blocks and models that a test adds, and folders that it puts on the path."""
    for registry in (BLOCKS, MODELS):
        len(registry)  # reads the package
        for kept in ("_specs", "_aliases"):
            monkeypatch.setattr(registry, kept, dict(getattr(registry, kept)))
    monkeypatch.setattr(sys, "path", list(sys.path))
