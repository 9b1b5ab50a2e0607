"""Deformable attention in one Triton kernel, which reads the bias table at each pair it meets.

Nothing of queries times points is stored: the kernel keeps a running maximum and sum of the
softmax, as FlashAttention does (arXiv 2205.14135), and reads four entries of the table for each
pair, zeros outside of it. The backward pass computes the logits again.

Sums are float32 in every type. The table's gradient is summed by atomic additions, whose order is
not fixed: its last bits may differ from run to run.
"""

# ruff: noqa: PLR0915, PLR0917 - kernels take pointers and numbers, and are long
# mypy: disable-error-code="import-untyped,no-untyped-call,no-untyped-def,untyped-decorator"
from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula

LOG2E = tl.constexpr(math.log2(math.e))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its work.

    Args:
        queries: of a tile.
        keys: of a tile.
        warps: that share a tile.
        stages: loads of tiles that are under way at once.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1


def tiles(kernel: str, width: int, itemsize: int) -> Tiles:
    """Choose tiles whose kernels keep all they need in registers.

    Args:
        kernel: "forward", "queries" or "keys".
        width: channels of a head, a power of two.
        itemsize: bytes of a number.
    """
    wide = itemsize == 4
    if kernel == "forward" and width == 128:
        return Tiles(16, 32, 8) if wide else Tiles(64, 16)
    if kernel == "forward":
        return Tiles(32, 32) if wide else Tiles(64, 32)
    if kernel == "queries":
        return Tiles(32, 16)
    return Tiles(16, 16, 8) if wide else Tiles(32, 16)


@triton.jit
def _tile(pointer, stride, rows, count, channels, WIDTH: tl.constexpr):
    """Rows of a matrix, zero where there is none."""
    inside = (rows[:, None] < count) & (channels[None, :] < WIDTH)
    return tl.load(pointer + rows[:, None] * stride + channels[None, :], inside, 0.0)


@triton.jit
def _axis(query, point, length):
    """Entry before each pair on an axis, the fraction behind it, whether it and the next exist."""
    place = query[:, None] - point[None, :]
    place = tl.minimum(tl.maximum(place, -1.0), length * 1.0)  # beyond, all is zero
    low = tl.floor(place)
    first = low.to(tl.int32)
    inside, following = (first >= 0) & (first < length), (place > -1.0) & (first < length - 1)
    return first, place - low, inside, following


@triton.jit
def _corners(at, width, top, bottom, left, right):
    """Four entries of the table, zero outside of it."""
    return (
        tl.load(at, top & left, 0.0),
        tl.load(at + 1, top & right, 0.0),
        tl.load(at + width, bottom & left, 0.0),
        tl.load(at + width + 1, bottom & right, 0.0),
    )


@triton.jit
def _bias(table, query_y, query_x, point_y, point_x, table_h, table_w):
    """Table at each query minus each point, bilinearly."""
    row, down, top, bottom = _axis(query_y, point_y, table_h)
    column, across, left, right = _axis(query_x, point_x, table_w)
    at = table + row * table_w + column
    one, two, three, four = _corners(at, table_w, top, bottom, left, right)
    upper, lower = one + (two - one) * across, three + (four - three) * across
    return upper + (lower - upper) * down


@triton.jit
def _begin(
    q, k, v, table, points, q_batch, q_head, k_batch, k_head, v_batch, v_head, batch, heads,
    per_group, n, table_size,
):  # fmt: skip
    """Image and head of this program; where its tensors begin, and how far y and x are apart."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    groups = heads // per_group
    points += (image * groups + head // per_group) * n
    image = image.to(tl.int64)
    q += image * q_batch + head * q_head
    k += image * k_batch + head * k_head
    v += image * v_batch + head * v_head
    return image, head, q, k, v, table + head * table_size, points, batch * groups * n


@triton.jit
def _places(pointer, apart, index, count):
    """Places along y and x."""
    return (
        tl.load(pointer + index, index < count, 0.0),
        tl.load(pointer + apart + index, index < count, 0.0),
    )


@triton.jit
def forward_kernel(
    q, k, v, table, queries, points, out, log_sums,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    batch, heads, per_group, m, n, table_h, table_w, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of queries of one head to all points."""
    image, head, q, k, v, table, points, apart = _begin(
        q, k, v, table, points, q_batch, q_head, k_batch, k_head, v_batch, v_head, batch, heads,
        per_group, n, table_h * table_w,
    )  # fmt: skip
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, PADDED)
    query_y, query_x = _places(queries, m, rows, m)
    own = _tile(q, q_row, rows, m, channels, WIDTH)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for start in range(0, n, KEYS):
        columns = start + tl.arange(0, KEYS)
        point_y, point_x = _places(points, apart, columns, n)
        keys = _tile(k, k_row, columns, n, channels, WIDTH)
        logits = tl.dot(own, tl.trans(keys), input_precision=PRECISION) * scale
        logits += _bias(table, query_y, query_x, point_y, point_x, table_h, table_w)
        logits = tl.where(columns[None, :] < n, logits * LOG2E, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        faded = tl.exp2(highest - higher)
        total = total * faded + tl.sum(weights, 1)
        values = _tile(v, v_row, columns, n, channels, WIDTH)
        sums = sums * faded[:, None]
        sums = tl.dot(weights.to(values.dtype), values, sums, input_precision=PRECISION)
        highest = higher
    place = (image * m + rows[:, None]) * heads + head  # (b, m, heads)
    inside = (rows[:, None] < m) & (channels[None, :] < WIDTH)
    tl.store(out + place * WIDTH + channels[None, :], sums / total[:, None], inside)
    tl.store(log_sums + tl.program_id(1) * m + rows, highest + tl.log2(total), rows < m)


@triton.jit
def queries_kernel(
    q, k, v, table, queries, points, grad, log_sums, means, d_q,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    batch, heads, per_group, m, n, table_h, table_w, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; `grad` and `d_q` are (b, m, heads, d)."""
    image, head, q, k, v, table, points, apart = _begin(
        q, k, v, table, points, q_batch, q_head, k_batch, k_head, v_batch, v_head, batch, heads,
        per_group, n, table_h * table_w,
    )  # fmt: skip
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, PADDED)
    place = image * m * heads + head
    grad += place * WIDTH
    d_q += place * WIDTH
    query_y, query_x = _places(queries, m, rows, m)
    own = _tile(q, q_row, rows, m, channels, WIDTH)
    d_out = _tile(grad, heads * WIDTH, rows, m, channels, WIDTH)
    log_sum = tl.load(log_sums + tl.program_id(1) * m + rows, rows < m, float("inf"))
    mean = tl.load(means + tl.program_id(1) * m + rows, rows < m, 0.0)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for start in range(0, n, KEYS):
        columns = start + tl.arange(0, KEYS)
        point_y, point_x = _places(points, apart, columns, n)
        keys = _tile(k, k_row, columns, n, channels, WIDTH)
        logits = tl.dot(own, tl.trans(keys), input_precision=PRECISION) * scale
        logits += _bias(table, query_y, query_x, point_y, point_x, table_h, table_w)
        logits = tl.where(columns[None, :] < n, logits * LOG2E, float("-inf"))
        values = _tile(v, v_row, columns, n, channels, WIDTH)
        gained = tl.dot(d_out, tl.trans(values), input_precision=PRECISION) - mean[:, None]
        d_logits = tl.exp2(logits - log_sum[:, None]) * gained
        sums = tl.dot(d_logits.to(keys.dtype), keys, sums, input_precision=PRECISION)
    inside = (rows[:, None] < m) & (channels[None, :] < WIDTH)
    tl.store(d_q + rows[:, None] * heads * WIDTH + channels[None, :], sums * scale, inside)


@triton.jit
def keys_kernel(
    q, k, v, table, queries, points, grad, log_sums, means, d_k, d_v, d_table, d_points,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    batch, heads, per_group, m, n, table_h, table_w, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys, values and points of one head, and its share of the table's.

    `grad` is (b, m, heads, d), `d_k` and `d_v` (b, n, heads, d), `d_points` (yx, b, heads, n).
    """
    image, head, q, k, v, table, points, apart = _begin(
        q, k, v, table, points, q_batch, q_head, k_batch, k_head, v_batch, v_head, batch, heads,
        per_group, n, table_h * table_w,
    )  # fmt: skip
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    channels = tl.arange(0, PADDED)
    d_table += head * table_h * table_w
    grad += (image * m * heads + head) * WIDTH
    log_sums += tl.program_id(1) * m
    means += tl.program_id(1) * m
    point_y, point_x = _places(points, apart, columns, n)
    keys = _tile(k, k_row, columns, n, channels, WIDTH)
    values = _tile(v, v_row, columns, n, channels, WIDTH)
    k_sums = tl.zeros([KEYS, PADDED], tl.float32)
    v_sums = tl.zeros([KEYS, PADDED], tl.float32)
    y_sums = tl.zeros([KEYS], tl.float32)
    x_sums = tl.zeros([KEYS], tl.float32)
    for start in range(0, m, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        query_y, query_x = _places(queries, m, rows, m)
        own = _tile(q, q_row, rows, m, channels, WIDTH)
        d_out = _tile(grad, heads * WIDTH, rows, m, channels, WIDTH)
        log_sum = tl.load(log_sums + rows, rows < m, float("inf"))
        mean = tl.load(means + rows, rows < m, 0.0)

        row, down, top, bottom = _axis(query_y, point_y, table_h)
        column, across, left, right = _axis(query_x, point_x, table_w)
        at = row * table_w + column
        one, two, three, four = _corners(table + at, table_w, top, bottom, left, right)
        upper, lower = one + (two - one) * across, three + (four - three) * across
        logits = tl.dot(own, tl.trans(keys), input_precision=PRECISION) * scale
        logits += upper + (lower - upper) * down
        logits = tl.where(columns[None, :] < n, logits * LOG2E, float("-inf"))
        weights = tl.exp2(logits - log_sum[:, None])
        gained = tl.dot(d_out, tl.trans(values), input_precision=PRECISION) - mean[:, None]
        d_logits = weights * gained

        narrow = tl.trans(weights).to(d_out.dtype)
        v_sums = tl.dot(narrow, d_out, v_sums, input_precision=PRECISION)
        narrow = tl.trans(d_logits).to(own.dtype)
        k_sums = tl.dot(narrow, own, k_sums, input_precision=PRECISION)
        y_sums -= tl.sum(d_logits * (lower - upper), 0)
        x_sums -= tl.sum(d_logits * ((two - one) * (1 - down) + (four - three) * down), 0)
        seen = (rows[:, None] < m) & (columns[None, :] < n)
        near, far = d_logits * (1 - down), d_logits * down
        entry = d_table + at
        tl.atomic_add(entry, near * (1 - across), seen & top & left, sem="relaxed")
        tl.atomic_add(entry + 1, near * across, seen & top & right, sem="relaxed")
        entry += table_w
        tl.atomic_add(entry, far * (1 - across), seen & bottom & left, sem="relaxed")
        tl.atomic_add(entry + 1, far * across, seen & bottom & right, sem="relaxed")
    place = (image * n + columns[:, None]) * heads + head
    place = place * WIDTH + channels[None, :]
    inside = (columns[:, None] < n) & (channels[None, :] < WIDTH)
    tl.store(d_k + place, k_sums * scale, inside)
    tl.store(d_v + place, v_sums, inside)
    at_y = d_points + tl.program_id(1) * n + columns
    tl.store(at_y, y_sums, columns < n)
    tl.store(at_y + batch * heads * n, x_sums, columns < n)


def runs(q: torch.Tensor, learns: bool) -> bool:
    """Whether there is a kernel for such queries (b, heads, m, d).

    Args:
        q: queries.
        learns: whether gradients are recorded.
    """
    width, whole = q.shape[-1], q.dtype == torch.float32
    known = whole or q.dtype in (torch.float16, torch.bfloat16)
    # The gradient of keys does not keep more than 64 channels of float32 in registers.
    fits = 16 <= width <= (64 if whole and learns else 128)
    interpreted = not isinstance(forward_kernel, triton.JITFunction)
    return known and fits and (q.is_cuda or interpreted)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    points: torch.Tensor,
    queries: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attend from q (b, heads, m, d) to k and v (b, heads, n, d), as q.

    Args:
        q, k, v: queries, keys and values; channels lie side by side.
        table: read at query minus point, (heads, th, tw).
        points: of each group, in entries of the table, (yx, b, groups, n).
        queries: in entries of the table, (yx, m).
        scale: of the products of queries and keys.
    """
    whole = (t.float() for t in (table, queries, points))
    out: torch.Tensor = deformable_attention(q, k, v, *whole, scale)[0]
    return out.transpose(1, 2)


@torch.library.custom_op("zoo::deformable_attention", mutates_args=())
def deformable_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    queries: torch.Tensor,
    points: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and return the output (b, m, heads, d) and the log of each sum, (b, heads, m).

    Args:
        q, k, v, scale: as of `attend`.
        table: (heads, th, tw), float32.
        queries: (yx, m), float32.
        points: (yx, b, groups, n), float32.
    """
    b, heads, m, d = q.shape
    out, log_sums = q.new_empty(b, m, heads, d), q.new_empty(b, heads, m, dtype=torch.float32)
    cut = _cut("forward", q)
    given = _given(q, k, v, table, queries, points, scale)
    tensors = (*given[:6], out, log_sums)
    _launch(forward_kernel, (-(-m // cut.queries), b * heads), cut, q, tensors, given[6:])
    return out, log_sums


@deformable_attention.register_fake
def _(q, k, v, table, queries, points, scale):
    b, heads, m, d = q.shape
    return q.new_empty(b, m, heads, d), q.new_empty(b, heads, m, dtype=torch.float32)


@torch.library.custom_op("zoo::deformable_attention_backward", mutates_args=())
def deformable_attention_backward(
    grad: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor,
    queries: torch.Tensor,
    points: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v as (b, m or n, heads, d), of the table and of the points.

    Args:
        grad: of `out`.
        out, log_sums: what `deformable_attention` returned.
        q, k, v, table, queries, points, scale: as of `deformable_attention`.
    """
    (b, heads, m, d), n = q.shape, k.shape[2]
    grad = grad.contiguous()
    means = (grad.float() * out).sum(-1).transpose(1, 2).contiguous()
    d_q, d_k, d_v = (t.new_empty(b, t.shape[2], heads, d) for t in (q, k, v))
    d_table, d_points = torch.zeros_like(table), points.new_empty(2, b, heads, n)
    given = _given(q, k, v, table, queries, points, scale)
    read = (*given[:6], grad, log_sums, means)
    cut = _cut("queries", q)
    _launch(queries_kernel, (-(-m // cut.queries), b * heads), cut, q, (*read, d_q), given[6:])
    cut = _cut("keys", q)
    written = (d_k, d_v, d_table, d_points)
    _launch(keys_kernel, (-(-n // cut.keys), b * heads), cut, q, (*read, *written), given[6:])
    return d_q, d_k, d_v, d_table, d_points.unflatten(2, (points.shape[2], -1)).sum(3)


@deformable_attention_backward.register_fake
def _(grad, out, log_sums, q, k, v, table, queries, points, scale):
    b, heads, _, d = q.shape
    d_q, d_k, d_v = (t.new_empty(b, t.shape[2], heads, d) for t in (q, k, v))
    return d_q, d_k, d_v, torch.empty_like(table), points.new_empty(points.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    d_q, d_k, d_v, d_table, d_points = deformable_attention_backward(
        grad, *ctx.saved_tensors, ctx.scale
    )
    own = (t.transpose(1, 2) for t in (d_q, d_k, d_v))
    return *own, d_table, None, d_points, None


deformable_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.zoo.deformable_attention)
def _flops(q, k, v, *_, out_shape=None, **__) -> int:
    """Products of every query with every key and value; the bias counts as nothing."""
    return 2 * math.prod(q) * k[2] * 2


def _given(q, k, v, table, queries, points, scale):
    """What all kernels are told: six tensors, then numbers."""
    tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v)]
    strides = [stride for t in tensors for stride in t.stride()[:3]]
    sizes = [len(q), q.shape[1], q.shape[1] // points.shape[2], q.shape[2], k.shape[2]]
    packed = [t.contiguous() for t in (table, queries, points)]
    return [*tensors, *packed, *strides, *sizes, *table.shape[1:], scale]


def _cut(kernel: str, q: torch.Tensor) -> Tiles:
    return tiles(kernel, max(16, triton.next_power_of_2(q.shape[-1])), q.itemsize)


def _launch(kernel, grid, cut: Tiles, q, tensors, numbers) -> None:
    width = q.shape[-1]
    kernel[grid](
        *tensors, *numbers, WIDTH=width, PADDED=max(16, triton.next_power_of_2(width)),
        QUERIES=cut.queries, KEYS=cut.keys, PRECISION=precision(q.dtype),
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip


def precision(dtype: torch.dtype) -> str:
    """How products of float32 are made on tensor cores: as sums of three, nearly exact."""
    return "tf32x3" if dtype == torch.float32 else "tf32"
