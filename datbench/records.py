"""What a run leaves: frozen records that survive a round trip through JSON, and their columns.

A record names its schema. Fields may be added under one number, and readers leave out what they
do not know; anything else gets a new number and a step in `MIGRATIONS`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SCHEMA = 2
SIMULATED = "Simulated"  # how the names of devices begin that only pretend to work
# Of a step: of one that trains, or of one that runs from a photograph to boxes.
PARTS = ("preprocess", "forward", "backward", "optimizer", "postprocess")
SCOPES = ("forward", "nms", "end-to-end")

# The columns of a CSV report. Units stand in the names; an empty cell means not measured.
COLUMNS = (
    "model", "family", "source", "device", "dtype", "runtime", "mode", "img_size", "batch_size",
    "params", "params_trainable", "macs", "flops",
    "latency_ms_median", "latency_ms_lo", "latency_ms_hi", "latency_ms_min", "latency_ms_p90",
    "latency_ms_p95", "latency_ms_p99", "host_ms_median", "throughput_img_s",
    "weights_mib", "peak_allocated_mib", "peak_reserved_mib", "process_memory_mib", "rss_peak_mib",
    "samples", "pairs", "baseline", "ratio", "ratio_lo", "ratio_hi", "verdict", "flags", "error",
    "published_macs", "published_top1",
    "run_id", "key", "timestamp_utc", "datbench_version", "torch", "python", "device_name",
    "cpu_name", "driver", "cuda", "cudnn", "threads", "git_commit", "host",
    "preprocess_ms_median", "forward_ms_median", "postprocess_ms_median", "boxes_img",
    "prepare_s", "load_s", "first_call_ms", "graph_breaks", "recompiles", "parity_abs",
    "parity_rel",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """What a model is given to do.

    Args:
        device: "cpu" or "cuda:N".
        input_shape: channels, height and width of one input.
        batch_size: inputs in a step.
        dtype: of weights and input, or of the arithmetic where `amp` is set.
        amp: run under autocast to `dtype`, weights in float32.
        channels_last: memory format of weights and input.
        tf32: let CUDA round the factors of float32 products to 10 bits.
        cudnn_benchmark: let cuDNN try its algorithms and take the fastest.
        cold_cache: overwrite a GPU's L2 cache before each timed iteration.
        mode: "inference", one forward, or "train", a step of an optimiser.
        optimizer: "adamw" or "sgd" where a model is trained, None otherwise.
        runtime: of `datbench.runtimes`, options in brackets.
        fuse: batch norms folded into the convolutions before them.
        scope: "forward", "nms" for the forward and non-maximum suppression, or "end-to-end" from
            a decoded photograph to its boxes or classes.
        image: "photo" for the photographs that ultralytics ships, "noise", or a file's path.
        threads: that one operator may use on the CPU.
        seed: of weights and noise.
    """

    device: str
    input_shape: tuple[int, int, int]
    batch_size: int = 1
    dtype: str = "float32"
    amp: bool = False
    channels_last: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = True
    cold_cache: bool = False
    mode: str = "inference"
    optimizer: str | None = None
    runtime: str = "eager"
    fuse: bool = False
    scope: str = "forward"
    image: str = "photo"
    threads: int = 1
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return it as a dictionary."""
        return {name: getattr(self, name) for name in _names(Workload)}

    @property
    def img_size(self) -> int | str:
        """Side in pixels of a square input, else "HEIGHTxWIDTH"."""
        _, h, w = self.input_shape
        return h if h == w else f"{h}x{w}"

    @property
    def arithmetic(self) -> str:
        """Its dtype, with "amp_" before it under autocast."""
        return f"amp_{self.dtype}" if self.amp else self.dtype

    @property
    def execution(self) -> str:
        """Its runtime, with "-fused" and "-channels-last" behind it where that holds."""
        return f"{self.runtime}{'-fused' * self.fuse}{'-channels-last' * self.channels_last}"

    @property
    def step(self) -> str:
        """Its mode, with the optimiser behind it where there is one; its scope if not a forward."""
        if self.scope != "forward":
            return self.scope
        return f"{self.mode}-{self.optimizer}" if self.optimizer else self.mode


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where and with what a record was measured; None where it does not apply."""

    device_name: str
    cpu_name: str
    host: str
    python: str
    torch: str
    datbench_version: str
    threads: int
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    git_commit: str | None = None
    platform: str = ""
    cores: int | None = None
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether the device only pretends to work."""
        return self.device_name.startswith(SIMULATED)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One number, named after its column.

    Args:
        name: column, ending in the unit where there is one.
        value: None where it could not be measured.
        warnings: doubts, each "flag: explanation"; the flags travel with the row.
    """

    name: str
    value: float | int | None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How a model's latency relates to the baseline's.

    Args:
        baseline: label of the model compared with.
        ratio: its time over the baseline's; above 1 is slower.
        lo, hi: interval of the ratio, at the level at which the verdict was taken, 95 % over all
            looks; None where one round is all there is.
        verdict: FASTER, SLOWER, SAME or INCONCLUSIVE; None after a single process pair.
        pairs_needed: process pairs that would settle what is INCONCLUSIVE, if it went on like
            this.
    """

    baseline: str
    ratio: float
    lo: float | None = None
    hi: float | None = None
    verdict: str | None = None
    pairs_needed: int | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What comparisons of a model with itself showed on a machine.

    Args:
        timestamp_utc: when.
        model: label of the model, with `latency_ms` of it.
        latency_ms: median.
        pairs: process pairs.
        deviation: standard deviation of the ratio over process pairs, relative.
        detectable: smallest relative difference that is found 19 times of 20, by tier.
        false_verdicts, comparisons: how often the model was called faster or slower than itself.
        layout_share: of the scatter, in squares, what differs from process to process, which is
            the layout of their memory above all; the rest differs within processes. None in
            calibrations of earlier versions.
    """

    timestamp_utc: str
    model: str
    latency_ms: float
    pairs: int
    deviation: float
    detectable: Mapping[str, float]
    false_verdicts: int
    comparisons: int
    layout_share: float | None = None


def nearest(known: Sequence[Calibration], latency_ms: float | None) -> Calibration | None:
    """The calibration whose model takes about as long; the first where a latency is not known."""
    if latency_ms is None:
        return next(iter(known), None)
    log = math.log(latency_ms)
    return min(known, key=lambda found: abs(math.log(found.latency_ms) - log), default=None)


@dataclasses.dataclass(frozen=True)
class Record:
    """Everything known of one model under one workload in one run.

    Args:
        tier: "quick", "default" or "rigorous".
        min_effect: relative difference below which two models counted as the same.
        budget_s: limit of the whole run; None where there was none.
        command: that measures the same again, as a shell reads it; "" where it is not known.
        finished: whether all was measured that was planned; None where it is not known.
        spent_s: seconds that went into the model, by what they went into.
        calibration: of this machine, where there is one.
        facts: how its runtime ran it, e.g. the opset of a file, or reasons of graph breaks.
        unit: part of a sweep, whose models took turns with each other; "" where the whole run did.
    """

    run_id: str
    key: str
    model: str
    family: str
    source: str
    workload: Workload
    timestamp_utc: str
    environment: Environment | None = None
    measurements: tuple[Measurement, ...] = ()
    comparison: Comparison | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    published_params: float | None = None
    published_macs: float | None = None
    published_top1: float | None = None
    published_source: str = ""
    tier: str = ""
    min_effect: float | None = None
    budget_s: float | None = None
    command: str = ""
    finished: bool | None = None
    spent_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    calibration: Calibration | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = ""
    schema: int = SCHEMA

    @functools.cached_property
    def values(self) -> dict[str, float | int | None]:
        """Measured values by column."""
        return {m.name: m.value for m in self.measurements}

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Doubts about the record and about its measurements."""
        return (*self.warnings, *(w for m in self.measurements for w in m.warnings))

    @property
    def flags(self) -> tuple[str, ...]:
        """The words before the colon of each warning, once."""
        return tuple(dict.fromkeys(w.partition(":")[0] for w in self.all_warnings))

    def row(self) -> dict[str, Any]:
        """Return the record as one row of `COLUMNS`; None stands for an empty cell."""
        work, compared = self.workload, self.comparison
        environment = vars(self.environment) if self.environment else {}
        row: dict[str, Any] = {
            **environment,
            **self.values,
            "model": self.model,
            "family": self.family,
            "source": self.source,
            "device": work.device,
            "dtype": work.arithmetic,
            "runtime": work.execution,
            "mode": work.step,
            "img_size": work.img_size,
            "batch_size": work.batch_size,
            "threads": work.threads,
            "flags": " ".join(self.flags) or None,
            "error": self.error,
            "published_macs": self.published_macs,
            "published_top1": self.published_top1,
            "run_id": self.run_id,
            "key": self.key,
            "timestamp_utc": self.timestamp_utc,
        }
        if compared:
            row |= {"baseline": compared.baseline, "ratio": compared.ratio}
            row |= {"ratio_lo": compared.lo, "ratio_hi": compared.hi, "verdict": compared.verdict}
        return {column: row.get(column) for column in COLUMNS}

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and scalars."""
        return {name: _plain(getattr(self, name)) for name in _names(Record)}

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended its measuring."""
        return "interrupted" in self.flags

    @property
    def impossible(self) -> bool:
        """Whether nothing was tried, because it cannot be; the error says why."""
        return "impossible" in self.flags

    @property
    def simulated(self) -> bool:
        """Whether nothing of it was measured, because the device only pretends to work."""
        on_one = self.environment is not None and self.environment.simulated
        return on_one or "simulated" in self.flags

    @property
    def machine(self) -> tuple[str, ...]:
        """What must be the same for two latencies to be of one machine: host, CPU, device."""
        where = self.environment
        return (where.host, where.cpu_name, where.device_name) if where else ("", "", "")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Rebuild a record from `to_json`, of this version or an older one.

        Raises:
            ValueError: it was written by a newer version, or is no record.
        """
        schema = data.get("schema")
        if not isinstance(schema, int) or schema < 1:
            raise ValueError("it names no schema of datbench's records")
        if schema > SCHEMA:
            raise ValueError(
                f"it was written by a newer datbench (schema {schema}; this version reads up to "
                f"{SCHEMA}); upgrade with `pip install -U datbench`"
            )
        for step in range(schema, SCHEMA):
            data = MIGRATIONS[step](data)
        parts = _known(cls, data)
        work = _known(Workload, data["workload"])
        parts["workload"] = Workload(**{**work, "input_shape": tuple(work["input_shape"])})
        if data["environment"]:
            parts["environment"] = _environment(json.dumps(data["environment"]))
        if data["comparison"]:
            parts["comparison"] = Comparison(**_known(Comparison, data["comparison"]))
        if data.get("calibration"):
            parts["calibration"] = Calibration(**_known(Calibration, data["calibration"]))
        parts["warnings"] = tuple(data["warnings"])
        parts["measurements"] = tuple(
            Measurement(sys.intern(m["name"]), m["value"], tuple(m["warnings"]))
            for m in data["measurements"]
        )
        return cls(**{**parts, "schema": SCHEMA})


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a class has; those that a later version added are left out."""
    return {name: data[name] for name in _names(cls) if name in data}


def _plain(value: Any) -> Any:
    """Turn a field into dictionaries and lists, in half the time that `asdict` takes."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    cls: Any = type(value)
    return {name: _plain(getattr(value, name)) for name in _names(cls)}


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.lru_cache(maxsize=1024)
def _environment(text: str) -> Environment:
    """Rebuild an environment; those of thousands of records are one and the same object."""
    return Environment(**_known(Environment, json.loads(text)))


def _from_1(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Schema 2 says how to measure again, and whether a run came to its end; 1 did not."""
    return {**data, "schema": 2, "command": "", "finished": None, "min_effect": None}


MIGRATIONS: dict[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {1: _from_1}
