r"""How often `datbench compare` is right on this machine, and how much it knows after 30 and 60 s.

    python benchmarks/accuracy.py run --count 12
    python benchmarks/accuracy.py run --count 12 --condition fixed --models pvt_v2_b0 swin_tiny net
    python benchmarks/accuracy.py run --count 12 --condition labels --models pvt_v2_b0
    python benchmarks/accuracy.py run --count 12 --slower 5 --models net pvt_v2_b0
    python benchmarks/accuracy.py run --count 12 --source ../datbench-of-last-week
    python benchmarks/accuracy.py summary
    python benchmarks/accuracy.py plot pvt_v2_b0

Each comparison is a network against itself, the second made slower by so many percent: after each
forward it goes on with small matrix products until that much of the forward's own time has passed.
The networks take turns, so that a machine that changes meanwhile changes for all of them.
Conditions:

    quiet   nothing beside it
    load    a busy process beside it is switched on and off every two to five seconds
    fixed   without address space randomisation and with a fixed hash seed, as some containers run
    labels  the first network has an option that says what holds anyway, so that its name is longer

`placed` is the network of `benchmarks/layout.py` whose latency is known to depend on its layout.
Next to each comparison of `net`, a small convolutional network, stands the yardstick: 10 warm-up
iterations and the mean of 40 of the one network, then of the other. Every comparison is a line of
`results/accuracy/comparisons.jsonl`; `summary` counts them. `--source` measures with the datbench
of another checkout.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import itertools
import json
import math
import os
import platform
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
AFTER_S = (30, 60)
NETWORKS = {
    "net": ("--img-size", "224"),
    "placed": ("--img-size", "224"),
    "timm:mobilenetv3_small_100": (),
    "timm:resnet18": (),
    "timm:convnext_atto": (),
    "pvt_v2_b0": (),
    "pvt_tiny": (),
    "swin_tiny": (),
    "dat_tiny": (),
    "yolov8n/160": ("--img-size", "160"),
    "yolov8n/320": ("--img-size", "320"),
    "yolov8n+ema/320": ("--img-size", "320"),
    "block:dat": ("--input", "256x20x20"),
    "block:ema": ("--input", "256x20x20"),
}
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
    if name != "load":
        yield
        return
    load = subprocess.Popen([sys.executable, "-c", LOAD.format(seed=seed)])
    try:
        yield
    finally:
        load.kill()
        load.wait()


def names(network: str, slower: float, condition_: str, seed: int) -> list[str]:
    """Models to compare, as a user would name them."""
    bare = network.partition("/")[0]
    own = f"{Path(__file__).resolve()}:net"
    placed = f"{Path(__file__).resolve().with_name('layout.py')}:placed"
    first = {"net": own, "placed": placed}.get(bare, bare)
    if slower:
        of = [] if bare == "net" else [f"of={bare!r}"]
        options = [*of, f"slower={slower:g}"]
        return [f"{own}[{of[0]}]" if of else own, f"{own}[{','.join(options)}]"]
    if condition_ == "labels" and bare == "placed":
        return [f"{placed}[tag={'x' * (1 + seed % 64)}]", placed]
    if condition_ == "labels":
        if "/" in network or bare == "net" or bare.startswith("block:"):
            raise SystemExit(f"labels: {network} has no num_classes that is 1000 anyway")
        return [f"{first}[num_classes=1000]", first]
    return [first, first]


def measured(arguments: argparse.Namespace, network: str, seed: int) -> dict[str, Any]:
    """Compare with datbench, as a user would."""
    fixed = ["setarch", platform.machine(), "-R"] if arguments.condition == "fixed" else []
    variables = {"PYTHONHASHSEED": "0"} if arguments.condition == "fixed" else {}
    start, began = time.monotonic(), datetime.datetime.now(datetime.UTC)
    with tempfile.TemporaryDirectory() as results:
        command = [
            *fixed, sys.executable, "-m", "datbench", "compare",
            "--models", *names(network, arguments.slower, arguments.condition, seed),
            *NETWORKS[network],
            "--device", "cpu", "--seed", str(seed), "--results", results, "--format", "jsonl",
            *(["--image", "noise"] if network == "net" else []),
            *(["--rigorous"] if arguments.tier == "rigorous" else []),
        ]  # fmt: skip
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            cwd=arguments.source,  # from where -m imports
            capture_output=True,
            text=True,
            check=False,
        )
        records = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(records) != 2:
            raise SystemExit(f"the comparison failed: {done.stderr}")
        widths = half_widths(Path(results), [record["model"] for record in records], began)
    compared, values = records[1]["comparison"], records[1]["measurements"]
    found = {value["name"]: value["value"] for value in values}
    flags = [flag for record in records for flag in flagged(record)]
    return {
        "verdict": compared["verdict"],
        "ratio": compared["ratio"],
        "lo": compared["lo"],
        "hi": compared["hi"],
        "pairs": found["pairs"],
        "latency_ms": found["latency_ms_median"],
        "flags": sorted(set(flags)),
        "half_widths": widths,
        "seconds": time.monotonic() - start,
        "git_commit": records[1]["environment"]["git_commit"],
    }


def half_widths(
    results: Path, labels: Sequence[str], began: datetime.datetime
) -> dict[str, float | None]:
    """Half width of the interval by the pairs that were over after so many seconds."""
    from datbench.schedule import LOOK_LEVEL
    from datbench.stats import round_difference, student_interval
    from datbench.store import latest_run

    rounds: dict[tuple[int, int], dict[str, list[float]]] = {}
    ends: dict[int, datetime.datetime] = {}
    for slot in latest_run(results).samples():
        ends[slot["pair"]] = datetime.datetime.fromisoformat(slot["ended_utc"])
        if not slot["redone"]:
            medians = rounds.setdefault((slot["pair"], slot["round"]), {})
            medians.setdefault(slot["model"], []).append(statistics.median(slot["latency_ms"]))
    differences: dict[int, list[float]] = {}
    for (pair, _), medians in rounds.items():
        if all(len(medians.get(label, [])) == 2 for label in labels):
            one, other = (medians[label] for label in labels)
            differences.setdefault(pair, []).append(round_difference(one, other))
    found: dict[str, float | None] = {}
    for seconds in AFTER_S:
        over = began + datetime.timedelta(seconds=seconds)
        values = [statistics.median(d) for pair, d in differences.items() if ends[pair] <= over]
        _, lo, hi = student_interval(values, LOOK_LEVEL) if len(values) > 1 else (0, 0, math.inf)
        found[str(seconds)] = (math.exp(hi) - math.exp(lo)) / 2 if math.isfinite(hi) else None
    return found


def flagged(record: dict[str, Any]) -> Iterator[str]:
    """Yield the flags of a record."""
    warnings = [*record["warnings"], *(w for m in record["measurements"] for w in m["warnings"])]
    yield from (warning.partition(":")[0] for warning in warnings)


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


def run(arguments: argparse.Namespace) -> None:
    """Add so many comparisons of each network to the file."""
    import torch

    from datbench.device import usable_cores
    from datbench.runner import host_facts

    torch.set_num_threads(usable_cores())
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "comparisons.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    turns = [network for _ in range(arguments.count) for network in arguments.models]
    for seed, network in enumerate(turns, start=done):
        with condition(arguments.condition, seed):
            if arguments.condition == "load":
                time.sleep(random.Random(seed).uniform(0, 5))
            line = {
                "protocol": arguments.protocol,
                "network": network,
                "condition": arguments.condition,
                "slower_percent": arguments.slower,
                "tier": arguments.tier,
                "seed": seed,
                "timestamp_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "sequential": sequential(arguments.slower) if network == "net" else None,
                "datbench": measured(arguments, network, seed),
                "environment": host_facts(),
            }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        ours = line["datbench"]
        print(
            f"{seed} {arguments.protocol} {network} {arguments.condition} {arguments.slower:g}% "
            f"{arguments.tier}: {ours['verdict']} {ours['ratio']:.4f} "
            f"[{ours['lo']:.4f}, {ours['hi']:.4f}] {ours['pairs']} pairs {ours['seconds']:.0f} s "
            f"{ours['latency_ms']:.1f} ms {' '.join(ours['flags'])}",
            flush=True,
        )


def summary() -> None:
    """Count verdicts by protocol, condition, tier and slowdown, and by network."""
    lines = [json.loads(text) for text in (FOLDER / "comparisons.jsonl").read_text().splitlines()]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        key = (line["protocol"], line["condition"], line["tier"], line["slower_percent"])
        groups[key, ""].append(line)
        groups[key, line["network"]].append(line)
    found = []
    for (key, network), group in sorted(groups.items()):
        protocol, condition_, tier, slower = key
        yardstick = [line["sequential"] for line in group if line["sequential"]]
        found.append(
            {
                "protocol": protocol,
                "condition": condition_,
                "tier": tier,
                "slower_percent": slower,
                "network": network or "all",
                "comparisons": len(group),
                "datbench": counted([line["datbench"] for line in group], slower),
                "sequential": counted(yardstick, slower) if network == "net" else None,
            }
        )
    environments = {json.dumps(line["environment"], sort_keys=True) for line in lines}
    content = {"environments": [json.loads(e) for e in sorted(environments)], "found": found}
    (FOLDER / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    for row in found:
        ours = row["datbench"]
        low, high = ours["wrong_interval"]
        told = f", found {ours['found']:.0%}" if "found" in ours else ""
        print(
            f"{row['protocol']}, {row['condition']}, {row['tier']}, {row['slower_percent']:g} % "
            f"slower, {row['network']}: {ours['wrong']} of {row['comparisons']} wrong "
            f"({low:.1%} to {high:.1%}){told}; {ours['pairs']:.1f} pairs, {ours['seconds']:.0f} s, "
            f"half width {ours['half_width']:.2%}{told_widths(ours)}, "
            f"ratio {ours['ratio_median']:.4f} +- {ours['ratio_deviation']:.2%}"
        )


def told_widths(counts: dict[str, Any]) -> str:
    """Half widths after some seconds, in words; nothing where none was kept."""
    told = [f"{w:.2%} at {s} s" for s, w in counts["half_widths"].items() if w is not None]
    return f" ({', '.join(told)})" if told else ""


def plot(network: str, tier: str = "default") -> None:
    """Draw the ratios of a network to itself, with their intervals, protocol by protocol."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(text) for text in (FOLDER / "comparisons.jsonl").read_text().splitlines()]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if (line["network"], line["tier"], line["slower_percent"]) == (network, tier, 0.0):
            key = (line["protocol"], line["condition"])
            groups.setdefault(key, []).append(line["datbench"])
    names_ = sorted(groups, key=lambda key: (key[0] == "now", key))
    figure, panels = plt.subplots(
        1, len(names_), sharey=True, figsize=(2.6 * len(names_), 3.2), layout="constrained"
    )
    for panel, key in zip([panels] if len(names_) == 1 else panels, names_, strict=True):
        for place, found in enumerate(groups[key]):
            wrong = found["verdict"] in ("FASTER", "SLOWER")
            bounds = [100 * (found[bound] - 1) for bound in ("lo", "hi")]
            panel.plot([place] * 2, bounds, color="C3" if wrong else "C0", linewidth=1)
            panel.plot(place, 100 * (found["ratio"] - 1), "o", color="C3" if wrong else "C0", ms=4)
        panel.axhline(0, color="0.5", linewidth=0.8)
        panel.set_title(f"{key[0]}, {key[1]}", fontsize=10)
        panel.set_xticks([])
    figure.supylabel("slower than itself, %", fontsize=10)
    figure.supxlabel(f"comparisons of {network} with itself; called different in red", fontsize=10)
    figure.savefig(FOLDER / f"{network.replace(':', '_').replace('/', '_')}.png", dpi=130)


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
        counts["latency_ms"] = statistics.median(r["latency_ms"] for r in results)
        counts["pairs"] = statistics.fmean(r["pairs"] for r in results)
        counts["half_width"] = statistics.median((r["hi"] - r["lo"]) / 2 for r in results)
        counts["half_widths"] = {}
        for after in map(str, AFTER_S):
            kept = [r["half_widths"][after] for r in results if "half_widths" in r]
            known = [width for width in kept if width is not None]
            counts["half_widths"][after] = statistics.median(known) if known else None
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
    real = [network for network in NETWORKS if network != "placed"]
    running.add_argument("--models", nargs="+", choices=NETWORKS, default=real)
    running.add_argument(
        "--condition", choices=["quiet", "load", "fixed", "labels"], default="quiet"
    )
    running.add_argument("--slower", type=float, default=0.0, help="percent")
    running.add_argument("--count", type=int, default=12, help="of each network")
    running.add_argument("--tier", choices=["default", "rigorous"], default="default")
    running.add_argument("--source", type=Path, default=Path(), help="checkout to measure with")
    running.add_argument("--protocol", default="now", help="name of what --source measures by")
    commands.add_parser("summary")
    plotting = commands.add_parser("plot")
    plotting.add_argument("network", choices=NETWORKS)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    elif arguments.command == "plot":
        plot(arguments.network)
    else:
        summary()


if __name__ == "__main__":
    main()
