"""A trial: one model under one workload, built and ready to run, inside a worker process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datbench.deployment import DeployedStep
from datbench.device import Device, open_device
from datbench.inputs import load_input
from datbench.outputs import Parity, check_output, parity
from datbench.parts import PartedStep
from datbench.plan import Case
from datbench.records import Measurement
from datbench.runtimes import Program, Running, parse_runtime
from datbench.training import TrainStep

if TYPE_CHECKING:
    import torch
    from torch import nn

SHAKEN = 0.02  # standard deviation of the noise on parameters that are all alike


@dataclasses.dataclass
class Trial:
    """What the metrics measure.

    Args:
        case: what was asked for.
        model: on the device, in eval mode; in train mode where it is trained.
        inputs: (b, c, h, w) on the device.
        step: runs one forward and returns its output, or trains for one step and returns the loss.
        device: clock and gauges.
        facts: how its runtime runs it.
        measurements: of making it ready, and how far its answers are from those of eager PyTorch.
        allocates: whether torch's allocator sees what a step allocates.
        own_threads: whether it computes on other threads than torch's.
        parity: of its answers with those of eager PyTorch; None if it is that.
    """

    case: Case
    model: nn.Module
    inputs: torch.Tensor
    step: Callable[[], Any]
    device: Device
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    allocates: bool = True
    own_threads: bool = False
    parity: Parity | None = None

    def resident_bytes(self) -> int:
        """Bytes of the tensors that stay between two steps."""
        kept = [*self.model.parameters(), *self.model.buffers(), self.inputs]
        kept += self.step.resident() if isinstance(self.step, PartedStep) else []
        return sum(tensor.nbytes for tensor in kept)

    def forget_parts(self) -> None:
        """Drop the marks of the steps so far."""
        if isinstance(self.step, PartedStep):
            self.step.marks.clear()

    def parts_ms(self) -> dict[str, list[float]]:
        """Milliseconds of the parts of each step since `forget_parts`; nothing if it has none."""
        if not isinstance(self.step, PartedStep):
            return {}
        marks = self.step.marks
        return {
            part: self.device.between([(mark[i], mark[i + 1]) for mark in marks])
            for i, part in enumerate(self.step.parts)
        }


def build_trial(case: Case, folder: Path | None = None, *, shaken: bool = False) -> Trial:
    """Build the model with seeded weights, put it on the device, and run it once.

    Another runtime than eager is made ready after that, and must give the same answers.

    Args:
        case: what is asked for.
        folder: where processes of one run find what others have exported or compiled.
        shaken: whether to shake the weights, see `shake`.
    Raises:
        BadOutput: the output holds no tensor, or it or the loss holds NaN or infinity; or tensors
            of a runtime have other shapes.
        ExportFailed: a runtime cannot run the model.
        ZooError: the model cannot be built, or a block changes the shape.
    """
    from zoo.layers import check_shape

    device = open_device(case.workload)
    program, fused = build_program(case, device, folder, shaken=shaken)
    output = program.eager()
    check_output(output)
    if case.task == "block":
        check_shape(case.named.spec.name, program.inputs, output)
    if case.workload.mode == "train":
        del output  # a step of training has more room without it
        model = program.model.train()
        step = TrainStep(case, model, program.inputs, program.autocast, device.mark)
        check_output(step())
        return Trial(case, model, program.inputs, step, device)
    return _running(case, program, output, {} if fused is None else {"fused": fused})


def build_program(
    case: Case, device: Device, folder: Path | None = None, *, shaken: bool = False
) -> tuple[Program, int | None]:
    """Build the model with seeded weights, and put it and its input on the device.

    Returns:
        What a runtime takes; how many batch norms were folded, None if that was not asked for.
    """
    import torch

    work = case.workload
    torch.manual_seed(work.seed)
    model = case.build().eval()
    if shaken:
        shake(model, work.seed)
    example = load_input(work, case.task)
    fused = None
    if work.fuse:
        from zoo.fusing import fuse

        fused = fuse(model, example[:1])
    layout = torch.channels_last if work.channels_last else torch.contiguous_format
    weights = torch.float32 if work.amp else getattr(torch, work.dtype)
    model = model.to(device.name, weights).to(memory_format=layout)
    inputs = example.to(device.name, weights).contiguous(memory_format=layout)
    return Program(model, inputs, work, device, folder, case.key, case.returns_more), fused


def shake(model: nn.Module, seed: int) -> None:
    """Add noise to parameters whose elements are all alike.

    Networks begin with zeros where they later learn, in the offsets of deformable convolution for
    instance; what stands behind a zero is in no output.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(SHAKEN * torch.randn(parameter.shape, generator=generator))


def _running(case: Case, program: Program, output: Any, facts: Mapping[str, Any]) -> Trial:
    """Start the runtime of a case, and compare its answers with an output of eager PyTorch."""
    work = case.workload
    chosen = parse_runtime(work.runtime)
    running: Running = chosen.make().start(program)
    measured = list(running.measurements)
    apart = None
    if chosen.spec.name != "eager":
        apart = compared(program, output, running)
        measured += apart.measurements()
    step: Callable[[], Any] = running.step
    if work.scope != "forward":
        step = DeployedStep(case, program.inputs, running, program.device.mark)
        measured += step.measurements()
    return Trial(
        case,
        program.model,
        program.inputs,
        step,
        program.device,
        {**facts, **running.facts},
        measured,
        running.allocates,
        running.own_threads,
        apart,
    )


def compared(program: Program, output: Any, running: Running) -> Parity:
    """Compare the answers of a runtime with an output of eager PyTorch.

    Raises:
        BadOutput: their shapes differ.
    """
    work, found = program.work, running.outputs(running.step())
    return parity(program.answers(output), found, work.dtype, work.tf32)
