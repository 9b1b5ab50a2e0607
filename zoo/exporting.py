"""What a file can hold of a model: blocks in a form that other runtimes know, plain outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def traced() -> bool:
    """Whether TorchScript or torch's older ONNX exporter traces the model, as ultralytics does."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
    return torch.onnx.is_in_onnx_export() or tracing


@contextlib.contextmanager
def portable(model: nn.Module) -> Iterator[None]:
    """Let blocks run, meanwhile, in operators that ONNX has and its runtimes run well.

    A block names that form in `portable_impl`. Weighted sums of rows become a loop in ONNX, nine
    times slower than the papers' bilinear sampling; deformable convolution is unknown to OpenVINO
    as ONNX writes it, and becomes bilinear sampling too.
    """
    changed = []
    try:
        for module in model.modules():
            form = getattr(module, "portable_impl", None)
            if form is not None:
                changed.append((module, module.impl))
                module.impl = form
        yield
    finally:
        for module, impl in changed:
            module.impl = impl
