"""PVT v1, the Pyramid Vision Transformer of 2021 (timm has only v2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import nn

from zoo.blocks.sra import SpatialReductionAttention
from zoo.features import Pyramid
from zoo.layers import init_linear, sides
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import MODELS, model

NORM_EPS = 1e-6  # of blocks and head; the norms of patches and reduced maps keep 1e-5


class PVT(Pyramid):
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
        qkv_bias: whether the query and key-value projections have a bias.
        norm_eps: of the norms of blocks and head; those of patches and reduced maps have 1e-5.
        img_size: side of the input in pixels, or (h, w), for which the embeddings are made.
        num_classes: width of the classifier; 0 for the features of the class token.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.
    Shape: (b, 3, h, w) to (b, num_classes)
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        norm_eps: float = NORM_EPS,
        img_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.map_sizes: list[tuple[int, int]] = []
        (rows, columns), width = sides(img_size), 3
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1]))
        for i, dim in enumerate(dims, start=1):
            patch = 4 if i == 1 else 2
            rows, columns = rows // patch, columns // patch
            self.map_sizes.append((rows, columns))
            blocks = [
                Block(
                    dim,
                    heads=heads[i - 1],
                    mlp_ratio=mlp_ratios[i - 1],
                    reduction=reductions[i - 1],
                    qkv_bias=qkv_bias,
                    norm_eps=norm_eps,
                    drop_path=next(drop_paths),
                )
                for _ in range(depths[i - 1])
            ]
            embedding = torch.zeros(1, rows * columns + (i == len(dims)), dim)
            self.add_module(f"patch_embed{i}", PatchEmbed(width, dim, patch))
            self.add_module(f"block{i}", nn.ModuleList(blocks))
            self.register_parameter(f"pos_embed{i}", nn.Parameter(embedding))
            nn.init.trunc_normal_(embedding, std=0.02)
            width = dim
        self.norm: nn.Module = nn.LayerNorm(dims[-1], eps=norm_eps)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"block{i + 1}"}
            for i, dim in enumerate(dims)
        ]
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify a batch of images."""
        last = len(self.map_sizes) - 1
        for i in range(last):
            x = self.forward_stage(i, x)
        tokens, _ = self._tokens(last, x)
        return self.head(self.norm(tokens)[:, 0])

    def forward_stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Run a stage on the map of the one before, the first on images; no class token."""
        tokens, (h, w) = self._tokens(i, x)
        return rearrange(tokens[:, tokens.shape[1] - h * w :], "b (h w) c -> b c h w", h=h)

    def keep_stages(self, count: int) -> None:
        """Drop the classifier and the stages from number `count` on."""
        self.norm = self.head = nn.Identity()
        for i in range(count + 1, len(self.map_sizes) + 1):
            for name in (f"patch_embed{i}", f"block{i}", f"pos_embed{i}"):
                delattr(self, name)
        if count < len(self.map_sizes):
            self.register_parameter("cls_token", None)

    def fit_entry(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Resize an embedding of a checkpoint that was made for another, square map.

        Bilinearly, as `forward` does for a map that differs from the one of the network. One of
        as many entries as the network's is not resized, whatever the shape of its map was.
        """
        number = name.removeprefix("pos_embed")
        if name == number or value.ndim != 3:
            return value
        extra = int(number) == len(self.map_sizes)
        side = math.isqrt(value.shape[1] - extra)
        if side**2 + extra != value.shape[1]:
            return value
        return resized(value, (side, side), self.map_sizes[int(number) - 1])

    def _tokens(self, i: int, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Tokens of a stage, in the last behind the class token, and their map's size."""
        x, size = self.get_submodule(f"patch_embed{i + 1}")(x)
        if i == len(self.map_sizes) - 1:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)
        x = x + resized(self.get_parameter(f"pos_embed{i + 1}"), self.map_sizes[i], size)
        for block in self.get_submodule(f"block{i + 1}").children():
            x = block(x, size)
        return x, size


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
        self,
        dim: int,
        *,
        heads: int,
        mlp_ratio: float,
        reduction: int,
        qkv_bias: bool,
        norm_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SpatialReductionAttention(
            dim, heads=heads, reduction=reduction, qkv_bias=qkv_bias
        )
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(mlp_ratio * dim))
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
    *,
    factory: str | None = None,
    depths: Sequence[int] = (),
    embed_dims: Sequence[int] = (64, 128, 320, 512),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
    sr_ratios: Sequence[int] = (8, 4, 2, 1),
    patch_size: int = 4,
    in_chans: int = 3,
    qkv_bias: bool = True,
    qk_scale: None = None,
    norm_eps: float = NORM_EPS,
    num_stages: int = 4,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> PVT:
    """Build what an official factory function, e.g. `pvt_small`, returns, or the class itself.

    Without a factory `depths` must be given; the other defaults are those of the published
    networks. `norm_eps` is that of the official `norm_layer`.
    """
    sizes = {"img_size": img_size, "num_classes": num_classes, "drop_path_rate": drop_path_rate}
    if factory is not None:
        if factory not in MODELS or MODELS[factory].family != "pvt":
            raise ZooError(f"PyramidVisionTransformer: no factory {factory!r}")
        return MODELS[factory].load()(**sizes)
    fixed = (patch_size, in_chans, qk_scale, drop_rate, attn_drop_rate)
    if fixed != (4, 3, None, 0, 0) or not len(depths) == len(embed_dims) == num_stages:
        raise ZooError(
            f"PyramidVisionTransformer: patch_size={patch_size}, in_chans={in_chans}, qk_scale="
            f"{qk_scale}, drop_rate={drop_rate}, attn_drop_rate={attn_drop_rate}, {len(depths)} "
            f"depths; expected 4, 3, None, 0, 0 and {num_stages} depths"
        )
    return PVT(
        depths=depths,
        dims=embed_dims,
        heads=num_heads,
        mlp_ratios=mlp_ratios,
        reductions=sr_ratios,
        qkv_bias=qkv_bias,
        norm_eps=norm_eps,
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_tiny",
    family="pvt",
    source="ICCV 2021, arXiv 2102.12122; code whai362/PVT at 57e2dfa, Apache-2.0",
    params=13_229_288,
    published_params=13.2e6,
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
    published_params=24.5e6,
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


@model(
    "pvt_medium",
    family="pvt",
    source="ICCV 2021, arXiv 2102.12122; code whai362/PVT at 57e2dfa, Apache-2.0",
    params=44_208_104,
    published_params=44.2e6,
    published_macs=6.7e9,
    published_top1=81.2,
    published_source="whai362/PVT README (parameters, top-1), PVT paper (FLOPs)",
)
def pvt_medium(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> PVT:
    """PVT-Medium: 18 blocks in the third stage."""
    return PVT(
        depths=(3, 4, 18, 3),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )


@model(
    "pvt_large",
    family="pvt",
    source="ICCV 2021, arXiv 2102.12122; code whai362/PVT at 57e2dfa, Apache-2.0",
    params=61_369_320,
    published_params=61.4e6,
    published_macs=9.8e9,
    published_top1=81.7,
    published_source="whai362/PVT README (parameters, top-1), PVT paper (FLOPs)",
)
def pvt_large(
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.3,
) -> PVT:
    """PVT-Large: 27 blocks in the third stage."""
    return PVT(
        depths=(3, 8, 27, 3),
        img_size=img_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
