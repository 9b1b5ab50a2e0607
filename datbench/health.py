"""What about a machine keeps times from being steady, and what its owner can do about it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datbench import gauges
from datbench.device import cpu_quota, usable_cores

CPUS = Path("/sys/devices/system/cpu")
IDLE_LOAD = 0.2  # of the cores


@dataclasses.dataclass(frozen=True)
class Finding:
    """One property of the machine.

    Args:
        what: it is.
        found: its state; "unknown" where it cannot be read.
        advice: what to do about it; empty where nothing needs to be done.
    """

    what: str
    found: str
    advice: str = ""


def host(threads: int) -> Iterator[Finding]:
    """Look at cores, load, frequency scaling, quota, and who else wants the cores.

    Args:
        threads: that a model uses.
    """
    cores = os.cpu_count() or 1
    yield Finding("cores", f"{cores}, {usable_cores()} usable, {threads} used")
    quota = cpu_quota()
    short = quota is not None and quota < threads
    yield Finding(
        "CPU quota",
        "none" if quota is None else f"{quota} cores",
        f"threads beyond {quota} are throttled; --threads {quota} or fewer" if short else "",
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    busy = load is not None and load > IDLE_LOAD * cores
    yield Finding(
        "load of the last minute",
        "unknown" if load is None else f"{load:.2f}",
        "close what runs beside the benchmark" if busy else "",
    )
    governor = _text(CPUS / "cpu0/cpufreq/scaling_governor")
    slow = governor not in (None, "performance")
    yield Finding(
        "frequency governor",
        governor or "not visible",
        "cpupower frequency-set -g performance (as root)" if slow else "",
    )
    yield _turbo()
    smt = _text(CPUS / "smt/active")
    yield Finding("simultaneous threads", {"1": "on", "0": "off"}.get(smt or "", "not visible"))
    readings = gauges.read()
    stolen = readings.stolen_s
    yield Finding(
        "virtual machine",
        _virtual(),
        f"the hypervisor has taken {stolen:.0f} core seconds since the start" if stolen else "",
    )
    can = {
        "time spent waiting for a core": readings.waited_s,
        "CPU pressure": readings.pressure_s,
        "steal": readings.stolen_s,
        "throttling": readings.throttled_s,
    }
    blind = [name for name, value in can.items() if value is None]
    yield Finding(
        "gauges of disturbance",
        ", ".join(name for name, value in can.items() if value is not None) or "none",
        f"not visible here: {', '.join(blind)}" if blind else "",
    )


def gpu(state: Mapping[str, Any]) -> Iterator[Finding]:
    """Read what a worker told of its GPU; nothing for a CPU."""
    if not state:
        return
    on = state.get("persistence_mode")
    yield Finding(
        "persistence mode",
        {None: "not visible", 0: "off", 1: "on"}.get(on, str(on)),
        "nvidia-smi -pm 1 (as root)" if on == 0 else "",
    )
    most = state.get("sm_clock_most_mhz")
    yield Finding(
        "GPU clock",
        f"now {state.get('sm_clock_mhz') or '?'}, at most {most or '?'} MHz",
        "nvidia-smi -lgc CLOCK (as root) keeps it still",
    )
    throttled = state.get("throttled")
    yield Finding(
        "clocks held down by", throttled or "nothing", "cool or quiet it" * bool(throttled)
    )
    if state.get("power_limit_w"):
        yield Finding("power limit", f"{state['power_limit_w']:.0f} W")
    if state.get("mig"):
        yield Finding("partitioned (MIG)", "yes", "other instances share clocks and power")


def _turbo() -> Finding:
    off = _text(CPUS / "intel_pstate/no_turbo")
    boost = _text(CPUS / "cpufreq/boost")
    if off is None and boost is None:
        return Finding("turbo", "not visible")
    on = off == "0" or boost == "1"
    return Finding(
        "turbo", "on" if on else "off", "clocks depend on the heat; off is steadier" if on else ""
    )


def _virtual() -> str:
    info = _text(Path("/proc/cpuinfo"))
    if info is None or "flags" not in info:
        return "not visible"  # only x86 tells
    return "yes" if " hypervisor" in info else "no"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
