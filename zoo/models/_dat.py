"""What the networks of both DAT papers share: the skeleton, its stages, the MLPs."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import nn

from zoo.blocks.deformable import Impl
from zoo.blocks.window import local_attention, shift_window_attention
from zoo.features import Pyramid
from zoo.layers import ChannelNorm, Linear, init_linear, packs, pointwise, sides
from zoo.registry import ZooError

WIDENED = 2**20  # elements that the MLP widens at a time; memory of more is mapped anew each time


class DAT(Pyramid):
    """A stem, stages of attention with a strided convolution between them, a linear classifier.

    Source: Xia et al. 2022, https://arxiv.org/abs/2201.00520; state-dict keys of LeapLabTHU/DAT.
    `zoo.models.dat.dat_v1` and `zoo.models.dat_pp.dat_v2` build it from the official arguments.
    Differs: returns the logits alone; the sampled points are told by
    `DeformableAttention.points`.
    Args:
        stem: (b, 3, h, w) to (b, dim_stem, h / patch_size, w / patch_size).
        stages: as many as there are levels.
        down_kernel: side of the convolutions between the stages; their stride is 2.
        patch_size: pixels per token side in the first stage.
        num_classes: width of the classifier; 0 for pooled features.
        impl: "reference" takes images as they lie; otherwise their channels are put last in memory,
            where all maps inside of the network have theirs.
    Shape: (b, 3, h, w) to (b, num_classes)
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Stage],
        *,
        down_kernel: int,
        patch_size: int,
        num_classes: int,
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        self.official_layout = impl == "reference"
        self.patch_proj, self.stages = stem, nn.ModuleList(stages)
        dims = [stage.dim for stage in stages]
        self.down_projs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dims[i], dims[i + 1], down_kernel, 2, (down_kernel - 1) // 2, bias=False),
                ChannelNorm(dims[i + 1]),
            )
            for i in range(len(dims) - 1)
        )
        self.cls_norm: nn.Module = ChannelNorm(dims[-1])
        self.cls_head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify a batch of images."""
        for i in range(len(self.stages)):
            x = self.forward_stage(i, x)
        return self.cls_head(self.cls_norm(x).mean((-2, -1)))

    def forward_stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Run a stage on the output of the one before, the first on images."""
        before = self.down_projs[i - 1] if i else self.patch_proj
        if not self.official_layout:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.stages[i](before(x))

    def keep_stages(self, count: int) -> None:
        """Drop the classifier and the stages from number `count` on."""
        self.cls_norm = self.cls_head = nn.Identity()
        self.stages, self.down_projs = self.stages[:count], self.down_projs[: count - 1]


class Stage(nn.Module):
    """Blocks of pre-normed attention and MLP, each with a residual.

    A block of letter X has no norm before its convolution and one after it, and one residual.

    Args:
        dim: channels.
        letters: one for each block.
        attentions: the attention of each block; a depthwise convolution for letter X.
        mlp: builds an MLP.
        drop_paths: stochastic depth of each block.
        dim_in: channels of the input; a projection takes them to `dim` where they differ.
        perception: whether a depthwise 3x3 convolution with a residual stands before each block.
        layer_scale: start of a learned factor of each residual branch; none if 0 or less.
        impl: see `build_dat`.
    Shape: (b, dim_in, h, w) to (b, dim, h, w)
    """

    def __init__(
        self,
        dim: int,
        letters: Sequence[str],
        attentions: Sequence[nn.Module],
        mlp: Callable[[], nn.Module],
        drop_paths: Sequence[float],
        *,
        dim_in: int | None = None,
        perception: bool = False,
        layer_scale: float = 0.0,
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        self.dim, self.letters = dim, tuple(letters)
        twice = [letter for letter in letters for _ in range(2)]
        self.proj = nn.Identity() if dim_in in (None, dim) else pointwise(dim_in, dim, impl)
        self.attns = nn.ModuleList(attentions)
        self.mlps = nn.ModuleList(mlp() for _ in letters)
        self.layer_norms = nn.ModuleList(
            nn.Identity() if letter == "X" else ChannelNorm(dim) for letter in twice
        )
        self.ln_cnvnxt = nn.ModuleDict(
            {str(i): ChannelNorm(dim) for i, letter in enumerate(letters) if letter == "X"}
        )
        self.layer_scales = nn.ModuleList(
            ChannelScale(dim, layer_scale) if layer_scale > 0 else nn.Identity() for _ in twice
        )
        self.local_perception_units = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in letters if perception
        )
        self.drop_path = nn.ModuleList(DropPath(p) if p else nn.Identity() for p in drop_paths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks in order."""
        x = self.proj(x)
        for i, letter in enumerate(self.letters):
            if self.local_perception_units:
                x = x + self.local_perception_units[i](x)
            if letter == "X":
                branch = self.mlps[i](self.ln_cnvnxt[str(i)](self.attns[i](x)))
                x = x + self.drop_path[i](branch)
                continue
            for j, layer in ((2 * i, self.attns[i]), (2 * i + 1, self.mlps[i])):
                x = x + self.drop_path[i](self.layer_scales[j](layer(self.layer_norms[j](x))))
        return x


class ChannelScale(nn.Module):
    """A learned factor for each channel.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale each channel."""
        return x * self.weight[:, None, None]


class MLP(nn.Module):
    """Two linear layers with a GELU between, on each pixel.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, impl: Impl = "fast") -> None:
        super().__init__()
        linear = nn.Linear if impl == "reference" else Linear
        layers: list[tuple[str, nn.Module]] = [
            ("linear1", linear(dim, hidden)),
            ("act", nn.GELU()),
            ("drop1", nn.Dropout(drop)),
            ("linear2", linear(hidden, dim)),
            ("drop2", nn.Dropout(drop)),
        ]
        self.chunk = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers with the channels last."""
        x = x.permute(0, 2, 3, 1)
        widen, narrow = self.chunk[0], self.chunk[3]
        if self.training or not isinstance(widen, Linear):
            return self.chunk(x).permute(0, 3, 1, 2)
        parts = -(-x.numel() // WIDENED) if packs(x, widen.weight) else 1
        out = [narrow(widen(tokens, gelu=True)) for tokens in x.flatten(0, 2).chunk(parts)]
        x = (out[0] if parts == 1 else torch.cat(out)).view(x.shape)
        return x.permute(0, 3, 1, 2)


def build_dat(
    stem: nn.Module,
    attention: Callable[[int, str, tuple[int, int]], nn.Module],
    conv_mlp: Callable[..., nn.Module],
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    stage_spec: Sequence[Sequence[str]],
    letters: Mapping[str, str],
    dim_stem: int,
    img_size: int | tuple[int, int],
    patch_size: int,
    num_classes: int,
    expansion: int,
    drop_rate: float,
    drop_path_rate: float,
    use_dwc_mlps: Sequence[bool],
    use_conv_patches: bool,
    use_lpus: Sequence[bool] = (False,) * 4,
    layer_scale_values: Sequence[float] = (0.0,) * 4,
    impl: Impl = "fast",
) -> DAT:
    """Build a network from the official arguments.

    Args:
        stem: as `DAT` takes it.
        attention: builds the attention of a stage's number, a letter and the map's (rows, columns).
        conv_mlp: the MLP of the stages that `use_dwc_mlps` names, with the arguments of `MLP`.
        letters: what each letter that may stand in `stage_spec` means.
        impl: of the attention; "reference" lays maps out as the official code does.
    Raises:
        ZooError: the widths do not double, or a letter is unknown.
    """
    if not len(dims) == len(depths) == len(stage_spec):
        raise ZooError(
            f"{len(dims)} dims, {len(depths)} depths and {len(stage_spec)} entries of stage_spec: "
            "expected one of each for every stage"
        )
    doubled = [dims[0] * 2**i for i in range(len(dims))]
    if list(dims) != doubled:
        raise ZooError(f"dims={list(dims)}: expected each stage twice as wide as the one before")
    rows, columns = (side // patch_size for side in sides(img_size))
    drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
    stages = []
    for i, (dim, depth, spec) in enumerate(zip(dims, depths, stage_spec, strict=True)):
        if len(spec) != depth or not set(spec) <= set(letters):
            raise ZooError(
                f"stage {i} has depth {depth} and blocks {list(spec)}; expected one letter a "
                f"block out of {dict(letters)}"
            )
        size, before = (max(1, rows // 2**i), max(1, columns // 2**i)), sum(depths[:i])
        stages.append(
            Stage(
                dim,
                spec,
                [attention(i, letter, size) for letter in spec],
                functools.partial(
                    conv_mlp if use_dwc_mlps[i] else MLP, dim, expansion * dim, drop_rate, impl
                ),
                drop_paths[before : before + depth],
                dim_in=dim_stem if i == 0 else dim,
                perception=use_lpus[i],
                layer_scale=layer_scale_values[i],
                impl=impl,
            )
        )
    return DAT(
        stem,
        stages,
        down_kernel=3 if use_conv_patches else 2,
        patch_size=patch_size,
        num_classes=num_classes,
        impl=impl,
    )


def head_channels(dim: int, heads: int) -> int:
    """Channels of a head.

    Raises:
        ZooError: the heads do not divide the channels.
    """
    if heads < 1 or dim % heads:
        raise ZooError(f"{dim} channels do not divide into {heads} heads")
    return dim // heads


def other(impl: Impl) -> Literal["fast", "reference"]:
    """Choose how attention without points is computed, in a network whose points are `impl`."""
    return "reference" if impl == "reference" else "fast"


def windowed(
    letter: str, dim: int, heads: int, window: int, size: tuple[int, int], **options: Any
) -> nn.Module:
    """Build the attention of letter L or S; S shifts by half a window, rounded up."""
    options["impl"] = other(options["impl"])
    if letter == "L":
        return local_attention(dim=dim, heads=heads, window_size=window, **options)
    shift = -(-window // 2)
    return shift_window_attention(
        dim=dim, heads=heads, window_size=window, shift_size=shift, fmap_size=size, **options
    )
