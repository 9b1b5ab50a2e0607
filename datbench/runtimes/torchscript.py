"""TorchScript, a trace of the model with its branches as they fell for one input."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datbench.outputs import answers
from datbench.runtimes import Exported, Program, Running, first_call, runtime
from datbench.runtimes._export import Deployed, explained
from zoo.exporting import portable


@runtime("torchscript", order=5, form="torchscript", suffix=".torchscript")
class TorchScript(Exported):
    """A trace, frozen, as C++ programs load it."""

    def export(self, program: Program, file: Path) -> Mapping[str, Any]:
        """Trace the model, put its weights into the graph, and save it."""
        deployed = Deployed(program.model, program.first).eval()
        with portable(program.model), explained("torch.jit.trace", deployed), torch.no_grad():
            traced = torch.jit.trace(deployed, (program.inputs,), check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), file)
        return {"exporter": f"torch.jit {torch.__version__}"}

    def load(self, program: Program, file: Path) -> Running:
        """Read the trace; its first calls still optimise it."""
        with explained("torch.jit.load"):
            module = torch.jit.load(file, map_location=program.inputs.device)
        return called(program, module)


def called(program: Program, module: Any) -> Running:
    """Run a module that was loaded; its first call is timed."""

    step = functools.partial(program.run, module)
    with explained("the first call", module if isinstance(module, torch.nn.Module) else None):
        first = first_call(step, program.device)
    return Running(step, answers, {}, [first])
