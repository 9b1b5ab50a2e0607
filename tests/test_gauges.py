"""Gauges of the host: files of a made-up kernel, and what their change says of a slot."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from datbench import gauges
from datbench.gauges import Gpu, Readings, disturbance


def after(**changed):
    """What a second between two readings shows; gauges not named cannot be read."""
    zero = {name: {} if name == "waited_s" else 0 for name in changed}
    return disturbance(Readings(10.0, **zero, cores=4), Readings(11.0, **changed, cores=4))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        (
            {"waited_s": {7: 0.09, 8: 0.09}, "pressure_s": 0.9, "switches": 99999},
            "",
        ),  # what is ours decides
        ({"waited_s": {7: 0.0, 8: 0.11}}, "a thread waited for a core for 11% of the time"),
        ({"pressure_s": 0.2}, ""),
        ({"pressure_s": 0.3}, "something waited for a core for 30% of the time"),
        ({"stolen_s": 0.19, "waited_s": {7: 0.0}}, ""),
        ({"stolen_s": 0.25, "waited_s": {7: 0.0}}, "the hypervisor took 6% of the cores' time"),
        ({"throttled_s": 0.04}, ""),
        ({"throttled_s": 0.06}, "the container's CPU quota was spent for 6% of the time"),
        ({"switches": 900}, ""),
        ({"switches": 1500}, "it was switched off its core 1500 times a second"),
    ],
)
def test_a_slot_is_contended_if_someone_else_had_our_cores(changed, told):
    found = after(**changed)
    assert found.contended == told
    assert found.redo == bool(told)


def test_one_tick_of_steal_in_a_short_slot_means_nothing():
    before = Readings(0.0, stolen_s=0.0, cores=2)
    assert not disturbance(before, Readings(0.03, stolen_s=0.01, cores=2)).redo
    assert disturbance(before, Readings(0.03, stolen_s=0.03, cores=2)).redo


@pytest.mark.parametrize(
    ("start", "end", "told", "redo"),
    [
        (Gpu(), Gpu(), "", False),
        (Gpu(1980), Gpu(1950), "", False),
        (Gpu(1980), Gpu(1800), "the clock moved from 1980 to 1800 MHz", True),
        (Gpu(throttled=("the power limit",)), Gpu(), "the power limit", False),
    ],
)
def test_clocks_that_are_held_down_or_move_are_told(start, end, told, redo):
    found = disturbance(Readings(0.0, gpu=start), Readings(1.0, gpu=end))
    assert (found.throttled, found.redo, found.contended) == (told, redo, "")


@pytest.mark.parametrize(
    ("first", "last", "usual", "told"),
    [
        (1.1, 1.1, 1.0, ""),
        (1.0, 1.5, 1.0, "the cores were 50% slower than before"),
        (1.3, 1.0, 1.0, "the cores were 30% slower than before"),
        (1.5, 1.5, None, ""),  # nothing to compare with
        (None, None, 1.0, ""),
    ],
)
def test_cores_that_are_slower_than_before_are_told(first, last, usual, told):
    before, after = Readings(0.0, reference_ms=first), Readings(1.0, reference_ms=last)
    found = disturbance(before, after, usual)
    assert found.throttled.startswith(told)
    assert found.redo == bool(told)
    assert found.contended == ""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A made-up /proc and /sys/fs/cgroup: kernel("proc/stat", text)."""
    monkeypatch.setattr(gauges, "PROC", tmp_path / "proc")
    monkeypatch.setattr(gauges, "CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_readings_are_the_kernels(kernel):
    kernel("proc/self/task/1/schedstat", "5000000 2000000000 7\n")
    kernel("proc/self/task/2/schedstat", "5000000 500000000 7\n")
    kernel("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 total=1500000\nfull total=9\n")
    kernel("proc/stat", "cpu 1 2 3 4 5 6 7 250 0 0\ncpu0 1\ncpu1 1\ncpu2 1\nintr 5\n")
    kernel("proc/self/cgroup", "0::/box\n")
    kernel("cgroup/box/cpu.stat", "usage_usec 5\nnr_throttled 3\nthrottled_usec 40000\n")
    found = gauges.read()
    assert (found.waited_s, found.pressure_s, found.stolen_s) == ({1: 2.0, 2: 0.5}, 1.5, 2.5)
    assert (found.throttled_s, found.cores) == (0.04, 3)


@pytest.mark.parametrize(
    ("lines", "folder", "text"),
    [
        ("0::/\n", "cgroup", "throttled_usec 40000\n"),
        ("0::/gone\n", "cgroup", "throttled_usec 40000\n"),  # named as the host sees it
        ("4:cpu,cpuacct:/box\n0::/\n", "cgroup/cpu,cpuacct/box", "throttled_time 40000000\n"),
        ("1:cpu:/\n0::/\n", "cgroup/cpu", "throttled_time 40000000\n"),
    ],
)
def test_the_quota_of_either_version_of_control_groups_is_found(kernel, lines, folder, text):
    kernel("proc/self/cgroup", lines)
    kernel(f"{folder}/cpu.stat", text)
    assert gauges.read().throttled_s == 0.04


@pytest.mark.parametrize("threads", [False, True])
def test_what_a_kernel_does_not_tell_is_none(kernel, threads):
    if threads:
        kernel("proc/self/task/1/stat", "")  # a kernel without the statistics of its scheduler
    found = gauges.read()
    assert (found.waited_s, found.pressure_s, found.stolen_s, found.throttled_s) == (None,) * 4
    assert found.cores == 1


@pytest.mark.parametrize(
    ("limit", "stat", "left"),
    [
        ("1000\n", "anon 5\n", 600),
        ("1000\n", "anon 5\ninactive_file 300\n", 900),  # the cache gives way
        ("max\n", "", float("inf")),
        (None, "", float("inf")),
    ],
)
def test_the_memory_that_a_container_has_left(kernel, limit, stat, left):
    kernel("proc/self/cgroup", "0::/box\n")
    if limit:
        kernel("cgroup/box/cpu.stat", "")
        kernel("cgroup/box/memory.max", limit)
        kernel("cgroup/box/memory.current", "400\n")
        kernel("cgroup/box/memory.stat", stat)
    assert gauges.memory_left() == left


def test_changes_are_shares_of_the_time():
    before = Readings(1.0, 10, {1: 1.0}, 2.0, 3.0, 4.0, cores=2)
    found = gauges.changes(before, Readings(3.0, 20, {1: 1.5, 2: 0.25}, 2.5, 5.0, 4.5, cores=2))
    assert found == {
        "seconds": 2.0, "waited": 0.25, "pressure": 0.25, "stolen": 0.5, "throttled": 0.25,
        "switches": 5.0,
    }  # fmt: skip


@pytest.mark.skipif(gauges.read().waited_s is None, reason="the kernel keeps no such statistics")
def test_a_process_that_shares_its_core_is_seen_to_wait():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # which the other process inherits
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, end = gauges.read(), time.monotonic() + 1.0
        while time.monotonic() < end:
            sum(range(1000))
        found = disturbance(before, gauges.read())
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)
    assert "waited for a core" in found.contended


def test_the_busiest_stranger_is_named_and_children_are_none(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ours = {os.getpid(): ("python", 0.9), child.pid: ("python", 1.8)}
    monkeypatch.setattr(gauges, "processes", lambda: {1: ("init", 0.0), **ours})
    try:
        assert gauges.busiest({}, 1.0) == ""
        monkeypatch.setattr(gauges, "processes", lambda: {4242: ("browser", 3.9), **ours})
        told = gauges.busiest({4242: ("browser", 3.0)}, 1.0)
        assert told == "browser (pid 4242) used 90% of a core"
    finally:
        child.kill()
        child.wait()


def test_processes_are_those_that_run():
    name, seconds = gauges.processes()[os.getpid()]
    assert name
    assert 0 < seconds <= time.process_time() + 0.1
