"""The first counter: fvcore, which sees operators as they are written, with our rules."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from datbench.counters.rules import NOT_PRODUCTS, TRACED, attention
from datbench.counters.tally import PRODUCT_AND_SUM, Tally, fill_lists
from zoo.outputs import tensors_of

if TYPE_CHECKING:
    import torch
    from torch import nn

VIEWS = frozenset(
    f"aten::{name}"
    for name in "view reshape permute transpose unsqueeze squeeze flatten unflatten contiguous "
    "clone movedim".split()
)


def traced(model: nn.Module, images: torch.Tensor) -> Tally:
    """Count with fvcore and our rules."""
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS
    from torch.utils.flop_counter import flop_registry

    handles: dict[str, Any] = {
        op._qualified_op_name: functools.partial(_of_torch, formula)
        for op, formula in flop_registry.items()
        if hasattr(op, "_qualified_op_name")  # a user's operator has its formula there too
    }
    handles |= _DEFAULT_SUPPORTED_OPS
    handles |= {kind: functools.partial(_of_ours, rule) for kind, rule in TRACED.items()}
    handles["aten::sum"] = _product_and_sum
    analysis = FlopCountAnalysis(model, images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").ancestor_mode("caller")
    analysis.set_op_handle(**{kind: _tallied(kind, handle) for kind, handle in handles.items()})
    flatten = model.register_forward_hook(_flat)  # the tracer takes tensors and tuples of them
    try:
        with _convolutions_traced() if images.is_meta else contextlib.nullcontext():
            found = analysis.by_module_and_operator()
    finally:
        flatten.remove()
    by_module = {name: found[name] for name, _ in model.named_modules()}
    fill_lists(model, by_module)
    return Tally(model, len(images), by_module, Counter(analysis.unsupported_ops()))


def _flat(_: nn.Module, __: Any, output: Any) -> Any:
    import torch

    return output if isinstance(output, torch.Tensor) else tuple(tensors_of(output)) or output


@contextlib.contextmanager
def _convolutions_traced() -> Iterator[None]:
    """Let the tracer see convolutions of meta tensors.

    It records `_convolution`, which those of meta tensors never come to: the call before it
    already answers with a shape. So it is called from the start, and answered there.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    axes: dict[Any, tuple[int, bool]] = {}
    for n, plain, transposed in (
        (1, torch.conv1d, torch.conv_transpose1d),
        (2, torch.conv2d, torch.conv_transpose2d),
        (3, torch.conv3d, torch.conv_transpose3d),
    ):
        axes |= {plain: (n, False), transposed: (n, True)}

    class Rewrite(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = axes.get(func)
            if found is None:
                return func(*args, **(kwargs or {}))
            return _convolution(func, *found, args, kwargs)

    class Answer(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._convolution.default:
                return torch.ops.aten.convolution.default(*args[:9])
            return func(*args, **(kwargs or {}))

    with Rewrite(), Answer():  # type: ignore[no-untyped-call]
        yield


def _convolution(func: Any, n: int, transposed: bool, args: Any, kwargs: Any) -> Any:
    """Call `_convolution` as a convolution over `n` axes would in the end."""
    import torch

    numbers = ["stride", "padding", "dilation", "groups"]
    if transposed:
        numbers = ["stride", "padding", "output_padding", "groups", "dilation"]
    names = ["input", "weight", "bias", *numbers]
    given: dict[str, Any] = dict(zip(names, args, strict=False)) | (kwargs or {})
    if isinstance(given.get("padding"), str):  # "same" and "valid" are traced as they are
        return func(*args, **(kwargs or {}))
    x, weight = given["input"], given["weight"]

    def sides(name: str, usual: int) -> list[int]:
        value = given.get(name, usual)
        return [value] * n if isinstance(value, int) else list(value)

    single = x.dim() == n + 1
    out = torch._convolution(
        x[None] if single else x, weight, given.get("bias"), sides("stride", 1),
        sides("padding", 0), sides("dilation", 1), transposed, sides("output_padding", 0),
        given.get("groups", 1), False, False, False, False,
    )  # fmt: skip
    return out[0] if single else out


def _tallied(kind: str, handle: Any) -> Any:
    """Let a handle of fvcore's tell calls and activations too."""
    fused = TRACED.get(kind) is attention

    def tally(inputs: list[Any], outputs: list[Any]) -> Counter[tuple[str, str]]:
        found = handle(inputs, outputs)
        if not isinstance(found, Counter):
            found = Counter({kind.rpartition("::")[2]: found})
        ((name, macs),) = found.items()
        told = Counter({("macs", name): macs, ("calls", name): 1})
        if name not in NOT_PRODUCTS and macs:
            elements = math.prod(_plain(outputs[0]))
            if fused:
                (*batch, n, _), (m, _) = _plain(inputs[0]), _plain(inputs[1])[-2:]
                elements += math.prod(batch) * n * m
            told["activations", name] = elements
        return told

    return tally


def _of_ours(rule: Callable[..., int], inputs: list[Any], outputs: list[Any]) -> int:
    node = outputs[0].node()
    scalars = {"scalars": node.scalar_args()} if node.kind() == "prim::PythonOp" else {}
    return rule(*map(_plain, inputs), out_shape=_plain(outputs[0]), **scalars)


def _of_torch(formula: Callable[..., int], inputs: list[Any], outputs: list[Any]) -> int:
    return formula(*map(_plain, inputs), out_val=_plain(outputs[0])) // 2


def _plain(value: Any) -> Any:
    """A value of the traced graph: a shape, a list of values, or a constant."""
    node = value.node()
    if node.kind() in ("prim::ListConstruct", "prim::TupleConstruct"):
        return [_plain(inner) for inner in node.inputs()]
    return tuple(value.type().sizes()) if value.isCompleteTensor() else value.toIValue()


def _product_and_sum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count a sum over a product of two tensors, also behind a change of shape."""
    elements = math.prod(_plain(inputs[0]))
    node = inputs[0].node()
    while node.kind() in VIEWS:
        node = next(node.inputs()).node()
    if node.kind() in ("aten::mul", "aten::mul_") and elements > math.prod(_plain(outputs[0])):
        factors = [_plain(factor) for factor in node.inputs()]
        if all(isinstance(factor, tuple) and factor for factor in factors):
            product = next(node.outputs())
            if math.prod(_plain(product)) == elements:
                return Counter({PRODUCT_AND_SUM: elements})
    return Counter({"sum": 0})
