"""TorchScript, a trace of the model with its branches as they fell for one input."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datbench.outputs import answers
from datbench.records import Measurement
from datbench.runtimes import Exported, Program, Running, runtime
from datbench.runtimes._export import Deployed, explained
from zoo.exporting import portable


@runtime("torchscript", order=5, form="torchscript", suffix=".torchscript")
class TorchScript(Exported):
    """A trace, frozen, as C++ programs load it."""

    suffix = ".torchscript"

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

    def step() -> Any:
        with program.context():
            return module(program.inputs)

    with explained("the first call", module if isinstance(module, torch.nn.Module) else None):
        began = time.perf_counter()
        step()
        program.device.wait()
        first_ms = 1000 * (time.perf_counter() - began)
    return Running(step, answers, {}, [Measurement("first_call_ms", first_ms)])
