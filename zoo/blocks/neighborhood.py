"""Neighborhood attention: every pixel attends to the k x k pixels around it.

The map is cut into small tiles of queries. The keys that any query of a tile sees form one
rectangle, so each tile is one dense product, with a bias of minus infinity where a query must
not look. For k = 7 a tile of 4 x 4 queries meets 10 x 10 keys: twice the products that are
needed, at the speed of a matrix product, and no key is copied k x k times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.layers import init_linear
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block


class Tiles(NamedTuple):
    """How one axis of a map is cut into tiles, as indices.

    Args:
        query: pixel of each query of each tile, (tiles, n); the last tile repeats its last pixel.
        key: pixel of each key of each tile, (tiles, m).
        entry: entry of the bias table, key minus query plus k - 1, (tiles, n, m); 2k - 1 where the
            key is outside the query's window.
        home: place of each pixel among the queries of all tiles, (length,).
    """

    query: torch.Tensor
    key: torch.Tensor
    entry: torch.Tensor
    home: torch.Tensor


@block("neighborhood", source="NAT, arXiv 2204.07143, as in DAT++, arXiv 2309.01430")
class NeighborhoodAttention(nn.Module):
    """Multi-head attention inside a `kernel_size` x `kernel_size` window around each pixel.

    A window that would leave the map is moved inside, so that every query has as many keys. A
    side shorter than the window is padded with zeros below or to the right; padded pixels are
    attended to, with the bias of the projection.

    Source: Hassani et al. 2023, https://arxiv.org/abs/2204.07143; state-dict keys of
    `NeighborhoodAttention2D` in LeapLabTHU/DAT at 32173fc, window rule of natten 0.14.6.
    Args:
        dim: channels; a multiple of `heads`.
        heads: attention heads.
        kernel_size: side of the window in pixels; odd, 3 or more.
        dilation: pixels between the keys of a window; pixels that it keeps apart never meet.
        map_size: (h, w) for which the tiles are kept; for other sizes they are made on the fly.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
    Shape: (b, dim, h, w) to (b, dim, h, w)
    Raises: ZooError if the window or the channels do not fit.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        kernel_size: int = 7,
        dilation: int = 1,
        map_size: tuple[int, int] | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ZooError(f"dim={dim} is not a multiple of heads={heads}")
        if kernel_size < 3 or kernel_size % 2 == 0 or dilation < 1:
            raise ZooError(
                f"kernel_size={kernel_size}, dilation={dilation}: expected an odd window of 3 or "
                "more pixels and a dilation of 1 or more"
            )
        self.heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        self.scale = (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        table = torch.zeros(heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
        self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.map_size = None if map_size is None else self._padded(map_size[0], map_size[1])
        for axis, length in zip("yx", self.map_size or (), strict=False):
            tiles = tile(length, kernel_size, dilation)
            for name, tensor in tiles._asdict().items():
                self.register_buffer(f"{name}_{axis}", tensor, persistent=False)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel of `x` to its neighborhood."""
        h, w = x.shape[-2:]
        size = self._padded(h, w)
        x = F.pad(rearrange(x, "b c h w -> b h w c"), (0, 0, 0, size[1] - w, 0, size[0] - h))
        rows, columns = self._tiles(size, x.device)
        q, kv = self.qkv(x).split((x.shape[-1], 2 * x.shape[-1]), -1)
        queries = _gathered(q * self.scale, rows.query, columns.query, self.heads)
        keys, values = _gathered(kv, rows.key, columns.key, 2 * self.heads).chunk(2, 2)
        logits = queries @ keys.transpose(-1, -2) + self._bias(rows.entry, columns.entry)
        out = self.attn_drop(logits.softmax(-1)).to(values.dtype) @ values
        out = rearrange(
            out,
            "b (i j) a (y x) d -> b (i y) (j x) (a d)",
            i=len(rows.query),
            y=rows.query.shape[1],
        )
        out = out.index_select(1, rows.home[:h]).index_select(2, columns.home[:w])
        return self.proj_drop(rearrange(self.proj(out), "b h w c -> b c h w"))

    def excess_macs(self, x: torch.Tensor) -> int:
        """Multiply-adds for one image like `x` with keys outside the windows, masked by the tiles.

        A kernel made for the operator does not do them.
        """
        size = self._padded(x.shape[-2], x.shape[-1])
        rows, columns = self._tiles(size, x.device)
        done = rows.entry.numel() * columns.entry.numel()
        needed = size[0] * size[1] * self.kernel_size**2
        return 2 * x.shape[1] * (done - needed)

    def _padded(self, h: int, w: int) -> tuple[int, int]:
        window = self.kernel_size * self.dilation
        return max(h, window), max(w, window)

    def _tiles(self, size: tuple[int, int], device: torch.device) -> tuple[Tiles, Tiles]:
        if size == self.map_size:
            kept = [
                Tiles(*(self.get_buffer(f"{name}_{axis}") for name in Tiles._fields))
                for axis in "yx"
            ]
            return kept[0], kept[1]
        rows, columns = (tile(n, self.kernel_size, self.dilation, device) for n in size)
        return rows, columns

    def _bias(self, entry_y: torch.Tensor, entry_x: torch.Tensor) -> torch.Tensor:
        """Bias of each query and key of each tile, (tiles, heads, n, m)."""
        table = F.pad(self.rpb, (0, 1, 0, 1), value=float("-inf"))
        bias = table.index_select(1, entry_y.flatten()).index_select(2, entry_x.flatten())
        (i, y, _), (j, x, _) = entry_y.shape, entry_x.shape
        pattern = "a (i y ky) (j x kx) -> (i j) a (y x) (ky kx)"
        return rearrange(bias, pattern, i=i, j=j, y=y, x=x)


def tile(length: int, kernel_size: int, dilation: int, device: torch.device | None = None) -> Tiles:
    """Cut an axis into tiles of about half a window; `length` is at least the window.

    Pixels that are `dilation` apart form a line of their own, with windows of its own.
    """
    side = (kernel_size + 1) // 2
    longest = -(-length // dilation)  # pixels of the longest line
    per_line = -(-longest // side)  # tiles

    def arange(n: int) -> torch.Tensor:
        return torch.arange(n, device=device)

    line = arange(dilation).repeat_interleave(per_line)
    last = (length - line + dilation - 1) // dilation - 1  # place of the line's last pixel
    place = (arange(per_line) * side).repeat(dilation)[:, None] + arange(side)
    place = place.minimum(last[:, None])
    first = (place - kernel_size // 2).clamp(min=0).minimum(last[:, None] - kernel_size + 1)
    seen = first[:, :1] + arange(min(side + kernel_size - 1, longest))
    offset = seen[:, None] - first[..., None]
    inside = (offset >= 0) & (offset < kernel_size)
    entry = seen[:, None] - place[..., None] + kernel_size - 1
    pixel = arange(length)
    return Tiles(
        query=place * dilation + line[:, None],
        key=seen.minimum(last[:, None]) * dilation + line[:, None],
        entry=torch.where(inside, entry, 2 * kernel_size - 1),
        home=pixel % dilation * (per_line * side) + pixel // dilation,
    )


def _gathered(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, heads: int) -> torch.Tensor:
    """Collect the pixels of tiles of rows `y` and columns `z`, (b, tiles, heads, n, d)."""
    x = x.index_select(1, y.flatten()).index_select(2, z.flatten())
    pattern = "b (i y) (j x) (a d) -> b (i j) a (y x) d"
    return rearrange(x, pattern, i=len(y), j=len(z), a=heads)


@reference("NeighborhoodAttention2D")
def neighborhood_attention_2d(
    *,
    dim: int,
    kernel_size: int,
    num_heads: int,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    dilation: int | None = None,
) -> NeighborhoodAttention:
    """Build the module whose state dict the official class has."""
    return NeighborhoodAttention(
        dim,
        heads=num_heads,
        kernel_size=kernel_size,
        dilation=dilation or 1,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
    )
