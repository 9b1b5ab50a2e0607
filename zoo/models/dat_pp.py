"""DAT++ of 2023: neighborhood and deformable attention in every stage; and DAT+ between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zoo.blocks.deformable import Impl, dattention_v2
from zoo.blocks.neighborhood import NeighborhoodAttention
from zoo.blocks.sra import PyramidAttention
from zoo.layers import ChannelNorm, pointwise, sides
from zoo.models._dat import DAT, build_dat, head_channels, other, windowed
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import model

LETTERS = {
    "L": "local window",
    "S": "shifted window",
    "D": "deformable",
    "N": "neighborhood",
    "P": "pyramid",
    "X": "ConvNeXt",
}


class ConvMLP(nn.Module):
    """The MLP with a depthwise 3x3 convolution, added to its input, before the GELU.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, impl: Impl = "fast") -> None:
        super().__init__()
        self.linear1 = nn.Sequential(pointwise(dim, hidden, impl))
        self.linear2 = nn.Sequential(pointwise(hidden, dim, impl))
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act, self.drop = nn.GELU(), nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen, add what the neighbours say, narrow."""
        x = self.drop(self.linear1(x))
        return self.drop(self.linear2(self.act(x + self.dwc(x))))


@reference("TransformerMLPWithConv (v2)")
def mlp_with_conv(*, channels: int, expansion: int, drop: float) -> ConvMLP:
    """Build the module whose state dict the official class of 2023 has."""
    return ConvMLP(channels, expansion * channels, drop)


@reference("DAT (++)")
def dat_v2(
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    stage_spec: Sequence[Sequence[str]],
    heads: Sequence[int] = (6, 12, 24, 48),
    window_sizes: Sequence[int] = (7, 7, 7, 7),
    groups: Sequence[int] = (-1, -1, 3, 6),
    strides: Sequence[int] = (-1, -1, -1, -1),
    offset_range_factor: Sequence[float] = (1, 2, 3, 4),
    use_pes: Sequence[bool] = (False,) * 4,
    dwc_pes: Sequence[bool] = (False,) * 4,
    no_offs: Sequence[bool] = (False,) * 4,
    fixed_pes: Sequence[bool] = (False,) * 4,
    log_cpb: Sequence[bool] = (False,) * 4,
    ksizes: Sequence[int] = (9, 7, 5, 3),
    nat_ksizes: Sequence[int] = (3, 3, 3, 3),
    sr_ratios: Sequence[int] = (8, 4, 2, 1),
    use_dwc_mlps: Sequence[bool] = (False,) * 4,
    use_lpus: Sequence[bool] = (False,) * 4,
    layer_scale_values: Sequence[float] = (-1, -1, -1, -1),
    use_conv_patches: bool = False,
    dim_stem: int = 96,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    num_classes: int = 1000,
    expansion: int = 4,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    heads_q: Sequence[int] = (6, 12, 24, 48),
    ksize_qnas: Any = None,
    nqs: Any = None,
    qna_activation: Any = None,
    ns_per_pts: Any = None,
    lower_lr_kvs: Any = None,
    impl: Impl = "fast",
) -> DAT:
    """Build the network of 2023 from the arguments of the official class.

    Args:
        dims: channels of each stage; each is twice the one before.
        depths: blocks of each stage.
        stage_spec: a letter for each block of each stage, see `LETTERS`; the letters Q and E of the
            official code, which no published network uses, are refused.
        heads: attention heads of each stage.
        window_sizes: side of the windows of letters L and S and of the kernel of X, per stage.
        groups, strides, offset_range_factor, use_pes, dwc_pes, no_offs, fixed_pes, log_cpb,
            ksizes: arguments of the deformable blocks of each stage.
        nat_ksizes: window side of the neighborhood attention of each stage.
        sr_ratios: side of the patches that become one key of the pyramid attention of each stage.
        use_dwc_mlps: for each stage, whether its MLPs hold a depthwise convolution.
        use_lpus: for each stage, whether a depthwise convolution stands before each block.
        layer_scale_values: start of a learned factor of each residual branch; none if not positive.
        use_conv_patches: overlapping convolutions in stem and between stages.
        dim_stem: channels of the stem.
        img_size: side of the input in pixels, or (h, w), for which the position tables are made;
            other sizes sample them.
        patch_size: pixels per token side in the first stage.
        num_classes: width of the classifier.
        expansion: hidden width of the MLPs, in units of the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        drop_rate, attn_drop_rate: dropout of outputs and of attention weights.
        heads_q, ksize_qnas, nqs, qna_activation, ns_per_pts, lower_lr_kvs: of the letters that
            are refused, or of training; not read.
        impl: of the attention; "reference" computes the whole network as the papers write it.
    Raises:
        ZooError: the combination cannot be built, or the official code fails on it.
    """
    del heads_q, ksize_qnas, nqs, qna_activation, ns_per_pts, lower_lr_kvs
    drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}

    def attention(i: int, letter: str, size: tuple[int, int]) -> nn.Module:
        dim = dims[i]
        if letter == "D":
            return dattention_v2(
                q_size=size,
                kv_size=size,
                n_heads=heads[i],
                n_head_channels=head_channels(dim, heads[i]),
                n_groups=groups[i],
                stride=strides[i],
                offset_range_factor=offset_range_factor[i],
                use_pe=use_pes[i],
                dwc_pe=dwc_pes[i],
                no_off=no_offs[i],
                fixed_pe=fixed_pes[i],
                ksize=ksizes[i],
                log_cpb=log_cpb[i],
                impl=impl,
                **drops,
            )
        if letter == "N":
            return NeighborhoodAttention(
                dim,
                heads=heads[i],
                kernel_size=nat_ksizes[i],
                map_size=size,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
                impl=other(impl),
            )
        if letter == "P":
            return PyramidAttention(dim, heads=heads[i], reduction=sr_ratios[i], **drops)
        if letter == "X":
            kernel = window_sizes[i]
            if kernel % 2 == 0:
                raise ZooError(f"stage {i}: letter X needs an odd window, not {kernel}")
            return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        return windowed(letter, dim, heads[i], window_sizes[i], size, impl=impl, **drops)

    if use_conv_patches and patch_size != 4:
        raise ZooError(f"patch_size={patch_size}: the stem of two convolutions has patches of 4")
    if use_conv_patches:
        stem = nn.Sequential(
            nn.Conv2d(3, dim_stem // 2, 3, 2, 1),
            ChannelNorm(dim_stem // 2),
            nn.GELU(),
            nn.Conv2d(dim_stem // 2, dim_stem, 3, 2, 1),
            ChannelNorm(dim_stem),
        )
    else:
        stem = nn.Sequential(nn.Conv2d(3, dim_stem, patch_size, patch_size), ChannelNorm(dim_stem))
    return build_dat(
        stem,
        attention,
        ConvMLP,
        dims=dims,
        depths=depths,
        stage_spec=stage_spec,
        letters=LETTERS,
        dim_stem=dim_stem,
        img_size=img_size,
        patch_size=patch_size,
        num_classes=num_classes,
        expansion=expansion,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        use_dwc_mlps=use_dwc_mlps,
        use_conv_patches=use_conv_patches,
        impl=impl,
        use_lpus=use_lpus,
        layer_scale_values=layer_scale_values,
    )


def _published(
    *,
    dim: int,
    groups: Sequence[int],
    img_size: int | tuple[int, int],
    num_classes: int,
    drop_path_rate: float,
    impl: Impl,
    convolutions: bool = True,
) -> DAT:
    """Build a published network; heads of 32 channels."""
    return dat_v2(
        dims=[dim * 2**i for i in range(4)],
        depths=(2, 4, 18, 2),
        stage_spec=("ND", "NDND", "ND" * 9, "DD"),
        heads=[dim // 32 * 2**i for i in range(4)],
        groups=groups,
        strides=(8, 4, 2, 1),
        offset_range_factor=(-1, -1, -1, -1),
        use_pes=(True, True, True, True),
        nat_ksizes=(7, 7, 7, 7),
        use_dwc_mlps=(convolutions,) * 4,
        use_lpus=(convolutions,) * 4,
        use_conv_patches=convolutions,
        dim_stem=dim,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_pp_tiny",
    aliases=("dat_pp",),
    family="dat_pp",
    source="arXiv 2309.01430; code LeapLabTHU/DAT at 32173fc, Apache-2.0",
    img_size=224,
    multiple=1,
    minimum=33,
    params=23_962_876,
    published_params=24e6,
    published_macs=4.3e9,
    published_top1=83.9,
    published_source="arXiv 2309.01430 (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_pp_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    impl: Impl = "fast",
) -> DAT:
    """DAT-T++: 64 channels in the first stage."""
    return _published(
        dim=64,
        groups=(1, 2, 4, 8),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_pp_small",
    family="dat_pp",
    source="arXiv 2309.01430; code LeapLabTHU/DAT at 32173fc, Apache-2.0",
    img_size=224,
    multiple=1,
    minimum=33,
    params=53_127_366,
    published_params=53e6,
    published_macs=9.4e9,
    published_top1=84.6,
    published_source="arXiv 2309.01430 (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_pp_small(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.4,
    impl: Impl = "fast",
) -> DAT:
    """DAT-S++: 96 channels in the first stage."""
    return _published(
        dim=96,
        groups=(1, 2, 3, 6),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_pp_base",
    family="dat_pp",
    source="arXiv 2309.01430; code LeapLabTHU/DAT at 32173fc, Apache-2.0",
    img_size=224,
    multiple=1,
    minimum=33,
    params=93_690_640,
    published_params=94e6,
    published_macs=16.6e9,
    published_top1=84.9,
    published_source="arXiv 2309.01430 (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_pp_base(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.7,
    impl: Impl = "fast",
) -> DAT:
    """DAT-B++: 128 channels in the first stage."""
    return _published(
        dim=128,
        groups=(2, 4, 8, 16),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_pp_base_384",
    family="dat_pp",
    source="arXiv 2309.01430; code LeapLabTHU/DAT at 32173fc, Apache-2.0",
    img_size=384,
    multiple=1,
    minimum=33,
    params=93_690_640,
    published_params=94e6,
    published_macs=49.7e9,
    published_top1=85.9,
    published_source="arXiv 2309.01430 (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_pp_base_384(
    *,
    img_size: int | tuple[int, int] = 384,
    num_classes: int = 1000,
    drop_path_rate: float = 0.6,
    impl: Impl = "fast",
) -> DAT:
    """DAT-B++ for 384 pixels; its position tables are those of 224, as published."""
    height, width = sides(img_size)
    return _published(
        dim=128,
        groups=(2, 4, 8, 16),
        img_size=(height * 7 // 12, width * 7 // 12),
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_p_tiny",
    family="dat_pp",
    source="arXiv 2309.01430; code LeapLabTHU/DAT at 32173fc, `dat_p.yaml`, Apache-2.0",
    img_size=224,
    multiple=32,
    minimum=64,
    params=22_772_796,
)
def dat_p_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    impl: Impl = "fast",
) -> DAT:
    """DAT+ tiny: DAT-T++ without the convolutions in stem, blocks and MLPs."""
    return _published(
        dim=64,
        groups=(1, 2, 4, 8),
        img_size=img_size,
        convolutions=False,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )
