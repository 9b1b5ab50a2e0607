"""Batch norms folded into the convolutions before them, as networks are deployed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.outputs import tensors_of
from zoo.registry import ZooError

CLOSE = 1e-3  # of the largest magnitude of an output


def fuse(model: nn.Module, example: torch.Tensor) -> int:
    """Fold each batch norm into the convolution whose output it takes; in place.

    A model's own `fuse()`, as ultralytics' detectors have it, comes first. What it leaves, such as
    norms inside of blocks, is found by running the model once.

    Args:
        model: in eval mode, on the CPU, in float32.
        example: (b, c, h, w), what it is run on.
    Returns:
        How many batch norms are gone.
    Raises:
        ZooError: the outputs would change, because the output of a convolution is used twice.
    """
    before = _norms(model)
    with torch.no_grad():
        expected = list(tensors_of(model(example)))
    if callable(own := getattr(model, "fuse", None)):
        own(verbose=False) if "verbose" in own.__code__.co_varnames else own()
    for convolution_name, norm_name in _pairs(model, example):
        convolution: Any = model.get_submodule(convolution_name)
        norm: Any = model.get_submodule(norm_name)
        _replace(model, convolution_name, fuse_conv_bn_eval(convolution, norm))
        rest: nn.Module = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            rest = nn.Sequential(norm.drop, norm.act)
        _replace(model, norm_name, rest)
    with torch.no_grad():
        found = list(tensors_of(model(example)))
    if callable(own):  # it may drop what only training reads
        expected, found = expected[:1], found[:1]
    for a, b in zip(expected, found, strict=True):
        if float((a - b).abs().max()) > CLOSE * float(a.abs().max()):
            raise ZooError("its batch norms cannot be folded: the outputs change; leave --fuse out")
    return before - _norms(model)


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their outputs, each called once."""
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, tuple[torch.Tensor, nn.Module]] = {}  # holds the tensors, so that ids stay
    pairs: list[tuple[nn.Module, nn.Module]] = []
    calls: Counter[nn.Module] = Counter()

    def convolved(module: nn.Module, _: Any, out: torch.Tensor) -> None:
        made[id(out)] = out, module
        calls[module] += 1

    def normed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[module] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][1], module))

    hooks = []
    for module in names:
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(convolved))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(normed))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(names[a], names[b]) for a, b in pairs if calls[a] == calls[b] == 1]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent).add_module(own, module)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
