"""DAT, the Vision Transformer with Deformable Attention of 2022."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zoo.blocks.deformable import Impl, dattention_v1
from zoo.layers import ChannelNorm, pointwise
from zoo.models._dat import DAT, build_dat, head_channels, windowed
from zoo.reference import reference
from zoo.spec import model

LETTERS = {"L": "local window", "S": "shifted window", "D": "deformable"}


class ConvMLP(nn.Module):
    """The MLP with a depthwise 3x3 convolution before the GELU.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, impl: Impl = "fast") -> None:
        super().__init__()
        self.linear1, self.linear2 = pointwise(dim, hidden, impl), pointwise(hidden, dim, impl)
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act, self.drop = nn.GELU(), nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen, look at the neighbours, narrow."""
        return self.drop(self.linear2(self.drop(self.act(self.dwc(self.linear1(x))))))


@reference("DAT (v1)")
def dat_v1(
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    stage_spec: Sequence[Sequence[str]],
    window_sizes: Sequence[int] = (7, 7, 7, 7),
    groups: Sequence[int] = (-1, -1, 3, 6),
    strides: Sequence[int] = (-1, -1, -1, -1),
    offset_range_factor: Sequence[float] = (1, 2, 3, 4),
    use_pes: Sequence[bool] = (False,) * 4,
    dwc_pes: Sequence[bool] = (False,) * 4,
    no_offs: Sequence[bool] = (False,) * 4,
    fixed_pes: Sequence[bool] = (False,) * 4,
    use_dwc_mlps: Sequence[bool] = (False,) * 4,
    use_conv_patches: bool = False,
    dim_stem: int = 96,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 4,
    num_classes: int = 1000,
    expansion: int = 4,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    sr_ratios: Sequence[int] = (8, 4, 2, 1),
    ns_per_pts: Sequence[int] = (4, 4, 4, 4),
    impl: Impl = "fast",
) -> DAT:
    """Build the network of 2022 from the arguments of the official class.

    Args:
        dims: channels of each stage; each is twice the one before.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        stage_spec: a letter for each block of each stage: L local window, S shifted window,
            D deformable.
        window_sizes: window side of each stage, in tokens.
        groups, strides, offset_range_factor, use_pes, dwc_pes, no_offs, fixed_pes: arguments of
            the deformable blocks of each stage.
        use_dwc_mlps: for each stage, whether its MLPs hold a depthwise convolution.
        use_conv_patches: overlapping convolutions in stem and between stages.
        dim_stem: channels of the stem.
        img_size: side of the input in pixels, or (h, w), for which the position tables are made.
        patch_size: pixels per token side in the first stage.
        num_classes: width of the classifier.
        expansion: hidden width of the MLPs, in units of the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        drop_rate, attn_drop_rate: dropout of outputs and of attention weights.
        sr_ratios, ns_per_pts: not read, as in the official code.
        impl: of the attention; "reference" computes the whole network as the papers write it.
    Raises:
        ZooError: the combination cannot be built.
    """
    del sr_ratios, ns_per_pts
    drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}

    def attention(i: int, letter: str, size: tuple[int, int]) -> nn.Module:
        if letter == "D":
            return dattention_v1(
                q_size=size,
                kv_size=size,
                n_heads=heads[i],
                n_head_channels=head_channels(dims[i], heads[i]),
                n_groups=groups[i],
                stride=strides[i],
                offset_range_factor=offset_range_factor[i],
                use_pe=use_pes[i],
                dwc_pe=dwc_pes[i],
                no_off=no_offs[i],
                fixed_pe=fixed_pes[i],
                stage_idx=i,
                impl=impl,
                **drops,
            )
        return windowed(letter, dims[i], heads[i], window_sizes[i], size, impl=impl, **drops)

    kernel = 7 if use_conv_patches else patch_size
    stem = nn.Sequential(
        nn.Conv2d(3, dim_stem, kernel, patch_size, 3 if use_conv_patches else 0),
        ChannelNorm(dim_stem),
    )
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
    )


def _published(
    *,
    dim: int,
    depth: int,
    window: int,
    img_size: int | tuple[int, int],
    num_classes: int,
    drop_path_rate: float,
    impl: Impl,
) -> DAT:
    """Build a published network; heads of 32 channels, deformable attention from stage 3 on."""
    dims = [dim * 2**i for i in range(4)]
    heads = [d // 32 for d in dims]
    return dat_v1(
        dims=dims,
        depths=(2, 2, depth, 2),
        heads=heads,
        stage_spec=("LS", "LS", "LD" * (depth // 2), "LD"),
        window_sizes=(window,) * 4,
        groups=(-1, -1, heads[0], heads[1]),
        strides=(-1, -1, 1, 1),
        offset_range_factor=(-1, -1, 2, 2),
        use_pes=(False, False, True, True),
        dim_stem=dim,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_tiny",
    aliases=("dat",),
    family="dat",
    source="CVPR 2022, arXiv 2201.00520; code LeapLabTHU/DAT at 566a593, Apache-2.0",
    img_size=224,
    multiple=224,
    minimum=224,
    params=28_319_138,
    published_params=29e6,
    published_macs=4.6e9,
    published_top1=82.0,
    published_source="CVPR 2022 paper (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
    impl: Impl = "fast",
) -> DAT:
    """DAT-T: local, shifted window and deformable attention."""
    return _published(
        dim=96,
        depth=6,
        window=7,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_small",
    family="dat",
    source="CVPR 2022, arXiv 2201.00520; code LeapLabTHU/DAT at 566a593, Apache-2.0",
    img_size=224,
    multiple=224,
    minimum=224,
    params=49_700_402,
    published_params=50e6,
    published_macs=9.0e9,
    published_top1=83.7,
    published_source="CVPR 2022 paper (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_small(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
    impl: Impl = "fast",
) -> DAT:
    """DAT-S: 18 blocks in the third stage."""
    return _published(
        dim=96,
        depth=18,
        window=7,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_base",
    family="dat",
    source="CVPR 2022, arXiv 2201.00520; code LeapLabTHU/DAT at 566a593, Apache-2.0",
    img_size=224,
    multiple=224,
    minimum=224,
    params=87_881_632,
    published_params=88e6,
    published_macs=15.8e9,
    published_top1=84.0,
    published_source="CVPR 2022 paper (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_base(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
    impl: Impl = "fast",
) -> DAT:
    """DAT-B: 18 blocks in the third stage, 128 channels in the first."""
    return _published(
        dim=128,
        depth=18,
        window=7,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )


@model(
    "dat_base_384",
    family="dat",
    source="CVPR 2022, arXiv 2201.00520; code LeapLabTHU/DAT at 566a593, Apache-2.0",
    img_size=384,
    multiple=384,
    minimum=384,
    params=88_178_272,
    published_params=88e6,
    published_macs=49.8e9,
    published_top1=84.8,
    published_source="CVPR 2022 paper (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_base_384(
    *,
    img_size: int | tuple[int, int] = 384,
    num_classes: int = 1000,
    drop_path_rate: float = 0.5,
    impl: Impl = "fast",
) -> DAT:
    """DAT-B for 384 pixels, with windows of 12 x 12 tokens."""
    return _published(
        dim=128,
        depth=18,
        window=12,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        impl=impl,
    )
