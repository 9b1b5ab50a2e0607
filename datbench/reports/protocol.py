"""What all runs share: how times, ratios, counts and memory come about, in words.

Numbers of the protocol are those of the code that measures.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from datbench.device import REFERENCE_RUNS, CpuDevice, CudaDevice
from datbench.metrics.latency import BLOCK_MS, BLOCKS, STEADY, WARMUP_MOST_S
from datbench.records import Record
from datbench.reports.cells import rounded
from datbench.schedule import (
    DEFAULT,
    FEWEST_PAIRS,
    LOOK_LEVEL,
    QUICK,
    REDONE_FIRST,
    REDONE_SHARE,
    RIGOROUS,
    SLOT_ITERATIONS,
    SLOT_MS,
)
from datbench.stats import PERCENTILE_SAMPLES

NAMED = 8  # models that are named one by one
TIERS = {tier.name: tier for tier in (QUICK, DEFAULT, RIGOROUS)}


def protocol(records: Sequence[Record]) -> str:
    """Tell how times were taken: clock, warm-up, slots, disturbances, and the statistic."""
    devices: dict[str, type[CpuDevice] | type[CudaDevice]] = {
        ("CPU" if record.workload.device == "cpu" else "GPU"): (
            CpuDevice if record.workload.device == "cpu" else CudaDevice
        )
        for record in records
    }
    clocks = {
        "CPU": "the monotonic clock of the host",
        "GPU": "CUDA events around each iteration, read after one synchronisation at its end",
    }
    clock = listed([f"by {clocks[name]}{_on(name, devices)}" for name in devices])
    least = listed([f"{d.warm_up_s:g} s{_on(name, devices)}" for name, d in devices.items()])
    percentiles = listed([f"p{q} from {n}" for q, n in PERCENTILE_SAMPLES.items()])
    return (
        f"Each process pair is fresh processes of the models that are timed together, one of them "
        f"running at a time. Where the memory of each process lies was drawn at random before its "
        f"model was built, so that layouts that happen to be fast or slow are part of the scatter "
        f"between processes. A process first ran untimed for at least {least}, and until the "
        f"fastest of {BLOCKS} blocks of iterations of {BLOCK_MS:g} ms each was within "
        f"{percent(STEADY)} of the fastest of the {BLOCKS} before, or for {WARMUP_MOST_S:g} s "
        f"(less under a budget). Times were taken in slots of at least {SLOT_ITERATIONS} "
        f"consecutive iterations and {SLOT_MS:g} ms, after untimed ones where another model ran "
        f"before, {clock}. Gauges around each slot tell whether another process had the cores or "
        f"the clocks moved{_reference(devices)}; such a slot was timed again, for at most "
        f"{percent(REDONE_SHARE)} of all slots and {REDONE_FIRST} more. The times of a slot that "
        f"was replaced are left out of the figures, and no others are. A latency is the median "
        f"over all timed iterations with a 95 % interval by order statistics; from three processes "
        f"on, it is the median of the processes' medians with Student's t interval of their "
        f"logarithms, from six on the hull of that and of the interval by order statistics. "
        f"Percentiles are told by their samples: "
        f"{percentiles}. Throughput is images over the sum of the times."
    )


def comparisons(records: Sequence[Record], machines: int = 1) -> str:
    """Tell how ratios and verdicts came about."""
    compared = [record for record in records if record.comparison]
    several = max(collections.Counter((r.run_id, r.unit) for r in compared).values())
    text = (
        f"Models were compared with {_baselines(compared)} within rounds, in which "
        f"they run in random order and then in its mirror image. A round gives the difference of "
        f"the mean log slot medians of model and baseline, and a process pair the median of that "
        f"over its rounds."
    )
    judged = [r for r in compared if r.comparison and r.comparison.verdict]
    rest = [r for r in compared if r.comparison and not r.comparison.verdict]
    if judged:
        text += f" {_verdicts(judged, several)}"
    if rest:
        who = f" of {names(rest)}" if judged else ""
        text += f" There is no verdict{who}: {_why_none(rest)}."
    if machines > 1:
        text += " No ratio was formed between machines or runs."
    return text


def _why_none(records: Sequence[Record]) -> str:
    if any(record.finished is False for record in records):
        return "measuring ended before the first look"
    if any((record.values.get("pairs") or 0) > 1 for record in records):
        return f"fewer than {FEWEST_PAIRS} process pairs are too few"
    return (
        "one process pair was run, and the interval, by order statistics over its rounds, leaves "
        "out what differs from process to process"
    )


def _verdicts(judged: Sequence[Record], several: int) -> str:
    tiers = [TIERS[name] for name in dict.fromkeys(r.tier for r in judged) if name in TIERS]
    looks = " or ".join(listed(list(map(str, tier.looks))) for tier in tiers)
    margins = sorted({r.min_effect for r in judged if r.min_effect is not None})
    margin = " or ".join(map(percent, margins))
    factor = f"factor of 1 + {margin}" if margins else "margin that is not recorded"
    at = f"after {looks} pairs{_end(judged)}, " if looks else ""
    holm = "; comparisons that were taken together share their error by Holm's step-down rule"
    return (
        f"The ratio is the mean over process pairs, in logarithms, with Student's t interval. It "
        f"is looked at {at}at a level of {percent(LOOK_LEVEL)} each time, so that a comparison "
        f"holds at 95 % over all looks{holm if several > 1 else ''}. A model is the same if the "
        f"whole interval lies within a {factor}, faster or slower if it leaves out 1, and "
        f"inconclusive otherwise."
    )


def _end(judged: Sequence[Record]) -> str:
    """Tell of looks that a budget moved."""
    return " or where the budget ended" if any(r.budget_s is not None for r in judged) else ""


def _baselines(compared: Sequence[Record]) -> str:
    found = list(dict.fromkeys(r.comparison.baseline for r in compared if r.comparison))
    return listed([*found[:NAMED], "others"] if len(found) > NAMED else found)


def counts(records: Sequence[Record]) -> str:
    """Tell what parameters, multiply-adds and memory mean."""
    text = (
        "Parameters are all parameters, shared ones once, without buffers. MACs are the "
        "multiply-adds of one image, each counted as 1 (FLOPs are twice that), by fvcore with "
        "rules for what it does not count, and checked against PyTorch's own counter."
    )
    kinds = {
        "cpu": "on a CPU the largest sum of what the allocator's events tell",
        "cuda": "on a GPU the mark of PyTorch's caching allocator",
    }
    there = [
        told
        for name, told in kinds.items()
        if any(
            r.workload.device.startswith(name) and r.values.get("peak_allocated_mib") is not None
            for r in records
        )
    ]
    if there:
        text += (
            " Peak memory is the most bytes of tensors alive at once in a step after warm-up, "
            f"weights and input included, {listed(there)}; it was measured apart from the times."
        )
    if any(r.values.get("energy_mj_img") is not None for r in records):
        text += " Energy is the difference of the board's own counter over repeated steps."
    return text


def calibration(record: Record) -> str:
    """Tell what identical models showed on the machine; nothing where that is not known."""
    known = record.calibration
    if known is None:
        return ""
    found = listed(
        [f"{100 * share:.2g} % (tier {tier})" for tier, share in known.detectable.items()]
    )
    return (
        f"On {known.timestamp_utc[:10]} the machine was calibrated with copies of {known.model} "
        f"({rounded(known.latency_ms)} ms): their ratio scattered by "
        f"{100 * known.deviation:.2g} % over {counted(known.pairs, 'process pair')}, from which a "
        f"difference of {found} is found 19 times of 20, and they were called different in "
        f"{known.false_verdicts} of {counted(known.comparisons, 'comparison')}."
    )


def _reference(devices: dict[str, Any]) -> str:
    told = f", for a CPU by the fastest of {REFERENCE_RUNS} small matrix products too"
    return told if "CPU" in devices else ""


def _on(name: str, devices: dict[str, Any]) -> str:
    """Name the kind of device where there is more than one."""
    return f" on a {name}" if len(devices) > 1 else ""


def names(records: Sequence[Record]) -> str:
    """Name the models of records, each once."""
    return some(list(dict.fromkeys(record.model for record in records)))


def some(words: Sequence[str]) -> str:
    """List the first words, and count the rest."""
    more = len(words) - NAMED
    return listed([*words[:NAMED], f"{more} more"] if more > 0 else words)


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: a, b and c."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def counted(number: int, what: str) -> str:
    """Write a number with its noun: 1 core, 2 cores."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def ranged(numbers: Sequence[int], what: str) -> str:
    """Write the smallest and the largest number: 5 pairs, 5 to 8 pairs."""
    low, high = min(numbers), max(numbers)
    return counted(low, what) if low == high else f"{low} to {counted(high, what)}"


def percent(share: float) -> str:
    """Write a share in percent: 0.9875 as 98.75 %."""
    return f"{100 * share:g} %"
