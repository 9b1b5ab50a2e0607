"""Squeeze-enhanced axial attention of SeaFormer: rows and columns attend as their means."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.layers import activation
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block

TABLE = 16  # positions that a table holds; other lengths are interpolated


@block("sea", source="SeaFormer, arXiv 2301.13156")
class SqueezeAxialAttention(nn.Module):
    """SEA: attention among means of rows and of columns gates a convolution.

    Source: Wan et al. 2023, https://arxiv.org/abs/2301.13156, section 3.2; state-dict keys of
    `Sea_Attention` in fudan-zvg/SeaFormer at 9718d05. The gate starts at one half: the last
    normalisations begin with weight 0.
    Args:
        dim: channels.
        heads: attention heads.
        key_dim: channels of a head's queries and keys; dim // heads by default.
        ratio: channels of a head's values, in `key_dim`.
        act: name of an activation of torch.nn.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim has fewer channels than there are heads.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        key_dim: int | None = None,
        ratio: float = 2,
        act: str = "ReLU6",
    ) -> None:
        super().__init__()
        if key_dim is None and heads > 0:
            key_dim = dim // heads
        if heads < 1 or not key_dim or key_dim < 1 or int(ratio * key_dim) < 1:
            raise ZooError(
                f"dim={dim}, heads={heads}, key_dim={key_dim}, ratio={ratio}: "
                "no channels for a head"
            )
        self.heads, self.scale = heads, key_dim**-0.5
        keys, values = key_dim * heads, int(ratio * key_dim) * heads
        self.to_q, self.to_k = conv_norm(dim, keys), conv_norm(dim, keys)
        self.to_v = conv_norm(dim, values)
        self.proj = nn.Sequential(activation(act), conv_norm(values, dim, start=0))
        for axis in ("row", "column"):
            encode = nn.Sequential(activation(act), conv_norm(values, values, start=0))
            setattr(self, f"proj_encode_{axis}", encode)
            setattr(self, f"pos_emb_{axis}q", AxisPosition(keys))
            setattr(self, f"pos_emb_{axis}k", AxisPosition(keys))
        self.dwconv = conv_norm(2 * keys + values, kernel=3)
        self.act = activation(act)
        self.pwconv = conv_norm(2 * keys + values, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Let rows and columns attend, and gate the detail of the projections by the result."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        detail = self.pwconv(self.act(self.dwconv(torch.cat((q, k, v), 1))))
        rows = self._attended("row", *(t.mean(3) for t in (q, k, v)))
        columns = self._attended("column", *(t.mean(2) for t in (q, k, v)))
        gate = self.proj(v + rows[..., None] + columns[..., None, :])
        return F.hardsigmoid(gate) * detail

    def _attended(
        self, axis: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attend along one axis, (b, keys, n), (b, keys, n), (b, values, n) to (b, values, n)."""
        q = getattr(self, f"pos_emb_{axis}q")(q)
        k = getattr(self, f"pos_emb_{axis}k")(k)
        queries = rearrange(q, "b (a d) m -> b a m d", a=self.heads)
        keys = rearrange(k, "b (a d) n -> b a d n", a=self.heads)
        values = rearrange(v, "b (a d) n -> b a n d", a=self.heads)
        weights = (queries @ keys * self.scale).softmax(-1)
        out = rearrange(weights @ values, "b a m d -> b (a d) m 1")
        return getattr(self, f"proj_encode_{axis}")(out)[..., 0]


class AxisPosition(nn.Module):
    """Adds a learned position to each place of an axis, interpolated to its length.

    Shape: (b, dim, n) to (b, dim, n)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, dim, TABLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the positions."""
        return x + F.interpolate(self.pos_embed, x.shape[-1], mode="linear", align_corners=False)


@block("sea_layer", source="SeaFormer, arXiv 2301.13156")
class SqueezeAxialLayer(nn.Module):
    """SeaFormer layer: SEA, then a convolutional MLP; both add.

    Source: Wan et al. 2023, https://arxiv.org/abs/2301.13156; state-dict keys of `Block` in
    fudan-zvg/SeaFormer at 9718d05.
    Args:
        dim, heads, key_dim, ratio, act: as `SqueezeAxialAttention`.
        mlp_ratio: hidden channels of the MLP, in `dim`.
        drop: dropout of the MLP.
        drop_path: share of samples for which a branch is left out in training.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if dim has fewer channels than there are heads.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        key_dim: int | None = None,
        ratio: float = 2,
        mlp_ratio: float = 4,
        act: str = "ReLU6",
        drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        from timm.layers import DropPath

        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attn = SqueezeAxialAttention(dim, heads=heads, key_dim=key_dim, ratio=ratio, act=act)
        self.drop_path = DropPath(drop_path)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=conv_norm(dim, hidden),
                dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
                act=activation(act),
                drop1=nn.Dropout(drop),
                fc2=conv_norm(hidden, dim),
                drop2=nn.Dropout(drop),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the attention, then the MLP."""
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(x))


def conv_norm(dim: int, out_dim: int | None = None, kernel: int = 1, start: float = 1) -> Any:
    """A convolution (depthwise without `out_dim`) and its batch norm, whose weight is `start`."""
    groups = dim if out_dim is None else 1
    out = out_dim or dim
    c = nn.Conv2d(dim, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    bn = nn.BatchNorm2d(out)
    nn.init.constant_(bn.weight, start)
    return nn.Sequential(OrderedDict(c=c, bn=bn))


def _check_norm(norm_cfg: Mapping[str, Any] | None) -> None:
    """Both official names of the norm are BatchNorm2d."""
    if (norm_cfg or {}).get("type", "BN") not in ("BN", "BN2d"):
        raise ZooError(f"norm_cfg={norm_cfg}: only BatchNorm2d is supported")


@reference("Sea_Attention")
def sea_attention(
    *,
    dim: int,
    key_dim: int,
    num_heads: int,
    attn_ratio: float = 2,
    activation: str | type[nn.Module] | None = None,
    norm_cfg: Mapping[str, Any] | None = None,
) -> SqueezeAxialAttention:
    """Build the module whose state dict the official class has."""
    if activation is None:
        raise ZooError("Sea_Attention: activation=None crashes officially; give ReLU6")
    _check_norm(norm_cfg)
    act = activation if isinstance(activation, str) else activation.__name__
    return SqueezeAxialAttention(dim, heads=num_heads, key_dim=key_dim, ratio=attn_ratio, act=act)


@reference("Block (SeaFormer layer)")
def seaformer_layer(
    *,
    dim: int,
    key_dim: int,
    num_heads: int,
    mlp_ratio: float = 4,
    attn_ratio: float = 2,
    drop: float = 0.0,
    drop_path: float = 0.0,
    act_layer: str | type[nn.Module] = "ReLU",
    norm_cfg: Mapping[str, Any] | None = None,
) -> SqueezeAxialLayer:
    """Build the module whose state dict the official `Block` has."""
    _check_norm(norm_cfg)
    return SqueezeAxialLayer(
        dim,
        heads=num_heads,
        key_dim=key_dim,
        ratio=attn_ratio,
        mlp_ratio=mlp_ratio,
        act=act_layer if isinstance(act_layer, str) else act_layer.__name__,
        drop=drop,
        drop_path=drop_path,
    )
