"""Swin Transformer, built by timm."""

from __future__ import annotations

import timm
from torch import nn

from zoo.spec import model


@model(
    "swin_tiny",
    aliases=("swin",),
    family="swin",
    source="ICCV 2021, arXiv 2103.14030; code timm, Apache-2.0",
    params=28_288_354,
    published_macs=4.5e9,
    published_top1=81.2,
    published_source="microsoft/Swin-Transformer README",
)
def swin_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
) -> nn.Module:
    """Swin-T: shifted windows of 7 x 7 tokens."""
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
