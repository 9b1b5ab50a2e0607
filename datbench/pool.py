"""Worker processes, started from a fork server that has torch imported, one request at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datbench.counters import IMPORTS as COUNTING
from datbench.plan import Case

# The workers' environment: no messages of libraries in between, no look at the network.
QUIET = {
    "YOLO_VERBOSE": "False",
    "YOLO_AUTOINSTALL": "False",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
# Threads spin for some milliseconds before they sleep, as libgomp's do by default. Passive waiting
# makes small models 2.4 times slower on a quiet machine: docs/decisions.md.
WAITING = {"GOMP_SPINCOUNT": "300000"}
# glibc keeps freed memory. By default it gives large blocks back to the kernel after each iteration
# or not, as the heap of a process happens to lie: the same model takes once or twice its time.
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}

# A worker that is killed leaves semaphores behind, which the tracker removes; that is no news.
KILLED = {"PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker"}


class WorkerFault(Exception):
    """A worker failed, died or hung; the message is the row's error."""


class Worker:
    """A child process that holds one model.

    Args:
        context: how processes are started.
        case: the model and its workload.
        timeout_s: seconds after which a silent worker counts as hung.
        folder: shared by the workers of a run.
    """

    def __init__(self, context: Any, case: Case, timeout_s: float, folder: Path) -> None:
        self._timeout_s = timeout_s
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, case, folder), name=f"datbench {case.label}", daemon=True
        )
        with no_main_module():
            self._process.start()
        theirs.close()

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            WorkerFault: the worker answered with a fault, died, or was silent for too long.
        """
        try:
            self._pipe.send((request, arguments))
            if not self._pipe.poll(self._timeout_s):
                self.stop()
                raise WorkerFault(f"hung: no answer to {request} within {self._timeout_s:g} s")
            status, value = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerFault(self._death()) from None
        if status != "ok":
            raise WorkerFault(value)
        return value

    def stop(self) -> None:
        """End the process; harmless if it is gone."""
        self._pipe.close()
        self._process.join(0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _death(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        self.stop()
        if code is not None and code < 0:
            return f"the worker was killed by {signal.Signals(-code).name}"
        return f"the worker ended with exit status {code}"


class Pool:
    """Starts workers; a context manager that ends them all.

    Args:
        timeout_s: seconds after which a silent worker counts as hung.
        cases: what will be started; what they need is imported once, in the fork server.
    """

    def __init__(self, timeout_s: float, cases: Sequence[Case] = ()) -> None:
        self._timeout_s = timeout_s
        modules = dict.fromkeys(module for case in cases for module in case.modules)
        self._modules = ["datbench.worker", *COUNTING, *modules]
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        self._workers: list[Worker] = []
        self._folder: tempfile.TemporaryDirectory[str]  # from `__enter__` on

    def __enter__(self) -> Pool:
        """Start importing torch in the fork server; make a folder for what workers share."""
        self._folder = tempfile.TemporaryDirectory(prefix="datbench-", ignore_cleanup_errors=True)
        if self._context.get_start_method() == "forkserver":
            from multiprocessing import forkserver, resource_tracker

            self._context.set_forkserver_preload(self._modules)
            with _environment(KILLED), _signals_blocked():
                resource_tracker.ensure_running()  # it unblocks interrupts, so it comes first
            with _environment(_variables()), _signals_blocked():
                forkserver.ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        self._stop()
        self._folder.cleanup()

    def renew(self) -> None:
        """End all workers, and drop what they shared: what follows has nothing to do with them."""
        self._stop()
        for path in Path(self._folder.name).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def start(self, case: Case) -> Worker:
        """Start a worker for a case; it builds nothing until asked."""
        with _environment(_variables()):
            worker = Worker(self._context, case, self._timeout_s, Path(self._folder.name))
        self._workers.append(worker)
        return worker


def _serve(connection: multiprocessing.connection.Connection, case: Case, folder: Path) -> None:
    from datbench.worker import serve  # imports torch, which the parent never does

    serve(connection, case, folder)


@contextlib.contextmanager
def no_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing the caller's script in the child.

    A script that calls `datbench.compare` without a `__main__` guard would otherwise run itself
    again in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _variables() -> dict[str, str]:
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else WAITING
    return QUIET | waiting | KEEPING


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for the processes started inside."""
    added = {k: v for k, v in variables.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes that signals to the whole group do not reach; the parent ends them.

    Ctrl-C in a terminal is such a signal; a cluster's warnings of preemption and time limits are.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
