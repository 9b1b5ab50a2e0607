"""Kills a run of ten cases with SIGKILL at random moments, resumes it, and tells what was lost.

    python benchmarks/kill.py --kills 20 --command profile

A case is lost if it had been measured to its end and is measured again. What was in flight when the
kill came is a case of a profile, or a process pair of a comparison.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from datbench.reports.txt import plain_table
from datbench.schedule import DEFAULT
from datbench.store import latest_run

BLOCKS = "acmix cpca ema msca msda psa psa_s sea sra neighborhood".split()
MODELS = [f"block:{block}" for block in BLOCKS]
ENOUGH_S = 600.0


def command(kind: str, results: Path, resume: str | None) -> list[str]:
    """The command line of the run."""
    words = [sys.executable, "-m", "datbench", kind]
    words += ["--models", *MODELS, "--budget", "60"] if kind == "compare" else MODELS
    words += ["--input", "64x20x20", "--device", "cpu", "--results", str(results)]
    return [*words, *(["--resume", resume] if resume else [])]


def state(results: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Latest record of each model, the slots that were kept, and what is damaged."""
    try:
        folder = latest_run(results)
    except ValueError:
        return {}, [], []
    records = {record.model: record for record in folder.records()}
    slots = folder.samples()
    return records, slots, folder.damage


def pairs_of(slots: list[dict[str, Any]]) -> tuple[int, int]:
    """Process pairs that are whole, and that are not."""
    rounds: dict[int, set[tuple[int, int]]] = {}
    for slot in slots:
        if not slot["redone"]:
            rounds.setdefault(slot["pair"], set()).add((slot["round"], slot["slot"]))
    planned = {slot["pair"]: slot["rounds"] * 2 * len(MODELS) for slot in slots}
    whole = sum(len(found) == planned[pair] for pair, found in rounds.items())
    return whole, len(rounds) - whole


def one(kind: str, moment_s: float, folder: Path) -> dict[str, Any]:
    """Kill a run after so many seconds, resume it, and compare what was there with what is."""
    results = folder / "results"
    process = subprocess.Popen(
        command(kind, results, None), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(moment_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before, slots, _ = state(results)
    finished = {model for model, record in before.items() if record.finished}
    begun = {slot["model"] for slot in slots} - finished
    whole, cut = pairs_of(slots)
    kept = {m: sum(s["model"] == m and not s["redone"] for s in slots) for m in MODELS}
    run = latest_run(results).run_id if before else None
    done = subprocess.run(command(kind, results, run), capture_output=True, text=True, check=False)
    after, all_slots, damage = state(results)
    lost = [m for m in finished if after[m].timestamp_utc != before[m].timestamp_utc]
    counted = {m: sum(s["model"] == m and not s["redone"] for s in all_slots) for m in MODELS}
    again = {m: counted[m] - kept[m] for m in MODELS}  # slots of the resumed part
    complete = (
        done.returncode == 0
        and set(after) == set(MODELS)
        and all(record.finished and record.error is None for record in after.values())
        and all_slots[: len(slots)] == slots
        and (kind == "profile" or pairs_of(all_slots)[0] <= DEFAULT.looks[-1])
        and all(record.values["pairs"] >= whole for record in after.values())
        and all(again[model] == 0 for model in finished)
    )
    return {
        "killed after s": f"{moment_s:.1f}",
        "finished": len(finished),
        "in flight": cut if kind == "compare" else len(begun),
        "pairs kept": whole if kind == "compare" else "",
        "slots kept": len(slots),
        "lost": len(lost),
        "damaged lines": len(damage),
        "complete": "yes" if complete else f"NO ({done.returncode}) {done.stderr[-300:]}",
    }


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--command", "kind", type=click.Choice(["profile", "compare"]), default="profile")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the rows as JSON.")
def main(kills: int, kind: str, seed: int, output: Path | None) -> None:
    """Kill and resume, and print a table; exit with 1 if anything was lost."""
    from rich.console import Console

    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        subprocess.run(
            command(kind, Path(name), None), check=True, capture_output=True, timeout=ENOUGH_S
        )
        whole_s = time.monotonic() - start
    print(f"{kind} of {len(MODELS)} cases: {whole_s:.0f} s without a kill", flush=True)
    moments = random.Random(seed)
    rows = []
    for number in range(kills):
        folder = Path(tempfile.mkdtemp())
        rows.append(one(kind, moments.uniform(0, whole_s), folder))
        shutil.rmtree(folder)
        print(number + 1, *rows[-1].values(), flush=True)
    table = plain_table()
    for title in rows[0]:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n")
    if any(row["lost"] or row["complete"] != "yes" or row["in flight"] > 1 for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
