"""Multi-scale dilated attention of DilateFormer: groups of heads look near or far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.layers import head_scale
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


@block("msda", source="DilateFormer, arXiv 2302.01791")
class MultiScaleDilatedAttention(nn.Module):
    """MSDA: attention to the k x k pixels around each, a dilation per group of heads.

    Outside the map stand keys and values of zero, which take part in the softmax.

    Source: Jiao et al. 2023, https://arxiv.org/abs/2302.01791, section 3.2; state-dict keys of
    `MultiDilatelocalAttention` in JIAOJIAYUASD/dilateformer at 99f85bb.
    Differs: channels first; the input is left as it is, where the official code writes into it.
    The paper has three dilations, which 8 heads cannot share; the default has a fourth.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads; a multiple of the number of dilations.
        kernel_size: side of the neighbourhood in pixels; odd.
        dilations: pixels between its keys, for each group of heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        scale: of the logits; one over the root of a head's channels by default.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if heads or channels do not divide, or the neighbourhood has no centre.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2, 3, 4),
        qkv_bias: bool = False,
        scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        own = head_scale(dim, heads)
        self.scale = own if scale is None else scale
        if not self.dilations or heads % len(self.dilations):
            raise ZooError(f"heads={heads} is not a multiple of the {len(dilations)} dilations")
        if kernel_size < 1 or kernel_size % 2 == 0 or min(self.dilations) < 1:
            raise ZooError(
                f"kernel_size={kernel_size}, dilations={self.dilations}: expected an odd side and "
                "dilations of 1 or more"
            )
        self.head_dim, self.kernel_size = dim // heads, kernel_size
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel to its neighbourhoods."""
        h, groups = x.shape[-2], len(self.dilations)
        qkv = rearrange(self.qkv(x), "b (three g c) h w -> three g b c h w", three=3, g=groups)
        q, k, v = qkv.unbind()
        out = [self._attended(q[i], k[i], v[i], step) for i, step in enumerate(self.dilations)]
        tokens = self.proj(torch.cat(out, -1))  # (b, h * w, dim)
        return self.proj_drop(rearrange(tokens, "b (h w) c -> b c h w", h=h))

    def _attended(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dilation: int
    ) -> torch.Tensor:
        """Attend at one dilation, maps (b, c, h, w) to tokens (b, h * w, c)."""
        padding = dilation * (self.kernel_size - 1) // 2
        k, v = (F.unfold(t, self.kernel_size, dilation, padding) for t in (k, v))
        queries = rearrange(q, "b (a d) h w -> b a (h w) 1 d", d=self.head_dim)
        # Scaled here: on a CPU Inductor takes scaled logits for attention without the axis m.
        queries = queries * self.scale
        keys = rearrange(k, "b (a d k) m -> b a m d k", d=self.head_dim, k=self.kernel_size**2)
        values = rearrange(v, "b (a d k) m -> b a m k d", d=self.head_dim, k=self.kernel_size**2)
        weights = self.attn_drop((queries @ keys).softmax(-1))
        return rearrange(weights @ values, "b a m 1 d -> b m (a d)")


class _ChannelsLast(MultiScaleDilatedAttention):
    """The same in the official layout, (b, h, w, dim) to (b, h, w, dim)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@reference("MultiDilatelocalAttention")
def multi_dilate_local_attention(
    *,
    dim: int,
    num_heads: int = 8,
    qkv_bias: bool = False,
    qk_scale: float | None = None,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    kernel_size: int = 3,
    dilation: Sequence[int] = (1, 2, 3),
) -> MultiScaleDilatedAttention:
    """Build the module whose state dict and layout, channels last, the official class has."""
    return _ChannelsLast(
        dim,
        heads=num_heads,
        kernel_size=kernel_size,
        dilations=dilation,
        qkv_bias=qkv_bias,
        scale=qk_scale,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
    )
