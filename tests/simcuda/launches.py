"""Counts what a step of models asks of the device, after one that warms up.

    python launches.py '{"models": ["dat_tiny"], "batches": [1, 64]}'

prints a line for each model, batch and mode. "modes" are "inference" and "training", forward and
backward; the other options are those of `datbench.plan.make_plan`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence

import torch
from probe import get
from torch.utils._pytree import tree_leaves

from datbench.plan import Case, make_plan

COUNTED = ("launches", "gemms", "convolutions", "h2d", "d2h", "syncs")


def count(case: Case, batches: Sequence[int], modes: Sequence[str]) -> Iterator[dict[str, object]]:
    """Run a step twice for each batch and mode, and count the second."""
    work = case.workload
    dtype = getattr(torch, work.dtype)
    layout = torch.channels_last if work.channels_last else torch.contiguous_format
    model = case.build().to("cuda", dtype)
    for mode in modes:
        learns = mode == "training"
        model.train(learns)
        for batch in batches:
            x = torch.empty(batch, *work.input_shape, device="cuda", dtype=dtype)
            x = x.contiguous(memory_format=layout).requires_grad_(learns and case.task == "block")
            step(model, x, learns)
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = {name: get(name) for name in COUNTED}
            step(model, x, learns)
            counts = {name: int(get(name) - before[name]) for name in COUNTED}
            x.grad = None
            yield {
                "model": case.label, "mode": mode, "batch": batch,
                "kernels": sum(counts[name] for name in COUNTED[:3]), **counts,
                "peak": torch.cuda.max_memory_allocated(),
            }  # fmt: skip


def step(model: torch.nn.Module, x: torch.Tensor, learns: bool) -> None:
    """Run forward, and backward if it learns."""
    model.zero_grad(set_to_none=True)
    x.grad = None
    with torch.set_grad_enabled(learns):
        out = model(x)
    if learns:
        tensors = [t for t in tree_leaves(out) if t.requires_grad]
        torch.autograd.backward(tensors, [torch.empty_like(t) for t in tensors])


def main() -> None:
    """Count for what the argument names."""
    options = {"device": "cuda", "image": "noise", **json.loads(sys.argv[1])}
    batches, modes = options.pop("batches", (1, 64)), options.pop("modes", ("inference",))
    for case in make_plan(options.pop("models"), **options).cases:
        child = os.fork()  # a fresh device for each
        if not child:
            for counted in count(case, batches, modes):
                print(json.dumps(counted), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{case.label} failed")


if __name__ == "__main__":
    main()
