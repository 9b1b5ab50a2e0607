"""What the common counters say of the same networks, beside ours and what is published.

    python benchmarks/counters.py

Each counts one input on the CPU as its users call it; thop is the fork that ultralytics installs.
FlopCounterMode's FLOPs are halved. Nothing is timed.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator

import thop
import timm
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from datbench.counters import copies_of, count
from zoo.spec import MODELS


def ours(model: nn.Module, images: torch.Tensor) -> float | None:
    """Count with datbench."""
    return count(copies_of(model), images).macs


def fvcore_alone(model: nn.Module, images: torch.Tensor) -> float:
    """Count with fvcore's own handles."""
    return FlopCountAnalysis(model, images).total()


def torch_alone(model: nn.Module, images: torch.Tensor) -> float:
    """Count with torch's own formulas."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 2


def thop_alone(model: nn.Module, images: torch.Tensor) -> float:
    """Count with thop, which leaves hooks and buffers in the model."""
    return thop.profile(copy.deepcopy(model), inputs=(images,), verbose=False)[0]


COUNTERS = (ours, fvcore_alone, torch_alone, thop_alone)


def networks() -> Iterator[tuple[str, nn.Module, int, float | None]]:
    """Names, networks, sides of their inputs and published multiply-adds."""
    for name in ("dat_tiny", "dat_pp_tiny"):
        yield name, zoo.create_model(name), 224, MODELS[name].published_macs
    for fused in (False, True):
        with fused_attention(fused):
            model = zoo.create_model("swin_tiny")
        yield f"swin_tiny, fused {fused}", model, 224, MODELS["swin_tiny"].published_macs
    yield "pvt_v2_b1", zoo.create_model("pvt_v2_b1"), 224, MODELS["pvt_v2_b1"].published_macs
    yield "vit_base_patch16_224", timm.create_model("vit_base_patch16_224"), 224, 17.58e9
    vit = torchvision.models.vit_b_16()  # of nn.MultiheadAttention
    yield "torchvision's vit_b_16", vit, 224, 17.56e9
    yield "yolov8n", zoo.create_model("yolov8n"), 640, MODELS["yolov8n"].published_macs
    yield "yolov8n+acmix", zoo.create_model("yolov8n+acmix"), 640, None


@contextlib.contextmanager
def fused_attention(on: bool) -> Iterator[None]:
    """Let timm build its windows with fused attention, or without."""
    timm.layers.set_fused_attn(on, experimental=True)
    try:
        yield
    finally:
        timm.layers.set_fused_attn(True)


def main() -> None:
    """Print a table in Markdown, in units of 10^9 multiply-adds."""
    warnings.simplefilter("ignore")
    logging.disable()
    print("| GMACs of one image | ours | fvcore | FlopCounterMode | thop | published |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, model, side, published in networks():
        images = torch.rand(1, 3, side, side)
        with torch.no_grad():
            cells = [f"{(counter(model.eval(), images) or 0) / 1e9:.4f}" for counter in COUNTERS]
        known = "" if published is None else f"{published / 1e9:g}"
        print(f"| {name} | {' | '.join(cells)} | {known} |")


if __name__ == "__main__":
    main()
