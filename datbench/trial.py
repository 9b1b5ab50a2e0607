"""A trial: one model under one workload, built and ready to run, inside a worker process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from datbench.device import Device, open_device
from datbench.inputs import load_input
from datbench.plan import Case
from datbench.records import PARTS
from datbench.training import TrainStep

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclasses.dataclass
class Trial:
    """What the metrics measure.

    Args:
        case: what was asked for.
        model: on the device, in eval mode; in train mode where it is trained.
        inputs: (b, c, h, w) on the device.
        step: runs one forward and returns its output, or trains for one step and returns the loss.
        device: clock and gauges.
    """

    case: Case
    model: nn.Module
    inputs: torch.Tensor
    step: Callable[[], Any]
    device: Device

    def resident_bytes(self) -> int:
        """Bytes of the tensors that stay between two steps."""
        kept = [*self.model.parameters(), *self.model.buffers(), self.inputs]
        kept += self.step.resident() if isinstance(self.step, TrainStep) else []
        return sum(tensor.nbytes for tensor in kept)

    def forget_parts(self) -> None:
        """Drop the marks of the steps so far."""
        if isinstance(self.step, TrainStep):
            self.step.marks.clear()

    def parts_ms(self) -> dict[str, list[float]]:
        """Milliseconds of the parts of each training step since `forget_parts`; else nothing."""
        if not isinstance(self.step, TrainStep):
            return {}
        marks = self.step.marks
        return {
            part: self.device.between([(mark[i], mark[i + 1]) for mark in marks])
            for i, part in enumerate(PARTS)
        }


class BadOutput(Exception):
    """A forward that gives no finite numbers; there is no point in timing it."""


def build_trial(case: Case) -> Trial:
    """Build the model with seeded weights, put it on the device, and run it once.

    Raises:
        BadOutput: the output holds no tensor, or it or the loss holds NaN or infinity.
        ZooError: the model cannot be built, or a block changes the shape.
    """
    import torch

    from zoo.layers import check_shape

    work = case.workload
    device = open_device(work)
    torch.manual_seed(work.seed)
    model = case.build().eval()
    dtype = getattr(torch, work.dtype)
    layout = torch.channels_last if work.channels_last else torch.contiguous_format
    weights = torch.float32 if work.amp else dtype
    model = model.to(device.name, weights).to(memory_format=layout)
    inputs = load_input(work, case.task).to(device.name, weights).contiguous(memory_format=layout)

    def autocast() -> Any:
        return _autocast(device, dtype, work.amp)

    def infer() -> Any:
        with torch.inference_mode(), autocast():
            return model(inputs)

    output = infer()
    check_output(output)
    if case.task == "block":
        check_shape(case.named.spec.name, inputs, output)
    if work.mode == "inference":
        return Trial(case, model, inputs, infer, device)
    step = TrainStep(case, model.train(), inputs, autocast, device.mark)
    check_output(step())
    return Trial(case, model, inputs, step, device)


def check_output(output: Any) -> None:
    """Refuse an output without finite tensors.

    Raises:
        BadOutput: says what it holds instead.
    """
    tensors = list(tensors_of(output))
    if not tensors:
        raise BadOutput(f"the model returned {type(output).__name__} without a tensor")
    for tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BadOutput(f"the output {tuple(tensor.shape)} holds NaN or infinity")


def tensors_of(output: Any) -> Iterator[torch.Tensor]:
    """Tensors in an output: itself, or inside lists, dictionaries and dataclasses."""
    import torch

    if torch.is_tensor(output):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_of(value)
    elif dataclasses.is_dataclass(output):
        yield from tensors_of(vars(output))


def _autocast(device: Device, dtype: torch.dtype, on: bool) -> Any:
    import torch

    return torch.autocast(device.name.partition(":")[0], dtype) if on else contextlib.nullcontext()
