"""PVT v1, the Pyramid Vision Transformer of 2021 (timm has only v2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import nn

from zoo.blocks.sra import SpatialReductionAttention
from zoo.layers import init_linear, sides
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import MODELS, model

NORM_EPS = 1e-6  # of blocks and head; the norms of patches and reduced maps keep 1e-5


class PVT(nn.Module):
    """Four stages of spatial-reduction attention with a class token in the last.

    Source: Wang et al. 2021, https://arxiv.org/abs/2102.12122; state-dict keys of whai362/PVT at
    57e2dfa, `classification/pvt.py`.
    Differs: position embeddings are resized wherever a stage's map differs from the one they
    were made for; the official code compares each stage with the first, and fails where a later
    stage happens to have as many tokens.
    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden width of the MLPs of each stage, in units of its channels.
        reductions: side of the patches that become one key, for each stage.
        img_size: side of the input in pixels, or (h, w), for which the embeddings are made.
        num_classes: width of the classifier.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
    Shape: (b, 3, h, w) to (b, num_classes)
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        img_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.map_sizes: list[tuple[int, int]] = []
        (rows, columns), width = sides(img_size), 3
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1]))
        for i, dim in enumerate(dims, start=1):
            patch = 4 if i == 1 else 2
            rows, columns = rows // patch, columns // patch
            self.map_sizes.append((rows, columns))
            last = i == len(dims)
            blocks = [
                Block(dim, heads[i - 1], mlp_ratios[i - 1], reductions[i - 1], next(drop_paths))
                for _ in range(depths[i - 1])
            ]
            embedding = torch.zeros(1, rows * columns + last, dim)
            self.add_module(f"patch_embed{i}", PatchEmbed(width, dim, patch))
            self.add_module(f"block{i}", nn.ModuleList(blocks))
            self.register_parameter(f"pos_embed{i}", nn.Parameter(embedding))
            nn.init.trunc_normal_(embedding, std=0.02)
            width = dim
        self.norm = nn.LayerNorm(dims[-1], eps=NORM_EPS)
        self.head = nn.Linear(dims[-1], num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify a batch of images."""
        for i, built in enumerate(self.map_sizes, start=1):
            x, (h, w) = self.get_submodule(f"patch_embed{i}")(x)
            position = resized(self.get_parameter(f"pos_embed{i}"), built, (h, w))
            last = i == len(self.map_sizes)
            if last:
                x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)
            x = x + position
            for block in self.get_submodule(f"block{i}").children():
                x = block(x, (h, w))
            if not last:
                x = rearrange(x, "b (h w) c -> b c h w", h=h)
        return self.head(self.norm(x)[:, 0])


class PatchEmbed(nn.Module):
    """Turn patches into normalised tokens.

    Shape: (b, width, h, w) to tokens (b, n, dim) and their map's (rows, columns)
    """

    def __init__(self, width: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Project and normalise."""
        x = self.proj(x)
        size = (x.shape[-2], x.shape[-1])
        return self.norm(rearrange(x, "b c h w -> b (h w) c")), size


class Block(nn.Module):
    """Pre-normed attention and MLP, each with a residual.

    Shape: tokens (b, n, dim) to (b, n, dim)
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: int, reduction: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SpatialReductionAttention(dim, heads=heads, reduction=reduction)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Attend, then transform each token."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MLP(nn.Module):
    """Two linear layers with a GELU between.

    Shape: (..., dim) to (..., dim)
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen and narrow."""
        return self.fc2(self.act(self.fc1(x)))


def resized(position: torch.Tensor, built: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Resize a position embedding (1, tokens, c) to another map; a class token's entry stays."""
    if built == size:
        return position
    extra = position.shape[1] - built[0] * built[1]
    grid = rearrange(position[:, extra:], "b (h w) c -> b c h w", h=built[0])
    grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return torch.cat((position[:, :extra], rearrange(grid, "b c h w -> b (h w) c")), 1)


@reference("PyramidVisionTransformer")
def pyramid_vision_transformer(
    *, factory: str, img_size: int = 224, num_classes: int = 1000, drop_path_rate: float = 0.0
) -> PVT:
    """Build the network that an official factory function, e.g. `pvt_small`, returns."""
    if factory not in MODELS or MODELS[factory].family != "pvt":
        raise ZooError(f"PyramidVisionTransformer: no factory {factory!r}")
    return MODELS[factory].load()(
        img_size=img_size, num_classes=num_classes, drop_path_rate=drop_path_rate
    )


@model(
    "pvt_tiny",
    family="pvt",
    source="ICCV 2021, arXiv 2102.12122; code whai362/PVT at 57e2dfa, Apache-2.0",
    params=13_229_288,
    published_macs=1.9e9,
    published_top1=75.1,
    published_source="whai362/PVT README (parameters, top-1), PVT paper (FLOPs)",
)
def pvt_tiny(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.1,
) -> PVT:
    """PVT-Tiny: 2 blocks a stage."""
    return PVT(
        depths=(2, 2, 2, 2),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_small",
    aliases=("pvt",),
    family="pvt",
    source="ICCV 2021, arXiv 2102.12122; code whai362/PVT at 57e2dfa, Apache-2.0",
    params=24_485_864,
    published_macs=3.8e9,
    published_top1=79.8,
    published_source="whai362/PVT README (parameters, top-1), PVT paper (FLOPs)",
)
def pvt_small(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.1,
) -> PVT:
    """PVT-Small: the size that the DAT paper compares with."""
    return PVT(
        depths=(3, 4, 6, 3),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
