"""Parts that two or more families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.prepared import Prepared
from zoo.registry import ZooError

ALIGNED = 8  # entries, see `aligned`


def sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an input whose size is given as a side or as both."""
    return (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])


def head_scale(dim: int, heads: int) -> float:
    """Factor of the logits: one over the root of the channels of a head.

    Raises:
        ZooError: the channels do not divide.
    """
    if heads < 1 or dim % heads:
        raise ZooError(f"dim={dim} is not a multiple of heads={heads}")
    return (dim // heads) ** -0.5


def checked_impl(impl: str, known: Any) -> str:
    """Return the name of an implementation, if it is one of a `Literal`.

    Raises:
        ZooError: it is none.
    """
    if impl not in get_args(known):
        raise ZooError(f"impl={impl!r}: expected one of {', '.join(get_args(known))}")
    return impl


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel; the parameters stand under `norm`.

    Shape: (b, dim, h, w) to (b, dim, h, w)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each pixel's channels."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Linear(nn.Linear):
    """A linear layer whose weights lie as oneDNN wants them, where nothing is learned on a CPU.

    Such weights are a copy, made at the first call and again when the weights have changed.

    Shape: (..., dim) to (..., out)
    """

    def __init__(self, dim: int, out: int, bias: bool = True) -> None:
        super().__init__(dim, out, bias)
        self.prepared = Prepared()

    def forward(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        """Mix the channels, and apply a GELU if asked to."""
        return mixed(x, self, gelu=gelu)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, which is one matrix product where the channels are last in memory.

    Shape: (b, dim, h, w) to (b, out, h, w)
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(dim, out, 1)
        self.prepared = Prepared()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the channels of each pixel."""
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return mixed(x.permute(0, 2, 3, 1), self).permute(0, 3, 1, 2)


def pointwise(dim: int, out: int, impl: str = "fast") -> nn.Conv2d:
    """A 1x1 convolution; the plain one for networks that compute as the official code does."""
    return nn.Conv2d(dim, out, 1) if impl == "reference" else Pointwise(dim, out)


def mixed(x: torch.Tensor, layer: Linear | Pointwise, *, gelu: bool = False) -> torch.Tensor:
    """Mix the last axis of `x` by the weights of a layer."""
    weight, bias = layer.weight, layer.bias
    if not packs(x, weight):
        layer.prepared.clear()
        out = F.linear(x, weight.flatten(1), bias)
        return F.gelu(out) if gelu else out
    ops = torch.ops.mkldnn
    packed = layer.prepared(
        "packed", lambda: ops._reorder_linear_weight(weight.detach().flatten(1)), weight
    )
    return ops._linear_pointwise(x, packed, bias, "gelu" if gelu else "none", [], "none")


def packs(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product is one that oneDNN does with packed weights, and nobody looks on.

    Counters, tracers and compilers are shown the usual operator instead.
    """
    return bool(
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and type(x) is torch.Tensor
        and Prepared.keeps(weight)
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
    )


def in_channels_last(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Run a layer with the channels last in memory; the result lies as `x` does."""
    channels_last = x.contiguous(memory_format=torch.channels_last)
    out = run(channels_last)
    return out if x is channels_last else out.contiguous()


def init_linear(module: nn.Module) -> None:
    """Give a linear layer the transformer's start: weights N(0, 0.02), bias 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resized_table(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a table of positions (heads, h, w) bicubically, as official DAT code does."""
    return F.interpolate(table[None].float(), size=size, mode="bicubic")[0].to(table.dtype)


def depthwise(dim: int, kernel: int | tuple[int, int]) -> nn.Conv2d:
    """Convolution of each channel for itself that keeps the map's size; odd kernels."""
    rows, columns = sides(kernel)
    return nn.Conv2d(dim, dim, (rows, columns), padding=(rows // 2, columns // 2), groups=dim)


def on_map(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call a layer of tokens on a map."""
    h, w = x.shape[-2:]
    out = layer(rearrange(x, "b c h w -> b (h w) c"), (h, w))
    return rearrange(out, "b (h w) c -> b c h w", h=h)


def aligned(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy of a mask in rows that torch's fused attention reads as they are, (..., n).

    Rows begin at multiples of `ALIGNED`. torch would copy others, and their gradient.
    """
    rows = mask.new_zeros(*mask.shape[:-1], mask.shape[-1] + -mask.shape[-1] % ALIGNED, dtype=dtype)
    # Detached: a gradient then passes by the padding, which nobody learns.
    return rows[..., : mask.shape[-1]].detach().copy_(mask)


ACTIVATIONS = ("ReLU6", "ReLU", "GELU", "SiLU", "Hardswish", "LeakyReLU", "ELU", "Mish")


def activation(name: str) -> nn.Module:
    """Activation of torch.nn by its name.

    Raises:
        ZooError: there is none of this name.
    """
    if name not in ACTIVATIONS:
        raise ZooError(f"no activation {name!r}; there is: {', '.join(ACTIVATIONS)}")
    return getattr(nn, name)()


def check_shape(name: str, x: torch.Tensor, out: Any) -> None:
    """Refuse an output of a block that is no tensor, or of another shape than the input.

    Raises:
        ZooError: says which.
    """
    if not torch.is_tensor(out) or out.shape != x.shape:
        given = tuple(out.shape) if torch.is_tensor(out) else type(out).__name__
        raise ZooError(f"block {name} makes {given} of {tuple(x.shape)}; a block keeps the shape")
