"""Exact attention with a position term on a CPU, a block of queries at a time.

All logits of an 80x80 map with 1600 points are 330 MB for 8 heads; a block of them stays in the
cache, and memory grows with queries plus keys instead of with their product. A block is laid out
keys by queries, because then a position term can be written a row of queries at a time, and
softmax works in powers of two, which the CPU takes the fastest. Training keeps the input and the
output of a block; the backward pass computes the rest again.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LN2 = math.log(2)
LOG2E = math.log2(math.e)
QUERIES = 320  # of a block; a matrix product of fewer is slower
COLUMNS = 64  # of a block, at most
STRIP = 2**22  # elements of a strip
LOGITS = 2**20  # of a block, about

Strip = tuple[torch.Tensor, ...]


class Positions:
    """A position term: a bias for each pair of query and key, times `LOG2E`."""

    @property
    def heads_per_group(self) -> int:
        """Heads that share the places of their keys; those of a strip are a multiple or divisor."""
        raise NotImplementedError

    @property
    def least_heads(self) -> int:
        """Heads that a block should have, for all threads to work."""
        return 1

    @property
    def band(self) -> int:
        """Rows that stand together; those of a block are a multiple of it."""
        return 1

    @property
    def width(self) -> int:
        """Elements that a block needs for each of its logits."""
        return 1

    @property
    def strip_size(self) -> int:
        """Elements that a strip needs for each head."""
        return 0

    def strip(self, heads: slice, columns: slice) -> Strip:
        """Prepare what all blocks share that have these heads and columns of queries."""
        raise NotImplementedError

    def block(self, strip: Strip, rows: slice) -> torch.Tensor:
        """Bias of each key and query, (b * heads, keys, rows * columns); may be written to."""
        raise NotImplementedError


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: Positions,
    *,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend from each query of a map to all keys.

    Args:
        q: (b, heads, h, w, d).
        k, v: (b, heads, keys, d).
        positions: adds to the logits.
        scale: of the products of queries and keys.
        dropout: of the attention weights.
    Shape: as q
    """
    _, heads, h, w, _ = q.shape
    share, rows, columns = _block_size(q, k.shape[2], positions)
    record = torch.is_grad_enabled()
    by_hand = record and not torch.compiler.is_compiling()  # a compiler finds out what to keep
    out = None if record else torch.empty_like(q)
    blocks = []
    split = (t.split(share, 1) for t in (q * (scale * LOG2E), k.contiguous(), v.contiguous()))
    for i, (q_heads, keys, values) in enumerate(zip(*split, strict=True)):
        own = _part(i, share, heads)
        for j, q_strip in enumerate(q_heads.split(columns, 3)):
            across = _part(j, columns, w)
            strip = positions.strip(own, across)
            for r, queries in enumerate(q_strip.split(rows, 2)):
                down = _part(r, rows, h)
                tensors = (queries, keys, values, *strip)
                if out is not None:
                    out[:, own, down, across], _ = _forward(positions, down, *tensors)
                elif dropout:
                    drop = functools.partial(_dropped, dropout, positions, down)
                    blocks.append(checkpoint(drop, *tensors, use_reentrant=False))
                elif by_hand:
                    blocks.append(_Block.apply(*tensors, positions, down))
                else:
                    blocks.append(_forward(positions, down, *tensors)[0])
    return _joined(blocks, -(-h // rows), -(-w // columns)) if out is None else out


def _logits(bias: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Logits of a block in powers of two, (b * heads, keys, queries); may overwrite the bias."""
    queries, keys = q.flatten(2, 3).flatten(0, 1).transpose(1, 2), k.flatten(0, 1)
    if bias.dtype != queries.dtype:  # the bias of half types is float32
        return bias + torch.bmm(keys, queries)
    if torch.is_grad_enabled():
        return torch.baddbmm(bias, keys, queries)
    return bias.baddbmm_(keys, queries)


def _forward(
    positions: Positions,
    rows: slice,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *strip: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from the queries of a block: as q; and the log of each sum, (b * heads, 1, m)."""
    logits = _logits(positions.block(strip, rows), q, k)
    highest = logits.detach().amax(1, keepdim=True)
    weights = logits.sub_(highest).exp2_()
    total = weights.sum(1, keepdim=True)
    out = torch.bmm(weights.transpose(1, 2).to(v.dtype), v.flatten(0, 1)) / total.transpose(1, 2)
    return out.to(q.dtype).view(q.shape), highest.add_(total.log2())


def _dropped(
    dropout: float, positions: Positions, rows: slice, *tensors: torch.Tensor
) -> torch.Tensor:
    """Attend with dropout of the attention weights."""
    q, k, v, *strip = tensors
    weights = (_logits(positions.block(tuple(strip), rows), q, k) * LN2).softmax(1)
    weights = F.dropout(weights, dropout).transpose(1, 2).to(v.dtype)
    return torch.bmm(weights, v.flatten(0, 1)).view(q.shape)


class _Block(torch.autograd.Function):
    """`_forward` with a backward pass that computes the attention weights again."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        """Attend from the queries of a block: q, k, v, the strip; positions, rows."""
        *tensors, ctx.positions, ctx.rows = given
        out, log_total = _forward(ctx.positions, ctx.rows, *tensors)
        ctx.save_for_backward(out, log_total, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the queries, keys, values and of what the strip prepared."""
        out, log_total, q, k, v, *strip = ctx.saved_tensors
        strip = [t.detach().requires_grad_(t.requires_grad) for t in strip]
        with torch.enable_grad():
            bias = ctx.positions.block(tuple(strip), ctx.rows)
        weights = _logits(bias.data, q, k).sub_(log_total).exp2_()  # (b * heads, n, m)
        d_out = grad.flatten(2, 3).flatten(0, 1)
        d_v = torch.bmm(weights.to(v.dtype), d_out)
        # Each query's mean of what its weights gain; times ln 2, since logits are powers of two.
        mean = (d_out * out.flatten(2, 3).flatten(0, 1)).sum(-1, dtype=weights.dtype) * -LN2
        gained = torch.bmm(v.flatten(0, 1), d_out.transpose(1, 2)).to(weights.dtype)
        d_logits = gained.mul_(LN2).add_(mean[:, None]).mul_(weights)
        narrow = d_logits.to(k.dtype)
        d_q = torch.bmm(narrow.transpose(1, 2), k.flatten(0, 1)).view(q.shape)
        d_k = torch.bmm(narrow, q.flatten(2, 3).flatten(0, 1)).view(k.shape)
        if bias.requires_grad:
            bias.backward(d_logits)
        return d_q, d_k, d_v.view(v.shape), *(t.grad for t in strip), None, None


def _block_size(q: torch.Tensor, keys: int, positions: Positions) -> tuple[int, int, int]:
    """How many heads, rows and columns a block has."""
    b, heads, h, w, _ = q.shape
    columns = strip_columns(w)
    most, group = LOGITS // positions.width, positions.heads_per_group
    least = min(heads, positions.least_heads)
    queries = max(
        min(QUERIES, most // (b * keys * least)), most // (b * keys * heads), QUERIES // 4
    )
    rows = -(-h // -(-h * columns // queries))  # all blocks about alike
    rows += -rows % positions.band
    each = max(b * keys * rows * columns / most, positions.strip_size / STRIP)
    fits = [
        share
        for share in range(1, heads + 1)
        if heads % share == 0 and (share % group == 0 or group % share == 0)
        if share * each <= 1.3
    ]
    return max(fits, default=math.gcd(heads, group) if positions.width > 1 else 1), rows, columns


def strip_columns(w: int) -> int:
    """Columns of a strip: as many as fit, all strips about alike."""
    return -(-w // -(-w // COLUMNS))


def _part(i: int, size: int, whole: int) -> slice:
    return slice(i * size, min((i + 1) * size, whole))


def _joined(blocks: list[torch.Tensor], rows: int, columns: int) -> torch.Tensor:
    """Put blocks together, of which `rows` make a column and `columns` of those a strip."""
    for axis, count in ((2, rows), (3, columns), (1, len(blocks) // (rows * columns))):
        if count > 1:
            blocks = [torch.cat(blocks[i : i + count], axis) for i in range(0, len(blocks), count)]
    return blocks[0]
