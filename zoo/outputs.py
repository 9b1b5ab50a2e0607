"""What models return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
