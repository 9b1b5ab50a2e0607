"""PVT v2, built by timm: PVT with overlapping patches and convolutions instead of embeddings."""

from __future__ import annotations

import timm
from torch import nn

from zoo.spec import model


@model(
    "pvt_v2_b0",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=3_666_760,
    published_params=3.7e6,
    published_macs=0.6e9,
    published_top1=70.5,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b0(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.1,
) -> nn.Module:
    """PVTv2-B0: 2, 2, 2, 2 blocks, 32 channels in the first stage."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b0",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_v2_b1",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=14_009_000,
    published_params=14.0e6,
    published_macs=2.1e9,
    published_top1=78.7,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b1(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.1,
) -> nn.Module:
    """PVTv2-B1: 2, 2, 2, 2 blocks."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b1",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_v2_b2",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=25_362_856,
    published_params=25.4e6,
    published_macs=4.0e9,
    published_top1=82.0,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b2(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.1,
) -> nn.Module:
    """PVTv2-B2: 3, 4, 6, 3 blocks."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b2",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_v2_b3",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=45_238_696,
    published_params=45.2e6,
    published_macs=6.9e9,
    published_top1=83.1,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b3(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> nn.Module:
    """PVTv2-B3: 3, 4, 18, 3 blocks."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b3",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_v2_b4",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=62_556_072,
    published_params=62.6e6,
    published_macs=10.1e9,
    published_top1=83.6,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b4(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> nn.Module:
    """PVTv2-B4: 3, 8, 27, 3 blocks."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b4",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_v2_b5",
    family="pvt_v2",
    source="CVM 2022, arXiv 2106.13797; code timm, Apache-2.0",
    params=81_956_008,
    published_params=82.0e6,
    published_macs=11.8e9,
    published_top1=83.8,
    published_source="whai362/PVT README (parameters, top-1), PVT v2 paper (FLOPs)",
)
def pvt_v2_b5(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> nn.Module:
    """PVTv2-B5: 3, 6, 40, 3 blocks, narrower MLPs."""
    del img_size  # it has no tables: every network takes every size
    return timm.create_model(
        "pvt_v2_b5",
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
