"""Turns on one machine: never two cases on one GPU, and nothing beside a case on the processor.

Processes of one user wait for each other by locks on files in the folder for temporary files. A
case on a GPU shares the machine with those on other GPUs; one on the processor has it alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: nobody waits there
    fcntl = None  # type: ignore[assignment]

POLL_S = 0.2
LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def turn(device: str) -> Iterator[None]:
    """Have a device to oneself, after those who have it now; a warning tells of them.

    Args:
        device: "cpu" or "cuda:N".
    """
    alone = device == "cpu"
    wanted = [("machine", alone)] + ([] if alone else [(_physical(device), True)])
    with contextlib.ExitStack() as stack:
        told = False
        for name, exclusive in wanted:
            file = _opened(name)
            if file is None:
                continue
            stack.callback(os.close, file)
            while not _locked(file, exclusive):
                if not told:
                    LOG.warning("Waiting for another datbench that measures on this machine.")
                    told = True
                time.sleep(POLL_S)
        yield


def _opened(name: str) -> int | None:
    """A file to lock; None where there can be none, and nobody waits."""
    if fcntl is None:
        return None
    owner = os.getuid() if hasattr(os, "getuid") else "all"
    folder = Path(tempfile.gettempdir()) / f"datbench-turns-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _locked(file: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no such locks
        return True
    return True


def _physical(device: str) -> str:
    """Name a GPU as the machine does: CUDA_VISIBLE_DEVICES counts anew, and so does each job."""
    index = int(device.partition(":")[2] or 0)
    for variable in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        names = [name.strip() for name in os.environ.get(variable, "").split(",")]
        if index < len(names) and names[index]:
            return f"cuda-{names[index].replace('/', '-')}"
    return f"cuda-{index}"
