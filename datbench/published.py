"""Throughput that timm publishes for its networks, beside what was measured here.

The figures lie in `datbench/anchors`, whose README tells where they come from. They are looked up
when a report is made, from the record alone: by timm's name of the network and the side of the
input, for inference, and not where an option or a block makes another network of it. A ratio is
formed only where the record is of the same GPU; what else differs is told with it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from datbench.records import Record, Workload
from zoo.names import parse_options
from zoo.registry import ZooError

# Networks of the zoo that timm builds, by its names for them.
TIMM = {
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_base_384": "swin_base_patch4_window12_384",
    "pvt_v2_b0": "pvt_v2_b0",
    "pvt_v2_b1": "pvt_v2_b1",
    "pvt_v2_b2": "pvt_v2_b2",
    "pvt_v2_b3": "pvt_v2_b3",
    "pvt_v2_b4": "pvt_v2_b4",
    "pvt_v2_b5": "pvt_v2_b5",
}
SAME_NETWORK = {"img_size", "drop_path_rate", "drop_rate", "pretrained"}  # in inference
SAME_PARAMS = 0.01  # a head for more classes, as some pretrained weights have, is more than this
PRECISION = ("float16", True)  # dtype and autocast that timm ran with
SOURCE = "huggingface/pytorch-image-models @ aa4b5850, results/"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU for which timm publishes throughput.

    Args:
        name: as the driver has it, without the maker's names.
        column: how its columns begin.
        software: what it ran with.
        file: where the figures stand.
    """

    name: str
    column: str
    software: str
    file: str


GPUS = (
    Gpu(
        "RTX 3090", "rtx3090", "torch 2.4.0, CUDA 12.4",
        "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv",
    ),
    Gpu(
        "RTX 4090", "rtx4090", "torch 2.9.1, CUDA 12.8",
        "benchmark-infer-amp-nchw-pt291-cu128-4090.csv",
    ),
    Gpu(
        "RTX 5090", "rtx5090", "torch 2.9.1, CUDA 13.0",
        "benchmark-infer-amp-nchw-pt291-cu130-5090.csv",
    ),
)  # fmt: skip
COUNTED = GPUS[1].file  # where parameters and multiply-adds stand


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Published throughput of a model on one GPU.

    Args:
        gpu: its name.
        throughput_img_s: images per second, as published.
        batch_size: of which.
        conditions: under which; then those of the record, where they differ.
        source: where it stands.
        ratio: ours over the published one; None on any other device.
    """

    gpu: str
    throughput_img_s: float
    batch_size: int
    conditions: str
    source: str
    ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published figure beside ours.

    Args:
        model: label of the row.
        what: is told, with its unit.
        ours: as measured; None where it was not.
        published: the same, as published.
        ratio: ours over the published one; None where they cannot be compared.
        source: where it stands, and under which conditions.
    """

    model: str
    what: str
    ours: float | None
    published: float
    ratio: float | None
    source: str


def anchors(record: Record) -> list[Anchor]:
    """Look up what is published of the throughput of a record's model; nothing for most."""
    row = _row(record)
    if row is None:
        return []
    ours = None if record.simulated else record.values.get("throughput_img_s")
    device = _gpu_name(record)
    found = []
    for gpu in GPUS:
        if not row[f"{gpu.column}_img_per_s"]:
            continue
        published = float(row[f"{gpu.column}_img_per_s"])
        batch_size = int(row[f"{gpu.column}_batch"])
        terms = f"autocast to float16, NCHW, eager, batch {batch_size}, {gpu.software}"
        others = ", ".join(_differences(record, batch_size))
        found.append(
            Anchor(
                gpu=gpu.name,
                throughput_img_s=published,
                batch_size=batch_size,
                conditions=f"{terms}; ours: {others}" if others else terms,
                source=f"{SOURCE}{gpu.file}",
                ratio=ours / published if ours and device == gpu.name else None,
            )
        )
    return found


def show(records: Sequence[Record]) -> list[Figure]:
    """List what is published of the models of records, each figure of a model once.

    Throughput of a GPU stands beside ours only where ours is of such a GPU. Parameters and
    multiply-adds are told where the record has no published ones of its own.
    """
    return list(dict.fromkeys(figure for record in records for figure in _figures(record)))


def _figures(record: Record) -> Iterator[Figure]:
    row = _row(record)
    if row is None:
        return
    known = (
        ("parameters, M", "params", 1e6, row["params_m"], record.published_params),
        ("multiply-adds, G", "macs", 1e9, row["gmacs"], record.published_macs),
    )
    for what, name, unit, text, own in known:
        if own is None and text:
            value, published = record.values.get(name), float(text)
            ours = None if value is None else value / unit
            ratio = None if ours is None else ours / published
            yield Figure(record.model, what, ours, published, ratio, f"{SOURCE}{COUNTED}")
    for anchor in anchors(record):
        ours = None if anchor.ratio is None else record.values["throughput_img_s"]
        yield Figure(
            record.model, f"images/s on {anchor.gpu}", ours, anchor.throughput_img_s,
            anchor.ratio, f"{anchor.source}; {anchor.conditions}",
        )  # fmt: skip


def _row(record: Record) -> Mapping[str, str] | None:
    """The line of the table that is of the record's network and input."""
    channels, h, w = record.workload.input_shape
    if record.workload.mode != "inference" or channels != 3 or h != w:
        return None
    name = timm_name(record.model)
    row = _table().get((name, h)) if name else None
    params = record.values.get("params")
    if row is None or params is None:
        return row
    return row if math.isclose(params / 1e6, float(row["params_m"]), rel_tol=SAME_PARAMS) else None


@functools.lru_cache(maxsize=4096)
def timm_name(label: str) -> str | None:
    """Turn the label of a row into timm's name of the architecture.

    Returns:
        None for what timm does not build, and where options make another network of it.
    """
    match = re.fullmatch(r"(?:timm:(\w+)(?:\.\w+)?|(\w+))(?:\[(.*)\])?(?:#\d+)?", label)
    if match is None:
        return None
    external, own, text = match.groups()
    try:
        options = parse_options(text, label)
    except ZooError:
        return None
    if options.keys() - SAME_NETWORK:
        return None
    return external or TIMM.get(own)


@functools.cache
def _table() -> dict[tuple[str, int], dict[str, str]]:
    """Read the published figures, by name and side of the input."""
    file = importlib.resources.files("datbench") / "anchors" / "timm.csv"
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {(row["model"], int(row["img_size"])): row for row in rows}


def _gpu_name(record: Record) -> str:
    """Name of the GPU that a record is of, without its maker's names; "" for anything else."""
    if record.environment is None or not record.workload.device.startswith("cuda"):
        return ""
    match = re.fullmatch(r"(?:NVIDIA )?(?:GeForce )?(.+)", record.environment.device_name)
    return match[1] if match else ""


def _differences(record: Record, batch_size: int) -> Iterator[str]:
    """Yield what of a record's workload is not as published."""
    work: Workload = record.workload
    if (work.dtype, work.amp) != PRECISION:
        yield f"autocast to {work.dtype}" if work.amp else work.dtype
    if work.channels_last:
        yield "channels-last"
    if work.runtime != "eager":
        yield work.runtime
    if work.fuse:
        yield "fused"
    if work.scope != "forward":
        yield work.scope
    if work.batch_size != batch_size:
        yield f"batch {work.batch_size}"
    if work.cold_cache:
        yield "cold L2 cache"
    if record.environment is not None:
        yield f"torch {record.environment.torch}"
