"""Runs programs on the simulated runtime, each in a fork of one process that has imported torch.

    python server.py

reads a JSON object from each line of its input: "argv", as Python takes it, "environment", "cwd",
and files for "stdout" and "stderr". It answers each with a line, the exit status of the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import sys
from typing import Any

import timm
import torch
import ultralytics.nn.tasks

import datbench.trial

IMPORTED = (timm, torch, ultralytics, datbench.trial)  # once, for all programs


def run(program: dict[str, Any]) -> None:
    """Become the program; what it raises ends this process as it would end any other."""
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["cwd"])
    for descriptor, name in ((0, os.devnull), (1, program["stdout"]), (2, program["stderr"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    ctypes.CDLL(None).simcuda_begin()
    first, *rest = program["argv"]
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
            sys.exit()  # as a program that has come to its end, with what is registered for it
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, flush=True)


if __name__ == "__main__":
    main()
