"""NVIDIA's management library: state and counters of one GPU, found by UUID."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from datbench.gauges import Gpu

T = TypeVar("T")

# Reasons that hold clocks below what the load asks for; idling and set clocks do not count.
THROTTLES = {
    "SwPowerCap": "the power limit",
    "HwSlowdown": "a hardware slowdown",
    "SwThermalSlowdown": "the temperature",
    "HwThermalSlowdown": "the temperature (hardware)",
    "HwPowerBrakeSlowdown": "the power brake",
}


class Gauge:
    """Reads one GPU; whatever cannot be read is None.

    Args:
        uuid: of the device, without a prefix, as torch tells it.
        index: of the device among the visible ones; `CUDA_VISIBLE_DEVICES` may name a MIG
            instance there.
    """

    def __init__(self, uuid: str, index: int = 0) -> None:
        import pynvml

        self._nvml = pynvml
        self._handle = self._board = None
        self._handle = self._ask(lambda: self._find(_names(uuid, index)))
        if self._handle is not None:
            # Clocks, power and temperature are those of the board that a MIG instance is part of.
            self._board = (
                self._ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, self._handle)
                if self.is_mig
                else self._handle
            )

    @property
    def is_mig(self) -> bool:
        """Whether the device is an instance of a partitioned GPU."""
        return bool(self._ask(self._nvml.nvmlDeviceIsMigDeviceHandle, self._handle))

    def state(self) -> Gpu:
        """Read clock, temperature, power, throttle reasons and the number of processes."""
        nvml, board = self._nvml, self._board
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, board)
        running = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        return Gpu(
            sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, board, nvml.NVML_CLOCK_SM),
            temperature_c=self._ask(
                nvml.nvmlDeviceGetTemperature, board, nvml.NVML_TEMPERATURE_GPU
            ),
            power_w=None if power is None else power / 1000,
            throttled=self._throttled(),
            processes=None if running is None else len(running),
        )

    def energy_mj(self) -> int | None:
        """Millijoules that the board has used; None for a part of a board."""
        if self.is_mig:
            return None
        return self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._board)

    def process_bytes(self) -> int | None:
        """Memory of this process; None where the driver does not know its number."""
        running = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, self._handle)
        for process in running or ():
            if process.pid == os.getpid():
                return process.usedGpuMemory
        return None

    def driver(self) -> str | None:
        """Version of the driver."""
        return self._ask(self._nvml.nvmlSystemGetDriverVersion)

    def health(self) -> dict[str, Any]:
        """Settings of the board that matter for steady clocks."""
        nvml, board = self._nvml, self._board
        limit = self._ask(nvml.nvmlDeviceGetPowerManagementLimit, board)
        return {
            "persistence_mode": self._ask(nvml.nvmlDeviceGetPersistenceMode, board),
            "sm_clock_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, board, nvml.NVML_CLOCK_SM),
            "sm_clock_most_mhz": self._ask(
                nvml.nvmlDeviceGetMaxClockInfo, board, nvml.NVML_CLOCK_SM
            ),
            "power_limit_w": None if limit is None else limit / 1000,
            "mig": self.is_mig,
            "throttled": ", ".join(self._throttled()) or None,
        }

    def _throttled(self) -> tuple[str, ...]:
        bits = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._board) or 0
        return tuple(
            told
            for name, told in THROTTLES.items()
            if bits & getattr(self._nvml, f"nvmlClocksThrottleReason{name}")
        )

    def _find(self, names: Sequence[str]) -> Any:
        self._nvml.nvmlInit()
        for name in names:
            found = self._ask(self._nvml.nvmlDeviceGetHandleByUUID, name)
            if found is not None:
                return found
        return None

    def _ask(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Call the library; None where it has no answer, or where there is no device to ask."""
        if arguments and arguments[0] is None:
            return None
        try:
            return read(*arguments)
        except self._nvml.NVMLError:
            return None


def _names(uuid: str, index: int) -> list[str]:
    """Names under which the library may know a device: torch leaves the prefix out."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    named = visible[index : index + 1]
    mig = [name for name in named if name.startswith("MIG-")]
    return [*mig, f"GPU-{uuid}", f"MIG-{uuid}"]
