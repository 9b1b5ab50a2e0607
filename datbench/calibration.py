"""Models against themselves: how far this machine can tell two models apart.

Three copies of a model are compared as any models are, over 20 process pairs. What the ratios
of identical models scatter is the noise floor; from it follows the smallest difference that each
tier finds. What of it differs from process to process, and not within them, is the share of the
layout of memory. The pairs, cut into comparisons of as many pairs as the first look has, tell how
often identical models are called different. A short, a medium and a long model are calibrated,
because they do not scatter alike; a record has the calibration of the nearest latency.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datbench.device import cpu_name
from datbench.plan import Plan
from datbench.records import Calibration, Record, Workload
from datbench.runner import Progress, Run
from datbench.schedule import DEFAULT, LOOK_LEVEL, RIGOROUS, Protocol
from datbench.stats import between, decide, detectable
from datbench.store import RunFolder

COPIES = 3
MODELS = ("timm:mobilenetv3_small_100", "pvt_v2_b0", "dat_tiny")  # a short, a medium, a long one
FILE = "calibration.json"


def protocol(pairs: int, budget_s: float | None) -> Protocol:
    """So many process pairs, whatever they show."""
    return dataclasses.replace(DEFAULT, looks=(pairs,), budget_s=budget_s, name="calibrate")


def calibrate(
    plan: Plan, folder: RunFolder, progress: Progress
) -> tuple[list[Record], Calibration | None, dict[str, Any]]:
    """Compare copies of a model and keep what that says of the machine in the run folder.

    Args:
        plan: copies of one model, the first of them the baseline.
        folder: of this run.
        progress: called with what is going on and the fraction that is done.
    Returns:
        The records; the calibration, None if there are too few process pairs for one; and the
        state of the device's settings.
    """
    measured = Run(plan, folder, progress)
    measured.measure()
    records = measured.finish()
    copies = [arm for arm in measured.arms if arm.label != plan.baseline]
    found = summarise(
        records, [arm.pairs for arm in copies], layout_share([arm.differences for arm in copies])
    )
    if found is not None:
        first = plan.cases[0].workload
        content = {"machine": machine(first), **dataclasses.asdict(found)}
        (folder.path / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return records, found, measured.health


def layout_share(copies: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Share of the scatter of process pairs, in squares, that their rounds do not explain.

    Args:
        copies: log-ratios of each copy by process pair and round.
    Returns:
        0 to 1; None where no copy has two pairs.
    """
    known = [[rounds for rounds in pairs if rounds] for pairs in copies]
    shares = [between(pairs) for pairs in known if len(pairs) > 1]
    return statistics.fmean(shares) if shares else None


def summarise(
    records: Sequence[Record],
    pairs: Sequence[Sequence[float]],
    of_layout: float | None = None,
) -> Calibration | None:
    """Turn log-ratios of identical models into a calibration.

    Args:
        records: of the copies, the baseline first.
        pairs: of each other copy, one log-ratio a process pair.
        of_layout: what `layout_share` found.
    Returns:
        None where a copy has fewer pairs than the first look needs.
    """
    first = DEFAULT.looks[0]
    latency = records[0].values.get("latency_ms_median")
    if latency is None or not pairs or min(map(len, pairs)) < first:
        return None
    deviation = math.sqrt(statistics.fmean(statistics.variance(values) for values in pairs))
    runs = [run for values in pairs for run in _runs(values, first)]
    verdicts = [decide([run], LOOK_LEVEL, DEFAULT.min_effect)[0].verdict for run in runs]
    return Calibration(
        timestamp_utc=records[0].timestamp_utc,
        model=records[0].model,
        latency_ms=latency,
        pairs=min(map(len, pairs)),
        deviation=deviation,
        detectable={
            tier.name: detectable(deviation, tier.looks[-1], LOOK_LEVEL, tier.min_effect)
            for tier in (DEFAULT, RIGOROUS)
        },
        false_verdicts=sum(verdict in ("FASTER", "SLOWER") for verdict in verdicts),
        comparisons=len(runs),
        layout_share=of_layout,
    )


def _runs(values: Sequence[float], length: int) -> list[tuple[float, ...]]:
    """Cut into runs of one length; what is left over is left out."""
    return list(zip(*[iter(values)] * length, strict=False))


def machine(work: Workload) -> dict[str, str | int]:
    """What must be the same for a calibration to hold."""
    return {
        "host": socket.gethostname(),
        "cpu": cpu_name(),
        "device": work.device,
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": work.threads,
    }


def calibrations(results: Path, work: Workload) -> list[Calibration]:
    """Find the newest calibration of each model on this machine, the newest of all first.

    False verdicts are counted over all calibrations of a model.
    """
    found: dict[str, list[Calibration]] = {}
    for path in sorted(results.glob(f"*/{FILE}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("machine") == machine(work):
                calibration = Calibration(**content)
                found.setdefault(calibration.model, []).append(calibration)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut off by a kill, or of another version: as if it were not there
    newest = [
        dataclasses.replace(
            max(same, key=_when),
            false_verdicts=sum(calibration.false_verdicts for calibration in same),
            comparisons=sum(calibration.comparisons for calibration in same),
        )
        for same in found.values()
    ]
    return sorted(newest, key=_when, reverse=True)


def _when(calibration: Calibration) -> str:
    return calibration.timestamp_utc


def told(found: Calibration) -> Iterator[str]:
    """Put a calibration into words."""
    yield (
        f"Noise floor: the ratio of {found.model} to itself scatters by {found.deviation:.2%} "
        f"from process pair to process pair ({found.pairs} pairs of {COPIES} copies)."
    )
    if found.layout_share is not None:
        yield (
            f"{found.layout_share:.0%} of that, in squares, is what differs from process to "
            "process, the layout of their memory above all; the rest differs within processes."
        )
    yield "--quick: one process pair, no verdicts."
    for tier in (DEFAULT, RIGOROUS):
        yield (
            f"{'--' if tier is RIGOROUS else ''}{tier.name}, {tier.looks[-1]} process pairs: finds "
            f"a difference of {found.detectable[tier.name]:.1%} 19 times of 20."
        )
    yield (
        f"(More than {DEFAULT.min_effect:.0%}, below which two models count as the same: "
        "--min-effect.)"
    )
    yield (
        f"Identical models were called different in {found.false_verdicts} of "
        f"{found.comparisons} comparisons of {DEFAULT.looks[0]} pairs."
    )
