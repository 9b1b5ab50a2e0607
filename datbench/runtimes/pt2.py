"""PyTorch's exported program: the graph that torch.export finds, in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datbench.runtimes import Exported, Program, Running, runtime
from datbench.runtimes._export import explained, exported_program
from datbench.runtimes.torchscript import called


@runtime("pt2", order=6, form="pt2", suffix=".pt2")
class Pt2(Exported):
    """An exported program, run operator by operator; AOTInductor and ExecuTorch start from it."""

    def export(self, program: Program, file: Path) -> Mapping[str, Any]:
        """Trace the model with torch.export, and save the program."""
        exported = exported_program(program)
        with explained("saving the program"):
            torch.export.save(exported, file)
        return {"exporter": f"torch.export {torch.__version__}"}

    def load(self, program: Program, file: Path) -> Running:
        """Read the program and make it callable."""
        with explained("torch.export.load"):
            module = torch.export.load(file).module()
        return called(program, module)
