r"""What sweeps cost beside the measuring: bookkeeping of thousands of cases, and each case's own.

    python benchmarks/sweeps.py bookkeeping --cases 10000
    python benchmarks/sweeps.py overhead --cases 24

`bookkeeping` plans a sweep of profiles, runs it with workers that answer at once, so that all that
remains is planning, ordering, and writing records and samples, resumes it, and reads it for a
report: seconds of each, and the most memory of the process. `overhead` measures small blocks for
real, few and many of them, and tells what a case adds beside its warm-up and its timed slots: the
start of its worker, building, counting, weighing, and waiting for the disk. What many share, the
import of torch above all, does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path("results/sweeps")
BLOCKS = ("block:ema", "block:psa", "block:sea", "block:cpca")
MEASURING = ("timed", "warm-up")


class Answering:
    """A pool of workers that answer at once."""

    def __init__(self, *_: Any) -> None:
        from datbench import gauges
        from datbench.metrics.latency import Slot, Warmup
        from datbench.records import Measurement

        quiet = gauges.Readings(0.0), gauges.Readings(1.0)
        facts = {"device_name": "none: bookkeeping alone"}
        self._answers: dict[str, Any] = {
            "facts": facts, "room": 1e6, "health": {}, "build": None, "how": {},
            "metrics": [Measurement("params", 1), Measurement("rss_peak_mib", 1.0)],
            "warm_up": Warmup(10.0, True),
        }  # fmt: skip
        self._slot = Slot([10.0, 10.1, 10.2], None, *quiet)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def renew(self) -> None:
        """Nothing to end."""

    def start(self, case: object) -> Answering:
        """It is its own worker."""
        del case
        return self

    def ask(self, request: str, **_: Any) -> Any:
        """Answer as a worker does."""
        return self._slot if request == "slot" else self._answers[request]

    def stop(self) -> None:
        """Nothing to end."""


def bookkeeping(cases: int, command: str) -> dict[str, Any]:
    """Take a sweep of so many cases through everything but the measuring."""
    from datbench import gauges
    from datbench.api import Execution, make
    from datbench.executors import local
    from datbench.reports import gather, render
    from datbench.sweep import Sweep, cases_of

    local.Pool = Answering  # type: ignore[misc, assignment]
    gauges.processes = dict  # type: ignore[assignment] - a gauge: belongs to the measuring
    batches = range(1, math.ceil(cases / (2 * 2 * len(BLOCKS))) + 1)
    request = make(
        command, BLOCKS, quick=True, device="cpu", image="noise", batch_size=list(batches),
        input=["16x8x8", "16x10x10"], dtype=["float32", "bfloat16"],
    )  # fmt: skip
    found: dict[str, Any] = {"command": command, "cases": cases_of(request)}

    def timed(what: str, work: Any) -> Any:
        start = time.monotonic()
        result = work()
        found[f"{what}_s"] = round(time.monotonic() - start, 2)
        return result

    timed("plan", lambda: sum(len(plan.cases) for plan in Sweep(request)))
    with tempfile.TemporaryDirectory() as results:
        execution = Execution(request, Path(results))
        records = timed("run", execution.run)
        again = Execution(request, Path(results), execution.folder.path)
        resumed = timed("resume", again.run)
        timed("report", lambda: render(gather([execution.folder], samples=False), "csv"))
    if not len(records) == len(resumed) == found["cases"]:
        raise SystemExit(f"{len(records)} records, {len(resumed)} after resuming")
    found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def overhead(cases: int, repeats: int) -> dict[str, Any]:
    """Measure few cases and many; what one more adds beside the measuring."""
    from datbench.api import profile

    def once(batches: int) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as results:
            start = time.monotonic()
            records = profile(
                BLOCKS, device="cpu", image="noise", input="16x8x8", threads=1,
                batch_size=list(range(1, batches + 1)), results=results,
            )  # fmt: skip
            took = time.monotonic() - start
        spent = sum(record.spent_s.get(kind, 0.0) for record in records for kind in MEASURING)
        return took - spent, len(records)

    each = []
    for _ in range(repeats):  # few and many take turns
        few_s, few = once(2)
        many_s, many = once(math.ceil(cases / len(BLOCKS)))
        each.append((many_s - few_s) / (many - few))
    return {"cases": cases, "overhead_s": round(statistics.median(each), 3),
            "each_s": [round(s, 3) for s in each]}  # fmt: skip


def main() -> None:
    """Measure, print a line, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["bookkeeping", "overhead"])
    parser.add_argument("--cases", type=int)
    parser.add_argument("--command", choices=["profile", "compare"], default="profile")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    from datbench.runner import host_facts

    if given.what == "bookkeeping":
        found = bookkeeping(given.cases or 10_000, given.command)
    else:
        found = overhead(given.cases or 24, given.repeats)
    facts = host_facts()
    kept = {k: facts[k] for k in ("cpu_name", "cores", "python", "torch", "git_commit")}
    line = json.dumps({"what": given.what, **found, "environment": kept})
    print(line)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "sweeps.jsonl").open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
