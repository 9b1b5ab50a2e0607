"""What must be said under a table: doubts, faults, what would help, and the conditions."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence

from datbench.advice import advice
from datbench.records import Record
from datbench.reports.cells import labels, rounded, shape
from datbench.reports.curves import curves
from datbench.reports.protocol import some

# Of what is known of how a runtime ran; versions and the like stay in the record.
TOLD = (
    "opset", "providers", "precision", "mode", "dynamic", "backend", "graphs", "fused", "warm_ups",
)  # fmt: skip

SIDES = ("FASTER", "SAME", "SLOWER", "INCONCLUSIVE")


def notes(records: Sequence[Record], *, published: bool = True) -> Iterator[str]:
    """Yield the notes of a table of one machine, with published figures unless told elsewhere."""
    said: dict[str, list[str]] = {}
    for record, label in zip(records, labels(records, runs=False), strict=True):
        for note in _of(record):
            said.setdefault(note, []).append(label)
    for note, about in said.items():
        yield f"{some(list(dict.fromkeys(about)))}{note}"
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.run_id, []).append(record)
    for number, (run_id, of_run) in enumerate(runs.items(), start=1):
        if len(runs) > 1:
            yield f"Run {number} is {run_id}."
        if judged := verdicts(of_run):
            yield judged if len(runs) == 1 else f"Run {number}: {judged}"
    yield from advice(records)
    yield from filter(None, dict.fromkeys(map(calibrated, records)))
    yield from (curve.told() for curve in curves(records))
    if published:
        yield from dict.fromkeys(as_published(r) for r in records if r.published_source)
    one_shape = len({shape(record) for record in records}) == 1
    yield from all_conditions(records, one_shape)


def _of(record: Record) -> Iterator[str]:
    """Yield what is to be said of a record alone, its name left out."""
    if record.impossible:
        yield f" cannot be: {record.error}"
        return
    if record.error:
        yield f" failed: {record.error}"
    for warning in record.all_warnings:
        yield f": {warning}"
    if record.facts:
        yield f": {ran(record)}"


def verdicts(records: Sequence[Record]) -> str:
    """Sum up the comparisons of one run, and say why those have no verdict that have none."""
    compared = [r for r in records if r.comparison and "wrong_output" not in r.flags]
    judged = [r for r in compared if r.comparison and r.comparison.verdict]
    rest = [r for r in compared if r.comparison and not r.comparison.verdict]
    told = [standing(judged)] if len(judged) > 1 else []
    if rest:
        names = dict(zip(map(id, records), labels(records, runs=False), strict=True))
        who = f" of {some([names[id(record)] for record in rest])}" if judged else ""
        pairs = max(int(record.values.get("pairs") or 0) for record in rest)
        told.append(
            f"No verdict{who}: one process pair, so the interval leaves out what differs from "
            "process to process."
            if pairs <= 1
            else f"No verdict{who}: {pairs} process pairs are too few."
        )
    return " ".join(told)


def ran(record: Record) -> str:
    """Tell how a runtime ran a model, what getting there took, and how right its answers were."""
    facts, values = record.facts, record.values
    told = [f"{name.replace('_', ' ')} {_fact(facts[name])}" for name in TOLD if facts.get(name)]
    for name, what, unit in (
        ("prepare_s", "made ready in", "s"),
        ("load_s", "loaded in", "s"),
        ("first_call_ms", "first call", "ms"),
    ):
        if values.get(name) is not None:
            told.append(f"{what} {rounded(values[name])} {unit}")
    if (apart := values.get("parity_rel")) is not None:
        told.append(f"off from eager by {apart:.1e} of a channel ({values['parity_abs']:.1e})")
    return ", ".join(told)


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} ({count})" for key, count in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def standing(records: Sequence[Record]) -> str:
    """Say which models stand on which side of the baseline; ties stay ties.

    Of a sweep, it tells in how many of the comparisons of a model.
    """
    found: dict[str, collections.Counter[str]] = {side: collections.Counter() for side in SIDES}
    compared: collections.Counter[str] = collections.Counter()
    for record in records:
        if record.comparison and record.comparison.verdict:
            found[record.comparison.verdict][record.model] += 1
            compared[record.model] += 1
    sides = {
        side: [f"{m} ({n} of {compared[m]})" if compared[m] > 1 else m for m, n in models.items()]
        for side, models in found.items()
    }
    words = {"SAME": "the same", "INCONCLUSIVE": "open"}
    parts = [
        f"{words.get(side, side.lower())}: {', '.join(models)}"
        for side, models in sides.items()
        if models
    ]
    baseline = " or ".join(dict.fromkeys(r.comparison.baseline for r in records if r.comparison))
    return f"Against {baseline} - {'; '.join(parts)}. Models of one side are not ranked."


def calibrated(record: Record) -> str:
    """Say what the machine can tell apart, where that is known."""
    known = record.calibration
    if known is None:
        return ""
    sees = ", ".join(f"{tier} {found:.1%}" for tier, found in known.detectable.items())
    return (
        f"This machine finds differences of: {sees} (calibrated {known.timestamp_utc[:10]} with "
        f"{known.model}, {rounded(known.latency_ms)} ms; identical models were called different "
        f"in {known.false_verdicts} of {known.comparisons} comparisons)."
    )


def as_published(record: Record) -> str:
    """Tell the published figures and where they stand."""
    known = [
        f"{number / unit:{form}} {what}"
        for number, unit, form, what in (
            (record.published_params, 1e6, "g", "M parameters"),
            (record.published_macs, 1e9, "g", "GMACs"),
            (record.published_top1, 1, ".1f", "% top-1"),
        )
        if number is not None
    ]
    model = record.model.removesuffix(f" ({record.workload.runtime})")
    return f"{model} as published: {', '.join(known)}; {record.published_source}"


def all_conditions(records: Sequence[Record], with_shape: bool) -> Iterator[str]:
    """Say under what conditions records were measured; what a run spans shares a line."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if not record.impossible:
            alike.setdefault(_setting(record), []).append(record)
    for (where, how), group in alike.items():
        works = [record.workload for record in group]
        shapes = f" {_spanned(map(shape, group))}" if with_shape else ""
        yield (
            f"{where}, {_spanned(work.arithmetic for work in works)}{how}, "
            f"{', '.join(dict.fromkeys(work.execution for work in works))}, "
            f"batch {_spanned(work.batch_size for work in works)} of {works[0].image}{shapes}; "
            f"{_origin(group[0])}"
        )


def _setting(record: Record) -> tuple[str, str]:
    """Say on what and how a record was measured, but for what a run may span."""
    work, environment = record.workload, record.environment
    name = environment.device_name if environment else work.device
    set_ = {"tf32": work.tf32, "cold cache": work.cold_cache}
    set_["with non-maximum suppression"] = work.scope == "nms"
    set_["from photograph to answer"] = work.scope == "end-to-end"
    set_[f"trained with {work.optimizer}"] = work.optimizer is not None
    set_["cudnn.benchmark off"] = work.device != "cpu" and not work.cudnn_benchmark
    where = f"{work.device} ({name}), {work.threads} threads"
    return where, "".join(f", {name}" for name, on in set_.items() if on)


def _origin(record: Record) -> str:
    """Say with which versions and in which run a record was measured."""
    environment = record.environment
    versions = f"torch {environment.torch}, Python {environment.python}" if environment else ""
    return f"{versions}; run {record.run_id}"


def _spanned(values: Iterable[object]) -> str:
    """List values, each once."""
    *others, last = dict.fromkeys(map(str, values))
    return f"{', '.join(others)} or {last}" if others else last
