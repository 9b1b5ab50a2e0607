"""What the script of the HTML report draws, as JSON that no text can break out of.

Times are thinned out: a page with 50 models of 2,000 iterations stays under a megabyte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from datbench.records import Record
from datbench.reports import Content
from datbench.reports.cells import labels, told
from datbench.reports.curves import curves

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_PLOTTED = 1000  # records beyond which nothing is drawn
MOST_SAMPLED = 60  # records whose times are drawn
MOST_TIMES = 200  # of a model in its distribution, evenly among the sorted ones
MOST_SLOTS = 150  # of a model in the drift; marked ones are kept first

# Axes of the scatter: name, title, unit that a value is divided by, which end is better.
AXES = (
    ("latency_ms_median", "latency, ms", 1.0, "lower"),
    ("macs", "GMACs of one image", 1e9, "lower"),
    ("params", "parameters, M", 1e6, "lower"),
    ("peak_allocated_mib", "peak memory, MiB", 1.0, "lower"),
    ("throughput_img_s", "throughput, img/s", 1.0, "higher"),
    ("energy_mj_img", "energy, mJ/img", 1.0, "lower"),
    ("published_top1", "top-1, %, published", 1.0, "higher"),
)
MEMORY = (
    ("weights_mib", "weights"),
    ("peak_allocated_mib", "peak allocated"),
    ("peak_reserved_mib", "peak reserved"),
    ("process_memory_mib", "process, on the device"),
    ("rss_peak_mib", "process, in main memory"),
)


def plotted(content: Content, machines: Sequence[tuple[str, Sequence[Record]]]) -> Markup:
    """Write what is drawn as JSON for a script element."""
    places = {id(record): place for place, record in enumerate(content.records)}
    styles: dict[str, int] = {}
    starts = _starts(content)
    drawn: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for machine, (_, records) in enumerate(machines):
        on_curve: dict[int, int] = {}
        for curve in curves(records):
            on_curve |= {id(record): len(lines) for record in curve.records}
            style = styles.setdefault(curve.label, len(styles))
            lines.append({"label": curve.label, "style": style, "saturation": curve.saturation})
        for record, label in zip(records, labels(records), strict=True):
            entry = _entry(record, label, styles.setdefault(label, len(styles)))
            if len(drawn) < MOST_SAMPLED:
                slots = content.slots(record)
                entry |= _times(slots) | _drift(slots, starts.get(record.run_id, 0.0))
            if id(record) in on_curve:
                entry |= {"curve": on_curve[id(record)], "batch": record.workload.batch_size}
            drawn.append(entry | {"machine": machine, "record": places[id(record)]})
    data = {
        "axes": [{"name": a, "title": title, "better": b} for a, title, _, b in AXES],
        "memory": [{"name": name, "title": title} for name, title in MEMORY],
        "machines": [label for label, _ in machines],
        "curves": lines,
        "sampled": MOST_SAMPLED,
        "models": drawn,
    }
    return inert_json(data)


def inert_json(data: Any) -> Markup:
    """Write JSON that may stand in HTML: no `<`, `>`, `&` and no line end but a newline."""
    from markupsafe import Markup

    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing in it means anything to HTML


def _entry(record: Record, label: str, style: int) -> dict[str, Any]:
    """Return what is drawn of one record, but for its times."""
    values = {**record.values, "published_top1": record.published_top1}
    compared = record.comparison
    entry: dict[str, Any] = {
        "label": label,
        "style": style,
        "failed": bool(record.error),
        "axes": {a: n / unit for a, _, unit, _ in AXES if (n := _number(values.get(a)))},
        "memory": {name: n for name, _ in MEMORY if (n := _number(values.get(name)))},
        "interval": [_number(values.get(f"latency_ms_{end}")) for end in ("lo", "hi")],
    }
    if compared and _number(compared.ratio):
        entry["ratio"] = {
            "baseline": compared.baseline,
            "value": compared.ratio,
            "lo": _number(compared.lo),
            "hi": _number(compared.hi),
            "verdict": compared.verdict or "",
            "told": told(compared),
            "margin": _number(record.min_effect),
        }
    return entry


def _number(value: float | None) -> float | None:
    """A value that can be drawn on a logarithmic axis, else None."""
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _times(slots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sorted times in ms, thinned out evenly; those of slots that were redone are left out."""
    times = sorted(
        t for slot in slots if not slot.get("redone") for t in slot["latency_ms"] if _number(t)
    )
    if not times:
        return {}
    drawn = min(len(times), MOST_TIMES)
    ranks = [place * (len(times) - 1) // max(drawn - 1, 1) for place in range(drawn)]
    return {"count": len(times), "times": [_short(times[rank]) for rank in ranks]}


def _drift(slots: Sequence[Mapping[str, Any]], start: float) -> dict[str, Any]:
    """Return seconds since the start, median in ms and mark of each slot, thinned out."""
    import statistics

    drawn = []
    for slot in slots:
        times = [t for t in slot["latency_ms"] if _number(t)]
        if times and slot.get("ended_utc"):
            mark = "redone" if slot.get("redone") else "disturbed" if slot.get("disturbed") else ""
            seconds = round(_seconds(slot["ended_utc"]) - start, 2)
            drawn.append((seconds, _short(statistics.median(times)), mark))
    if not drawn:
        return {}
    marked = _thin([slot for slot in drawn if slot[2]], MOST_SLOTS // 2)
    plain = _thin([slot for slot in drawn if not slot[2]], MOST_SLOTS - len(marked))
    return {"slots": sorted(marked + plain), "slot_count": len(drawn)}


def _thin(found: Sequence[Any], most: int) -> list[Any]:
    """Take at most so many, evenly, the first and the last among them."""
    if len(found) <= most:
        return list(found)
    return [found[place * (len(found) - 1) // (most - 1)] for place in range(most)]


def _starts(content: Content) -> dict[str, float]:
    """When the first timed slot of each run began, in seconds."""
    starts: dict[str, float] = {}
    for (run_id, _), slots in content.samples.items():
        for slot in slots:
            if slot.get("ended_utc"):
                began = _seconds(slot["ended_utc"]) - sum(slot["latency_ms"]) / 1000
                starts[run_id] = min(began, starts.get(run_id, began))
    return starts


def _seconds(utc: str) -> float:
    return datetime.fromisoformat(utc).timestamp()


def _short(value: float) -> float:
    """Six significant digits, more than can be drawn."""
    return float(f"{value:.6g}")
