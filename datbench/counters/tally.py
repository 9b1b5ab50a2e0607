"""What one counter found."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from datbench.counters.rules import NOT_PRODUCTS

if TYPE_CHECKING:
    from torch import nn

PRODUCT_AND_SUM = "mul+sum"  # an operator that neither counter knows
HIDDEN = "PythonOp."  # how the tracer names autograd functions
Found = dict[str, Counter[tuple[str, str]]]


@dataclasses.dataclass
class Tally:
    """What one counter found: "macs", "calls" and "activations" by module and operator."""

    model: nn.Module
    images: int
    found: Found
    uncounted: Counter[str] = dataclasses.field(default_factory=Counter)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    masked: Counter[str] = dataclasses.field(default_factory=Counter)

    def operators(self, what: str, module: str = "") -> dict[str, int]:
        """Calls, or macs or activations of one image, by operator."""
        found = self.found.get(module, Counter())
        images = 1 if what == "calls" else self.images
        return {op: round(n / images) for (key, op), n in found.items() if key == what}

    def macs(self, module: str = "", *, products: bool = False) -> int:
        """Multiply-adds of one image, or those that torch's counter sees too."""
        found = self.operators("macs", module)
        return sum(n for op, n in found.items() if not products or seen_by_torch(op))


def seen_by_torch(operator: str) -> bool:
    """Whether torch's counter sees an operator: neither a norm, pooling or sampling, nor hidden in
    an autograd function, whose kernel torch does not dispatch."""
    return operator not in NOT_PRODUCTS and not operator.startswith(HIDDEN)


def fill_lists(model: nn.Module, by_module: Found) -> None:
    """Give lists of modules, which are not called themselves, what the modules in them cost."""
    for name, module in reversed(list(model.named_modules())):
        if name and not by_module.get(name):
            inside = (by_module.get(f"{name}.{child}") for child, _ in module.named_children())
            by_module[name] = sum(filter(None, inside), Counter())
