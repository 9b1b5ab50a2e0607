r"""How often `datbench compare` is right on this machine, against what common scripts do.

    python benchmarks/accuracy.py run quiet 0 --count 100
    python benchmarks/accuracy.py run load 3 --count 40
    python benchmarks/accuracy.py run quiet 3 --count 20 --tier rigorous
    python benchmarks/accuracy.py summary
    datbench compare --models 'benchmarks/accuracy.py:net[of=swin]' \
        'benchmarks/accuracy.py:net[of=swin,slower=5]'

A run compares a small convolutional network with itself, the second made slower by so many
percent: after each forward it goes on with small matrix products until that much of the
forward's own time has passed. Under "load" a busy process beside it is switched on and off every
two to five seconds. Next to each comparison stands the yardstick: 10 warm-up iterations and the
mean of 40 of the one network, then of the other. Every comparison is a line of
`results/accuracy/comparisons.jsonl`; `summary` counts them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("results/accuracy")
MARGIN = 0.01  # what a reader of two means takes for a difference, and datbench's own default
LOAD = """
import random, time
rng = random.Random({seed})
while True:
    end = time.monotonic() + rng.uniform(2, 5)
    while time.monotonic() < end: pass
    time.sleep(rng.uniform(2, 5))
"""


def net(slower: float = 0.0, of: str = "") -> Any:
    """Build the network, or a model of the zoo; `slower` is in percent."""
    import torch
    from torch import nn

    import zoo

    def convolutions() -> nn.Module:
        pairs = itertools.pairwise((3, 32, 64, 96, 128))
        return nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairs
            )
        )

    class Slowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = zoo.create_model(of) if of else convolutions()
            self.extra = torch.ones(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter_ns()
            y = self.layers(x)
            end = time.perf_counter_ns()
            if slower and not torch.jit.is_tracing() and not x.is_meta:
                until = end + (end - start) * slower / 100
                while time.perf_counter_ns() < until:
                    self.extra.mm(self.extra)
            return y

    return Slowed()


@contextlib.contextmanager
def condition(name: str, seed: int) -> Iterator[None]:
    """Keep the machine quiet, or switch a load on and off."""
    if name == "quiet":
        yield
        return
    load = subprocess.Popen([sys.executable, "-c", LOAD.format(seed=seed)])
    try:
        yield
    finally:
        load.kill()
        load.wait()


def measured(slower: float, seed: int, tier: str) -> dict[str, Any]:
    """Compare with datbench, as a user would."""
    import datbench

    name = f"{Path(__file__).resolve()}:net"
    other = f"{name}[slower={slower:g}]" if slower else name
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as results:
        record = datbench.compare(
            [name, other], device="cpu", img_size=224, image="noise", seed=seed, results=results,
            rigorous=tier == "rigorous",
        )[1]  # fmt: skip
    compared = record.comparison
    if compared is None:
        raise SystemExit(f"the comparison failed: {record.error}")
    return {
        "verdict": compared.verdict,
        "ratio": compared.ratio,
        "lo": compared.lo,
        "hi": compared.hi,
        "pairs": record.values["pairs"],
        "latency_ms": record.values["latency_ms_median"],
        "warnings": record.warnings,
        "flags": record.flags,
        "seconds": time.monotonic() - start,
    }


def sequential(slower: float) -> dict[str, Any]:
    """Time one network and then the other, as common scripts do."""
    import torch
    from scipy.stats import ttest_ind

    times: list[list[float]] = []
    for percent in (0.0, slower):
        model, x = net(percent).eval(), torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            for _ in range(10):
                model(x)
            stamps = [time.perf_counter()]
            for _ in range(40):
                model(x)
                stamps.append(time.perf_counter())
        times.append([b - a for a, b in itertools.pairwise(stamps)])
    ratio = statistics.fmean(times[1]) / statistics.fmean(times[0])
    return {
        "verdict": "SLOWER" if ratio > 1 + MARGIN else "FASTER" if ratio < 1 - MARGIN else "SAME",
        "ratio": ratio,
        "p_welch": float(ttest_ind(*times, equal_var=False).pvalue),
    }


def run(name: str, slower: float, count: int, tier: str) -> None:
    """Add so many comparisons to the file."""
    import torch

    from datbench.device import usable_cores
    from datbench.runner import host_facts

    torch.set_num_threads(usable_cores())
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "comparisons.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for seed in range(done, done + count):
        with condition(name, seed):
            if name == "load":
                time.sleep(random.Random(seed).uniform(0, 5))
            line = {
                "condition": name,
                "slower_percent": slower,
                "tier": tier,
                "seed": seed,
                "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "sequential": sequential(slower),
                "datbench": measured(slower, seed, tier),
                "environment": host_facts(),
            }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        ours = line["datbench"]
        print(
            f"{seed} {name} {slower:g}% {tier}: {ours['verdict']} {ours['ratio']:.4f} "
            f"[{ours['lo']:.4f}, {ours['hi']:.4f}] {ours['pairs']} pairs {ours['seconds']:.0f} s "
            f"{' '.join(ours['flags'])}; sequential {line['sequential']['ratio']:.4f}",
            flush=True,
        )


def summary() -> None:
    """Count verdicts by condition, tier and slowdown."""
    lines = [json.loads(text) for text in (FOLDER / "comparisons.jsonl").read_text().splitlines()]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        groups[line["condition"], line["tier"], line["slower_percent"]].append(line)
    found = [
        {
            "condition": condition_,
            "tier": tier,
            "slower_percent": slower,
            "comparisons": len(group),
            "datbench": counted([line["datbench"] for line in group], slower),
            "sequential": counted([line["sequential"] for line in group], slower),
        }
        for (condition_, tier, slower), group in sorted(groups.items(), reverse=True)
    ]
    environments = {json.dumps(line["environment"], sort_keys=True) for line in lines}
    content = {"environments": [json.loads(e) for e in sorted(environments)], "found": found}
    (FOLDER / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in found:
        print(
            f"{row['condition']}, {row['tier']}, {row['slower_percent']:g} % slower, "
            f"n = {row['comparisons']}"
        )
        for method in ("datbench", "sequential"):
            print(f"  {method:10} {json.dumps(row[method])}")


def counted(results: Sequence[dict[str, Any]], slower: float) -> dict[str, Any]:
    """Count verdicts; what is wrong, what was found, and how often the interval held the truth."""
    from datbench.stats import wilson_interval

    verdicts = collections.Counter(result["verdict"] for result in results)
    false = {"FASTER"} | ({"SLOWER"} if not slower else set())
    false |= {"SAME"} if slower / 100 >= MARGIN else set()
    wrong = [result for result in results if result["verdict"] in false]
    counts: dict[str, Any] = {"verdicts": dict(verdicts), "wrong": len(wrong)}
    counts["wrong_interval"] = wilson_interval(len(wrong), len(results))
    if "flags" in results[0]:
        doubted = {"contended", "not_warm", "noisy"}
        counts["wrong_without_a_flag"] = sum(not doubted & set(r["flags"]) for r in wrong)
        counts["contended"] = sum("contended" in r["flags"] for r in results)
        truth = 1 + slower / 100
        counts["covered"] = statistics.fmean(r["lo"] <= truth <= r["hi"] for r in results)
        counts["pairs"] = statistics.fmean(r["pairs"] for r in results)
        counts["seconds"] = statistics.fmean(r["seconds"] for r in results)
    else:
        counts["different_by_welch"] = sum(r["p_welch"] < 0.05 for r in results)
    if slower:
        counts["found"] = verdicts["SLOWER"] / len(results)
        counts["found_interval"] = wilson_interval(verdicts["SLOWER"], len(results))
    ratios = [r["ratio"] for r in results]
    counts["ratio_median"], counts["ratio_deviation"] = (
        statistics.median(ratios),
        statistics.stdev(ratios) if len(ratios) > 1 else 0.0,
    )
    return counts


def main() -> None:
    """Run comparisons or count them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("condition", choices=["quiet", "load"])
    running.add_argument("slower", type=float, help="percent")
    running.add_argument("--count", type=int, default=100)
    running.add_argument("--tier", choices=["default", "rigorous"], default="default")
    commands.add_parser("summary")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.condition, arguments.slower, arguments.count, arguments.tier)
    else:
        summary()


if __name__ == "__main__":
    main()
