"""How long a report takes to make, and how much memory, by format and number of records.

    python benchmarks/reports.py 1000 100000

Makes a run folder of so many records of distinct models. Each report is made in a fresh process;
its seconds leave out the start of the interpreter, and hold all else: imports, reading the folder,
hiding the host, writing the file. Reports that show single iterations get 20 of each model too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from datbench.records import (
    Comparison,
    Environment,
    Measurement,
    Record,
    Workload,
)
from datbench.reports import REPORTS
from datbench.store import RECORDS, SAMPLES, RunFolder

RUN = "20261122T110000Z-compare"
CHILD = """
import resource, sys, time
start = time.perf_counter()
from pathlib import Path
from datbench.reports import REPORTS, gather, write
from datbench.reports.privacy import without_host
from datbench.store import RunFolder
folder, output = map(Path, sys.argv[1:])
wanted = REPORTS[output.suffix[1:]].samples
write(without_host(gather([RunFolder(folder)], samples=wanted)), output)
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
BARS = {1000: (2.0, None), 100_000: (60.0, 2048)}  # seconds and MiB that should suffice


def record(number: int) -> Record:
    """Make up a record; one of seven has a doubt."""
    shift = 1 + number % 997 / 1000
    values = {
        "params": 28_319_138 + number,
        "params_trainable": 28_319_138 + number,
        "macs": 4_588_903_776 + number,
        "flops": 2 * (4_588_903_776 + number),
        "latency_ms_median": 76.5631 * shift,
        "latency_ms_lo": 75.9012 * shift,
        "latency_ms_hi": 78.0173 * shift,
        "latency_ms_min": 74.1 * shift,
        "latency_ms_p90": 80.2 * shift,
        "latency_ms_p95": 82.4 * shift,
        "throughput_img_s": 13.0611 / shift,
        "weights_mib": 108.03,
        "peak_allocated_mib": 141.3 * shift,
        "rss_peak_mib": 640.25,
        "samples": 180,
        "pairs": 5,
    }
    return Record(
        run_id=RUN,
        key=f"k{number:015x}",
        model=f"model_{number}",
        family=f"family_{number % 9}",
        source="made up",
        workload=Workload(device="cpu", input_shape=(3, 224, 224), threads=2),
        timestamp_utc="2026-11-22T11:00:00+00:00",
        environment=Environment(
            device_name="A CPU", cpu_name="A CPU", host="bench-1", python="3.11.7", torch="2.14.1",
            datbench_version="0.2.0", threads=2, git_commit="f" * 40, platform="Linux",
            packages=dict.fromkeys(("torch", "numpy", "timm", "fvcore", "einops"), "1.2.3"),
            settings={"cudnn_benchmark": True, "deterministic": False},
        ),
        measurements=tuple(Measurement(name, value) for name, value in values.items()),
        comparison=Comparison("model_0", shift, shift * 0.99, shift * 1.01, "SLOWER")
        if number
        else None,
        warnings=("noisy: the interval is wide",) if number % 7 == 1 else (),
        tier="default",
        min_effect=0.01,
        command="datbench compare --models model_0 model_1",
        finished=True,
        spent_s={"starting": 3.0, "timed": 20.0},
    )  # fmt: skip


def fill(folder: RunFolder, records: int) -> None:
    """Write a run of so many records, with two slots of ten iterations for each."""
    folder.path.mkdir()
    with (folder.path / RECORDS).open("w") as file:
        file.writelines(json.dumps(record(n).to_json()) + "\n" for n in range(records))
    with (folder.path / SAMPLES).open("w") as file:
        for n in range(records):
            for slot in range(2):
                times = [76.5 + n % 997 / 10 + i / 100 for i in range(10)]
                told = {
                    "model": f"model_{n}",
                    "pair": slot,
                    "group": 0,
                    "round": 0,
                    "slot": slot,
                    "ended_utc": f"2026-11-22T11:{n // 60 % 60:02}:{n % 60:02}.{slot}+00:00",
                    "latency_ms": times,
                    "host_ms": None,
                    "parts_ms": None,
                    "disturbed": None,
                    "redone": False,
                    "host": {"waited_ms": 0.25, "switches": 1},
                    "reference_ms": [1.1, 1.2],
                    "gpu": [],
                }
                file.write(json.dumps(told) + "\n")


def measure(folder: Path, output: Path) -> tuple[float, float] | str:
    """Seconds and MiB of one report, or what went wrong."""
    command = [sys.executable, "-c", CHILD, str(folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["killed"])[-1]
    seconds, mib = map(float, done.stdout.split())
    return seconds, mib


def main(sizes: list[int], suffixes: list[str]) -> None:
    """Print a table in Markdown; "over" marks what takes more than it should."""
    print(f"{os.cpu_count()} cores\n")
    print("| records | format | seconds | MiB | size MiB | |")
    print("| ---: | :--- | ---: | ---: | ---: | :--- |")
    for size in sizes:
        most_s, most_mib = BARS.get(size, (None, None))
        with tempfile.TemporaryDirectory() as place:
            folder = RunFolder(Path(place) / RUN)
            fill(folder, size)
            for suffix in suffixes or REPORTS:
                output = Path(place) / f"report.{suffix}"
                found = measure(folder.path, output)
                if isinstance(found, str):
                    print(f"| {size} | {suffix} | | | | {found} |", flush=True)
                    continue
                seconds, mib = found
                over = (most_s and seconds > most_s) or (most_mib and mib > most_mib)
                large = output.stat().st_size / 2**20
                print(
                    f"| {size} | {suffix} | {seconds:.2f} | {mib:.0f} | {large:.1f} "
                    f"| {'over' if over else ''} |",
                    flush=True,
                )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers or [1000], [word for word in sys.argv[1:] if not word.isdigit()])
