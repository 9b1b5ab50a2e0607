"""One runtime per file: how a built model is run, by PyTorch or by what it was exported to.

A runtime is a class under `@runtime(name, ...)`. Its `start` takes a `Program` and returns what
runs it. Those with a `form` write that kind of file first and load it again, see `Exported`;
processes of one run share the file. Options stand in brackets: `compile[mode=max_autotune]`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.errors import UserError
from datbench.extras import missing
from datbench.outputs import answers
from datbench.records import Measurement, Workload
from zoo.names import parse_options, write_options
from zoo.registry import Registry, Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from datbench.device import Device


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSpec(Spec):
    """A runtime.

    Args:
        order: the lower stands further left in a matrix.
        device: "cpu" or "cuda" if it runs nowhere else.
        needs: modules that it imports beside torch.
        extra: of datbench, that installs those.
        for_cuda: distribution that brings CUDA, where the usual one has the CPU alone.
        choices: values that an option may have, by its name; others are not limited.
        form: kind of file that it runs; "" if it runs the model itself.
        suffix: of that file.
    """

    order: int
    device: str = ""
    needs: tuple[str, ...] = ()
    extra: str = ""
    for_cuda: str = ""
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    form: str = ""
    suffix: str = ""

    def missing(self) -> str:
        """Say what must be installed first; "" if all is there."""
        return missing(self.needs, self.extra)


RUNTIMES: Registry[RuntimeSpec] = Registry("runtime", "datbench.runtimes", "runtime", RuntimeSpec)
runtime = RUNTIMES.register


@dataclasses.dataclass(frozen=True)
class Program:
    """What a runtime is given to run.

    Args:
        model: built, in eval mode, on the device.
        inputs: (b, c, h, w) there; a runtime reads them anew in each step.
        work: the workload.
        device: clock and gauges.
        folder: where processes of a run find each other's files; None for a process alone.
        key: names those files.
        first: whether only the first tensor that the model returns is its answer, as of
            ultralytics' detectors, whose heads return what they made it from too.
    """

    model: nn.Module
    inputs: torch.Tensor
    work: Workload
    device: Device
    folder: Path | None = None
    key: str = "model"
    first: bool = False

    def autocast(self) -> Any:
        """The context of its arithmetic."""
        import torch

        kind = self.work.device.partition(":")[0]
        dtype = getattr(torch, self.work.dtype)
        return torch.autocast(kind, dtype) if self.work.amp else contextlib.nullcontext()

    def run(self, model: Callable[[torch.Tensor], Any]) -> Any:
        """Run a model, or what was made of it, in its arithmetic and without gradients.

        What a model keeps of a forward in inference mode cannot be traced later, so a model that
        is to be exported runs without.
        """
        import torch

        traced = parse_runtime(self.work.runtime).spec.form
        with torch.no_grad() if traced else torch.inference_mode(), self.autocast():
            return model(self.inputs)

    def eager(self) -> Any:
        """Run the model as it is written."""
        return self.run(self.model)

    def answers(self, output: Any) -> list[torch.Tensor]:
        """The tensors of what the model returned that count."""
        return answers(output, self.first)


@dataclasses.dataclass(frozen=True)
class Running:
    """A program that runs.

    Args:
        step: reads the inputs, computes, and returns the outputs in some form.
        outputs: gives what `step` returned as tensors.
        facts: what a reader must know of how it runs.
        measurements: of getting there.
        allocates: whether torch's allocator sees what a step allocates.
        own_threads: whether it computes on other threads than torch's.
    """

    step: Callable[[], Any]
    outputs: Callable[[Any], Sequence[torch.Tensor]]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    allocates: bool = True
    own_threads: bool = False


def first_call(step: Callable[[], Any], device: Device) -> Measurement:
    """Time the first call of a step, until the device is done."""
    began = time.perf_counter()
    step()
    device.wait()
    return Measurement("first_call_ms", 1000 * (time.perf_counter() - began))


class Runtime(abc.ABC):
    """Runs models."""

    @abc.abstractmethod
    def start(self, program: Program) -> Running:
        """Make a program ready to run."""


class ExportFailed(Exception):
    """A model that cannot be exported or loaded; names operator and module where they are known."""


class Exported(Runtime):
    """Runs a file that a model was exported to."""

    @abc.abstractmethod
    def export(self, program: Program, file: Path) -> Mapping[str, Any]:
        """Write a file.

        Returns:
            What a reader must know of it.
        Raises:
            ExportFailed: the model cannot be exported.
        """

    @abc.abstractmethod
    def load(self, program: Program, file: Path) -> Running:
        """Read a file and make it ready to run."""

    def start(self, program: Program) -> Running:
        """Export, unless another process of the run has, and load."""
        with contextlib.ExitStack() as stack:
            folder = program.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            file = folder / f"{program.key}{parse_runtime(program.work.runtime).spec.suffix}"
            facts: Mapping[str, Any] = {}
            measured = []
            if not file.exists():
                began = time.perf_counter()
                facts = self.export(program, file)
                measured.append(Measurement("prepare_s", time.perf_counter() - began))
            began = time.perf_counter()
            running = self.load(program, file)
            measured.append(Measurement("load_s", time.perf_counter() - began))
        return dataclasses.replace(
            running,
            facts={**facts, **running.facts},
            measurements=(*measured, *running.measurements),
        )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A runtime as a user names it.

    Args:
        spec: what is known of it.
        options: for its class.
    """

    spec: RuntimeSpec
    options: Mapping[str, Any]

    def __str__(self) -> str:
        """The name, with options in brackets."""
        return f"{self.spec.name}{write_options(self.options)}"

    def versions(self) -> dict[str, str]:
        """Versions of what it needs beside torch."""
        homes = [home for name in self.spec.needs for home in _homes().get(name, ())]
        return {home: importlib.metadata.version(home) for home in homes}

    def make(self) -> Runtime:
        """Make the runtime.

        Raises:
            UserError, ZooError: an option has a value that cannot work.
        """
        return self.spec.load()(**self.options)


@functools.cache
def _homes() -> Mapping[str, Sequence[str]]:
    """Distributions that modules come from: onnxruntime from onnxruntime-gpu, perhaps."""
    return importlib.metadata.packages_distributions()


@functools.cache
def parse_runtime(text: str) -> Chosen:
    """Read a name such as "compile" or "compile[mode=max_autotune,dynamic=True]".

    Raises:
        ZooError: there is no such runtime or option.
    """
    name, bracket, rest = text.strip().partition("[")
    spec = RUNTIMES[name]
    if bracket and not rest.endswith("]"):
        raise UserError(f"cannot read runtime {text!r}; write it like compile[dynamic=True]")
    options = parse_options(rest.removesuffix("]"), text)
    if spec.options is None and options:  # a class without a constructor of its own
        raise UserError(f"runtime {name} takes no options; got {', '.join(options)}")
    spec.check_options(options)
    for option, known in spec.choices.items():
        if options.get(option, known[0]) not in known:
            among = ", ".join(known)
            raise UserError(f"{name}: {option}={options[option]!r}; expected one of {among}")
    return Chosen(spec, options)


def check_runtime(chosen: Chosen, work: Workload) -> None:
    """Refuse a workload that a runtime cannot run, before anything is built.

    Raises:
        UserError: says what would work.
    """
    name, spec = chosen.spec.name, chosen.spec
    kind = work.device.partition(":")[0]
    if missing := spec.missing():
        raise UserError(f"runtime {name}: {missing}")
    if spec.device and kind != spec.device:
        raise UserError(f"runtime {name} needs --device {spec.device}; the device is {work.device}")
    if kind == "cuda" and spec.for_cuda and list(_homes().get(name, ())) == [name]:
        raise UserError(
            f"this {name} runs on the CPU alone: pip uninstall {name}, then pip install "
            f"{spec.for_cuda}; or give --device cpu"
        )
    if name != "eager" and work.mode != "inference":
        raise UserError(f"runtime {name} is for inference; training runs with --runtime eager")
    if spec.form and work.amp:
        raise UserError(
            f"runtime {name} runs what was exported, which has no autocast: leave --amp out, or "
            "give --dtype float16 or bfloat16"
        )
    if spec.form and work.channels_last:
        raise UserError(f"runtime {name} lays memory out as it sees fit; leave --channels-last out")
