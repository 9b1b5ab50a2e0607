"""Multiply-adds of one forward of one image, whatever the batch.

`macs` is what papers call FLOPs and fvcore calls flops: one multiply-add is 1. `flops` is twice
that. fvcore counts convolutions, linear layers, matrix products and einsum, and on top 5 per
element of a LayerNorm or GroupNorm, 2 of a BatchNorm in eval, 4 per output element of bilinear
sampling, and pooling by its input. Rules of ours stand in for what it counts as zero although
there is a matrix product inside: fused attention, `baddbmm` and deformable convolution. What it
has no rule for is either on the list of operators without multiply-adds worth counting, or the
row is flagged `uncounted_ops`.

Products that a module does only to mask them are left out of both counts: it tells their number
as `excess_macs`, as neighborhood attention does, whose tiles see more keys than its windows.

Second opinion: torch's FlopCounterMode, which counts products only. The same operators of both
are compared; more than 2 % apart flags `macs_disagree`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datbench.metrics import metric
from datbench.records import Measurement
from datbench.trial import Trial

if TYPE_CHECKING:
    from torch import Tensor, nn

# Elementwise work, reductions, data movement and index arithmetic.
NEGLIGIBLE = frozenset(
    f"aten::{name}"
    for name in """
    abs adaptive_max_pool2d add add_ arange argsort avg_pool2d bernoulli_ bitwise_and ceil clamp
    clone copy_ cos cumsum div div_ dropout dropout_ elu empty_like eq erf exp expand_as fill_ flip
    floor floor_divide gather ge gelu glu gt hardsigmoid hardswish hardswish_ hardtanh hardtanh_
    im2col index index_select le leaky_relu linalg_vector_norm linspace log log2 log_softmax
    logical_and logical_not lt masked_fill max max_pool2d maximum mean meshgrid min minimum mish mul
    mul_ ne neg new_zeros nonzero norm ones ones_like pad pixel_shuffle pixel_unshuffle pow rand
    reciprocal reflection_pad2d relu6 relu_ remainder repeat repeat_interleave roll rsqrt rsub
    scatter scatter_ sigmoid sigmoid_ sign silu silu_ sin softmax sort sqrt stack sub sub_ sum tanh
    topk tril triu type_as unflatten unfold unsqueeze_ upsample_linear1d var_mean where zeros
    zeros_like
    """.split()
)
PRODUCTS = frozenset(
    """
    conv linear matmul bmm addmm baddbmm einsum mv dot scaled_dot_product_attention deform_conv2d
    """.split()
)
DISAGREE = 0.02


@metric("macs", order=2)
def macs(trial: Trial) -> Iterator[Measurement]:
    """Count multiply-adds with fvcore, and again with torch's own counter."""
    model = copy.deepcopy(trial.model).float().cpu().eval()
    image = trial.inputs[:1].float().cpu().contiguous()
    by_operator, uncounted = count(model, image)
    second, excess = second_opinion(model, image)
    total = sum(by_operator.values()) - excess
    doubts = []
    if unknown := {k: n for k, n in uncounted.items() if k not in NEGLIGIBLE}:
        listed = ", ".join(f"{name} ({n})" for name, n in sorted(unknown.items()))
        doubts.append(f"uncounted_ops: no rule for {listed}")
    products = sum(n for name, n in by_operator.items() if name in PRODUCTS) - excess
    if abs(products - second) > DISAGREE * max(products, second):
        doubts.append(
            f"macs_disagree: fvcore counts {products / 1e9:.4g} G in products, "
            f"torch's counter {second / 1e9:.4g} G"
        )
    yield Measurement("macs", total, tuple(doubts))
    yield Measurement("flops", 2 * total)
    yield Measurement("macs_second_opinion", second)


def count(model: nn.Module, image: Tensor) -> tuple[Counter[str], Counter[str]]:
    """Count with fvcore and our rules.

    Returns:
        Multiply-adds by operator, and the number of operators that no rule covers.
    """
    import torch
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").set_op_handle(
        **{
            "aten::scaled_dot_product_attention": _fused_attention,
            "aten::baddbmm": _baddbmm,
            "torchvision::deform_conv2d": _deform_conv2d,
        }
    )
    with warnings.catch_warnings(), torch.no_grad(), _without_fast_path():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every branch
        by_operator = analysis.by_operator()
        uncounted = analysis.unsupported_ops()
    return Counter({k: round(v) for k, v in by_operator.items()}), Counter(uncounted)


def second_opinion(model: nn.Module, image: Tensor) -> tuple[int, int]:
    """Count the products of one forward with torch's FlopCounterMode.

    Returns:
        Multiply-adds that are needed, and those that modules do in excess.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def deformable(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    rules: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        rules[torch.ops.torchvision.deform_conv2d] = deformable
    counter = FlopCounterMode(display=False, custom_mapping=rules)
    with counter, torch.no_grad(), _without_fast_path(), _excess(model) as excess:
        model(image)
    return counter.get_total_flops() // 2 - sum(excess), sum(excess)


@contextlib.contextmanager
def _excess(model: nn.Module) -> Iterator[list[int]]:
    """Collect what the modules that know of products in excess tell of them in a forward."""
    told: list[int] = []

    def hook(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        told.append(module.excess_macs(inputs[0]))

    knowing = [module for module in model.modules() if hasattr(module, "excess_macs")]
    hooks = [module.register_forward_hook(hook) for module in knowing]
    try:
        yield told
    finally:
        for handle in hooks:
            handle.remove()


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """Make MultiheadAttention and TransformerEncoderLayer call operators that can be counted."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _fused_attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Query (..., m, d), key (..., n, d), value (..., n, e): every query meets every key."""
    *batch, m, d = _shape(inputs[0])
    n, e = _shape(inputs[2])[-2:]
    return Counter({"scaled_dot_product_attention": math.prod(batch) * m * n * (d + e)})


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """(b, m, d) times (b, d, n)."""
    return Counter({"baddbmm": math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]})


def _deform_conv2d(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """As a convolution of the same shape; the interpolation of its samples is left out."""
    macs = math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])
    return Counter({"deform_conv2d": macs})
