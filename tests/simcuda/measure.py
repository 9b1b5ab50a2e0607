"""Measures models, each in a process, and prints what datbench and the runtime saw of it.

    python measure.py '{"models": ["dat"], "batch_size": 8, "amp": true}'

The options are those of `datbench.plan.make_plan`; with "timed": false it looks at memory alone.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import sys

import torch
from probe import get, kernels

from datbench.device import MIB
from datbench.metrics.latency import time_slot, warm_up
from datbench.metrics.memory import memory
from datbench.plan import Case, make_plan
from datbench.trial import Trial, build_trial

ITERATIONS = 4
COUNTED = ("launches", "gemms", "convolutions", "half_products", "h2d", "d2h", "syncs", "busy_ns")


def measure(case: Case, timed: bool) -> dict[str, object]:
    """Build a model and measure it."""
    trial = build_trial(case)
    trial.device.warm_up_s = 0.05
    trial.step()  # what is allocated once is there from now on
    gc.collect()  # as workers do
    found = measure_time(trial) if timed else {}
    memories = {m.name: m.value for m in memory(trial)}
    torch.cuda.reset_peak_memory_stats()
    trial.step()
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    return found | {
        "model": case.label,
        "peak_allocated": memories["peak_allocated_mib"] * MIB,
        "peak_reserved": memories["peak_reserved_mib"] * MIB,
        "process": memories["process_memory_mib"] * MIB,
        "torch_allocated": stats["allocated_bytes.all.peak"],
        "torch_reserved": stats["reserved_bytes.all.peak"],
        "used": get("used"),
        "device": torch.cuda.current_device(),
    }


def measure_time(trial: Trial) -> dict[str, object]:
    """Warm up, count what a step does, and time some."""
    before = torch.cuda.memory_allocated()
    warm_up(trial, 1.0)
    left_behind = torch.cuda.memory_allocated() - before

    counts = {name: get(name) for name in COUNTED}
    half = kernels("Half") + kernels("BFloat16")
    trial.step()
    counts = {name: get(name) - counts[name] for name in COUNTED}
    half = kernels("Half") + kernels("BFloat16") - half

    slot = time_slot(trial, ITERATIONS)
    assert slot.host_ms is not None
    return {
        "latency_ms": statistics.median(slot.latency_ms),
        "host_ms": statistics.median(slot.host_ms),
        "parts_ms": {part: statistics.median(times) for part, times in slot.parts_ms.items()},
        "left_behind": left_behind,
        "step": counts,
        "half_kernels": half,
        "gauges": dataclasses.asdict(slot.after.gpu) if slot.after.gpu else None,
    }


def main() -> None:
    """Measure what the argument names."""
    options = {"device": "cuda", "image": "noise", **json.loads(sys.argv[1])}
    timed = options.pop("timed", True)
    for case in make_plan(options.pop("models"), **options).cases:
        child = os.fork()  # a fresh device for each, as datbench's workers have
        if not child:
            print(json.dumps(measure(case, timed)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{case.label} failed")


if __name__ == "__main__":
    main()
