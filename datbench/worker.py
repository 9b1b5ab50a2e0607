"""The child process: builds one trial and answers requests over a pipe until it is closed.

A request is `(name, arguments)`, the answer `("ok", value)` or `("fault", message)`. A worker
starts idle and does nothing unless asked, so several can be alive while one is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from datbench.counters import Count, built_from, count
from datbench.device import Device, open_device
from datbench.errors import UserError
from datbench.memory_layout import Layout, occupy
from datbench.metrics import METRICS
from datbench.metrics.latency import ModuleTimes, Slot, Warmup, time_modules, time_slot, warm_up
from datbench.outputs import BadOutput, Parity, check_output
from datbench.plan import Case
from datbench.records import Measurement
from datbench.runtimes import ExportFailed, parse_runtime
from datbench.trial import Trial, build_program, build_trial, compared
from zoo import ZooError


def serve(connection: Connection, case: Case, folder: Path) -> None:
    """Answer requests on `connection` until its other end is closed.

    `folder` is where workers of one run find what others have exported or compiled.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.dup2(2, 1)  # stdout is for the parent's table alone
    answers = Answers(case, folder)
    while True:
        try:
            name, arguments = connection.recv()
            connection.send(answer(getattr(answers, name), arguments))
        except (EOFError, OSError):
            return  # the parent is gone, or wants no answer any more


def answer(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    """Call a function; tell what went wrong in one line, and bugs with their traceback too."""
    try:
        return "ok", function(**arguments)
    except (ZooError, UserError, BadOutput, ExportFailed) as error:
        return "fault", str(error)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; it must not end the run
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            told = first_line(error).removeprefix("CUDA out of memory. ")
            return "fault", f"out of memory: {told.partition(' Of the allocated memory')[0]}"
        traceback.print_exc()
        return "fault", f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of a message."""
    return str(error).strip().partition("\n")[0]


class Answers:
    """What a worker can be asked.

    Args:
        case: the model and its workload.
        folder: shared by the workers of a run.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self._case, self._folder = case, folder
        self._trial: Trial  # from `build` on
        self._kept: list[Any] = []  # memory that nobody uses, for where it lies
        gc.disable()
        gc.freeze()  # what the fork server imported; looking through it would copy its pages

    @functools.cached_property
    def _device(self) -> Device:
        return open_device(self._case.workload)

    def lay_out(self, layout: Layout) -> None:
        """Let what is built from now on lie where a layout says."""
        self._kept += [*occupy(layout), *self._device.occupy(layout.device)]

    def build(self) -> None:
        """Build the trial; whatever is wrong with the model shows here."""
        self._trial = build_trial(self._case, self._folder)
        gc.collect()

    def facts(self) -> dict[str, Any]:
        """Return what only this process can tell of the environment; works before `build`."""
        return {
            **self._device.facts(),
            "torch": str(torch.__version__),  # a plain string: the parent has no torch
            "settings": {
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "cudnn_tf32": torch.backends.cudnn.allow_tf32,
                "matmul_precision": torch.get_float32_matmul_precision(),
                "threads": torch.get_num_threads(),
                "garbage_collection": gc.isenabled(),
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
                "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
                "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
            },
        }

    def room(self) -> float:
        """Return the MiB that the device has left; works before `build`."""
        return self._device.room_mib()

    def health(self) -> dict[str, Any]:
        """Return the device's settings on which steady times depend; works before `build`."""
        return self._device.health()

    def fit(self, limit: int | None) -> tuple[int, int]:
        """Return the bytes that torch allocated and reserved at most; works before `build`.

        `limit` is what it may take of the device, out of memory beyond.
        """
        self._device.limit_memory(limit)
        trial = build_trial(self._case)
        gc.collect()  # modules that look at their callers keep frames, and tensors in them
        trial.step()
        return self._device.peaks()

    def how(self) -> dict[str, Any]:
        """Return how the runtime runs the model."""
        return dict(self._trial.facts)

    def metrics(self) -> list[Measurement]:
        """Return everything that is not timed."""
        specs = sorted(METRICS.values(), key=lambda spec: spec.order)
        known = list(self._trial.measurements)
        return known + [found for spec in specs for found in spec.load()(self._trial)]

    def survives(self) -> Parity:
        """Return how far the runtime's answers are from eager's; works before `build`."""
        apart = build_trial(self._case, shaken=True).parity  # files of many models would pile up
        assert apart is not None  # noqa: S101 - eager itself is not asked
        return apart

    def export(self, stem: str) -> tuple[Parity, list[Path]]:
        """Export the model, load it and compare; works before `build`.

        Returns:
            How far its answers are from eager's, and the files, which share a stem.
        """
        program, _ = build_program(self._case, self._device, self._folder)
        output = program.eager()
        check_output(output)
        runtime = parse_runtime(self._case.workload.runtime).make()
        running = runtime.start(dataclasses.replace(program, key=stem))
        apart = compared(program, output, running)
        return apart, sorted(path for path in self._folder.iterdir() if path.stem == stem)

    def count(self, fuse: bool) -> Count:
        """Count multiply-adds of a model that need not be built; works before `build`."""
        work = self._case.workload
        images = torch.empty(work.batch_size, *work.input_shape, device="meta")
        return count(built_from(self._case, fuse=fuse), images)

    def module_times(self, depth: int | None) -> ModuleTimes:
        """Time each module of the trial."""
        return time_modules(self._trial, depth)

    def warm_up(self, most_s: float) -> Warmup:
        """Run until the times are steady, but not for longer than `most_s` seconds."""
        return warm_up(self._trial, most_s)

    def slot(self, iterations: int, switched: bool) -> Slot:
        """Time a slot; `switched` tells whether another model ran before."""
        return time_slot(self._trial, iterations, switched)
