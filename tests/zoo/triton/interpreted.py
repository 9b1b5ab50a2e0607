"""Runs the Triton kernels in Triton's interpreter, and says how far they are from the papers.

    TRITON_INTERPRET=1 python interpreted.py '["kernels alone", "version 1"]'

prints a line of JSON for each case: the largest differences of the output and of each gradient, as
shares of the largest entry or of one, against `impl=reference` in float32 and in float64, and of
the kernels alone against gradients written by hand.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from typing import Any

import torch
from torch import nn

from zoo.blocks import _deformable_triton as kernels
from zoo.blocks.deformable import DeformableAttention

CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "version 1": ({"version": 1, "table_size": (7, 5)}, (7, 5)),
    "version 2": ({"table_size": (7, 5)}, (7, 5)),
    "one point": ({"version": 1, "stride": 9, "kernel_size": 9, "table_size": (9, 9)}, (9, 9)),
    "narrow": ({"table_size": (3, 11)}, (3, 11)),
    "larger than a tile": ({"table_size": (9, 13)}, (9, 13)),
    "strided": ({"table_size": (12, 10), "stride": 2}, (12, 10)),
    "table of another size": ({"table_size": (14, 14)}, (9, 6)),
    "version 1, another size": ({"version": 1, "table_size": (4, 9)}, (9, 6)),
    "clamped": ({"table_size": (9, 6), "offset_range": -1}, (9, 6)),
    "far outside": ({"version": 1, "table_size": (5, 6), "offset_range": 40.0}, (5, 6)),
    "16 channels": ({"table_size": (6, 7), "dim": 64}, (6, 7)),
    "24 channels": ({"table_size": (6, 7), "dim": 96}, (6, 7)),
    "64 channels": ({"table_size": (6, 7), "dim": 256}, (6, 7)),
    "128 channels": ({"table_size": (6, 7), "dim": 256, "heads": 2, "groups": 1}, (6, 7)),
    "float16": ({"table_size": (7, 9), "dtype": torch.float16}, (7, 9)),
}


def built(impl: str, *, dim: int = 128, dtype: Any = None, **options: Any) -> nn.Module:
    """Build a block whose weights, and so the moves of its points, are not small."""
    options = {"heads": 4, "groups": 2, "position": "table", **options}
    block = DeformableAttention(dim, impl=impl, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            spread = 0.5 if parameter.ndim < 3 else 0.3 / math.sqrt(parameter[0].numel())
            parameter.normal_(std=spread, generator=generator)
        block.rpe_table.normal_(std=0.5, generator=generator)
    return block.to(dtype or torch.float32)


def learned(block: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and gradients."""
    x = x.detach().requires_grad_()
    out = block(x)
    out.backward(gradient.to(out.dtype))
    found = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **found}  # type: ignore[dict-item]


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each, as a share of its largest entry or, if that is less, of one."""
    assert ours.keys() == theirs.keys()
    return {
        name: float((ours[name].double() - other).abs().max() / other.abs().max().clamp(min=1))
        for name, other in theirs.items()
    }


def by_hand(q, k, v, table, queries, points, scale, gradient):  # type: ignore[no-untyped-def]
    """Output (b, heads, m, d) and gradients of what `deformable_attention` takes, in full."""
    heads, groups = q.shape[1], points.shape[2]
    of = torch.arange(heads) // (heads // groups)
    y, x = (
        queries[i][None, None, :, None] - points[i][:, of][:, :, None] for i in range(2)
    )  # (b, heads, m, n)
    _, height, width = table.shape
    head = torch.arange(heads)[None, :, None, None].expand_as(y)
    bias, d_y, d_x = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
    taps = []
    for down in (0, 1):
        for across in (0, 1):
            row, column = y.floor() + down, x.floor() + across
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight_y, weight_x = 1 - (y - row).abs(), 1 - (x - column).abs()
            index = (row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long())
            entry = table[head, *index] * inside
            bias += entry * weight_y * weight_x
            d_y += entry * (1 if down else -1) * weight_x
            d_x += entry * weight_y * (1 if across else -1)
            taps.append((index, weight_y * weight_x * inside))
    weights = (q @ k.transpose(2, 3) * scale + bias).softmax(-1)
    d_logits = weights * (
        gradient @ v.transpose(2, 3) - (gradient * (weights @ v)).sum(-1, keepdim=True)
    )
    d_table = torch.zeros_like(table)
    for index, weight in taps:
        d_table.index_put_((head, *index), d_logits * weight, accumulate=True)
    d_points = torch.stack([-(d_logits * d).sum(2) for d in (d_y, d_x)])
    return {
        "out": weights @ v,
        "q": d_logits @ k * scale,
        "k": d_logits.transpose(2, 3) @ q * scale,
        "v": weights.transpose(2, 3) @ gradient,
        "table": d_table,
        "points": d_points.unflatten(2, (groups, heads // groups)).sum(3),
    }


def kernels_alone() -> dict[str, float]:
    """The kernels against `by_hand`, on queries and points that lie between entries."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = noise(2, 4, 37, 20), noise(2, 4, 21, 20), noise(2, 4, 21, 20)
    table, queries = noise(4, 9, 12), noise(2, 37) * 3 + 5
    points, gradient = noise(2, 2, 2, 21) * 2, noise(2, 4, 37, 20)
    expected = by_hand(q, k, v, table, queries, points, 0.3, gradient)
    given = [t.float().requires_grad_() for t in (q, k, v, table, points)]
    *qkv_table, moved = given
    out = kernels.deformable_attention(*qkv_table, queries.float(), moved, 0.3)[0].transpose(1, 2)
    out.backward(gradient.float())
    found = dict(zip(("q", "k", "v", "table", "points"), (t.grad for t in given), strict=True))
    return apart({"out": out.detach(), **found}, expected)  # type: ignore[dict-item]


def main() -> None:
    """Print how far each case is that the argument names."""
    names = json.loads(sys.argv[1])
    if "kernels alone" in names:
        print(json.dumps({"case": "kernels alone", "by_hand": kernels_alone()}), flush=True)
    for name, (options, (h, w)) in CASES.items():
        if name not in names:
            continue
        ours, reference = built("triton", **options), built("reference", **options)
        assert sum(p.numel() for p in ours.parameters()) == sum(
            p.numel() for p in reference.parameters()
        )
        exact = copy.deepcopy(reference).double()
        generator = torch.Generator().manual_seed(2)
        x, gradient = torch.randn(2, 2, ours.proj_q.in_channels, h, w, generator=generator)
        found = learned(ours, x.to(options.get("dtype", torch.float32)), gradient)
        line: dict[str, Any] = {"case": name}
        if "dtype" not in options:
            line["float32"] = apart(found, learned(reference, x, gradient))
        line["float64"] = apart(found, learned(exact, x.double(), gradient))
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
