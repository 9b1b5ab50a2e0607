"""Records and fakes that several tests use."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings

from datbench.records import Comparison, Environment, Measurement, Record, Workload
from zoo.spec import BLOCKS, MODELS

settings.register_profile("any_machine", deadline=None)  # a busy one may take its time
settings.load_profile("any_machine")


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
