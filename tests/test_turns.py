"""Turns on a machine: what may be measured at the same time, and what may not."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from datbench import turns
from datbench.turns import turn


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Locks of this test alone."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(turns, "POLL_S", 0.01)


def waits(device, monkeypatch):
    """Whether somebody else has to wait for a device that is asked for now."""
    told = threading.Event()
    done = threading.Event()
    monkeypatch.setattr(turns.LOG, "warning", lambda text: told.set())

    def other():
        with turn(device):
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    while not told.is_set() and not done.is_set():
        told.wait(0.01)
    return thread, told.is_set()


@pytest.mark.parametrize(
    ("held", "asked", "has_to_wait"),
    [
        ("cpu", "cpu", True),
        ("cpu", "cuda:0", True),
        ("cuda:0", "cpu", True),
        ("cuda:0", "cuda:0", True),
        ("cuda:0", "cuda:1", False),
    ],
)
def test_nothing_runs_beside_a_case_on_the_processor_or_twice_on_a_gpu(
    monkeypatch, held, asked, has_to_wait
):
    with turn(held):
        thread, waited = waits(asked, monkeypatch)
    thread.join(10)
    assert not thread.is_alive()  # its turn came when the other's ended
    assert waited == has_to_wait


@pytest.mark.parametrize(
    ("variable", "held", "asked", "same"),
    [
        ("CUDA_VISIBLE_DEVICES", "2,3", "3,2", False),
        ("CUDA_VISIBLE_DEVICES", "2,3", "2", True),
        ("CUDA_VISIBLE_DEVICES", "GPU-8f/x", "GPU-8f/x", True),
        ("SLURM_JOB_GPUS", "0", "1", False),  # each job sees its own as number 0
        ("SLURM_STEP_GPUS", "1", "1", True),
    ],
)
def test_a_gpu_is_known_by_its_own_name(monkeypatch, variable, held, asked, same):
    monkeypatch.setenv(variable, held)
    with turn("cuda:0"):
        monkeypatch.setenv(variable, asked)
        thread, waited = waits("cuda:0", monkeypatch)
    thread.join(10)
    assert waited == same


def test_a_turn_ends_with_its_process(monkeypatch):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(held,))
    process.start()
    assert held.wait(10)
    thread, waited = waits("cpu", monkeypatch)
    process.kill()
    process.join()
    thread.join(10)
    assert waited
    assert not thread.is_alive()


def _hold(held):
    with turn("cpu"):
        held.set()
        threading.Event().wait()


def test_without_a_place_for_locks_nobody_waits(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    with turn("cpu"):
        thread, waited = waits("cpu", monkeypatch)
    thread.join(10)
    assert not waited
