"""What each operator counts, as formulas over shapes that both counters share.

A formula sees each argument of the operator as a shape where it is a tensor, as it is where it is
a number, and as a list of those; `out_shape` is the shape of what it returns, or a list of them.
It gives multiply-adds. docs/macs.md tells the conventions to people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Rule = Callable[..., int]
Shape = Sequence[int]

# Elementwise work, reductions, pooling, data movement and index arithmetic: not worth counting.
NEGLIGIBLE = frozenset(
    f"aten::{name}"
    for name in """
    _pack_padded_sequence _shape_as_tensor _to_copy _weight_norm abs abs_ acos adaptive_max_pool1d
    adaptive_max_pool2d add add_ addcdiv addcdiv_ addcmul addcmul_ adjoint affine_grid_generator
    alias all allclose alpha_dropout amax amin any argmax argmin argsort as_strided asin atan atan2
    atleast_2d avg_pool1d avg_pool2d avg_pool3d bernoulli_ bitwise_and bitwise_or bitwise_xor
    block_diag broadcast_tensors bucketize cartesian_prod ceil ceil_ celu channel_shuffle clamp_max
    clamp_max_ clamp_min clamp_min_ clone col2im column_stack conj cos cos_ cosh count_nonzero cross
    cummax cummin cumprod cumsum diag diag_embed diagonal diagonal_copy diff div div_ dropout_
    dsplit dstack elu elu_ embedding embedding_bag empty_like empty_permuted empty_strided erf
    erfinv exp exp_ expand_as expand_copy expm1 eye feature_alpha_dropout feature_dropout
    feature_dropout_ fill fill_ flip floor_ fmax fmin fmod frac fractional_max_pool2d frobenius_norm
    gelu gelu_ ger glu hann_window hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
    hardtanh_ histc hsplit hstack hypot im2col imag index_add index_add_ index_copy index_copy_
    index_fill index_fill_ index_put index_select is_floating_point isclose isinf isnan kron l1_loss
    le leaky_relu leaky_relu_ lerp lift_fresh linalg_norm linalg_vector_norm linspace log log1p log2
    log_ log_sigmoid log_softmax logaddexp logcumsumexp logical_and logical_not logical_or logit
    logspace logsumexp lt mH mT masked_fill_ masked_scatter masked_select matrix_H max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d max_unpool2d maximum mean median meshgrid min
    minimum mish mish_ moveaxis movedim mul mul_ nan_to_num narrow_copy native_dropout ne neg neg_
    new_empty_strided new_ones norm normal_ numel numpy_T one_hot ones_like outer pad
    pairwise_distance permute_copy pixel_shuffle pixel_unshuffle pow pow_ prelu prod rand rand_like
    randn randn_like randperm ravel real reciprocal reciprocal_ reflection_pad1d reflection_pad2d
    reflection_pad3d relu6 relu6_ repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape_as resolve_conj resolve_neg rot90 round round_ rrelu rsqrt rsqrt_ rsub
    scalar_tensor scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_
    searchsorted select_copy selu selu_ sgn sigmoid sigmoid_ sign signbit silu silu_ sin sin_ sinc
    sinh slice_copy softmax softplus softshrink sort split_with_sizes_copy sqrt sqrt_ square
    squeeze_ squeeze_copy std std_mean sub sub_ sum swapaxes swapdims take take_along_dim tan tanh
    tanh_ tensor tensor_split threshold tile topk transpose_copy tril tril_indices triu triu_indices
    true_divide trunc trunc_ unbind_copy unflatten unfold unfold_copy uniform_ unique_consecutive
    unsafe_chunk unsafe_split var var_mean view_as view_as_complex view_as_real view_copy vsplit
    vstack where zero_
    """.split()
)


def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """(..., n, d), (..., m, d), (..., m, e): every query meets every key, masked or not.

    Fewer heads of keys and values than of queries are repeated, as is a batch of one.
    """
    *outer, n, d = query
    *others, m, e = value
    longer, shorter = sorted((outer, others), key=len, reverse=True)
    shorter = [1] * (len(longer) - len(shorter)) + shorter
    return math.prod(map(max, longer, shorter)) * n * m * (d + e)


def attention_rows(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """(b, n, heads, d), (b, m, heads, d), (b, m, heads, e)."""
    b, n, heads, d = query
    return b * heads * n * value[1] * (d + value[-1])


def matmul(a: Shape, b: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """(..., n, k) times (..., k, m), either without its outer axis."""
    return math.prod(out_shape) * a[-1]


def batched(bias: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Products of (b, n, k) with (b, k, m), or of (n, k) with (k), and something added."""
    return math.prod(a) * (b[-1] if len(b) == len(a) else 1)


def contraction(a: Shape, b: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """Axes of one tensor against as many of another: all of either, times what it meets."""
    return math.isqrt(math.prod(a) * math.prod(b) * math.prod(out_shape))


def vecdot(a: Shape, b: Shape, dim: int = -1, *_: Any, out_shape: Any, **__: Any) -> int:
    """Pairs of vectors along an axis, broadcast along the others."""
    return math.prod(out_shape) * max(a[dim], b[dim])


def cdist(a: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """(..., n, d) against (..., m, d), to (..., n, m)."""
    return math.prod(out_shape) * a[-1]


def outer(bias: Shape, a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Each of (n) with each of (m), and something added."""
    return math.prod(a) * math.prod(b)


def conv_tbc(x: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """(t, b, c) with a filter (k, c, o), to (t, b, o)."""
    return math.prod(out_shape) * math.prod(weight[:2])


def bilinear(a: Shape, b: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """(..., i), (..., j) and (o, i, j), as one sum over i and j."""
    return math.prod(a[:-1]) * math.prod(weight)


def trilinear(a: Shape, b: Shape, c: Shape, *expanded: Any, **__: Any) -> int:
    """What `bilinear` becomes: three tensors, each broadcast along the axes named for it."""
    rank = len(a) + len(expanded[0])
    shapes = []
    for shape, axes in zip((a, b, c), expanded, strict=False):
        sides = iter(shape)
        shapes.append([1 if i in axes else next(sides) for i in range(rank)])
    return math.prod(map(max, *shapes))


def einsum(equation: str, operands: Sequence[Shape], path: Any = None, **__: Any) -> int:
    """Pair after pair along `path`, else left to right; elementwise products count nothing.

    A pair counts the product of the sizes of its letters, those left out that only one of the
    two has and nothing later needs: they are summed before.
    """
    terms, output, size = _letters(equation, operands)
    if path is None:
        path = [0, 1] + [i for rest in range(len(terms) - 2, 0, -1) for i in (0, rest)]
    total = 0
    for i, j in zip(path[::2], path[1::2], strict=True):
        if len(terms) < 2:
            break
        low, high = sorted((i, j))
        other, one = terms.pop(high), terms.pop(low)
        needed = (one | other) & output.union(*terms)
        met = needed | (one & other)
        if met != needed:
            total += math.prod(size[letter] for letter in met)
        terms.append(needed)
    return total


def _letters(
    equation: str, operands: Sequence[Shape]
) -> tuple[list[set[str]], set[str], dict[str, int]]:
    """Letters of each operand and of the output, an ellipsis spelled out, and their sizes."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    size: dict[str, int] = {}
    terms = []
    for term, shape in zip(left.split(","), operands, strict=True):
        before, dots, after = term.partition("...")
        outer = len(shape) - len(before) - len(after) if dots else 0
        names = [*before, *(f"...{i}" for i in range(outer, 0, -1)), *after]
        for name, length in zip(names, shape, strict=True):
            size[name] = max(size.get(name, 1), length)
        terms.append(names)
    flat = [name for term in terms for name in term]
    ellipsis = {name for name in flat if name.startswith(".")}
    if arrow:
        output = {*right.replace("...", "")} | (ellipsis if "..." in right else set())
    else:
        output = {name for name in flat if flat.count(name) == 1} | ellipsis
    return [*map(set, terms)], output, size


def recurrent(inputs: Shape, *parts: Any, **__: Any) -> int:
    """Each step and sequence meets each weight matrix once: the tensors with two axes."""
    lists = [part for part in parts if isinstance(part, list) and part]
    tensors = [shape for part in lists for shape in part if isinstance(shape, Sequence)]
    return math.prod(inputs[:-1]) * sum(math.prod(s) for s in tensors if len(s) == 2)


def recurrent_layer(inputs: Shape, *weights: Any, **__: Any) -> int:
    """One layer and direction as oneDNN runs it: two weight matrices follow the input."""
    return math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights[:2])


def convolution(x: Shape, weight: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """Not transposed: each output element meets one filter."""
    return math.prod(out_shape) * math.prod(weight[1:])


def layer_norm(x: Shape, _: Any, weight: Shape | None = None, *__: Any, **___: Any) -> int:
    """Mean, variance and, with weights, scale and shift, as fvcore estimates them."""
    return (4 if weight is None else 5) * math.prod(x)


def rms_norm(x: Shape, *_: Any, **__: Any) -> int:
    """A mean of squares and a scale."""
    return 3 * math.prod(x)


def sampled(taps: int) -> Rule:
    """`taps` neighbours to an output element."""

    def rule(*_: Any, out_shape: Any, **__: Any) -> int:
        return taps * math.prod(out_shape)

    return rule


def grid_sampler(x: Shape, grid: Shape, mode: int = 0, *_: Any, out_shape: Any, **__: Any) -> int:
    """Two taps an axis, four for bicubic, one for the nearest."""
    return (2, 1, 4)[mode] ** (len(x) - 2) * math.prod(out_shape)


def roi_align(*args: Any, out_shape: Any, **__: Any) -> int:
    """Four taps for each of the points that are averaged; where their number varies, for one."""
    ratio = args[5]
    return 4 * max(1, ratio) ** 2 * math.prod(out_shape)


def pooled(x: Shape, *_: Any, **__: Any) -> int:
    """Each input element once, as fvcore counts adaptive pooling over two axes."""
    return math.prod(x)


def neighborhood(first: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """NATTEN's products: queries with the keys of a window, or its weights with the values."""
    return math.prod(out_shape) * first[-1]


def fused_neighborhood(
    query: Shape, key: Shape, value: Shape, *_: Any, scalars: Sequence[Any], **__: Any
) -> int:
    """NATTEN's fused form on (b, ..., heads, d); its first number is the side of the window."""
    axes = len(query) - 3
    window = next(number for number in scalars if number is not None)
    keys = window**axes if isinstance(window, int) else math.prod(window)
    return 2 * math.prod(query) * keys


def _natten() -> dict[str, Rule]:
    """NATTEN's autograd functions, of its old and its later versions."""
    found: dict[str, Rule] = {}
    for n in (1, 2, 3):
        for name in (f"NATTEN{n}DQKRPBFunction", f"NATTEN{n}DAVFunction"):
            found[f"prim::PythonOp.{name}"] = neighborhood
        for product in ("QK", "AV"):
            name = f"NeighborhoodAttention{n}D{product}AutogradFunction"
            found[f"prim::PythonOp.{name}"] = neighborhood
        found[f"prim::PythonOp.FusedNeighborhoodAttention{n}D"] = fused_neighborhood
    return found


# Operators that the tracer and the dispatcher see alike.
BOTH: dict[str, Rule] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": attention,
    "aten::_efficient_attention_forward": attention_rows,  # torch's takes tokens for heads
    "torchvision::deform_conv2d": convolution,
    "zoo::deformable_attention": attention,
    "aten::mv": matmul,
    "aten::dot": matmul,
    "aten::vdot": matmul,
    "aten::baddbmm": batched,
    "aten::baddbmm_": batched,
    "aten::addbmm": batched,
    "aten::addbmm_": batched,
    "aten::addmm_": batched,
    "aten::addmv": batched,
    "aten::addmv_": batched,
    "aten::addr": outer,
    "aten::conv_tbc": conv_tbc,
}
# As TorchScript's tracer sees them. The rest is fvcore's own: convolution, addmm, mm, bmm, batch,
# group and instance norm, bilinear and nearest upsampling, adaptive pooling.
TRACED: dict[str, Rule] = {
    **BOTH,
    **_natten(),
    "aten::scaled_dot_product_attention": attention,
    "aten::_scaled_dot_product_attention_math": attention,
    "aten::_scaled_dot_product_flash_attention": attention,
    "aten::_scaled_dot_product_efficient_attention": attention,
    "aten::_scaled_dot_product_cudnn_attention": attention,
    "aten::_flash_attention_forward": attention_rows,
    "aten::_convolution_mode": convolution,  # padding="same"
    "aten::linear": matmul,  # fvcore's takes a vector of weights for a matrix
    "aten::matmul": matmul,  # and forgets axes that only the second tensor has
    "aten::inner": contraction,
    "aten::tensordot": contraction,
    "aten::linalg_vecdot": vecdot,
    "aten::einsum": einsum,  # fvcore's keeps four digits
    "aten::bilinear": bilinear,
    "aten::cdist": cdist,
    "aten::lstm": recurrent,
    "aten::gru": recurrent,
    "aten::rnn_tanh": recurrent,
    "aten::rnn_relu": recurrent,
    "aten::layer_norm": layer_norm,  # fvcore's stops at more than five axes
    "aten::rms_norm": rms_norm,
    "aten::grid_sampler": grid_sampler,
    "torchvision::roi_align": roi_align,
    "aten::upsample_nearest1d": sampled(1),
    "aten::upsample_nearest3d": sampled(1),
    "aten::upsample_linear1d": sampled(2),
    "aten::upsample_trilinear3d": sampled(8),
    "aten::upsample_bicubic2d": sampled(16),
    "aten::_upsample_bilinear2d_aa": sampled(4),
    "aten::_upsample_bicubic2d_aa": sampled(16),
    "aten::adaptive_avg_pool1d": pooled,
    "aten::adaptive_avg_pool3d": pooled,
}
# What they count is left out where the two counters are compared: torch's counts products alone.
NOT_PRODUCTS = frozenset(
    """
    batch_norm group_norm instance_norm layer_norm rms_norm grid_sampler roi_align
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
    upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    """.split()
)
# As torch's dispatcher sees them, beside those that torch has formulas for.
DISPATCHED: dict[str, Rule] = {
    **BOTH,
    "aten::_trilinear": trilinear,
    "aten::_cdist_forward": cdist,
    "aten::mkldnn_rnn_layer": recurrent_layer,
}
