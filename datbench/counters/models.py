"""Copies of a model that can be counted, and what must be switched off meanwhile."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from datbench.plan import Case

FEW = 16  # elements of a tensor that keeps its values
Build = Callable[[str], "nn.Module"]  # on "meta", on "cpu", or "itself"


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


def plainly_run(model: nn.Module) -> nn.Module:
    """Take torch.compile off what the modules hold, and gradients off the parameters.

    A function that torch.compile made refuses to be traced, and torch's counter trips over
    parameters that are handed to modules. Attention of the zoo is counted as the papers write it,
    however it is computed.
    """
    for module in model.modules():
        if getattr(module, "impl", None) in ("fast", "flex"):
            module.impl = "reference"  # type: ignore[assignment]
        for name, value in list(vars(module).items()):
            if plain := getattr(value, "_torchdynamo_orig_callable", None):
                object.__setattr__(module, name, plain)
    for parameter in model.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    return model


@contextlib.contextmanager
def countable() -> Iterator[None]:
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
