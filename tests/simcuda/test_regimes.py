"""Eager, CUDA graph and torch.compile side by side: what the host does for the same kernels."""

from __future__ import annotations

import json

import pandas as pd
import pytest

PROGRAM = """
import json, os, statistics, sys
from probe import get
from datbench.metrics.latency import time_slot
from datbench.metrics.memory import memory
from datbench.plan import make_plan
from datbench.trial import build_trial

import torch

models, runtimes = json.loads(sys.argv[1])
for case in make_plan(models, device="cuda", image="noise", runtimes=runtimes).cases:
    child = os.fork()
    if not child:
        trial = build_trial(case)
        trial.step()
        torch.cuda.synchronize()
        names = ("launches", "graph_launches", "syncs", "h2d", "d2h", "busy_ns")
        before = {name: get(name) for name in names}
        trial.step()
        torch.cuda.synchronize()
        step = {name: get(name) - before[name] for name in names}
        measured = {m.name: m.value for m in (*trial.measurements, *memory(trial))}
        slot = time_slot(trial, 3)
        print(json.dumps({
            "label": case.label, "step": step, "measured": measured, "facts": dict(trial.facts),
            "latency_ms": statistics.median(slot.latency_ms),
        }), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{case.label} failed")
"""
REGIMES = ["eager", "cudagraph", "compile[backend=cudagraphs]"]


@pytest.fixture(scope="module", params=[pytest.param("dat", marks=pytest.mark.slow), "yolov8n+ema"])
def regimes(simulator, request):
    """What each regime did in a step, by its name."""
    given = json.dumps([[request.param], REGIMES])
    here = str(__file__).rpartition("/")[0]
    ran = simulator.python("-c", PROGRAM, given, PYTHONPATH=here, launch_ns=50_000)
    return dict(zip(REGIMES, ran.lines(), strict=True))


def test_a_graph_is_one_launch_where_eager_has_hundreds(regimes):
    steps = [regimes[name]["step"] for name in REGIMES]
    eager, graph, compiled = steps
    assert eager["launches"] > 100
    assert eager["graph_launches"] == 0
    assert (graph["launches"], graph["graph_launches"]) == (0, 1)
    assert compiled["launches"] < eager["launches"] / 10
    assert compiled["graph_launches"] >= 1


def test_the_device_works_as_long_in_each_regime(regimes):
    eager, graph, _ = (regimes[name]["step"]["busy_ns"] for name in REGIMES)
    assert graph == pytest.approx(eager, rel=0.05)
    assert regimes["cudagraph"]["latency_ms"] == pytest.approx(graph / 1e6, rel=0.05)


def test_a_replay_neither_waits_nor_copies(regimes):
    step = regimes["cudagraph"]["step"]
    assert (step["syncs"], step["h2d"], step["d2h"]) == (
        1,
        0,
        0,
    )  # the one at its end is the test's


def test_a_graph_tells_the_memory_of_its_capture(regimes):
    eager, graph = (regimes[name]["measured"] for name in REGIMES[:2])
    # It has a pool and a cuBLAS workspace of its own, beside what eager mode took before.
    assert (
        eager["peak_allocated_mib"]
        <= graph["peak_allocated_mib"]
        < eager["peak_allocated_mib"] + 64
    )
    assert graph["peak_reserved_mib"] >= graph["peak_allocated_mib"]


def test_answers_are_eagers(regimes):
    for name in REGIMES[1:]:
        assert regimes[name]["measured"]["parity_rel"] == 0.0
    compiled = regimes[REGIMES[2]]
    assert compiled["facts"]["backend"] == "cudagraphs"
    assert (compiled["measured"]["graph_breaks"], compiled["measured"]["recompiles"]) == (0, 0)


@pytest.mark.slow
def test_the_command_line_puts_the_regimes_into_one_table(simulator, tmp_path):
    table = tmp_path / "table.csv"
    options = [word for name in REGIMES for word in ("--runtime", name)]
    ran = simulator.datbench(
        "compare", "--quick", "--models", "block:ema", "--input", "64x20x20", *options,
        "--device", "cuda", "--image", "noise", "--results", tmp_path, "--output", table,
        launch_ns=200_000,
    )  # fmt: skip
    assert ran.process.returncode == 0, ran.process.stdout + ran.process.stderr
    found = pd.read_csv(table)
    assert list(found["runtime"]) == REGIMES
    assert found["host_ms_median"].notna().all()
    assert list(found["baseline"].dropna()) == ["block:ema (eager)"] * 2
    assert ran.total("graph_launches") > 0
