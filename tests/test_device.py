"""Devices: the driver probe, and the CUDA device against a scripted `torch.cuda`."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import types

import pytest
import torch

from datbench import device as module
from datbench.device import CudaDevice, count_cuda_devices, open_device
from datbench.records import Workload


class FakeDriver:
    def __init__(self, count, status=0):
        self.count, self.status = count, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, reference):
        reference._obj.value = self.count
        return 0


@pytest.mark.parametrize(
    ("version", "driver", "expected"),
    [
        pytest.param("2.14.1", FakeDriver(2), 2, id="two devices"),
        pytest.param("2.14.1", FakeDriver(0), 0, id="none visible"),
        pytest.param("2.14.1", FakeDriver(2, status=100), 0, id="driver without a device"),
        pytest.param("2.14.1", None, 0, id="no driver"),
        pytest.param("2.14.1+cpu", FakeDriver(2), 0, id="torch without CUDA"),
    ],
)
def test_devices_are_counted_without_torch(monkeypatch, version, driver, expected):
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(module.importlib.metadata, "version", lambda _: version)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert count_cuda_devices() == expected


class FakeCuda:
    """Steps take 2 ms on the device and 0.5 ms to launch; an event may be read once it is over."""

    def __init__(self):
        self.now_ms = self.done_ms = 0.0
        self.log = []
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = cuda.done_ms = max(cuda.done_ms, cuda.now_ms)

            def elapsed_time(self, end):
                assert cuda.now_ms >= end.at, "read before the device was done"
                return end.at - self.at

        self.Event = Event

    def step(self):
        self.now_ms += 0.5
        self.done_ms = max(self.done_ms, self.now_ms) + 2.0

    def synchronize(self):
        self.log.append("synchronize")
        self.now_ms = max(self.now_ms, self.done_ms)

    def set_device(self, name):
        self.log.append(name)

    def reset_peak_memory_stats(self):
        self.log.append("reset")

    def memory_allocated(self):
        return 2**20

    def max_memory_allocated(self):
        return 3 * 2**20

    def max_memory_reserved(self):
        return 20 * 2**20

    def is_available(self):
        return False  # cuDNN's own check looks no further

    def get_device_name(self):
        return "Scripted GPU"

    def get_device_properties(self, name):
        return types.SimpleNamespace(uuid="0-1-2", L2_cache_size=2**20)

    def mem_get_info(self):
        return 5 * 2**30, 8 * 2**30


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: fake.now_ms * 1e6)
    return fake


def test_events_time_the_device_with_one_synchronise_a_slot(cuda):
    device = CudaDevice("cuda:1")
    timing = device.time(cuda.step, 4)
    assert timing.latency_ms == pytest.approx([2.5, 2.0, 2.0, 2.0])
    assert timing.host_ms == pytest.approx([0.5] * 4)
    assert cuda.log == ["cuda:1", "synchronize"]
    assert device.time(cuda.step, 2).host_ms == pytest.approx([0.5] * 2)


def test_marks_are_read_after_one_synchronise(cuda):
    device = CudaDevice("cuda:0")
    marks = []
    for _ in range(2):
        start = device.mark()
        cuda.step()
        marks.append((start, device.mark()))
    assert device.between(marks) == pytest.approx([2.5, 2.0])
    assert cuda.log == ["cuda:0", "synchronize"]


def test_a_missing_synchronise_is_caught(cuda, monkeypatch):
    device = CudaDevice("cuda:0")
    monkeypatch.setattr(cuda, "synchronize", lambda: None)
    with pytest.raises(AssertionError, match="read before the device was done"):
        device.time(cuda.step, 4)


def test_a_cold_cache_is_overwritten_before_each_iteration_and_outside_its_time(cuda, monkeypatch):
    log = []
    monkeypatch.setattr(
        CudaDevice, "_flush", types.SimpleNamespace(zero_=lambda: log.append("flush"))
    )
    device = CudaDevice("cuda:0", cold_cache=True)

    def step():
        log.append("step")
        cuda.step()

    timing = device.time(step, 3)
    assert log == ["flush", "step"] * 3
    assert timing.host_ms == pytest.approx([0.5] * 3)
    log.clear()
    CudaDevice("cuda:0").time(step, 2)
    assert log == ["step"] * 2


def test_memory_is_the_allocators_over_one_step(cuda, monkeypatch):
    device = CudaDevice("cuda:0")
    monkeypatch.setattr(device._gauge, "process_bytes", lambda: 512 * 2**20)
    found = {m.name: m.value for m in device.memory(lambda: cuda.log.append("step"), 0)}
    assert found["peak_allocated_mib"] == 3
    assert found["peak_reserved_mib"] == 20
    assert found["process_memory_mib"] == 512.0
    assert cuda.log[1:] == ["synchronize", "reset", "step", "synchronize"]
    assert device.room_mib() == 5 * 1024


def test_each_device_reads_its_own_gauges(cuda, monkeypatch):
    board = module.gauges.Gpu(sm_clock_mhz=1980)
    device = CudaDevice("cuda:0")
    monkeypatch.setattr(device._gauge, "state", lambda: board)
    assert (device.read().gpu, device.read().reference_ms) == (board, None)
    monkeypatch.undo()
    found = module.CpuDevice().read()
    assert found.gpu is None
    assert found.reference_ms > 0


@pytest.mark.parametrize(
    ("options", "precision", "cudnn_tf32", "benchmark"),
    [
        ({}, "highest", False, True),
        ({"tf32": True, "cudnn_benchmark": False}, "high", True, False),
    ],
)
def test_settings_are_set_and_not_inherited(options, precision, cudnn_tf32, benchmark):
    torch.set_float32_matmul_precision("medium")
    open_device(Workload("cpu", (3, 8, 8), threads=torch.get_num_threads(), **options))
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is cudnn_tf32
    assert torch.backends.cudnn.benchmark is benchmark
    open_device(Workload("cpu", (3, 8, 8), threads=torch.get_num_threads()))


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("50000 100000\n", 1), ("", None)],
)
def test_the_quota_of_a_container_is_read(tmp_path, content, expected):
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert module.cpu_quota(file) == expected
    assert module.cpu_quota(tmp_path / "none") is None


def test_what_the_fork_server_imports_leaves_cuda_alone():
    code = """
import torch
def touched(): raise AssertionError("CUDA was initialised before the fork")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = touched
import datbench.worker, zoo.models.dat, zoo.models.pvt, zoo.models.swin, zoo.models.yolo
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
