"""What OpenMP's wait policy does to a latency: quiet, and with a busy process beside it.

    python benchmarks/openmp.py [--rounds 20] [--output results/openmp/latency.json]

One process a policy holds the model; they are timed one at a time in mirrored random rounds, as
`compare` does, while the others are stopped by a signal: threads that wait actively would take
their cores. The ratio is that of slot medians to those of libgomp's default, in the same rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from datbench.pool import KEEPING
from datbench.runner import host_facts
from datbench.schedule import round_order
from datbench.stats import median_interval, round_difference

POLICIES = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "spin 1000000": {"GOMP_SPINCOUNT": "1000000"},
}
MODELS = ("timm:mobilenetv3_small_100", "swin_tiny")
WORKER = """
import os, sys, json, torch
os.environ.pop("OMP_WAIT_POLICY", None)  # libgomp has read it; datbench refuses some of its values
from datbench.metrics.latency import time_slot, warm_up
from datbench.plan import make_plan
from datbench.schedule import slot_iterations
from datbench.trial import build_trial
trial = build_trial(make_plan([sys.argv[1]], device="cpu").cases[0])
iterations = slot_iterations(warm_up(trial).step_ms)
print("ready", flush=True)
for _ in sys.stdin:
    print(json.dumps(time_slot(trial, iterations).latency_ms), flush=True)
"""


def compare(model: str, rounds: int, hog: bool) -> dict[str, dict[str, object]]:
    """Time a model under every policy; with `hog`, beside a process that keeps one core busy."""
    names = list(POLICIES)
    workers = []
    for name in names:
        environment = {k: v for k, v in os.environ.items() if k[:4] not in ("OMP_", "GOMP")}
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, model],
            env=environment | KEEPING | POLICIES[name] | {"YOLO_VERBOSE": "False"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        workers.append(worker)
        workers[-1].stdout.readline()
        os.kill(workers[-1].pid, signal.SIGSTOP)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if hog else None
    times: dict[str, list[float]] = {name: [] for name in names}
    differences: dict[str, list[float]] = {name: [] for name in names}
    try:
        for number in range(rounds):
            medians: dict[str, list[float]] = {name: [] for name in names}
            for i in round_order(len(names), 0, 0, number):
                os.kill(workers[i].pid, signal.SIGCONT)
                workers[i].stdin.write("\n")
                workers[i].stdin.flush()
                latency = json.loads(workers[i].stdout.readline())
                os.kill(workers[i].pid, signal.SIGSTOP)
                times[names[i]] += latency
                medians[names[i]].append(statistics.median(latency))
            for name in names:
                differences[name].append(round_difference(medians["default"], medians[name]))
    finally:
        for process in [*workers, *([busy] if busy else [])]:
            process.kill()
            process.wait()
    return {
        name: {
            "latency_ms_median": statistics.median(times[name]),
            "latency_ms_p95": statistics.quantiles(times[name], n=20)[-1],
            "ratio": math.exp(statistics.median(differences[name])),
            "ratio_interval": [math.exp(x) for x in median_interval(differences[name]) or ()],
        }
        for name in names
    }


def main() -> None:
    """Measure every model, quiet and beside a busy process, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": host_facts(),
        "rounds": arguments.rounds,
    }
    for model in MODELS:
        for hog in (False, True):
            start = time.monotonic()
            found = compare(model, arguments.rounds if not hog else arguments.rounds // 2, hog)
            result[f"{model}, {'a busy process beside it' if hog else 'quiet'}"] = found
            print(f"{model} {'busy' if hog else 'quiet'} ({time.monotonic() - start:.0f} s)")
            for name, row in found.items():
                lo, hi = row["ratio_interval"]
                print(
                    f"  {name:13} {row['latency_ms_median']:7.1f} ms, p95 "
                    f"{row['latency_ms_p95']:7.1f}, ratio {row['ratio']:.2f} [{lo:.2f}, {hi:.2f}]"
                )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
