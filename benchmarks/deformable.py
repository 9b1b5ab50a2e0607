"""Attention of the zoo against what the papers write: time, memory, distance to the arithmetic.

    python benchmarks/deformable.py [blocks training networks others growth] [--rounds 15] [--keep]

Two processes hold a block or a network, built with `impl=reference` and without, with the same
weights and input; a third multiplies matrices. They are timed one at a time in mirrored random
rounds while the others are stopped by a signal: threads that wait would take their cores. The
ratio is that of slot medians, in the median over rounds, with its 95 % interval. "Arithmetic" is
the time that the multiply-adds would take at the rate of a 1024 x 1024 product, as measured in
the same rounds. Memory is the most bytes of tensors alive at once above those before the step.
`others` has other yardsticks, `growth` the plot of docs/deformable.md.

    python benchmarks/deformable.py --device cuda --budget 120

measures the implementations for GPUs against the papers' sequence by `datbench.compare`, blocks
and networks, and keeps the rows in results/deformable/gpu.json; a budget holds for each sweep.

Large tensors are memory that glibc maps anew each time, page by page, unless it is told to keep
it, as the workers of datbench tell it; `--keep` does too, and measures the computing alone.
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
from typing import Any

from datbench.pool import KEEPING
from datbench.reports import cells
from datbench.runner import host_facts
from datbench.schedule import round_order, slot_iterations
from datbench.stats import median_interval, round_difference

RESULTS = Path(__file__).parents[1] / "results" / "deformable"
PRODUCT = 1024
Arm = dict[str, Any]


def block(name: str, shape: tuple[int, ...], *, train: bool = False, **options: Any) -> list[Arm]:
    """A block and its yardstick."""
    made = [{"block": name, "options": options | {"impl": impl}} for impl in ("reference", "fast")]
    return [arm | {"shape": shape, "train": train} for arm in made]


def network(name: str, batch: int) -> list[Arm]:
    """A network and its yardstick."""
    side = 384 if "384" in name else 224
    named = (f"{name}[impl=reference]", name)
    return [{"model": model, "shape": (batch, 3, side, side)} for model in named]


def table(side: int, stride: int, **options: Any) -> list[Arm]:
    """Deformable attention of 256 channels, 8 heads and 4 groups, with a table for its map."""
    made = {"position": "table", "table_size": (side, side), "stride": stride} | options
    return block("dat", (1, 256, side, side), **made)


IMPLEMENTATIONS = ("reference", "masked", "flex", "triton")
TILED = "dat_pp_tiny[impl=reference]+fast neighborhoods"
CASES: dict[str, dict[str, list[Arm]]] = {
    "blocks": {
        "20x20, stride 1": table(20, 1),
        "40x40, stride 1": table(40, 1),
        "80x80, stride 4": table(80, 4),
        "80x80, stride 2": table(80, 2),
        "40x40, version 1": table(40, 1, version=1),
        "40x40, log_cpb": table(40, 1, position="log_cpb", table_size=None),
        "40x40, dwc": table(40, 1, position="dwc", table_size=None),
        "80x80, stride 4, dwc": table(80, 4, position="dwc", table_size=None),
    },
    "training": {
        "20x20, stride 1": table(20, 1, train=True),
        "40x40, stride 1": table(40, 1, train=True),
        "40x40, version 1": table(40, 1, version=1, train=True),
    },
    "networks": {
        "dat_tiny, batch 1": network("dat_tiny", 1),
        "dat_tiny, batch 8": network("dat_tiny", 8),
        "dat_base_384, batch 1": network("dat_base_384", 1),
        "dat_pp_tiny, batch 1": network("dat_pp_tiny", 1),
        "dat_pp_tiny, tiles in both": [
            {"model": TILED, "shape": (1, 3, 224, 224)}, network("dat_pp_tiny", 1)[1]
        ],
    },
    "others": {
        f"{name} {c}x{side}x{side}, batch {b}": [
            *block(name, (b, c, side, side), heads=heads), *(
                [{"timm": name == "shifted_window", "shape": (b, c, side, side), "heads": heads}]
                if "window" in name else []
            ),
        ]
        for name in ("window", "shifted_window", "neighborhood")
        for c, side, heads, b in ((96, 56, 3, 1), (192, 28, 6, 1), (384, 14, 12, 1), (96, 56, 3, 8))
    },
    "growth": {f"{side}x{side}": table(side, 4) for side in (20, 40, 80, 112, 160)},
}  # fmt: skip


def run(arms: list[Arm], rounds: int, keep: bool) -> dict[str, Any]:
    """Time the arms, and a product of matrices, in interleaved rounds; then ask for memory."""
    environment = os.environ | (KEEPING if keep else {}) | {"YOLO_VERBOSE": "False"}
    told = [*arms, {"product": PRODUCT}]
    workers = []
    for arm in told:
        command = [sys.executable, "-W", "ignore", __file__, "worker", json.dumps(arm)]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **pipe))
        step_ms, output = json.loads(workers[-1].stdout.readline())
        arm["iterations"], arm["output"] = slot_iterations(step_ms), output
        os.kill(workers[-1].pid, signal.SIGSTOP)

    def ask(i: int, what: str) -> Any:
        os.kill(workers[i].pid, signal.SIGCONT)
        workers[i].stdin.write(what + "\n")
        workers[i].stdin.flush()
        answer = json.loads(workers[i].stdout.readline())
        os.kill(workers[i].pid, signal.SIGSTOP)
        return answer

    times: list[list[float]] = [[] for _ in told]
    differences: list[list[float]] = [[] for _ in told]
    try:
        for number in range(rounds):
            medians: list[list[float]] = [[] for _ in told]
            for i in round_order(len(told), 0, 0, number):
                latency = ask(i, str(told[i]["iterations"]))
                times[i] += latency
                medians[i].append(statistics.median(latency))
            for i, own in enumerate(medians):
                differences[i].append(round_difference(own, medians[1]))  # above 0: ours is slower
        memory = [ask(i, "memory") for i in range(len(arms))]
        macs = ask(1, "macs")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    ms = [statistics.median(own) for own in times]
    rate = PRODUCT**3 / ms[-1]  # multiply-adds a millisecond
    ratios = [math.exp(-statistics.median(own)) for own in differences]
    intervals = [[math.exp(-d) for d in (median_interval(own) or ())[::-1]] for own in differences]
    return {
        "ms": ms[:-1], "ratio": ratios[0], "ratio_interval": intervals[0],
        "other_ratios": list(zip(ratios[2:-1], intervals[2:-1], strict=True)),
        "arithmetic_ms": macs / rate, "gmacs": macs / 1e9, "product_gflops": 2 * rate / 1e6,
        "peak_mib": [m / 2**20 for m in memory],
        "difference": abs(told[0]["output"] - told[1]["output"]),
    }  # fmt: skip


def work(arm: Arm) -> None:
    """Hold one arm, and answer what is asked: iterations to time, "memory" or "macs"."""
    import torch

    from datbench.counters import copies_of, count
    from datbench.device import CpuDevice

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if "product" in arm:
        a, b = torch.rand(2, arm["product"], arm["product"])
        model, x, step = None, a, lambda: a @ b
    else:
        model = built(arm)
        x = torch.randn(arm["shape"], generator=torch.Generator().manual_seed(1))
        model.train(arm.get("train", False))
        step = learning(model, x) if arm.get("train") else lambda: model(x)
    torch.set_grad_enabled(arm.get("train", False))
    result = step()
    step()
    start = time.perf_counter()
    step()
    print(json.dumps([(time.perf_counter() - start) * 1e3, float(result.abs().mean())]), flush=True)
    for line in sys.stdin:
        if line == "memory\n":
            found = {m.name: m.value for m in CpuDevice().memory(step, 0)}
            answer: Any = found["activations_mib"] * 2**20
        elif line == "macs\n":
            with torch.no_grad():
                answer = count(copies_of(model.eval()), x).macs * len(x)
        else:
            answer = []
            step()
            for _ in range(int(line)):
                start = time.perf_counter()
                step()
                answer.append((time.perf_counter() - start) * 1e3)
        print(json.dumps(answer), flush=True)


def built(arm: Arm) -> Any:
    """Build a model with weights that depend on their shapes alone."""
    import torch

    import zoo

    if "block" in arm:
        model = zoo.create_block(arm["block"], arm["shape"][1], **arm["options"])
    elif "timm" in arm:
        model = timm_windows(arm)
    else:
        model = zoo.create_model(arm["model"].partition("+")[0])
        if arm["model"] == TILED:
            for module in model.modules():
                if isinstance(module, zoo.blocks.neighborhood.NeighborhoodAttention):
                    module.impl = "fast"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.trunc_normal_(parameter, std=0.05, generator=generator)
    return model


def learning(model: Any, x: Any) -> Any:
    """A step forward and backward."""
    import torch

    gradient = torch.ones(x.shape)

    def step() -> Any:
        model.zero_grad()
        out = model(x.requires_grad_())
        out.backward(gradient)
        x.grad = None
        return out.detach()

    return step


def timm_windows(arm: Arm) -> Any:
    """timm's window attention, between the partition and the roll of its Swin block."""
    import torch
    from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse

    from zoo.blocks.window import shift_mask

    class Windows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, dim, h, w = arm["shape"]
            self.attention = WindowAttention(dim, arm["heads"], window_size=7)
            self.shift, self.mask = (4 if arm["timm"] else 0), None
            if self.shift:
                self.mask = shift_mask(h, w, 7, self.shift)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, s = x.permute(0, 2, 3, 1), self.shift
            if s:
                x = x.roll((-s, -s), (1, 2))
            windows = window_partition(x, (7, 7)).flatten(1, 2)
            out = self.attention(windows, self.mask).unflatten(1, (7, 7))
            out = window_reverse(out, (7, 7), *x.shape[1:3])
            return (out.roll((s, s), (1, 2)) if s else out).permute(0, 3, 1, 2)

    return Windows()


def on_gpu(budget: float | None) -> None:
    """Compare the implementations for GPUs with the papers' sequence, by datbench itself."""
    from datbench import compare

    options = "position='table',table_size=({0},{0}),heads=8,groups=4,stride={1},impl={2}"
    sweeps: dict[str, tuple[list[str], dict[str, Any]]] = {
        f"{side}x{side}, stride {stride}": (
            [f"block:dat[{options.format(side, stride, impl)}]" for impl in IMPLEMENTATIONS],
            {"input_shape": f"256x{side}x{side}"},
        )
        for side, stride in ((14, 1), (28, 1), (40, 1), (80, 2))
    }
    sweeps |= {
        name: ([f"{name}[impl={impl}]" for impl in IMPLEMENTATIONS], {})
        for name in ("dat_tiny", "dat_pp_tiny", "dat_base_384")
    }
    rows = {}
    for name, (models, given) in sweeps.items():
        records = compare(
            models, device="cuda", batch_size=[1, 16, 64], dtype=["float32", "bfloat16"],
            mode=["inference", "train"], budget=budget, results=RESULTS / "runs", **given,
        )  # fmt: skip
        rows[name] = [record.row() for record in records]
        for record in records:
            how = f"{record.workload.mode} {record.workload.dtype} {record.workload.batch_size}"
            against = (
                cells.told(record.comparison) if record.comparison else record.error or "baseline"
            )
            print(f"{name:20} {how:24} {record.model.partition('impl=')[2]:12} {against}")
        (RESULTS / "gpu.json").write_text(json.dumps(rows, indent=1, default=str) + "\n")


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot time and memory against the side of the map."""
    import matplotlib.pyplot as plt

    sides = [int(name.partition("x")[0]) for name in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    pairs = [side**2 * math.ceil(side / 4) ** 2 for side in sides]
    both = [side**2 + math.ceil(side / 4) ** 2 for side in sides]
    for i, label in enumerate(("as the papers write it", "a block of queries at a time")):
        left.loglog(pairs, [row["ms"][i] for row in rows.values()], "o-", label=label)
        right.loglog(both, [row["peak_mib"][i] for row in rows.values()], "o-", label=label)
    for axes, label in ((left, "ms a forward"), (right, "MiB alive at once, above before")):
        low, *_, high = pairs if axes is left else both
        start = rows[f"{sides[-1]}x{sides[-1]}"]["ms" if axes is left else "peak_mib"][1]
        axes.loglog([low, high], [start * low / high, start], ":", color="grey", label="linear")
        axes.set(ylabel=label, xlabel="queries x keys" if axes is left else "queries + keys")
        axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Measure what is asked for, print a table of each, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", default=list(CASES), metavar="|".join(CASES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    parser.add_argument("--keep", action="store_true", help="let glibc keep freed memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of a sweep on a GPU")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cuda":
        on_gpu(arguments.budget)
        return
    for what in arguments.what:
        file = RESULTS / f"{what}{'_kept' * arguments.keep}.json"
        rows = json.loads(file.read_text())["cases"] if arguments.only and file.exists() else {}
        print(f"{what:30} reference    ours    ratio [95 % interval]    arithmetic   MiB")
        for name, arms in CASES[what].items():
            if arguments.only not in name:
                continue
            rows[name] = row = run(arms, arguments.rounds, arguments.keep)
            lo, hi = row["ratio_interval"] or (math.nan, math.nan)  # too few rounds
            print(
                f"{name:30} {row['ms'][0]:8.1f} {row['ms'][1]:8.1f} ms "
                f"{row['ratio']:6.2f} [{lo:.2f}, {hi:.2f}] "
                f"{row['arithmetic_ms']:8.1f} ms ({row['arithmetic_ms'] / row['ms'][1]:.0%}) "
                f"{row['peak_mib'][0]:8.1f} {row['peak_mib'][1]:7.1f} "
                f"1/{row['peak_mib'][0] / row['peak_mib'][1]:.1f}",
                *(
                    f"timm {r:.2f} [{low:.2f}, {high:.2f}]"
                    for r, (low, high) in row["other_ratios"]
                ),
                flush=True,
            )
        stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        kept = {
            "timestamp_utc": stamp,
            "environment": host_facts(),
            "rounds": arguments.rounds,
            "memory_kept": arguments.keep,
        }
        text = json.dumps(kept | {"cases": rows}, indent=1)
        file.write_text(text + "\n")
        if what == "growth":
            draw(rows, RESULTS / "growth.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
