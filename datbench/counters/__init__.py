"""Two counters of multiply-adds, and what they tell of each module and operator.

The first is fvcore, which traces the model and sees operators as they are written, with the rules
of `datbench.counters.rules`. The second is torch's FlopCounterMode, which sees them as they are
dispatched, and counts products alone. Both run on meta tensors, which have shapes and no data, so
that a network of any size takes seconds and no memory; where a model needs data, on the CPU, with
one input.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from datbench.counters.fvcore_counter import traced
from datbench.counters.models import Build, built_from, copies_of, countable, plainly_run
from datbench.counters.rules import NEGLIGIBLE, NOT_PRODUCTS
from datbench.counters.tally import HIDDEN, Tally
from datbench.counters.torch_counter import dispatched

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Count", "ModuleRow", "OperatorRow", "built_from", "copies_of", "count"]

# What counting imports sooner or later; a second, where nothing has imported it before.
IMPORTS = ("fvcore.nn", "torch.nn.attention.flex_attention", "torch._dynamo")
DISAGREE = 0.02  # of the larger count
NAMED = 5  # modules in a note
MASKED = "masked products"


@dataclasses.dataclass(frozen=True)
class ModuleRow:
    """What one image costs in a module, its submodules included.

    Args:
        name: dotted, "" for the whole model.
        kind: name of its class.
        params: parameters, shared ones once.
        macs: of the first counter.
        products: those of `macs` that the second counter sees too, by its convention.
        second: of the second counter.
        activations: elements that products return, scores of fused attention among them.
        output: shape of what it returned last; "" if it was not called.
    """

    name: str
    kind: str
    params: int
    macs: int | None
    products: int | None = None
    second: int | None = None
    activations: int | None = None
    output: str = ""


@dataclasses.dataclass(frozen=True)
class OperatorRow:
    """What one image costs in all calls of an operator.

    Args:
        name: as TorchScript has it, without "aten::".
        calls: in one step.
        macs: 0 for operators that are not counted.
        activations: elements that it returns, if it is a product.
        counted: "product", "other" (norms, pooling, sampling), "negligible" or "unknown".
    """

    name: str
    calls: int | None
    macs: int
    activations: int | None
    counted: str


@dataclasses.dataclass(frozen=True)
class Count:
    """What one image costs in multiply-adds.

    Args:
        macs: of the first counter, or of the second where the first failed; None if both did.
        second: of the second counter.
        modules: in the order of the model, the whole model first.
        operators: the most expensive first, then those that are not counted.
        doubts: warnings, each "flag: explanation".
    """

    macs: int | None
    second: int | None
    modules: tuple[ModuleRow, ...]
    operators: tuple[OperatorRow, ...]
    doubts: tuple[str, ...]


def count(build: Build, images: torch.Tensor) -> Count:
    """Count the multiply-adds of a model with both counters.

    Args:
        build: gives the model in eval mode on "meta", on "cpu", or "itself" as it is.
        images: a batch; only its shape matters, unless the model needs data.
    """
    first, why_not_first = _tally(traced, build, images)
    second, why_not_second = _tally(dispatched, build, images)
    if first is None and second is None:
        why = f"fvcore: {why_not_first}; torch's counter: {why_not_second}"
        return Count(None, None, (), (), (f"not_counted: {why}",))
    doubts = []
    if first is None:
        doubts.append(
            f"one_counter: fvcore cannot trace it ({why_not_first}); torch's counter stands in, "
            "which leaves out norms, pooling and sampling"
        )
    if second is None:
        doubts.append(f"one_counter: no second opinion, torch's counter failed: {why_not_second}")
    either = first if first is not None else second
    assert either is not None  # noqa: S101 - one of them got this far
    modules = tuple(_module_rows(either.model, first, second))
    operators = tuple(_operator_rows(either, second))
    if unknown := [row for row in operators if row.counted == "unknown"]:
        listed = ", ".join(f"{row.name} ({row.calls})" for row in unknown)
        doubts.append(f"uncounted_ops: no rule for {listed}")
    if first is not None and second is not None:
        doubts += _disagreement(modules, operators)
    total = modules[0]
    return Count(
        total.macs, total.second if first is not None else None, modules, operators, tuple(doubts)
    )


def _tally(
    counter: Callable[[nn.Module, torch.Tensor], Tally], build: Build, images: torch.Tensor
) -> tuple[Tally | None, str]:
    """Run a counter on meta tensors, else on the CPU, else on the model itself; or tell why not."""
    import torch

    def attempt(model: nn.Module, inputs: torch.Tensor) -> Tally:
        with torch.no_grad(), countable():
            return counter(model, inputs)

    why = ""
    for how in ("meta", "cpu", "itself"):
        if how == "meta":
            inputs = torch.empty_like(images, device="meta")
        elif images.is_meta:
            inputs = torch.rand(1, *images.shape[1:], generator=torch.Generator().manual_seed(0))
        else:
            inputs = images[:1] if how == "itself" else images[:1].float().cpu().contiguous()
        try:
            model = build(how) if how == "itself" else plainly_run(build(how))
            # A thread of its own: a trace that fails leaves values of its graph behind, for the
            # next trace of the thread to stumble on.
            with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
                warnings.simplefilter("ignore")  # tracing is deprecated, and warns of branches
                return thread.submit(attempt, model, inputs).result(), ""
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            lines = str(error).strip().splitlines() or [""]
            why = f"{type(error).__name__}: {lines[0]}"
    return None, why


def _module_rows(
    model: nn.Module, first: Tally | None, second: Tally | None
) -> Iterator[ModuleRow]:
    for name, module in model.named_modules():
        masked = 0
        if second is not None:
            inside = (n for inner, n in second.masked.items() if _within(inner, name))
            masked = round(sum(inside) / second.images)
        products = torchs = None
        if first is not None:
            products = first.macs(name, products=True) - masked
        if second is not None:
            torchs = second.macs(name) - masked
        yield ModuleRow(
            name,
            type(module).__name__,
            sum(p.numel() for p in module.parameters()),
            first.macs(name) - masked if first is not None else torchs,
            products,
            torchs,
            sum(first.operators("activations", name).values()) if first is not None else None,
            second.outputs.get(name, "") if second is not None else "",
        )


def _within(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _operator_rows(tally: Tally, second: Tally | None) -> Iterator[OperatorRow]:
    calls, activations = tally.operators("calls"), tally.operators("activations")
    for name, macs in sorted(tally.operators("macs").items(), key=lambda item: -item[1]):
        if macs:
            sort = "other" if name in NOT_PRODUCTS else "product"
            yield OperatorRow(name, calls.get(name), macs, activations.get(name), sort)
    if second is not None and (masked := round(sum(second.masked.values()) / second.images)):
        yield OperatorRow(MASKED, None, -masked, None, "product")
    uncounted = Counter(tally.uncounted)
    if "sum" in calls:
        uncounted["aten::sum"] = calls["sum"]
    for kind, number in sorted(uncounted.items()):
        sort = "negligible" if kind in NEGLIGIBLE else "unknown"
        yield OperatorRow(kind.removeprefix("aten::"), number, 0, None, sort)


def _disagreement(modules: Sequence[ModuleRow], operators: Sequence[OperatorRow]) -> Iterator[str]:
    """Compare products; name the modules whose own ones, without submodules, differ."""
    if hidden := [row for row in operators if row.name.startswith(HIDDEN) and row.macs]:
        listed = ", ".join(f"{row.macs / 1e6:.4g} M of {row.name}" for row in hidden)
        yield f"one_counter: torch's counter does not see {listed}"
    first, second = modules[0].products or 0, modules[0].second or 0
    if abs(first - second) <= DISAGREE * max(first, second):
        return
    own: dict[str, list[int]] = {row.name: [row.products or 0, row.second or 0] for row in modules}
    for row in modules[1:]:
        parent = own[row.name.rpartition(".")[0]]
        parent[0] -= row.products or 0
        parent[1] -= row.second or 0
    apart = {
        name or "the model itself": (a, b)
        for name, (a, b) in own.items()
        if abs(a - b) > DISAGREE * max(a, b)
    }
    largest = sorted(apart.items(), key=lambda item: -abs(item[1][0] - item[1][1]))
    listed = ", ".join(
        f"{name} ({a / 1e6:.4g} M, {b / 1e6:.4g} M)" for name, (a, b) in largest[:NAMED]
    )
    more = f" and {len(largest) - NAMED} more" if len(largest) > NAMED else ""
    yield (
        f"macs_disagree: fvcore counts {first / 1e9:.4g} G in products, torch's counter "
        f"{second / 1e9:.4g} G; they differ in {listed}{more}"
    )
