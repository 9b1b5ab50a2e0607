"""The second counter: torch's FlopCounterMode, which sees operators as they are dispatched."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from datbench.counters.rules import DISPATCHED
from datbench.counters.tally import PRODUCT_AND_SUM, Found, Tally, fill_lists
from zoo.outputs import tensors_of

if TYPE_CHECKING:
    import torch
    from torch import nn


def dispatched(model: nn.Module, images: torch.Tensor) -> Tally:
    """Count with torch's counter and our rules, and see what each module returns."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    rules = {}
    for kind, rule in DISPATCHED.items():
        namespace, _, name = kind.partition("::")
        if operator := getattr(getattr(torch.ops, namespace), name, None):
            rules[operator] = functools.partial(_doubled, rule)
    tally = Tally(model, len(images), {})
    rules |= _products_and_sums()
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    for name, module in model.named_modules():  # else it names what is shared after its last place
        counter.mod_tracker._known_modules[module] = name
        counter.mod_tracker._seen_modules.add(module)
    with counter, _watched(model, tally):
        model(images)
    by_module: Found = {}
    for name, found in counter.get_flop_counts().items():
        macs = Counter({("macs", _named(op)): n // 2 for op, n in found.items()})
        by_module["" if name == "Global" else name] = macs
    fill_lists(model, by_module)
    tally.found = by_module
    return tally


def _named(operator: Any) -> str:
    name = str(operator).rpartition(".")[2]
    return PRODUCT_AND_SUM if name == "sum" else name


def _doubled(rule: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    return 2 * rule(*args, **kwargs)


def _products_and_sums() -> dict[Any, Any]:
    """Formulas for torch's counter that find sums over products by the memory they share."""
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    # A product by its memory: what keeps that from being taken for another's, its elements, and
    # the version that nothing has written to since.
    products: dict[int, tuple[StorageWeakRef, int, int]] = {}

    def remember(tensor: torch.Tensor, version: int) -> None:
        storage = tensor.untyped_storage()
        products[storage._cdata] = StorageWeakRef(storage), tensor.numel(), version

    def known(tensor: Any) -> bool:
        _, *told = products.get(tensor.untyped_storage()._cdata, (None, -1, -1))
        return told == [tensor.numel(), tensor._version]

    def is_product(a: Any, b: Any) -> bool:
        return all(isinstance(factor, torch.Tensor) and factor.dim() for factor in (a, b))

    def mul(a: Any, b: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
        if is_product(a, b):
            remember(out_val, out_val._version)
        return 0

    def mul_(a: Any, b: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
        if is_product(a, b):
            remember(out_val, out_val._version + 1)  # it goes up when this is over
        return 0

    def clone(x: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
        if known(x):
            remember(out_val, out_val._version)
        return 0

    def total(x: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
        return 2 * x.numel() if known(x) and x.numel() > out_val.numel() else 0

    aten = torch.ops.aten
    found = {aten.mul: mul, aten.mul_: mul_, aten.clone: clone, aten.sum: total}
    for formula in found.values():
        formula._get_raw = True  # type: ignore[attr-defined] # tensors, not shapes
    return dict(found)


@contextlib.contextmanager
def _watched(model: nn.Module, tally: Tally) -> Iterator[None]:
    """Note what each module returns, and the products that it does only to mask them."""
    import torch

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tally.outputs[name] = _shape_of(output)
            if hasattr(module, "excess_macs"):
                tally.masked[name] += module.excess_macs(inputs[0]) * len(inputs[0])

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which takes none
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _shape_of(output: Any) -> str:
    """Write the shapes in an output: 1x64x20x20, several with commas."""
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_of(output))
