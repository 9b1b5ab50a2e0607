r"""What the layout of memory does to a latency, and which randomisation makes it a random effect.

    python benchmarks/layout.py run --models pvt_v2_b0 yolov8n/160 placed
    python benchmarks/layout.py summary
    PYTHONHASHSEED=0 setarch x86_64 -R datbench compare --models benchmarks/layout.py:placed{,}

Workers of datbench are started in pairs, as a comparison of a network with itself starts them, from
fork servers that are started anew several times; conditions take turns. Each worker is timed for
most of a second. A line of `results/layout/processes.jsonl` has the medians of one server's pairs;
`summary` tells for each condition how far processes scatter, how far the means of servers scatter,
and how far the second of a pair is from the first, which should be nothing.

`placed` is a network whose latency is known to depend on its layout: it takes 10 ms, or a twentieth
more where its weight begins in an odd cache line. A method that does not see it sees nothing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path("results/layout")
SLOT_S = 0.7
PAGES_OF_THEIR_OWN = {
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_TOP_PAD_": "131072",
}
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Condition:
    """How processes are started.

    Args:
        fixed: without address space randomisation, and with a fixed hash seed.
        parts: of a drawn layout that workers take; none for the layout that comes of itself.
        longer: letters that the label of the second of a pair is longer, beside "#2".
        own_server: each worker from a server of its own, as exec would start it.
        variables: of the environment.
    """

    fixed: bool = True
    parts: tuple[str, ...] = ()
    longer: int = 0
    own_server: bool = False
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


ALL = ("heap", "gaps", "mapped", "scattered")
CONDITIONS = {
    "fixed": Condition(),
    "fixed, label 64 longer": Condition(longer=64),
    "fixed, label 1000 longer": Condition(longer=1000),
    "fixed, heap shifted": Condition(parts=("heap",)),
    "fixed, gaps in the heap": Condition(parts=("gaps",)),
    "fixed, mapped region shifted": Condition(parts=("mapped",)),
    "fixed, pages scattered": Condition(parts=("scattered",)),
    "fixed, drawn layout": Condition(parts=ALL),
    "randomised, one server": Condition(fixed=False),
    "randomised, a server each": Condition(fixed=False, own_server=True),
    "randomised, drawn layout": Condition(fixed=False, parts=ALL),
    "huge pages, fixed": Condition(variables=HUGE),
    "huge pages, drawn layout": Condition(parts=ALL, variables=HUGE),
    "blocks mapped one by one": Condition(fixed=False, variables=PAGES_OF_THEIR_OWN),
}


def placed(tag: str = "") -> Any:
    """Build the network that is slower where its weight begins in an odd cache line.

    Args:
        tag: makes its name longer, and nothing else.
    """
    del tag
    import torch
    from torch import nn

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 64, 3, 2), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = time.perf_counter_ns()
            y = self.linear(self.conv(x).mean((2, 3)))
            if not (torch.jit.is_tracing() or x.is_meta):
                odd = self.linear.weight.data_ptr() // 64 % 2
                until = start + (10_500_000 if odd else 10_000_000)
                while time.perf_counter_ns() < until:
                    pass
            return y

    return Placed()


def serve(network: str, condition: Condition, pairs: int, seed: str) -> None:
    """Time so many pairs of workers of one server, and print their medians."""
    from datbench.memory_layout import Layout, draw
    from datbench.metrics.latency import WARMUP_MOST_S
    from datbench.plan import make_plan
    from datbench.pool import Pool

    bare, _, size = network.partition("/")
    name = f"{Path(__file__).resolve()}:placed" if bare == "placed" else bare
    img_size = int(size or 224)
    plan = make_plan([name, name], device="cpu", img_size=img_size, image="noise")
    second = dataclasses.replace(plan.cases[1], label=plan.cases[1].label + "x" * condition.longer)
    found = []
    with Pool(60.0, plan.cases) as pool:
        for pair in range(pairs):
            medians = []
            for index, case in enumerate((plan.cases[0], second)):
                worker = pool.start(case)
                if condition.parts:
                    drawn = draw(seed, pair, index)
                    own = {part: getattr(drawn, part) for part in condition.parts}
                    worker.ask("lay_out", layout=Layout(**own))
                worker.ask("build")
                step_ms = worker.ask("warm_up", most_s=WARMUP_MOST_S).step_ms
                iterations = math.ceil(1000 * SLOT_S / step_ms)
                slot = worker.ask("slot", iterations=iterations, switched=True)
                medians.append(statistics.median(slot.latency_ms))
                worker.stop()
            found.append(medians)
    print(json.dumps(found))


def started(network: str, name: str, pairs: int, seed: str) -> list[list[float]]:
    """Start a server under a condition; medians of its pairs of workers."""
    condition = CONDITIONS[name]
    fixed = ["setarch", platform.machine(), "-R"] if condition.fixed else []
    variables = {"PYTHONHASHSEED": "0"} if condition.fixed else {}
    done = subprocess.run(
        [*fixed, sys.executable, __file__, "serve", network, name, str(pairs), seed],
        env={**os.environ, **variables, **condition.variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    medians: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return medians


def run(networks: list[str], servers: int, pairs: int) -> None:
    """Add servers of all conditions to the file, in random order."""
    from datbench.runner import host_facts

    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "processes.jsonl"
    turns = [(n, c, s) for s in range(servers) for n in networks for c in CONDITIONS]
    random.Random(0).shuffle(turns)
    for network, name, server in sorted(turns, key=lambda turn: turn[2]):
        of = f"{network}/{server}"
        found = (
            [started(network, name, 1, f"{of}/{i}")[0] for i in range(pairs)]
            if CONDITIONS[name].own_server
            else started(network, name, pairs, of)
        )
        line = {"network": network, "condition": name, "pairs_ms": found}
        with path.open("a") as file:
            file.write(json.dumps(line | {"environment": host_facts()}) + "\n")
        print(network, name, *(f"{a:.2f}/{b:.2f}" for a, b in found), flush=True)


def summary() -> None:
    """Tell how far processes, servers and the two of a pair are apart."""
    servers: dict[tuple[str, str], list[list[list[float]]]] = collections.defaultdict(list)
    environments = {}
    for text in (FOLDER / "processes.jsonl").read_text().splitlines():
        line = json.loads(text)
        servers[line["network"], line["condition"]].append(line["pairs_ms"])
        environments[json.dumps(line["environment"], sort_keys=True)] = line["environment"]
    found = []
    for (network, condition), of in sorted(servers.items()):
        logs = [[math.log(ms) for pair in pairs for ms in pair] for pairs in of]
        everything = [ms for pairs in of for pair in pairs for ms in pair]
        ratios = [math.log(b / a) for pairs in of for a, b in pairs]
        within = math.sqrt(statistics.fmean(map(statistics.variance, logs)))
        error = statistics.stdev(ratios) / math.sqrt(len(ratios))
        found.append(
            {
                "network": network,
                "condition": condition,
                "processes": len(everything),
                "median_ms": statistics.median(everything),
                "fastest_ms": min(everything),
                "slowest_ms": max(everything),
                "scatter_of_processes": within,
                "scatter_of_servers": statistics.stdev(map(statistics.fmean, logs))
                if len(logs) > 1
                else None,
                "second_over_first": statistics.fmean(ratios),
                "second_over_first_error": error,
            }
        )
        print(
            f"{network:12} {condition:30} {len(everything):3} processes, median "
            f"{statistics.median(everything):6.2f} ms ({min(everything):.2f} to "
            f"{max(everything):.2f}), scatter {within:.2%}; second over first "
            f"{statistics.fmean(ratios):+.2%} +- {error:.2%}"
        )
    content = {"environments": list(environments.values()), "found": found}
    (FOLDER / "summary.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Run servers, be one, or tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--models", nargs="+", default=["pvt_v2_b0", "yolov8n/160", "placed"])
    running.add_argument("--servers", type=int, default=3)
    running.add_argument("--pairs", type=int, default=4, help="of workers of a server")
    serving = commands.add_parser("serve")
    serving.add_argument("network")
    serving.add_argument("condition", choices=CONDITIONS)
    serving.add_argument("pairs", type=int)
    serving.add_argument("seed")
    commands.add_parser("summary")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.models, arguments.servers, arguments.pairs)
    elif arguments.command == "serve":
        condition = CONDITIONS[arguments.condition]
        serve(arguments.network, condition, arguments.pairs, arguments.seed)
    else:
        summary()


if __name__ == "__main__":
    main()
