"""Whether a model returned numbers, and how far two runtimes' answers are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datbench.records import Measurement
from zoo.outputs import tensors_of

if TYPE_CHECKING:
    import torch

# Largest relative error that rounding explains, by the type of the arithmetic. Networks of the zoo
# stay below a hundredth of it: docs/runtimes.md.
TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}
FLOOR = 1e-6  # of a tensor's largest magnitude; channels below it are measured by it


class BadOutput(Exception):
    """A forward that gives no finite numbers; there is no point in timing it."""


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


def answers(output: Any, first: bool = False) -> list[torch.Tensor]:
    """Tensors of an output; `first` leaves out all but the first."""
    found = list(tensors_of(output))
    return found[:1] if first else found


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far the answers of a runtime are from those of eager PyTorch.

    Args:
        absolute: largest difference of two elements.
        relative: largest difference over the largest magnitude of its channel, the second axis.
        tolerance: of `relative`.
        where: shape and channel of the latter.
    """

    absolute: float
    relative: float
    tolerance: float
    where: str

    @property
    def right(self) -> bool:
        """Whether rounding explains the difference; it does not if there is NaN."""
        return self.relative <= self.tolerance

    def measurements(self) -> Iterator[Measurement]:
        """Yield both errors, flagged where they are beyond the tolerance."""
        doubts = []
        if not self.right:
            doubts.append(
                f"wrong_output: off from eager by {self.relative:.2g} of the largest magnitude of "
                f"its channel ({self.where}); rounding explains {self.tolerance:g}"
            )
        yield Measurement("parity_abs", self.absolute)
        yield Measurement("parity_rel", self.relative, tuple(doubts))


def parity(
    expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], dtype: str, tf32: bool = False
) -> Parity:
    """Compare the answers of a runtime with those of eager PyTorch.

    Args:
        expected, found: tensors in one order.
        dtype: of the arithmetic.
        tf32: whether factors of float32 products were cut to 10 bits.
    Raises:
        BadOutput: numbers or shapes of tensors differ.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
    if shapes[0] != shapes[1]:
        raise BadOutput(f"it returns tensors of shape {shapes[1]}, eager PyTorch {shapes[0]}")
    tolerance = 10 * TOLERANCE[dtype] if tf32 and dtype == "float32" else TOLERANCE[dtype]
    absolute, relative, where = 0.0, -1.0, ""
    for ours, theirs in zip(expected, found, strict=True):
        a, b = ours.detach().cpu().double(), theirs.detach().cpu().double()
        if not a.numel():
            continue
        error = (a - b).abs().nan_to_num(float("inf"))  # NaN of either is no answer
        channels = error.movedim(1, 0).flatten(1) if a.ndim > 2 else error.flatten()[None]
        sizes = a.abs().movedim(1, 0).flatten(1) if a.ndim > 2 else a.abs().flatten()[None]
        least = max(FLOOR * float(a.abs().max()), 1e-30)
        ratios = channels.amax(1) / sizes.amax(1).clamp(min=least)
        absolute = max(absolute, float(error.max()))
        if float(ratios.max()) > relative:
            relative = float(ratios.max())
            where = f"shape {tuple(a.shape)}"
            where += f", channel {int(ratios.argmax())}" if a.ndim > 2 else ""
    return Parity(absolute, max(relative, 0.0), tolerance, where)
