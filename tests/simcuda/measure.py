"""Measures models, each in a process, and prints what datbench and the runtime saw of it.

    python measure.py '{"models": ["dat"], "batch_size": 8, "amp": true}'

The options are those of `datbench.plan.make_plan`.
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
from datbench.trial import build_trial

ITERATIONS = 4
COUNTED = ("launches", "gemms", "convolutions", "half_products", "h2d", "d2h", "syncs", "busy_ns")


def measure(case: Case) -> dict[str, object]:
    """Build a model and measure it."""
    trial = build_trial(case)
    trial.device.warm_up_s = 0.05
    trial.step()  # what is allocated once is there from now on
    gc.collect()  # as workers do
    before = torch.cuda.memory_allocated()
    warm_up(trial, 1.0)
    left_behind = torch.cuda.memory_allocated() - before

    counts = {name: get(name) for name in COUNTED}
    half = kernels("Half") + kernels("BFloat16")
    trial.step()
    counts = {name: get(name) - counts[name] for name in COUNTED}
    half = kernels("Half") + kernels("BFloat16") - half

    slot = time_slot(trial, ITERATIONS)
    found = {m.name: m.value for m in memory(trial)}
    torch.cuda.reset_peak_memory_stats()
    trial.step()
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    assert slot.host_ms is not None
    return {
        "model": case.label,
        "latency_ms": statistics.median(slot.latency_ms),
        "host_ms": statistics.median(slot.host_ms),
        "parts_ms": {part: statistics.median(times) for part, times in slot.parts_ms.items()},
        "left_behind": left_behind,
        "step": counts,
        "half_kernels": half,
        "peak_allocated": found["peak_allocated_mib"] * MIB,
        "peak_reserved": found["peak_reserved_mib"] * MIB,
        "process": found["process_memory_mib"] * MIB,
        "torch_allocated": stats["allocated_bytes.all.peak"],
        "torch_reserved": stats["reserved_bytes.all.peak"],
        "used": get("used"),
        "device": torch.cuda.current_device(),
        "gauges": dataclasses.asdict(slot.after.gpu) if slot.after.gpu else None,
    }


def main() -> None:
    """Measure what the argument names."""
    options = {"device": "cuda", "image": "noise", **json.loads(sys.argv[1])}
    for case in make_plan(options.pop("models"), **options).cases:
        child = os.fork()  # a fresh device for each, as datbench's workers have
        if not child:
            print(json.dumps(measure(case)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{case.label} failed")


if __name__ == "__main__":
    main()
