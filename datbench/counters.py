"""Two counters of multiply-adds, and what they tell of each module and operator.

The first is fvcore, which traces the model and sees operators as they are written, with the rules
of `datbench.rules`. The second is torch's FlopCounterMode, which sees them as they are dispatched,
and counts products alone. Both run on meta tensors, which have shapes and no data, so that a
network of any size takes seconds and no memory; where a model needs data, on the CPU, one input.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from datbench.rules import DISPATCHED, NEGLIGIBLE, NOT_PRODUCTS, TRACED, attention
from datbench.trial import tensors_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from datbench.plan import Case

# What counting imports sooner or later; a second, where nothing has imported it before.
IMPORTS = ("fvcore.nn", "torch.nn.attention.flex_attention", "torch._dynamo")
DISAGREE = 0.02  # of the larger count
NAMED = 5  # modules in a note
FEW = 16  # elements of a tensor that keeps its values
PRODUCT_AND_SUM = "mul+sum"
MASKED = "masked products"
HIDDEN = "PythonOp."
VIEWS = frozenset(
    f"aten::{name}"
    for name in "view reshape permute transpose unsqueeze squeeze flatten unflatten contiguous "
    "clone movedim".split()
)


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
        latency_ms: median time, where it was asked for.
    """

    name: str
    kind: str
    params: int
    macs: int | None
    products: int | None = None
    second: int | None = None
    activations: int | None = None
    output: str = ""
    latency_ms: float | None = None


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


@dataclasses.dataclass
class Tally:
    """What one counter found: "macs", "calls" and "activations" by module and operator."""

    model: nn.Module
    images: int
    found: Mapping[str, Counter[tuple[str, str]]]
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
        return sum(n for op, n in found.items() if not products or _seen_by_torch(op))


Build = Callable[[str], "nn.Module"]


def _seen_by_torch(operator: str) -> bool:
    """Whether torch's counter sees an operator: neither a norm, pooling or sampling, nor hidden in
    an autograd function, whose kernel torch does not dispatch."""
    return operator not in NOT_PRODUCTS and not operator.startswith(HIDDEN)


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


def copies_of(model: nn.Module) -> Build:
    """Give copies of a model that is there; itself where it cannot be copied."""
    return functools.cache(lambda how: model if how == "itself" else copy_to(how, model))


def built_from(case: Case, *, fuse: bool = False) -> Build:
    """Build a model that is not there yet, without ever making its weights where that works.

    Args:
        case: what to build.
        fuse: fold batch norms into convolutions by the detector's own `fuse()`.
    """
    import torch

    @functools.cache
    def build(how: str) -> nn.Module:
        if how != "meta":
            model = case.build().eval()
            if fuse:
                model.fuse(verbose=False)  # type: ignore[operator]
            return model
        if not fuse:
            with contextlib.suppress(Exception), torch.device("meta"):
                return case.build().eval()  # unless the builder looks at its weights
        return copy_to("meta", build("cpu"))

    return build


def copy_to(device: str, model: nn.Module) -> nn.Module:
    """Copy a model, every tensor on "meta" or in float32 on "cpu"; none is copied where it is.

    On "meta" a few numbers that are neither parameters nor buffers, such as the strides of a
    detector, keep their values: models read them.
    """
    import torch

    memo: dict[int, Any] = {}

    def convert(value: Any, kept: int) -> None:
        if isinstance(value, torch.Tensor):
            if device == "meta" and value.numel() > kept:
                new = torch.empty_like(value, device="meta")
            else:
                new = value.detach().to("cpu", copy=True)
                new = new.float() if new.is_floating_point() else new
            if isinstance(value, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=False)
            memo.setdefault(id(value), new)
        elif isinstance(value, Mapping):
            for inner in value.values():
                convert(inner, kept)
        elif isinstance(value, list | tuple):
            for inner in value:
                convert(inner, kept)

    for module in model.modules():
        for name, value in vars(module).items():
            convert(value, kept=-1 if name in ("_parameters", "_buffers") else FEW)
    return copy.deepcopy(model, memo).eval()


def _tally(
    counter: Callable[[nn.Module, torch.Tensor], Tally], build: Build, images: torch.Tensor
) -> tuple[Tally | None, str]:
    """Run a counter on meta tensors, else on the CPU, else on the model itself; or tell why not."""
    import torch

    def attempt(model: nn.Module, inputs: torch.Tensor) -> Tally:
        with torch.no_grad(), _countable():
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
            model = build(how) if how == "itself" else _plainly_run(build(how))
            # A thread of its own: a trace that fails leaves values of its graph behind, for the
            # next trace of the thread to stumble on.
            with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
                warnings.simplefilter("ignore")  # tracing is deprecated, and warns of branches
                return thread.submit(attempt, model, inputs).result(), ""
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            lines = str(error).strip().splitlines() or [""]
            why = f"{type(error).__name__}: {lines[0]}"
    return None, why


def _plainly_run(model: nn.Module) -> nn.Module:
    """Take torch.compile off what the modules hold, and gradients off the parameters.

    A function that torch.compile made refuses to be traced, and torch's counter trips over
    parameters that are handed to modules.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if plain := getattr(value, "_torchdynamo_orig_callable", None):
                object.__setattr__(module, name, plain)
    for parameter in model.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    return model


def traced(model: nn.Module, images: torch.Tensor) -> Tally:
    """Count with fvcore and our rules."""
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS
    from torch.utils.flop_counter import flop_registry

    handles: dict[str, Any] = {
        f"{op._qualified_op_name}": functools.partial(_of_torch, formula)
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
    _fill_lists(model, by_module)
    return Tally(model, len(images), by_module, Counter(analysis.unsupported_ops()))


def _flat(_: nn.Module, __: Any, output: Any) -> Any:
    import torch

    return output if isinstance(output, torch.Tensor) else tuple(tensors_of(output)) or output


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
    by_module: dict[str, Counter[tuple[str, str]]] = {}
    for name, found in counter.get_flop_counts().items():
        macs = Counter({("macs", _named(op)): n // 2 for op, n in found.items()})
        by_module["" if name == "Global" else name] = macs
    _fill_lists(model, by_module)
    tally.found = by_module
    return tally


def _fill_lists(model: nn.Module, by_module: dict[str, Counter[tuple[str, str]]]) -> None:
    """Give lists of modules, which are not called themselves, what the modules in them cost."""
    for name, module in reversed(list(model.named_modules())):
        if name and not by_module.get(name):
            inside = (by_module.get(f"{name}.{child}") for child, _ in module.named_children())
            by_module[name] = sum(filter(None, inside), Counter())


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


@contextlib.contextmanager
def _countable() -> Iterator[None]:
    """Let nothing run that the counters cannot look into, and set all back as it was.

    The fast paths of MultiheadAttention and TransformerEncoderLayer are off, what torch.compile
    made runs as it is written, and flex attention becomes fused attention of the same shapes. Its
    code is swapped, not its name, because models and torch.compile hold the function itself.
    """
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    fast = torch.backends.mha.get_fastpath_enabled()
    flexible = (flex_attention.__code__, flex_attention.__defaults__, flex_attention.__kwdefaults__)
    torch.backends.mha.set_fastpath_enabled(False)
    _swap(flex_attention, _fused.__code__, _fused.__defaults__, _fused.__kwdefaults__)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        _swap(flex_attention, *flexible)


def _swap(function: Any, code: Any, defaults: Any, kwdefaults: Any) -> None:
    function.__code__ = code
    function.__defaults__, function.__kwdefaults__ = defaults, kwdefaults


def _fused(  # noqa: PLR0917 - as that of flex attention
    query: Any,
    key: Any,
    value: Any,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: Any = None,
    enable_gqa: Any = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    *,
    return_aux: Any = None,
) -> Any:
    """Stand in for flex attention, whatever its scores are; it runs among the names of torch."""
    from torch.nn.attention import flex_attention as flex
    from torch.nn.functional import scaled_dot_product_attention

    grouped = bool(query.shape[1] != key.shape[1])
    out = scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    row = query.new_zeros(query.shape[:-1])
    if return_aux is not None:
        return out, flex.AuxOutput(lse=row, max_scores=row)
    return (out, row) if return_lse else out


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
        return [value] * n if isinstance(value, int) else list(value) * (n // len(value))

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


def _shape_of(output: Any) -> str:
    """Write the shapes in an output: 1x64x20x20, several with commas."""
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_of(output))


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
