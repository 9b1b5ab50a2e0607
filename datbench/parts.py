"""A step that notes the time between its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class PartedStep:
    """A step of which each part is timed too.

    Args:
        mark: notes the time at this point of the device's work.

    `marks` collects one more of them than `parts` has for each step: its start and the end of each.
    """

    parts: tuple[str, ...]  # of `datbench.records.PARTS`

    def __init__(self, mark: Callable[[], Any]) -> None:
        self.mark = mark
        self.marks: list[tuple[Any, ...]] = []

    def __call__(self) -> Any:
        """Run the step and add its marks."""
        raise NotImplementedError

    def resident(self) -> list[torch.Tensor]:
        """Tensors beside weights and input that stay between two steps."""
        return []
