"""ACmix: self-attention in a window and a convolution, from one set of projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.layers import head_scale
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block

TAPS = 3  # side of the convolution


@block("acmix", source="ACmix, arXiv 2111.14556", minimum=4)
class ACmix(nn.Module):
    """ACmix: window attention and a convolution that share their 1 x 1 projections, added.

    The position term is linear in the distance of query and key; what of it depends on the query
    alone drops out of the softmax and is not computed. The map is mirrored at its borders.

    Source: Pan et al. 2022, https://arxiv.org/abs/2111.14556, section 4; state-dict keys of
    LeapLabTHU/ACmix at 81dddb6, where the position's bias and the layout of the two paths are as
    here.
    Args:
        dim: channels.
        out_dim: channels of the output, `dim` by default; a multiple of `heads`.
        heads: attention heads.
        kernel_size: side of the attention window in pixels; odd.
        stride: pixels between the outputs.
    Shape: (b, dim, h, w) to (b, out_dim, h / stride, w / stride)
    Raises: ZooError if the channels do not divide, or a side is no multiple of the stride or not
        longer than half the window.
    """

    def __init__(
        self,
        dim: int,
        *,
        out_dim: int | None = None,
        heads: int = 8,
        kernel_size: int = 7,
        stride: int = 1,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        self.scale = head_scale(out_dim, heads)
        if kernel_size < 1 or kernel_size % 2 == 0 or stride < 1:
            raise ZooError(
                f"kernel_size={kernel_size}, stride={stride}: expected an odd window and a "
                "positive stride"
            )
        self.heads, self.kernel_size, self.stride = heads, kernel_size, stride
        head_dim = out_dim // heads
        self.conv1, self.conv2 = nn.Conv2d(dim, out_dim, 1), nn.Conv2d(dim, out_dim, 1)
        self.conv3 = nn.Conv2d(dim, out_dim, 1)
        self.conv_p = nn.Conv2d(2, head_dim, 1)
        self.fc = nn.Conv2d(3 * heads, TAPS**2, 1, bias=False)
        self.dep_conv = nn.Conv2d(
            head_dim * TAPS**2, out_dim, TAPS, stride, padding=1, groups=head_dim, bias=False
        )
        self.rate1 = nn.Parameter(torch.full((1,), 0.5))
        self.rate2 = nn.Parameter(torch.full((1,), 0.5))
        shifts = torch.eye(TAPS**2).reshape(TAPS**2, TAPS, TAPS)
        with torch.no_grad():  # each tap of the 1 x 1 projection is moved to its place
            self.dep_conv.weight.copy_(shifts.expand(out_dim, -1, -1, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix attention and convolution of `x`."""
        h, w = x.shape[-2:]
        if min(h, w) <= self.kernel_size // 2:
            raise ZooError(
                f"input is {h}x{w}; a window of kernel_size={self.kernel_size} mirrors "
                f"{self.kernel_size // 2} pixels, so each side needs one more"
            )
        if h % self.stride or w % self.stride:
            raise ZooError(f"input is {h}x{w}, not a multiple of stride={self.stride}")
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        return self.rate1 * self._attended(q, k, v) + self.rate2 * self._convolved(q, k, v)

    def _attended(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads, step = self.heads, self.stride
        position = self.conv_p(coordinates_xy(q))  # (1, d, h, w), the same for all heads
        keys = self._windows(k - position.repeat(1, heads, 1, 1))
        values = self._windows(v)
        queries = rearrange(q[..., ::step, ::step], "b (a d) h w -> b a (h w) 1 d", a=heads)
        logits = queries * self.scale @ keys.transpose(-1, -2)  # (b, a, m, 1, k)
        out = logits.softmax(-1).to(values.dtype) @ values
        return rearrange(out, "b a (h w) 1 d -> b (a d) h w", h=q.shape[-2] // step)

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        """Collect each query's window, (b, a, m, k, d)."""
        side = self.kernel_size // 2
        mirrored = F.pad(x, (side, side, side, side), mode="reflect")
        unfolded = F.unfold(mirrored, self.kernel_size, stride=self.stride)
        return rearrange(unfolded, "b (a d k) m -> b a m k d", a=self.heads, k=self.kernel_size**2)

    def _convolved(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        stacked = torch.cat(
            [rearrange(t, "b (a d) h w -> b a d (h w)", a=self.heads) for t in (q, k, v)], 1
        )
        taps = rearrange(self.fc(stacked), "b t d (h w) -> b (d t) h w", h=q.shape[-2])
        return self.dep_conv(taps)


def coordinates_xy(x: torch.Tensor) -> torch.Tensor:
    """Places of a map's pixels from -1 to 1, (1, xy, h, w)."""
    h, w = x.shape[-2:]
    ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
    xs = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"))[None]


@reference("ACmix")
def acmix(
    *,
    in_planes: int,
    out_planes: int,
    kernel_att: int = 7,
    head: int = 4,
    kernel_conv: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> ACmix:
    """Build the module whose state dict the official class has."""
    if kernel_conv != TAPS or dilation != 1:
        raise ZooError(
            f"ACmix: kernel_conv={kernel_conv}, dilation={dilation}; the official code works "
            "with kernel_conv=3 and dilation=1 only"
        )
    return ACmix(in_planes, out_dim=out_planes, heads=head, kernel_size=kernel_att, stride=stride)
