"""Exact attention with a position term, a block of queries at a time.

All logits of an 80x80 map with 1600 points are 330 MB for 8 heads; a block of them stays in the
cache, and memory grows with queries plus keys instead of with their product. A block is laid out
keys by queries, because then a position term can be written a row of queries at a time, and
softmax works in powers of two, which the CPU takes the fastest. What training keeps of a block is
its input: the rest is computed again in the backward pass.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

LOG2E = math.log2(math.e)
QUERIES = 320  # of a block; a matrix product of fewer is slower
COLUMNS = 64  # of a block, at most
STRIP = 2**22  # elements of a strip
LOGITS = 2**20  # of a block, about

Strip = tuple[torch.Tensor, ...]


class Positions:
    """A position term: a bias for each pair of query and key, times `LOG2E`.

    Args:
        heads_per_group: heads that share the places of their keys; the heads of a strip are a
            multiple or a divisor of them.
        least_heads: heads that a block should have, for all threads to work.
        width: elements that a block needs for each of its logits.
        strip_size: elements that a strip needs for each head.
    """

    heads_per_group: int
    least_heads: int = 1
    width: int = 1
    strip_size: int = 0

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
    b, heads, h, w, _ = q.shape
    share, rows, columns = _block_size(b, heads, k.shape[2], h, w, positions)
    whole = (share, rows, columns) == (heads, h, w)
    keep_inputs_only = torch.is_grad_enabled() and not whole
    strips = []
    split = (t.split(share, 1) for t in (q * (scale * LOG2E), k.contiguous(), v.contiguous()))
    for i, (q_heads, keys, values) in enumerate(zip(*split, strict=True)):
        blocks = []
        for j, q_strip in enumerate(q_heads.split(columns, 3)):
            strip = positions.strip(_part(i, share, heads), _part(j, columns, w))
            for r, queries in enumerate(q_strip.split(rows, 2)):
                run = functools.partial(_attend, positions, _part(r, rows, h), dropout)
                if keep_inputs_only:
                    run = functools.partial(
                        checkpoint, run, use_reentrant=False, preserve_rng_state=dropout > 0
                    )
                blocks.append(run(queries, keys, values, *strip))
        strips.append(_joined(blocks, -(-h // rows)))
    return strips[0] if len(strips) == 1 else torch.cat(strips, 1)


def _attend(
    positions: Positions,
    rows: slice,
    dropout: float,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *strip: torch.Tensor,
) -> torch.Tensor:
    """Attend from the queries of a block, as q."""
    logits = positions.block(strip, rows)
    queries = q.flatten(2, 3).flatten(0, 1).transpose(1, 2)
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    if logits.dtype == queries.dtype:
        logits = logits.baddbmm_(keys, queries)
    else:  # the bias of half types is float32
        logits += torch.bmm(keys, queries)
    logits -= logits.detach().amax(1, keepdim=True)
    weights = logits.exp2_()
    total = weights.sum(1)[..., None]
    weights = F.dropout(weights, dropout, training=dropout > 0).to(values.dtype)
    return (torch.bmm(weights.transpose(1, 2), values) / total).to(q.dtype).view(q.shape)


def _block_size(
    b: int, heads: int, keys: int, h: int, w: int, positions: Positions
) -> tuple[int, int, int]:
    """How many heads, rows and columns a block has."""
    columns = strip_columns(w)
    most, group = LOGITS // positions.width, positions.heads_per_group
    least = min(heads, positions.least_heads)
    queries = min(QUERIES, max(QUERIES // 4, most // (b * keys * least)))
    rows = -(-h // -(-h * columns // queries))  # all blocks about alike
    each = max(b * keys * rows * columns / most, positions.strip_size / STRIP)
    fits = [
        share
        for share in range(1, heads + 1)
        if heads % share == 0 and (share % group == 0 or group % share == 0)
        if share * each <= 1.3
    ]
    return max(fits, default=1), rows, columns


def strip_columns(w: int) -> int:
    """Columns of a strip: as many as fit, all strips about alike."""
    return -(-w // -(-w // COLUMNS))


def _part(i: int, size: int, whole: int) -> slice:
    return slice(i * size, min((i + 1) * size, whole))


def _joined(blocks: list[torch.Tensor], rows: int) -> torch.Tensor:
    """Put the blocks of a strip of heads together; `rows` of them stand in a column."""
    if len(blocks) == 1:
        return blocks[0]
    columns = [torch.cat(blocks[i : i + rows], 2) for i in range(0, len(blocks), rows)]
    return torch.cat(columns, 3)
