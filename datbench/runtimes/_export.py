"""What the exporting runtimes share: torch.export, and a message that says what stopped it."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from datbench.outputs import answers
from datbench.runtimes import ExportFailed, Program
from zoo.exporting import portable

WRAPPED = "model"  # the name of the model in `Deployed`
OPERATOR = re.compile(r"(?:torch\.ops\.|operator )'?([\w:.]+)")
PLACE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s*(.+)')
COLOURS = re.compile(r"\x1b\[\d*m")


class Deployed(nn.Module):
    """A model that returns a flat tuple of tensors, as a file must.

    Args:
        model: the model.
        first: whether to leave out all but the first.
    """

    def __init__(self, model: nn.Module, first: bool) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model."""
        return tuple(answers(self.model(x), self.first))


def exported_program(program: Program) -> torch.export.ExportedProgram:
    """Trace a model with torch.export, its shapes fixed.

    Raises:
        ExportFailed: names module, operator and line.
    """
    deployed = Deployed(program.model, program.first).eval()
    with explained("torch.export", deployed), torch.no_grad():
        return torch.export.export(deployed, (program.inputs,), strict=False)


@contextlib.contextmanager
def explained(stage: str, model: nn.Module | None = None) -> Iterator[None]:
    """Run an exporter in silence; what it raises becomes one line.

    Args:
        stage: what runs.
        model: whose modules are named, where the traceback leads through them.
    Raises:
        ExportFailed: anything was raised inside.
    """
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ExportFailed(f"{stage}: {explanation(error, model)}") from error
    finally:
        logging.disable(logged)


def explanation(error: BaseException, model: nn.Module | None = None) -> str:
    """Say in one line which operator failed, in which module, and why."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    names = {id(module): name for name, module in model.named_modules()} if model else {}
    where = operator = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("node"), fx.Node):  # being converted
            stack = list(node.meta.get("nn_module_stack", {}).values())
            where = _named(*stack[-1]) if stack else where
            operator = str(node.target)
        module = frame.f_locals.get("self")
        if id(module) in names and frame.f_code.co_name not in ("_call_impl", "_wrapped_call_impl"):
            file = frame.f_code.co_filename
            where = _named(names[id(module)], type(module))
            where += f", {Path(file).name}:{line}: `{linecache.getline(file, line).strip()}`"
    if not where and (places := PLACE.findall(str(error).rpartition("from user code:")[2])):
        file, line, text = places[-1]  # Dynamo reads the code instead of running it
        where = f"{Path(file).name}:{line}: `{text.strip()}`"
    message = " ".join(COLOURS.sub("", str(error)).strip().split("\n\n")[0].split())
    if not operator and (found := OPERATOR.search(message)):
        operator = found[1]
    said = [
        f"operator {operator.removeprefix('aten.')}" if operator else "",
        f"in {where}" if where else "",
    ]
    return (
        ", ".join(filter(None, said))
        + (": " if any(said) else "")
        + (f"{type(error).__name__}: {message}" if message else type(error).__name__)
    )


def _named(path: str, kind: Any) -> str:
    """A module's name in the user's model, and its class."""
    name = re.sub(rf"^{WRAPPED}\.?", "", path)
    cls = kind if isinstance(kind, str) else kind.__name__
    return f"{name or 'the model'} ({cls.rpartition('.')[2]})"


def onnx_program(program: Program, opset: int | None) -> torch.onnx.ONNXProgram:
    """Export to ONNX by way of torch.export, blocks in their portable form.

    Raises:
        ExportFailed: names operator and module.
    """
    with portable(program.model):
        exported = exported_program(program)
    with explained("torch.onnx"):
        found = torch.onnx.export(
            exported, (), dynamo=True, verbose=False, opset_version=opset, input_names=["images"]
        )
    assert found is not None  # noqa: S101 - it writes no file itself
    return found
