"""What a user can do about the flags of a run; never something already done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datbench.records import Record
from datbench.schedule import DEFAULT, RIGOROUS


def advice(records: Sequence[Record]) -> Iterator[str]:
    """Yield what would help, once for all records."""
    flags = {flag for record in records for flag in record.flags}
    if "contended" in flags and any("quota" in w for r in records for w in r.warnings):
        yield "The container may not keep so many cores busy: fewer --threads."
    elif "contended" in flags:
        yield "Close what competes for the cores" + _or_fewer_threads(records) + "."
    elif flags & {"noisy", "throttled"} and records[0].workload.device == "cpu":
        waited = any(record.spent_s.get("waiting for quiet") for record in records)
        yield (
            "Something else had the cores for a while; what it disturbed was timed again."
            if waited
            else "No process of this machine was in the way: clocks, or other machines on the same "
            "host, moved the times."
        )
    yield from _more_pairs(records, flags)
    if "throttled" in flags and records[0].workload.device != "cpu":
        yield "The GPU's clocks do not hold: let it cool, or fix a lower clock (nvidia-smi -lgc)."
    if "foreign_process" in flags:
        yield "Stop the other processes on the GPU, or choose another one with --device."
    yield from _fewer_launches([r for r in records if "host_bound" in r.flags])
    if "not_warm" in flags and any(record.budget_s for record in records):
        yield "A longer --budget leaves more time to warm up."
    for record in records:
        if "oom" in record.flags and (smaller := _smaller(record)):
            yield f"{record.model} may fit with {smaller}."


def _fewer_launches(bound: Sequence[Record]) -> Iterator[str]:
    """Take Python away, or give each kernel more to do."""
    graphs = any(r.workload.mode == "inference" and r.workload.runtime == "eager" for r in bound)
    if bound:
        whole = " --runtime cudagraph launches all kernels of a step at once;" if graphs else ""
        yield (
            f"The GPU waits for Python to launch kernels:{whole} a larger --batch-size gives each "
            "more to do."
        )


def _or_fewer_threads(records: Sequence[Record]) -> str:
    """Leave a core to the rest of the machine, if the models have them all."""
    for record in records:
        cores = record.environment.cores if record.environment else None
        if record.workload.device == "cpu" and cores and 1 < record.workload.threads >= cores:
            return f", or leave it a core with --threads {cores - 1}"
    return ""


def _more_pairs(records: Sequence[Record], flags: set[str]) -> Iterator[str]:
    if any(record.tier == "calibrate" for record in records):
        return
    is_open = [r for r in records if r.comparison and r.comparison.verdict == "INCONCLUSIVE"]
    needed = [r.comparison.pairs_needed for r in is_open if r.comparison]
    within = [n for n in needed if n is not None and n <= RIGOROUS.looks[-1]]
    rigorous = any(record.tier == RIGOROUS.name for record in records)
    if is_open:
        told = ", ".join(
            f"{r.model} about {r.comparison.pairs_needed}"
            for r in is_open
            if r.comparison and r.comparison.pairs_needed
        )
        text = f"Process pairs that would settle what is open: {told}." if told else ""
        if _cut_by_budget(records):
            text += " A longer --budget leaves time for more."
        elif within and not rigorous:
            text += f" --rigorous runs up to {RIGOROUS.looks[-1]}."
        elif not within and not any(record.calibration for record in records):
            text += " `datbench calibrate` tells how small a difference this machine can show."
        if text:
            yield text.strip()
    elif flags & {"noisy", "few_samples"} and not rigorous:
        yield "More processes narrow the intervals: --rigorous."


def _cut_by_budget(records: Sequence[Record]) -> bool:
    tiers = {tier.name: tier for tier in (DEFAULT, RIGOROUS)}
    return any(
        record.budget_s is not None
        and record.tier in tiers
        and (record.values.get("pairs") or 0) < tiers[record.tier].looks[-1]
        for record in records
    )


def _smaller(record: Record) -> str:
    work = record.workload
    ways = []
    if work.batch_size > 1:
        ways.append("a smaller --batch-size")
    if work.dtype == "float32" and work.device != "cpu":
        ways.append("--dtype bfloat16")
    return " or ".join(ways)
