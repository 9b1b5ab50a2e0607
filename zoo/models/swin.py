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
    published_params=28e6,
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


@model(
    "swin_small",
    family="swin",
    source="ICCV 2021, arXiv 2103.14030; code timm, Apache-2.0",
    params=49_606_258,
    published_params=50e6,
    published_macs=8.7e9,
    published_top1=83.2,
    published_source="microsoft/Swin-Transformer README",
)
def swin_small(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> nn.Module:
    """Swin-S: 18 blocks in the third stage."""
    return timm.create_model(
        "swin_small_patch4_window7_224",
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "swin_base",
    family="swin",
    source="ICCV 2021, arXiv 2103.14030; code timm, Apache-2.0",
    params=87_768_224,
    published_params=88e6,
    published_macs=15.4e9,
    published_top1=83.5,
    published_source="microsoft/Swin-Transformer README",
)
def swin_base(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
) -> nn.Module:
    """Swin-B: 18 blocks in the third stage, 128 channels in the first."""
    return timm.create_model(
        "swin_base_patch4_window7_224",
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "swin_base_384",
    family="swin",
    source="ICCV 2021, arXiv 2103.14030; code timm, Apache-2.0",
    img_size=384,
    params=87_903_584,
    published_params=88e6,
    published_macs=47.1e9,
    published_top1=84.5,
    published_source="microsoft/Swin-Transformer README",
)
def swin_base_384(
    *,
    img_size: int | tuple[int, int] = 384,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
) -> nn.Module:
    """Swin-B for 384 pixels, with windows of 12 x 12 tokens."""
    return timm.create_model(
        "swin_base_patch4_window12_384",
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
