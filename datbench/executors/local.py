"""This machine: the processor, one GPU, or several of them side by side.

Each GPU is a lane: a process that measures one unit after the other on its device.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
from typing import Any

from datbench.device import count_cuda_devices, resolve_device
from datbench.errors import UserError
from datbench.executors import Executor, executor, measure
from datbench.plan import Plan
from datbench.pool import Pool, no_main_module
from datbench.request import Request
from datbench.runner import Progress
from datbench.store import RunFolder
from datbench.sweep import Parts, Sweep, is_whole
from zoo.registry import ZooError

WHOLE = "whole"


@executor("local")
class Local(Executor):
    """Measures on this machine."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._devices = _devices(request)
        if request.slurm:
            given = ", ".join(f"--slurm-{name}" for name in request.slurm)
            raise UserError(f"{given} is for --executor slurm; add it")

    def run(self, sweep: Sweep, folder: RunFolder, progress: Progress) -> bool:
        """Measure here, or in a lane for each GPU."""
        parts = Parts(folder)
        if len(self._devices) > 1:
            return _Lanes(self._devices, sweep, folder, parts, progress).run()
        device = next(iter(self._devices), None)
        with Pool(sweep.protocol.timeout_s, sweep.every_kind()) as pool:
            try:
                for number in range(len(sweep)):
                    share = _share(progress, number, len(sweep))
                    records = measure(sweep, number, parts, share, device=device, pool=pool)
                    if any(record.interrupted for record in records):
                        return False
                    pool.renew()
            except KeyboardInterrupt:
                return False
        return True


class _Lanes:
    """A process for each GPU; the next unit goes to the first that is free.

    Args:
        devices: "cuda:N" each.
        sweep, folder, parts, progress: as for one device.
    """

    def __init__(
        self,
        devices: list[str],
        sweep: Sweep,
        folder: RunFolder,
        parts: Parts,
        progress: Progress,
    ) -> None:
        self._sweep, self._folder, self._progress = sweep, folder, progress
        self._begun: dict[str, list[int]] = {device: [] for device in devices}
        self._new: list[int] = []  # from the last to the first
        for number in reversed(range(len(sweep))):
            on = _begun_on(parts, sweep.unit(number))
            if on != WHOLE:
                self._begun.get(on, self._new).append(number)
        self._stopped = False
        self._done = len(sweep) - len(self._new) - sum(map(len, self._begun.values()))

    def run(self) -> bool:
        """Measure everything.

        Raises:
            UserError: a lane ended before its time.
        """
        context = multiprocessing.get_context("spawn")
        finished = True
        with contextlib.ExitStack() as stack:
            lanes: dict[Any, str] = {}
            for device in self._begun:
                if not self._waiting(device):
                    continue
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_lane, args=(theirs, self._sweep.request, self._folder.path, device)
                )
                with no_main_module():
                    process.start()
                theirs.close()
                stack.callback(process.join)
                stack.callback(ours.close)  # ends it, and comes before it is waited for
                lanes[ours] = device
                self._give(ours, device)
            while lanes:
                try:
                    ready = multiprocessing.connection.wait(list(lanes))
                except KeyboardInterrupt:
                    self._stop()  # the lanes have heard it too, and finish what they have
                    finished = False
                    continue
                for pipe in ready:
                    if not self._hear(pipe, lanes):
                        self._stop()
                        finished = False
        return finished

    def _waiting(self, device: str) -> list[int]:
        """What a lane may do next, the next one at the end: first what it has begun."""
        return self._begun[device] or self._new

    def _give(self, pipe: Any, device: str) -> bool:
        """Give a lane the next unit; False if there is none."""
        if waiting := self._waiting(device):
            pipe.send(waiting.pop())
            return True
        return False

    def _stop(self) -> None:
        """Give nothing any more."""
        self._stopped = True
        for waiting in (self._new, *self._begun.values()):
            waiting.clear()

    def _hear(self, pipe: Any, lanes: dict[Any, str]) -> bool:
        """Take what a lane tells; False if its work was cut short."""
        device = lanes[pipe]
        try:
            said, value = pipe.recv()
        except (EOFError, OSError):
            if self._stopped:
                del lanes[pipe]
                return False
            raise UserError(
                f"the process for {device} is gone; what it measured is in {self._folder.path}"
            ) from None
        if said == "at":
            self._progress(f"{device} {value}", self._done / len(self._sweep))
            return True
        self._done += 1
        if said == "failed":
            raise UserError(value)
        if not self._give(pipe, device):
            del lanes[pipe]
        return bool(value)


def _begun_on(parts: Parts, plan: Plan) -> str:
    """The device on which a unit was begun, `WHOLE`, or "" for none."""
    records = parts.records(plan)
    if is_whole(records, plan):
        return WHOLE
    return records[0].workload.device if records else ""


def _lane(pipe: Any, request: Request, folder: Any, device: str) -> None:
    """Measure the units that arrive until the pipe is closed."""
    sweep, parts = Sweep(request), Parts(RunFolder(folder))
    idle = contextlib.suppress(EOFError, KeyboardInterrupt)
    with Pool(sweep.protocol.timeout_s, sweep.every_kind()) as pool, idle:
        while True:
            number = pipe.recv()
            try:
                records = measure(
                    sweep, number, parts, lambda text, _: pipe.send(("at", text)),
                    device=device, pool=pool,
                )  # fmt: skip
            except (UserError, ZooError) as error:
                pipe.send(("failed", str(error)))
                return
            pool.renew()
            pipe.send(("done", not any(record.interrupted for record in records)))


def _share(progress: Progress, number: int, units: int) -> Progress:
    """Progress of a unit as part of that of a sweep."""
    if units == 1:
        return progress
    return lambda text, done: progress(f"{number + 1} of {units}: {text}", (number + done) / units)


def _devices(request: Request) -> list[str]:
    """The GPUs that were asked for; none if the device is that of the request.

    Raises:
        UserError: one of them is not there.
    """
    if request.gpus is None:
        return []
    if request.device not in ("auto", "cuda"):
        raise UserError(f"--gpus names the devices; leave --device {request.device} out")
    if request.gpus == "all":
        return [f"cuda:{i}" for i in range(count_cuda_devices())] or [resolve_device("cuda")]
    words = [word.strip() for word in request.gpus.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--gpus {request.gpus!r}: expected 'all' or numbers such as 0,1")
    return [resolve_device(f"cuda:{int(word)}") for word in dict.fromkeys(words)]
