"""How a run was measured, as paragraphs for the methods section of a paper.

Everything is told from the records: machine by machine, then each kind of run, then once what all
of them share. Numbers of the protocol are those of the code that measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datbench.deployment import CLASSES, CONFIDENCE, MOST_BOXES, OVERLAP
from datbench.inputs import IMAGENET_MEAN, IMAGENET_STD
from datbench.plan import versions
from datbench.records import Environment, Record, Workload
from datbench.reports.machines import by_machine
from datbench.reports.protocol import (
    NAMED,
    TIERS,
    calibration,
    comparisons,
    counted,
    counts,
    listed,
    names,
    protocol,
    ranged,
)
from datbench.schedule import MOST_ROUNDS, RIGOROUS, profile_protocol
from datbench.training import LEARNING_RATE, MOMENTUM


def methods(records: Sequence[Record]) -> list[str]:
    """Write how records were measured, in paragraphs; none for no records."""
    records = [record for record in records if not record.impossible]
    if not records:
        return []
    found = []
    machines = by_machine(records)
    for label, group in machines:
        start = f"On {label}: " if len(machines) > 1 else ""
        for of_environment in _grouped(group, lambda record: _facts(record.environment)):
            found.append(start + hardware(of_environment))
            found += [kind(same) for same in _grouped(of_environment, _kind)]
    found.append(protocol(records))
    if any(record.comparison for record in records):
        found.append(comparisons(records, len(machines)))
    found.append(counts(records))
    found += dict.fromkeys(told for record in records if (told := calibration(record)))
    return found


def hardware(records: Sequence[Record]) -> str:
    """Tell the machine and the software."""
    where, work = records[0].environment, records[0].workload
    if where is None:
        return (
            f"Hardware and software of {names(records)} are not known: nothing came back from "
            "the process that was to tell them."
        )
    cores = counted(where.cores, "core") if where.cores else ""
    processor = where.cpu_name or "a processor of unknown name"
    host = processor + _inside(cores, where.platform)
    if work.device == "cpu":
        text = f"The device was the processor {host}."
    else:
        of_gpu = {"driver": where.driver, "CUDA": where.cuda, "cuDNN": where.cudnn}
        inside = _inside(*(f"{what} {found}" for what, found in of_gpu.items() if found))
        text = f"The device was the GPU {where.device_name}{inside}, in a machine with {host}."
    if where.simulated:
        text = (
            "The device is simulated: it only pretends to work, so that no time and no throughput "
            f"of it was measured. {text}"
        )
    return " ".join(filter(None, (text, software(where), _processes(where))))


def software(where: Environment) -> str:
    """Tell the versions of what may change a figure."""
    commit = f", git commit {where.git_commit} of the working folder" if where.git_commit else ""
    others = [
        f"{name} {found}"
        for name, found in where.packages.items()
        if name not in ("datbench", "torch") and found != "not installed"
    ]
    packages = f", {listed(others)}" if others else ""
    text = (
        f"The software was datbench {where.datbench_version}{commit}, with Python {where.python}, "
        f"PyTorch {where.torch}{packages}."
    )
    here = versions()["datbench"]
    if where.datbench_version != here:
        text += f" What is said of the protocol is that of datbench {here}."
    return text


def _processes(where: Environment) -> str:
    """Tell how the measured processes differ from others."""
    malloc = [f"{k}={v}" for k, v in dict(where.settings.get("malloc") or {}).items()]
    collects = where.settings.get("garbage_collection")
    told = [
        "Python's garbage collector was off" if collects is False else "",
        f"glibc's allocator had {', '.join(malloc)}" if malloc else "",
    ]
    return f"In the measured processes {listed(list(filter(None, told)))}." if any(told) else ""


def kind(records: Sequence[Record]) -> str:
    """Tell what a kind of run did, with what input and settings, and how often."""
    first = records[0]
    work = first.workload
    did = "One forward pass" if work.mode == "inference" else "One training step"
    sizes = list(dict.fromkeys(str(record.workload.batch_size) for record in records))
    batch = f"batch size{'s' * (len(sizes) > 1)} {listed(sizes)}"
    parts = [
        f"{did} of {names(records)} was timed, with {batch}, {_runtime(work)}.",
        _scope(work),
        _training(work),
        _precision(work),
        _input(records),
        _weights(first),
        _amount(records),
        _open(records),
        f"The run is repeated by `{first.command}`." if first.command else "",
    ]
    pretended = any("simulated" in record.flags for record in records)
    return " ".join(filter(None, ["Simulated:" * pretended, *parts]))


def _runtime(work: Workload) -> str:
    fused = ", batch norms folded into the convolutions before them" if work.fuse else ""
    if work.runtime == "eager":
        return f"in PyTorch's eager mode{fused}"
    return f"under the runtime {work.runtime}, whose outputs were held against eager's{fused}"


def _scope(work: Workload) -> str:
    if work.scope == "forward":
        return ""
    suppressed = (
        f"non-maximum suppression (confidence {CONFIDENCE:g}, overlap {OVERLAP:g}, at most "
        f"{MOST_BOXES} boxes)"
    )
    if work.scope == "nms":
        return f"A step is the forward and {suppressed}."
    return (
        "A step begins with decoded photographs, which it resizes and brings to the device, and "
        f"ends, for detectors, with {suppressed} and boxes in pixels of the photographs, else with "
        f"the {CLASSES} likeliest classes."
    )


def _training(work: Workload) -> str:
    if work.mode == "inference":
        return ""
    name = {"adamw": "AdamW", "sgd": f"SGD with momentum {MOMENTUM:g}"}
    scaled = " with gradient scaling" if work.amp and work.dtype == "float16" else ""
    return (
        f"A step is forward and loss, backward, and a step of "
        f"{name.get(work.optimizer or '', work.optimizer)}{scaled}; the learning rate is "
        f"{LEARNING_RATE:g}, so that the network stays what it was."
    )


def _precision(work: Workload) -> str:
    if work.amp:
        text = f"Weights were float32, and the arithmetic under autocast to {work.dtype}"
    else:
        text = f"Weights, inputs and arithmetic were {work.dtype}"
    layout = "channels-last" if work.channels_last else "contiguous (NCHW)"
    text += f", in {layout} memory format"
    if work.device == "cpu":
        return f"{text}, on {counted(work.threads, 'thread')}."
    return (
        f"{text}; TF32 was {'on' if work.tf32 else 'off'}, cudnn.benchmark was "
        f"{'on' if work.cudnn_benchmark else 'off'}, and the L2 cache was "
        f"{'overwritten before each iteration' if work.cold_cache else 'left as it was'}."
    )


def _input(records: Sequence[Record]) -> str:
    """Tell the sizes and the content of the inputs."""
    work = records[0].workload
    shapes = list(dict.fromkeys(_shape(record.workload) for record in records))
    sizes = listed(shapes[:NAMED]) + (" and others" if len(shapes) > NAMED else "")
    if work.image == "noise":
        return f"Inputs ({sizes}) were Gaussian noise, drawn with seed {work.seed}."
    what = (
        "the two photographs that ultralytics ships, in turn"
        if work.image == "photo"
        else f"the image {Path(work.image).name}"
    )
    return (
        f"Inputs ({sizes}) were {what}: letterboxed for detectors; for all else resized and "
        f"normalised by ImageNet's mean {IMAGENET_MEAN} and deviation {IMAGENET_STD}."
    )


def _weights(record: Record) -> str:
    seed = f"drawn with seed {record.workload.seed}"
    if not record.command:
        return f"Whether weights were loaded is not recorded; random ones were {seed}."
    if "--checkpoint" in record.command:
        return f"Weights were loaded as the command says; others are random, {seed}."
    return f"Weights were random, {seed}, unless the model's own factory loads some."


def _amount(records: Sequence[Record]) -> str:
    """Tell how many processes and iterations there were, and what was planned."""
    first = records[0]
    timed = [r for r in records if r.values.get("samples")]
    if not timed:
        return "Nothing was timed."
    pairs = ranged([int(r.values.get("pairs") or 0) for r in timed], "process pair")
    iterations = ranged([int(r.values["samples"] or 0) for r in timed], "timed iteration")
    text = f"Each model was timed in {pairs}, with {iterations} altogether"
    tier = TIERS.get(first.tier)
    if tier is not None and first.command.startswith("datbench profile"):
        tier = profile_protocol(tier is RIGOROUS, first.budget_s)
    if tier is None:
        text += f" ({first.tier or 'how many were planned is not known'})."
    else:
        most = counted(tier.looks[-1], "pair")
        least = tier.rounds if first.budget_s is None else 1
        text += f" (tier {tier.name}: at most {most} of {least} to {MOST_ROUNDS} rounds)."
    if first.budget_s is not None:
        text += f" The run, or each part of a resumed one, had a budget of {first.budget_s:g} s."
    return text


def _open(records: Sequence[Record]) -> str:
    """Tell what went wrong or stands in doubt."""
    failed = [record for record in records if record.error]
    cut = [record for record in records if record.finished is False]
    flagged: dict[str, list[Record]] = {}
    for record in records:
        for flag in record.flags:
            flagged.setdefault(flag, []).append(record)
    doubts = "; ".join(f"{flag} ({names(of)})" for flag, of in flagged.items())
    parts = [
        f"{names(failed)} failed." if failed else "",
        f"Measuring {names(cut)} ended before all was measured that was planned." if cut else "",
        f"Flagged are: {doubts}." if doubts else "",
    ]
    return " ".join(filter(None, parts))


def _kind(record: Record) -> tuple[Any, ...]:
    """What runs must share to be told together."""
    device = record.workload.device.partition(":")[0]
    work = dataclasses.replace(record.workload, device=device, input_shape=(0, 0, 0), batch_size=0)
    return (work, record.tier, record.budget_s, record.min_effect, record.command)


def _facts(where: Environment | None) -> tuple[Any, ...]:
    if where is None:
        return ()
    return (
        where.device_name, where.cpu_name, where.cores, where.platform, where.driver, where.cuda,
        where.cudnn, where.python, where.torch, where.datbench_version, where.git_commit,
        repr(where.packages), _processes(where),
    )  # fmt: skip


def _grouped(records: Sequence[Record], key: Callable[[Record], Any]) -> Iterator[list[Record]]:
    """Yield records that have one key, in order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    yield from groups.values()


def _shape(work: Workload) -> str:
    return "x".join(map(str, work.input_shape))


def _inside(*words: str) -> str:
    """Put what is known in brackets behind a name."""
    known = ", ".join(filter(None, words))
    return f" ({known})" if known else ""
