"""What else went on while a slot was timed: gauges of the host, and what they say of a slot.

Linux tells all of it under /proc and /sys; elsewhere the involuntary context switches remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

WAITED = 0.10  # of a slot's time, for which a thread that was ready had no core
PRESSED = 0.25  # of a slot's time, in which something waited for a core; our wake-ups do too
TAKEN = 0.05  # of the cores' time, taken by the hypervisor or the quota
TAKEN_LEAST_S = 0.02  # steal is told in ticks of 10 ms, and a single one means nothing
SWITCHES_A_SECOND = 1000.0  # where nothing better can be read
CLOCK_MOVED = 0.03  # between the start and the end of a slot
SLOWER = 0.20  # of the reference product, than usual in the slots before
REMEMBERED = 64  # slots before, so that a clock that sinks for good becomes the normal one

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """State of a GPU; None where the driver does not tell.

    Args:
        sm_clock_mhz: of the multiprocessors.
        temperature_c: of the chip.
        power_w: drawn by the board.
        throttled: reasons for which the clocks are held down.
        processes: that have a context on it, ours included.
    """

    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] = ()
    processes: int | None = None


@dataclasses.dataclass(frozen=True)
class Readings:
    """Gauges at one moment; those that count go up. None where they cannot be read.

    Args:
        at_s: monotonic clock.
        switches: involuntary context switches of this process.
        waited_s: by thread, for which it was ready and had no core.
        pressure_s: in which anything on this machine waited for a core.
        stolen_s: core seconds that the hypervisor gave to others.
        throttled_s: for which the control group had spent its quota.
        cores: of the machine.
        gpu: state of the device, where it is one.
        reference_ms: that a small matrix product takes on the threads of the model; who shares the
            cores from outside of a virtual machine shows nowhere else.
    """

    at_s: float
    switches: int | None = None
    waited_s: Mapping[int, float] | None = None
    pressure_s: float | None = None
    stolen_s: float | None = None
    throttled_s: float | None = None
    cores: int = 1
    gpu: Gpu | None = None
    reference_ms: float | None = None


def read(gpu: Gpu | None = None, reference_ms: float | None = None) -> Readings:
    """Read the host's gauges; some 100 microseconds."""
    cores, stolen = _stolen()
    return Readings(
        time.monotonic(),
        _switches(),
        _waited(),
        _pressure(),
        stolen,
        _throttled(),
        cores,
        gpu,
        reference_ms,
    )


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What a slot suffered.

    Args:
        contended: someone else had our cores, in words; empty if nobody.
        throttled: clocks were held down or moved, in words.
        unsteady: the clock moved, so that the slot is worth repeating.
    """

    contended: str = ""
    throttled: str = ""
    unsteady: bool = False

    @property
    def redo(self) -> bool:
        """Whether the slot is worth repeating."""
        return bool(self.contended) or self.unsteady


def changes(before: Readings, after: Readings) -> dict[str, float | None]:
    """What the gauges of the host show between two readings.

    Returns:
        `waited`: the longest wait of one thread, `pressure`, `throttled`: as shares of the time;
        `stolen`: as a share of the cores' time; `switches` a second; None where not readable.
    """
    elapsed = max(after.at_s - before.at_s, 1e-9)

    def grown(start: float | None, end: float | None, unit: float = 1.0) -> float | None:
        return None if start is None or end is None else (end - start) / elapsed / unit

    waited = None
    if before.waited_s is not None and after.waited_s is not None:
        waits = [end - before.waited_s.get(id_, 0.0) for id_, end in after.waited_s.items()]
        waited = max(waits, default=0.0) / elapsed
    return {
        "seconds": elapsed,
        "waited": waited,
        "pressure": grown(before.pressure_s, after.pressure_s),
        "stolen": grown(before.stolen_s, after.stolen_s, after.cores),
        "throttled": grown(before.throttled_s, after.throttled_s),
        "switches": grown(before.switches, after.switches),
    }


def disturbance(before: Readings, after: Readings, usual_ms: float | None = None) -> Disturbance:
    """Say what the gauges around a slot show.

    Args:
        before, after: readings around it.
        usual_ms: of the reference product: median of the slots before.
    """
    contended = _contended(after.cores, **changes(before, after))
    throttled, unsteady = _clocks(before.gpu, after.gpu)
    slowest_ms = slowest(before, after)
    if not contended and usual_ms and slowest_ms and slowest_ms > (1 + SLOWER) * usual_ms:
        unsteady = True
        throttled = (
            f"the cores were {slowest_ms / usual_ms - 1:.0%} slower than before, by their clocks "
            "or by another machine on the same host"
        )
    return Disturbance(contended, throttled, unsteady)


def slowest(before: Readings, after: Readings) -> float | None:
    """Longer time of the reference product of two readings, in milliseconds."""
    return max((r.reference_ms for r in (before, after) if r.reference_ms), default=None)


def _contended(
    cores: int,
    *,
    seconds: float | None,
    waited: float | None,
    pressure: float | None,
    stolen: float | None,
    throttled: float | None,
    switches: float | None,
) -> str:
    ticks = TAKEN_LEAST_S / (seconds or 1.0) / cores
    if throttled is not None and throttled > TAKEN:
        return f"the container's CPU quota was spent for {throttled:.0%} of the time"
    if stolen is not None and stolen > max(ticks, TAKEN):
        return f"the hypervisor took {stolen:.0%} of the cores' time"
    if waited is not None:  # the surest; the others are for where it cannot be read
        return f"a thread waited for a core for {waited:.0%} of the time" * (waited > WAITED)
    if pressure is not None:
        told = f"something waited for a core for {pressure:.0%} of the time"
        return told * (pressure > PRESSED)
    if switches is not None and switches > SWITCHES_A_SECOND:
        return f"it was switched off its core {switches:.0f} times a second"
    return ""


def _clocks(before: Gpu | None, after: Gpu | None) -> tuple[str, bool]:
    if before is None or after is None:
        return "", False
    reasons = dict.fromkeys((*before.throttled, *after.throttled))
    start, end = before.sm_clock_mhz, after.sm_clock_mhz
    moved = bool(start and end and abs(end / start - 1) > CLOCK_MOVED)
    told = [*reasons, *([f"the clock moved from {start:.0f} to {end:.0f} MHz"] if moved else [])]
    return ", ".join(told), moved


def _switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _waited() -> dict[int, float] | None:
    """Seconds that each thread of this process spent on run queues."""
    found = {}
    try:
        for task in (PROC / "self" / "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                nanoseconds = (task / "schedstat").read_text("ascii").split()[1]
                found[int(task.name)] = int(nanoseconds) / 1e9
    except (OSError, ValueError, IndexError):
        return None
    return found or None


def _pressure() -> float | None:
    for line in _lines(PROC / "pressure" / "cpu"):
        if line.startswith("some"):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _stolen() -> tuple[int, float | None]:
    """Number of cores, and the seconds that the hypervisor took from them."""
    cores, stolen = 0, None
    for line in _lines(PROC / "stat"):
        name, *ticks = line.split()
        if name == "cpu" and len(ticks) > 7:
            stolen = int(ticks[7]) / 100  # the kernel's USER_HZ, the same on every Linux
        elif name.startswith("cpu"):
            cores += 1
        else:
            break
    return cores or 1, stolen


def _throttled() -> float | None:
    """Seconds of throttling by the quota of the control group, version 2 or 1."""
    for line in _lines(_own_cgroup() / "cpu.stat"):
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
        if name == "throttled_time":
            return int(value) / 1e9
    return None


def _own_cgroup() -> Path:
    """Folder of this process's control group; the root of the container where it sees no other."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, kinds, path = line.split(":", 2)
        for root in (CGROUPS, CGROUPS / "unified") if not kinds else (CGROUPS / kinds,):
            folder = root / path.strip("/")
            if "cpu" in kinds.split(",") + ["cpu"] * (not kinds) and (folder / "cpu.stat").exists():
                return folder
    return CGROUPS


def memory_left() -> float:
    """Bytes that the control group (version 2) may still take; infinity without a limit."""
    folder = _own_cgroup()
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
    except (OSError, ValueError):
        return math.inf
    cache = [x for x in _lines(folder / "memory.stat") if x.startswith("inactive_file ")]
    reclaimable = int(cache[0].split()[1]) if cache else 0
    return math.inf if limit == "max" else int(limit) - used + reclaimable


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text("ascii", "replace").splitlines()
    except OSError:
        return


def busiest(earlier: dict[int, tuple[str, float]], seconds: float) -> str:
    """Name the foreign process that used most of a core since `processes` gave `earlier`.

    Returns:
        "NAME (pid N) used 98 % of a core", or nothing if none used a tenth of one.
    """
    import psutil

    own = psutil.Process()
    ours = {own.pid, *(child.pid for child in own.children(recursive=True))}
    spent = {
        pid: (used - earlier.get(pid, ("", 0.0))[1], name)
        for pid, (name, used) in processes().items()
        if pid not in ours
    }
    pid, (most, name) = max(spent.items(), key=lambda item: item[1], default=(0, (0.0, "")))
    if most < 0.1 * seconds:
        return ""
    return f"{name} (pid {pid}) used {most / seconds:.0%} of a core"


def processes() -> dict[int, tuple[str, float]]:
    """Name and used core seconds of every process that can be seen."""
    import psutil

    found = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[process.pid] = (process.info["name"] or "?", times.user + times.system)
    return found
