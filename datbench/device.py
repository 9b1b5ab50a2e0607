"""Clocks, memory gauges and facts of the devices; the only file that knows CUDA from a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.metadata
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from datbench import gauges
from datbench.errors import UserError
from datbench.nvml import Gauge
from datbench.records import Measurement, Workload

if TYPE_CHECKING:
    import torch

MIB = 2**20
REFERENCE_RUNS = 5
MEASURED = "datbench: the step whose memory is measured"
Step = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of each iteration of a slot.

    Args:
        latency_ms: on the device's own clock.
        host_ms: until the host could go on; None where the device is the host.
    """

    latency_ms: list[float]
    host_ms: list[float] | None = None


class Device(Protocol):
    """What the metrics need of a device.

    Args:
        name: "cpu" or "cuda:N".
        warm_up_s: seconds for which a process runs at least before it is timed.
        switch_steps: untimed runs at the start of a slot, at least, which absorb what another model
            left behind; one less where none ran before.
        switch_s: seconds for which they last, at least, after another model.
    """

    name: str
    warm_up_s: float
    switch_steps: int
    switch_s: float

    def time(self, step: Step, iterations: int) -> Timing:
        """Run `step` so often, timing each run."""

    def reference_ms(self) -> float | None:
        """Time a small product on torch's threads; None where the device tells its clocks."""

    def read(self, reference_ms: float | None = None) -> gauges.Readings:
        """Read the gauges of what else goes on; `reference_ms` if it was just taken."""

    def energy_mj(self) -> int | None:
        """Millijoules that the device has used; None where it does not tell."""

    def room_mib(self) -> float:
        """Free memory, into which the models that are compared must fit together."""

    def occupy(self, sizes: Sequence[int]) -> list[Any]:
        """Take blocks of the device's own memory, so that others lie behind them."""

    def health(self) -> dict[str, Any]:
        """Return settings of the device on which steady times depend."""

    def wait(self) -> None:
        """Wait until what was launched is done."""

    def stream(self) -> int:
        """Address of the queue of work; none on a processor."""

    def capture(self, forward: Step, warm_ups: int) -> tuple[Step, int]:
        """Record a forward as a graph.

        Returns:
            What replays it and returns its output; the most bytes allocated while it was recorded.
        """

    def mark(self) -> Any:
        """Note the time at this point of the device's work."""

    def between(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        """Milliseconds between pairs of marks, once the device has come that far."""

    def memory(self, step: Step, resident: int) -> Iterator[Measurement]:
        """Measure the memory that `step` needs; `resident` bytes are there before it."""

    def limit_memory(self, limit: int | None) -> None:
        """Let torch take no more than so many bytes of the device."""

    def peaks(self) -> tuple[int, int]:
        """Return the most bytes that torch had allocated, and reserved, so far."""

    def facts(self) -> dict[str, Any]:
        """Return this device's part of the environment."""


def resolve_device(name: str) -> str:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into the device to use, without importing torch.

    Raises:
        UserError: the device is not there.
    """
    check_device(name)
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return "cpu"
    count = count_cuda_devices()
    if kind == "auto":
        return "cuda:0" if count else "cpu"
    if not count:
        raise UserError(f"device {name} is not there: no CUDA device is visible; use --device cpu")
    if int(index or 0) >= count:
        raise UserError(
            f"device {name} is not there: there are {count}, cuda:0 to cuda:{count - 1}"
        )
    return f"cuda:{int(index or 0)}"


def check_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        UserError: it reads as none.
    """
    kind, colon, index = name.partition(":")
    right = kind == "cuda" and index.isdecimal() if colon else kind in ("auto", "cpu", "cuda")
    if not right:
        raise UserError(f"no device named {name!r}; expected auto, cpu, cuda or cuda:N")


def count_cuda_devices() -> int:
    """Devices that the CUDA driver shows to this process; 0 where torch is built without CUDA."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def open_device(work: Workload) -> Device:
    """Make torch ready for a workload, with every setting that matters explicit."""
    import torch

    torch.set_num_threads(work.threads)
    torch.set_float32_matmul_precision("high" if work.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = work.tf32
    torch.backends.cudnn.benchmark = work.cudnn_benchmark
    return CpuDevice() if work.device == "cpu" else CudaDevice(work.device, work.cold_cache)


class CpuDevice:
    """The processor, on a monotonic clock."""

    name = "cpu"
    warm_up_s = 0.2  # fresh processes were as fast as they get within 20 iterations or 0.15 s
    switch_steps = 1
    switch_s = 0.01  # threads of the model before spin for some milliseconds before they sleep

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._factor = torch.ones(192, 192)

    def time(self, step: Step, iterations: int) -> Timing:
        """Time each run by the monotonic clock."""
        clock = time.perf_counter_ns
        stamps = [clock()]
        for _ in range(iterations):
            step()
            stamps.append(clock())
        return Timing([(b - a) / 1e6 for a, b in itertools.pairwise(stamps)])

    def wait(self) -> None:
        """Everything is done when a call returns."""

    def stream(self) -> int:
        """There is none."""
        return 0

    def capture(self, forward: Step, warm_ups: int) -> tuple[Step, int]:
        """Processors have no graphs; the plan refuses them."""
        raise NotImplementedError

    def mark(self) -> int:
        """Read the monotonic clock."""
        return time.perf_counter_ns()

    def between(self, marks: Sequence[tuple[int, int]]) -> list[float]:
        """Take the differences."""
        return [(end - start) / 1e6 for start, end in marks]

    def memory(self, step: Step, resident: int) -> Iterator[Measurement]:
        """Measure the peak of live tensor bytes by the allocator's events, and peak RSS.

        `peak_allocated_mib` counts like CUDA's caching allocator: what is resident, and on top
        the largest sum of what the step had allocated and not yet freed.
        """
        _reset_peak_rss()
        step()
        rss = _peak_rss()
        peak, change = _allocation(step)
        yield from _allocated(resident, resident + peak, resident + change)
        yield Measurement("rss_peak_mib", rss / MIB)

    def reference_ms(self) -> float:
        """Time a small matrix product on all threads."""
        with self._torch.inference_mode():
            times = self.time(lambda: self._factor.mm(self._factor), REFERENCE_RUNS).latency_ms
        return min(times)

    def read(self, reference_ms: float | None = None) -> gauges.Readings:
        """Read the host's gauges, and the reference product unless it was just timed."""
        if reference_ms is None:
            reference_ms = self.reference_ms()
        return gauges.read(reference_ms=reference_ms)

    def energy_mj(self) -> None:
        """Processors tell root alone."""

    def room_mib(self) -> float:
        """Memory that the machine and the container have left."""
        import psutil

        return min(psutil.virtual_memory().available, gauges.memory_left()) / MIB

    def limit_memory(self, limit: int | None) -> None:
        """Leave it as it is: only CUDA has an allocator that can be limited."""
        raise NotImplementedError

    def peaks(self) -> tuple[int, int]:
        """Have none: only CUDA's allocator counts."""
        raise NotImplementedError

    def occupy(self, sizes: Sequence[int]) -> list[Any]:
        """It has no memory beside the host's."""
        del sizes
        return []

    def health(self) -> dict[str, Any]:
        """Nothing beside what the host tells."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return the processor's name."""
        return {"device_name": cpu_name()}


class CudaDevice:
    """A CUDA device, on its own events.

    Args:
        name: "cuda:N".
        cold_cache: overwrite the L2 cache before each timed run.
    """

    warm_up_s = 2.0  # clocks rise for a second or two
    switch_steps = 2
    switch_s = 0.0

    def __init__(self, name: str, cold_cache: bool = False) -> None:
        import torch

        self.name = name
        self._torch = torch
        torch.cuda.set_device(name)
        self._events: list[tuple[Any, Any]] = []
        self._cold_cache = cold_cache
        uuid = str(torch.cuda.get_device_properties(name).uuid)
        self._gauge = Gauge(uuid, int(name.partition(":")[2] or 0))

    def time(self, step: Step, iterations: int) -> Timing:
        """Time each run by a pair of events, read after one synchronise at the end."""
        cuda = self._torch.cuda
        while len(self._events) < iterations:
            pair = (cuda.Event(enable_timing=True), cuda.Event(enable_timing=True))
            self._events.append(pair)
        events = self._events[:iterations]
        clock = time.perf_counter_ns
        flush = self._flush if self._cold_cache else None
        host_ms = []
        for start, end in events:
            if flush is not None:
                flush.zero_()
            began = clock()
            start.record()
            step()
            end.record()
            host_ms.append((clock() - began) / 1e6)
        cuda.synchronize()
        return Timing([start.elapsed_time(end) for start, end in events], host_ms)

    @functools.cached_property
    def _flush(self) -> torch.Tensor:
        """A tensor that leaves no room for anything else in the L2 cache."""
        size = 2 * self._torch.cuda.get_device_properties(self.name).L2_cache_size
        return self._torch.empty(size, dtype=self._torch.int8, device=self.name)

    def reference_ms(self) -> None:
        """The driver tells the clocks."""

    def read(self, reference_ms: float | None = None) -> gauges.Readings:
        """Read the host's gauges and the driver's."""
        del reference_ms
        return gauges.read(self._gauge.state())

    def energy_mj(self) -> int | None:
        """Read the board's counter, once what was launched is done."""
        self._torch.cuda.synchronize()
        return self._gauge.energy_mj()

    def room_mib(self) -> float:
        """Memory that the driver has left."""
        free, _ = self._torch.cuda.mem_get_info()
        return free / MIB

    def limit_memory(self, limit: int | None) -> None:
        """Set the share of the device's memory beyond which torch raises OutOfMemoryError."""
        if limit is not None:
            total = self._torch.cuda.get_device_properties(self.name).total_memory
            self._torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), self.name)

    def peaks(self) -> tuple[int, int]:
        """Read the caching allocator's marks."""
        cuda = self._torch.cuda
        cuda.synchronize()
        return cuda.max_memory_allocated(), cuda.max_memory_reserved()

    def occupy(self, sizes: Sequence[int]) -> list[Any]:
        """Take blocks from the caching allocator; nothing is written to them."""
        empty, uint8 = self._torch.empty, self._torch.uint8
        return [empty(size, dtype=uint8, device=self.name) for size in sizes if size]

    def health(self) -> dict[str, Any]:
        """Return persistence mode, clocks and limits."""
        return self._gauge.health()

    def wait(self) -> None:
        """Wait for everything on the device."""
        self._torch.cuda.synchronize()

    def stream(self) -> int:
        """Address of torch's current stream."""
        return int(self._torch.cuda.current_stream().cuda_stream)

    def capture(self, forward: Step, warm_ups: int) -> tuple[Step, int]:
        """Warm up on a stream of its own, as capturing needs, and capture one forward."""
        cuda = self._torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(warm_ups):
                forward()
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            out = forward()
        peak = cuda.max_memory_allocated()

        def replay() -> Any:
            graph.replay()
            return out

        return replay, peak

    def mark(self) -> Any:
        """Record an event."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: Sequence[tuple[Any, Any]]) -> list[float]:
        """Synchronise, and read the events."""
        self._torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in marks]

    def memory(self, step: Step, resident: int) -> Iterator[Measurement]:
        """Read the caching allocator's peaks over one step, and the driver's figure for us."""
        del resident  # the allocator holds it already
        cuda = self._torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        _reset_peak_rss()
        before = cuda.memory_allocated()
        step()
        cuda.synchronize()
        yield from _allocated(before, cuda.max_memory_allocated(), cuda.memory_allocated())
        yield Measurement("peak_reserved_mib", cuda.max_memory_reserved() / MIB)
        ours = self._gauge.process_bytes()
        yield Measurement("process_memory_mib", None if ours is None else ours / MIB)
        yield Measurement("rss_peak_mib", _peak_rss() / MIB)

    def facts(self) -> dict[str, Any]:
        """Return the names and versions of device, driver and libraries."""
        torch = self._torch
        version = torch.backends.cudnn.version()
        return {
            "device_name": torch.cuda.get_device_name(),
            "driver": self._gauge.driver(),
            "cuda": torch.version.cuda,
            "cudnn": None if version is None else str(version),
        }


@functools.cache
def cpu_name() -> str:
    """Return the processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: the least of affinity, physical cores, quota and Slurm's
    allocation.
    """
    import psutil

    allocated = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE", "")

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = (affinity, psutil.cpu_count(logical=False), cpu_quota(), _number(allocated))
    return max(1, min(limit for limit in limits if limit) if any(limits) else 1)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores that the container may keep busy, by cgroup version 2; None without a limit."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def _allocated(before: int, peak: int, after: int) -> Iterator[Measurement]:
    yield Measurement("allocated_before_mib", before / MIB)
    yield Measurement("peak_allocated_mib", peak / MIB)
    yield Measurement("activations_mib", (peak - before) / MIB)
    yield Measurement("allocated_after_mib", after / MIB)


def _allocation(step: Step) -> tuple[int, int]:
    """Bytes that one run of `step` allocated more than it freed: at most, and at its end.

    It is the second of two, because only what the profiler saw allocated does it see freed: the
    gradients of the step before, for instance.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        with record_function(MEASURED):
            step()
    inner = profiler.profiler
    events = [] if inner is None else inner.kineto_results.events()
    start_ns = next((e.start_ns() for e in events if e.name() == MEASURED), 0)
    memory = sorted(
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    )
    live = peak = 0
    for at_ns, _, change in memory:
        if at_ns >= start_ns:
            live += change
            peak = max(peak, live)
    return peak, live


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what C++ code writes to stderr: the profiler announces its start and stop there."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def _reset_peak_rss() -> None:
    """Let the kernel's mark of peak resident memory start from now (Linux)."""
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5", encoding="ascii")


def _peak_rss() -> int:
    """Peak resident memory in bytes since `_reset_peak_rss`; since the start elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
