"""The cells of a table for people: rounded, with units in the titles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from datbench.records import COLUMNS, PARTS, Comparison, Record

# Columns of `COLUMNS` that hold words; the others hold numbers.
TEXT = frozenset(
    "model family source device dtype runtime mode baseline verdict flags error run_id key "
    "timestamp_utc datbench_version torch python device_name cpu_name driver cuda cudnn git_commit "
    "host".split()
)
LARGE = {
    "params": (1e6, "M"),
    "params_trainable": (1e6, "M"),
    "macs": (1e9, "G"),
    "flops": (1e9, "G"),
    "published_macs": (1e9, "G"),
}
PARTED = "parts\nms"
UNITS = {"_img_s": "img/s", "_ms": "ms", "_mib": "MiB", "_utc": "UTC", "_top1": "% top-1"}

# Characters that move a terminal's cursor, colour what follows or turn its direction.
CONTROLS = {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
VISIBLE = {code: ascii(chr(code))[1:-1] for code in CONTROLS - set(b"\t\n")}


def tabulate(
    records: Sequence[Record], *, published: bool = True, columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rounded cells of each record; flags are left to the caller.

    Args:
        published: whether published figures have columns of their own, where there are any.
        columns: of `COLUMNS`, instead of those that are chosen here.
    """
    if columns is not None:
        rows = [record.row() for record in records]
        return [title(c) for c in columns], [[cell(c, row[c]) for c in columns] for row in rows]
    makers = _makers(records, published=published)
    return list(makers), [[make(record) for make in makers.values()] for record in records]


def _makers(records: Sequence[Record], *, published: bool) -> dict[str, Callable[[Record], str]]:
    """Choose what is worth a column; what makes its cells, by title."""
    apart = dict(zip(map(id, records), differences(records), strict=True))
    runs = {run_id: str(n) for n, run_id in enumerate(dict.fromkeys(r.run_id for r in records), 1)}
    columns: dict[str, Callable[[Record], str]] = {
        "model": lambda r: r.model,
        "run": lambda r: runs[r.run_id],
        "input": shape,
        "conditions": lambda r: apart[id(r)],
        "params\nM": lambda r: scaled(r.values.get("params"), 1e6),
        "GMACs": lambda r: scaled(r.values.get("macs"), 1e9),
        "GFLOPs": lambda r: scaled(r.values.get("flops"), 1e9),
        "GMACs\npaper": lambda r: scaled(r.published_macs, 1e9),
        "top-1\n%": lambda r: rounded(r.published_top1),
        "latency\nms [95 %]": latency,
        "host\nms": lambda r: rounded(r.values.get("host_ms_median")),
        PARTED: parts,
        "img/s": lambda r: rounded(r.values.get("throughput_img_s")),
        "peak\nMiB": lambda r: rounded(r.values.get("peak_allocated_mib")),
        "mJ/img": lambda r: rounded(r.values.get("energy_mj_img")),
        "off from\neager": apart_from_eager,
    }
    if len(runs) == 1:
        del columns["run"]
    if any(apart.values()) or any(map(apart_from_eager, records)):
        del columns["GFLOPs"]  # twice the MACs; such a table has many columns
    if not any(apart.values()):
        del columns["conditions"]
    if all(record.values.get("energy_mj_img") is None for record in records):
        del columns["mJ/img"]
    if not any(map(apart_from_eager, records)):
        del columns["off from\neager"]
        del columns["host\nms"]  # what the host does differs between runtimes
    elif all(record.values.get("host_ms_median") is None for record in records):
        del columns["host\nms"]
    if named := list(dict.fromkeys(" + ".join(_parts(r)) for r in records if _parts(r))):
        titles = {PARTED: "\n+ ".join(" or ".join(named).split(" + ")) + " ms"}
        columns = {titles.get(name, name): maker for name, maker in columns.items()}
    else:
        del columns[PARTED]
    if len({shape(record) for record in records}) == 1:
        del columns["input"]
    for name, known in (("GMACs\npaper", "published_macs"), ("top-1\n%", "published_top1")):
        if not published or all(getattr(record, known) is None for record in records):
            del columns[name]
    return columns | _against(records)


def _against(records: Sequence[Record]) -> dict[str, Callable[[Record], str]]:
    """Compare with the baseline of the same run; each cell names it where there are several."""
    compared = {(r.run_id, r.comparison.baseline) for r in records if r.comparison}
    names = sorted({name for _, name in compared})
    several = len(names) > 1
    launching = {(r.run_id, r.unit, r.model) for r in records if "host_bound" in r.flags}

    def against(record: Record) -> str:
        if record.comparison is None:
            return "baseline" if (record.run_id, record.model) in compared else ""
        baseline = record.comparison.baseline
        of = f", against {baseline}" if several else ""
        unit = record.run_id, record.unit
        bound = [(*unit, name) in launching for name in (record.model, baseline)]
        return f"{told(record.comparison)}{of}{_limited(*bound)}"

    return {f"time against\n{'the baseline' if several else names[0]}": against} if names else {}


def _limited(model: bool, baseline: bool) -> str:
    """Say that a ratio tells of Python launching kernels, where it does."""
    if model and baseline:
        return ", of launching kernels: the GPU waits in both"
    who = "model" if model else "baseline"
    return f", but the {who} is limited by launching kernels" if model or baseline else ""


def title(column: str) -> str:
    """Title of a column of `COLUMNS`, its unit on a second line."""
    if column in LARGE:
        return f"{column.replace('_', ' ')}\n{LARGE[column][1]}"
    for ending, unit in UNITS.items():
        if ending in column:
            return f"{column.replace(ending, '').replace('_', ' ')}\n{unit}"
    return column.replace("_", " ")


def cell(column: str, value: float | str | None) -> str:
    """Write a value of `Record.row` for people: numbers rounded, counts in full."""
    if isinstance(value, str) or value is None:
        return value or ""
    if column in LARGE:
        return scaled(value, LARGE[column][0])
    return str(value) if isinstance(value, int) else rounded(value)


_TITLES_OF_WORDS = {"model", "conditions", *(title(column) for column in COLUMNS if column in TEXT)}


def is_words(name: str) -> bool:
    """Whether the column of a title holds words, which stand on the left; numbers do not."""
    return name in _TITLES_OF_WORDS or name.startswith("time against")


def shape(record: Record) -> str:
    """Say what one input is: the side of an image, or the shape of a feature map."""
    channels, h, w = record.workload.input_shape
    return str(record.workload.img_size) if channels == 3 else f"{channels}x{h}x{w}"


def differences(records: Sequence[Record]) -> list[str]:
    """Say of each record in which conditions it differs from the others; "" where all agree."""
    facts = [conditions_of(record) for record in records]
    if not facts:
        return []
    differ = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1]
    return [", ".join(fact[name] for name in differ if fact[name]) for fact in facts]


def labels(records: Sequence[Record], *, runs: bool = True) -> list[str]:
    """Name the records of a machine apart: by what differs where a model comes more than once.

    Args:
        records: of a machine.
        runs: whether runs are told apart too.
    """
    same: dict[str, list[Record]] = {}
    for record in records:
        same.setdefault(record.model, []).append(record)
    names = {}
    for model, found in same.items():
        several = len({record.run_id for record in found}) > 1
        sizes = len({shape(record) for record in found}) > 1
        for record, differs in zip(found, differences(found), strict=True):
            parts = [shape(record)] * sizes + [differs] * bool(differs)
            parts += [record.run_id] * (several and runs)
            names[id(record)] = f"{model} ({', '.join(parts)})" if parts else model
    return [names[id(record)] for record in records]


def conditions_of(record: Record) -> dict[str, str]:
    """What a latency depends on besides model, size of the input and machine, in words."""
    work = record.workload
    return {
        "host": record.environment.host if record.unit and record.environment else "",
        "device": work.device,
        "batch": f"batch {work.batch_size}",
        "dtype": f"amp {work.dtype}" if work.amp else work.dtype,
        "layout": "channels last" if work.channels_last else "channels first",
        # A label tells its runtime where a run has several.
        "runtime": "" if record.model.endswith(f" ({work.runtime})") else work.runtime,
        "fused": "fused" if work.fuse else "not fused",
        "mode": f"{work.mode} {work.optimizer}" if work.optimizer else work.mode,
        "scope": work.scope,
        "image": work.image,
        "threads": f"{work.threads} threads",
        "tf32": "tf32" if work.tf32 else "no tf32",
        "cudnn": "cudnn.benchmark" if work.cudnn_benchmark else "no cudnn.benchmark",
        "cache": "cold cache" if work.cold_cache else "warm cache",
    }


def latency(record: Record) -> str:
    """Write the median latency with its interval."""
    if record.error:
        return "impossible" if record.impossible else "failed"
    values = record.values
    interval = between(values.get("latency_ms_lo"), values.get("latency_ms_hi"))
    return f"{rounded(values.get('latency_ms_median'))}{interval}"


def parts(record: Record) -> str:
    """Write the median latency of each part of a step; nothing if it has none."""
    return " + ".join(rounded(value) for value in _parts(record).values())


def _parts(record: Record) -> dict[str, float]:
    """Median latency of each part of a step that has parts, in the order in which they run."""
    found = {part: record.values.get(f"{part}_ms_median") for part in PARTS}
    return {part: value for part, value in found.items() if value is not None}


def apart_from_eager(record: Record) -> str:
    """Write the largest relative difference from eager's answers."""
    value = record.values.get("parity_rel")
    return "" if value is None else f"{value:.0e}"


def told(comparison: Comparison) -> str:
    """Put a comparison into words: a verdict with the ratio and its interval."""
    ratio, lo, hi = comparison.ratio, comparison.lo, comparison.hi
    if comparison.verdict == "FASTER":
        flipped = (1 / hi, 1 / lo) if lo and hi else (None, None)
        return f"{rounded(1 / ratio)}x faster{between(*flipped)}"
    words = {"SLOWER": "x slower", "SAME": "x, the same", "INCONCLUSIVE": "x, inconclusive"}
    return f"{rounded(ratio)}{words.get(comparison.verdict or '', 'x')}{between(lo, hi)}"


def between(lo: float | None, hi: float | None) -> str:
    """Write an interval, with a space before it, or nothing."""
    return "" if lo is None or hi is None else f" [{rounded(lo)}, {rounded(hi)}]"


def scaled(value: float | None, unit: float) -> str:
    """Round a value in a larger unit; nothing where it was not measured."""
    return "" if value is None else rounded(value / unit)


def rounded(value: float | None) -> str:
    """Round to three significant digits without an exponent; nothing where not measured."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
