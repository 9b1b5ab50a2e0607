"""The management library, scripted: a board, a part of a board, and none at all."""

from __future__ import annotations

import os
import types

import pynvml
import pytest

from datbench import nvml
from datbench.gauges import Gpu
from datbench.nvml import Gauge


class Board:
    """Answers like the library; whatever is not set is not supported."""

    def __init__(self, uuids, mig=False, **answers):
        self.uuids, self.mig, self.answers, self.asked = uuids, mig, answers, []

    def install(self, monkeypatch):
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self.find)
        monkeypatch.setattr(pynvml, "nvmlDeviceIsMigDeviceHandle", lambda handle: int(self.mig))
        monkeypatch.setattr(
            pynvml, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", lambda handle: "board"
        )
        for name in (
            "PowerUsage", "ComputeRunningProcesses", "ClockInfo", "MaxClockInfo", "Temperature",
            "TotalEnergyConsumption", "PowerManagementLimit", "PersistenceMode",
            "ApplicationsClock", "CurrentClocksThrottleReasons",
        ):  # fmt: skip
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", self.answering(name))
        driver = self.answering("DriverVersion")
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: driver("system"))

    def find(self, uuid):
        self.asked.append(uuid)
        if uuid in self.uuids:
            return f"handle of {uuid}"
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def answering(self, name):
        def answer(handle, *_):
            if name not in self.answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            value = self.answers[name]
            return value(handle) if callable(value) else value

        return answer


@pytest.fixture
def install(monkeypatch):
    def make(*args, **answers):
        board = Board(*args, **answers)
        board.install(monkeypatch)
        return board

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


def processes(*pids):
    return [types.SimpleNamespace(pid=pid, usedGpuMemory=pid * 2**20) for pid in pids]


def test_a_board_tells_its_state(install):
    held = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonGpuIdle
    install(
        ["GPU-0-1-2"], ClockInfo=1980, Temperature=61, PowerUsage=412_500,
        CurrentClocksThrottleReasons=held, ComputeRunningProcesses=processes(7, 8),
        TotalEnergyConsumption=123_456, DriverVersion="580.1",
    )  # fmt: skip
    gauge = Gauge("0-1-2")
    assert gauge.state() == Gpu(1980, 61, 412.5, ("the power limit",), 2)
    assert gauge.energy_mj() == 123_456
    assert gauge.driver() == "580.1"


def test_what_a_board_does_not_tell_is_none(install):
    install(["GPU-0-1-2"])
    gauge = Gauge("0-1-2")
    assert gauge.state() == Gpu()
    assert gauge.energy_mj() is None
    assert gauge.process_bytes() is None


def test_memory_is_that_of_this_process(install):
    install(["GPU-0-1-2"], ComputeRunningProcesses=processes(1, os.getpid()))
    assert Gauge("0-1-2").process_bytes() == os.getpid() * 2**20


@pytest.mark.parametrize(
    ("visible", "index", "known"),
    [
        pytest.param(None, 0, "MIG-0-1-2", id="torch tells the uuid of the instance"),
        pytest.param("MIG-a-b", 0, "MIG-a-b", id="the visible devices name it"),
        pytest.param("GPU-9, MIG-a-b", 1, "MIG-a-b", id="the second of them"),
    ],
)
def test_an_instance_of_a_partitioned_board_is_found(install, monkeypatch, visible, index, known):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    clock = {"board": 1500}
    install(
        [known], mig=True, ClockInfo=clock.__getitem__, TotalEnergyConsumption=5,
        ComputeRunningProcesses=lambda handle: processes(3) if handle != "board" else [],
    )  # fmt: skip
    gauge = Gauge("0-1-2", index)
    assert gauge.is_mig
    assert gauge.state().sm_clock_mhz == 1500  # of the board
    assert gauge.state().processes == 1  # of the instance
    assert gauge.energy_mj() is None  # the board's would count the other instances too


def test_another_board_of_the_machine_is_never_asked(install, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    board = install(["GPU-7"], ClockInfo=1)
    assert Gauge("0-1-2").state() == Gpu()
    assert board.asked == ["GPU-0-1-2", "MIG-0-1-2"]


def test_without_the_library_everything_is_none(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", missing)
    gauge = Gauge("0-1-2")
    assert gauge.state() == Gpu()
    assert gauge.energy_mj() is None
    assert gauge.driver() is None
    assert not gauge.is_mig
    assert not any(gauge.health().values())


def test_the_reasons_are_the_librarys(install):
    for name in nvml.THROTTLES:
        assert getattr(pynvml, f"nvmlClocksThrottleReason{name}")
