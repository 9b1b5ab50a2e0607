"""DAT, the Vision Transformer with Deformable Attention of 2022."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from timm.layers import DropPath
from torch import nn

from zoo.blocks.deformable import dattention_v1
from zoo.blocks.window import ShiftedWindowAttention, WindowAttention
from zoo.layers import ChannelNorm, init_linear, sides
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import model

LETTERS = {"L": "local window", "S": "shifted window", "D": "deformable"}


class DAT(nn.Module):
    """Four stages of window and deformable attention, then a linear classifier.

    Source: Xia et al. 2022, https://arxiv.org/abs/2201.00520; state-dict keys of LeapLabTHU/DAT at
    566a593.
    Differs: returns the logits alone; the sampled points are told by
    `DeformableAttention.points`.
    Args:
        dims: channels of each stage; each is twice the one before.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        stage_spec: a letter for each block of each stage: L local window, S shifted window,
            D deformable.
        window_sizes: window side of each stage, in tokens.
        groups, strides, offset_range_factor, use_pes, dwc_pes, no_offs, fixed_pes: arguments of
            the deformable blocks of each stage, by their official names.
        use_dwc_mlps: for each stage, whether its MLPs hold a depthwise convolution.
        use_conv_patches: overlapping convolutions in stem and between stages.
        img_size: side of the input in pixels, or (h, w), for which the position tables are made.
        patch_size: pixels per token side in the first stage.
        expansion: hidden width of the MLPs, in units of the stage's channels.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
        drop_rate, attn_drop_rate: dropout of outputs and of attention weights.
        num_classes: width of the classifier.
    Shape: (b, 3, h, w) to (b, num_classes); other sizes than `img_size` sample its tables
    Raises: ZooError for a combination that cannot be built.
    """

    def __init__(
        self,
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
        dim_stem: int | None = None,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        num_classes: int = 1000,
        expansion: int = 4,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_widths(dims, dims[0] if dim_stem is None else dim_stem)
        kernel = 7 if use_conv_patches else patch_size
        self.patch_proj = nn.Sequential(
            nn.Conv2d(3, dims[0], kernel, patch_size, 3 if use_conv_patches else 0),
            ChannelNorm(dims[0]),
        )
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.stages, self.down_projs = nn.ModuleList(), nn.ModuleList()
        rows, columns = (side // patch_size for side in sides(img_size))
        for i, dim in enumerate(dims):
            deformable = functools.partial(
                dattention_v1,
                q_size=(rows, columns),
                kv_size=(rows, columns),
                n_heads=heads[i],
                n_head_channels=dim // heads[i],
                n_groups=groups[i],
                stride=strides[i],
                offset_range_factor=offset_range_factor[i],
                use_pe=use_pes[i],
                dwc_pe=dwc_pes[i],
                no_off=no_offs[i],
                fixed_pe=fixed_pes[i],
                stage_idx=i,
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
            )
            window = functools.partial(
                WindowAttention,
                dim,
                heads=heads[i],
                window=window_sizes[i],
                attn_drop=attn_drop_rate,
                proj_drop=drop_rate,
            )
            shifted = functools.partial(
                ShiftedWindowAttention, **window.keywords, map_size=(rows, columns)
            )
            build: dict[str, Callable[[], nn.Module]]
            build = {"L": window, "S": functools.partial(shifted, dim), "D": deformable}
            if len(stage_spec[i]) != depths[i] or not set(stage_spec[i]) <= set(build):
                raise ZooError(
                    f"stage {i} has depth {depths[i]} and blocks {list(stage_spec[i])}; expected "
                    f"one letter a block out of {LETTERS}"
                )
            mlp = functools.partial(
                ConvMLP if use_dwc_mlps[i] else MLP, dim, expansion * dim, drop=drop_rate
            )
            attentions = [build[letter]() for letter in stage_spec[i]]
            before = sum(depths[:i])
            stage = Stage(dim, attentions, mlp, drop_paths[before : before + depths[i]])
            self.stages.append(stage)
            if i + 1 < len(dims):
                kernel, padding = (3, 1) if use_conv_patches else (2, 0)
                down = nn.Conv2d(dim, dims[i + 1], kernel, 2, padding, bias=False)
                self.down_projs.append(nn.Sequential(down, ChannelNorm(dims[i + 1])))
                rows, columns = rows // 2, columns // 2
        self.cls_norm = ChannelNorm(dims[-1])
        self.cls_head = nn.Linear(dims[-1], num_classes)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify a batch of images."""
        x = self.patch_proj(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.down_projs):
                x = self.down_projs[i](x)
        return self.cls_head(self.cls_norm(x).mean((-2, -1)))


class Stage(nn.Module):
    """Blocks of pre-normed attention and MLP, each with a residual.

    Args:
        dim: channels.
        attentions: the attention of each block.
        mlp: builds an MLP.
        drop_paths: stochastic depth of each block.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(
        self,
        dim: int,
        attentions: Sequence[nn.Module],
        mlp: Callable[[], nn.Module],
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.attns = nn.ModuleList(attentions)
        self.mlps = nn.ModuleList(mlp() for _ in attentions)
        self.layer_norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2 * len(attentions)))
        self.drop_path = nn.ModuleList(DropPath(p) if p else nn.Identity() for p in drop_paths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks in order."""
        for i, (attention, mlp) in enumerate(zip(self.attns, self.mlps, strict=True)):
            x = x + self.drop_path[i](attention(self.layer_norms[2 * i](x)))
            x = x + self.drop_path[i](mlp(self.layer_norms[2 * i + 1](x)))
        return x


class MLP(nn.Module):
    """Two linear layers with a GELU between, on each pixel.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        layers: list[tuple[str, nn.Module]] = [
            ("linear1", nn.Linear(dim, hidden)),
            ("act", nn.GELU()),
            ("drop1", nn.Dropout(drop)),
            ("linear2", nn.Linear(hidden, dim)),
            ("drop2", nn.Dropout(drop)),
        ]
        self.chunk = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers with the channels last."""
        return rearrange(self.chunk(rearrange(x, "b c h w -> b h w c")), "b h w c -> b c h w")


class ConvMLP(nn.Module):
    """The MLP with a depthwise 3x3 convolution before the GELU.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.dwc = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act, self.drop = nn.GELU(), nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen, look at the neighbours, narrow."""
        return self.drop(self.linear2(self.drop(self.act(self.dwc(self.linear1(x))))))


def _check_widths(dims: Sequence[int], dim_stem: int) -> None:
    doubled = [dims[0] * 2**i for i in range(len(dims))]
    if dim_stem != dims[0] or list(dims) != doubled:
        raise ZooError(
            f"dim_stem={dim_stem}, dims={list(dims)}: expected the stem as wide as the first "
            "stage and each stage twice as wide as the one before"
        )


@reference("DAT (v1)")
def dat_v1(
    *,
    sr_ratios: Sequence[int] = (8, 4, 2, 1),
    ns_per_pts: Sequence[int] = (4, 4, 4, 4),
    **options: Any,
) -> DAT:
    """Build the module whose state dict the official `DAT` of 2022 has."""
    del sr_ratios, ns_per_pts  # the official code never reads them
    takes = inspect.signature(DAT).parameters
    if unknown := sorted(options.keys() - takes.keys()):
        raise ZooError(f"DAT (v1) takes no {', '.join(unknown)}; it takes: {', '.join(takes)}")
    return DAT(**options)


@model(
    "dat_tiny",
    aliases=("dat",),
    family="dat",
    source="CVPR 2022, arXiv 2201.00520; code LeapLabTHU/DAT at 566a593, Apache-2.0",
    multiple=224,
    minimum=224,
    params=28_319_138,
    published_macs=4.6e9,
    published_top1=82.0,
    published_source="CVPR 2022 paper (parameters, FLOPs), LeapLabTHU/DAT README (top-1)",
)
def dat_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.2,
) -> DAT:
    """DAT-T: local, shifted window and deformable attention."""
    return DAT(
        dims=(96, 192, 384, 768),
        depths=(2, 2, 6, 2),
        heads=(3, 6, 12, 24),
        stage_spec=("LS", "LS", "LDLDLD", "LD"),
        groups=(-1, -1, 3, 6),
        strides=(-1, -1, 1, 1),
        offset_range_factor=(-1, -1, 2, 2),
        use_pes=(False, False, True, True),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
