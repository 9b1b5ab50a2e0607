"""Neighborhood attention: every pixel attends to the k x k pixels around it.

The map is cut into small tiles of queries. The keys that any query of a tile sees form one
rectangle, so each tile is one dense product, with a bias of minus infinity where a query must
not look. For k = 7 a tile of 4 x 4 queries meets 10 x 10 keys: twice the products that are
needed, at the speed of a matrix product, and no key is copied k x k times.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from zoo.chunked import LOGITS
from zoo.layers import Linear, checked_impl, head_scale, in_channels_last, init_linear
from zoo.prepared import Prepared
from zoo.reference import reference
from zoo.registry import ZooError
from zoo.spec import block

Impl = Literal["fast", "reference"]


class Axis(NamedTuple):
    """How one axis of a map is cut into tiles, as indices.

    Args:
        query: pixel of each query of each tile, (tiles, n); the last tile repeats its last pixel.
        key: pixel of each key of each tile, (tiles, m).
        entry: entry of the bias table, key minus query plus k - 1, (tiles, n, m); 2k - 1 where the
            key is outside the query's window.
        home: tile and place in it of each pixel, (length,) each.
    """

    query: torch.Tensor
    key: torch.Tensor
    entry: torch.Tensor
    home: tuple[torch.Tensor, torch.Tensor]


class Tiles(NamedTuple):
    """How a map is cut into tiles; pixels are numbered row by row.

    Args:
        query: pixel of each query of each tile, (tiles, n).
        key: pixel of each key of each tile, (tiles, m).
        entry_y, entry_x: as `Axis.entry`, of rows and of columns.
        home: place of each pixel among the queries of all tiles, (h, w).
    """

    query: torch.Tensor
    key: torch.Tensor
    entry_y: torch.Tensor
    entry_x: torch.Tensor
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
        impl: "fast" for dense tiles, "reference" to copy each query's keys; the same result.
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
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        self.impl = checked_impl(impl, Impl)
        self.scale = head_scale(dim, heads)
        if kernel_size < 3 or kernel_size % 2 == 0 or dilation < 1:
            raise ZooError(
                f"kernel_size={kernel_size}, dilation={dilation}: expected an odd window of 3 or "
                "more pixels and a dilation of 1 or more"
            )
        self.heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        linear = nn.Linear if impl == "reference" else Linear
        self.qkv, self.proj = linear(dim, 3 * dim), linear(dim, dim)
        self.prepared = Prepared()
        table = torch.zeros(heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
        self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.map_size = None if map_size is None else self._padded(map_size[0], map_size[1])
        if self.map_size is not None:
            tiles = cut(*self.map_size, kernel_size, dilation)
            for name, tensor in tiles._asdict().items():
                self.register_buffer(name, tensor, persistent=False)
        self.apply(init_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend from every pixel of `x` to its neighborhood."""
        return in_channels_last(self._channels_last, x)

    def _channels_last(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2:]
        rows, columns = self._padded(h, w)
        if (rows, columns) != (h, w):
            x = F.pad(x, (0, columns - w, 0, rows - h))
        qkv = self.qkv(x.permute(0, 2, 3, 1).flatten(1, 2))
        if self.impl == "reference":
            out = self._reference(qkv, rows, columns)
        elif qkv.device.type == "cpu" and qkv.dtype == self.rpb.dtype and Prepared.keeps(self.rpb):
            out = self._by_parts(qkv, rows, columns)
        else:
            out = self._whole(qkv, rows, columns)
        out = out.unflatten(1, (rows, columns))
        if (rows, columns) != (h, w):
            out = out[:, :h, :w]
        return self.proj_drop(self.proj(out).permute(0, 3, 1, 2))

    def _reference(self, qkv: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Attend with k x k copies of the keys and values for each query."""
        key_y, entry_y = self._windows(rows, qkv.device)
        key_x, entry_x = self._windows(columns, qkv.device)
        pattern = "b (h w) (three a d) -> three b h w a d"
        q, k, v = rearrange(qkv, pattern, three=3, h=rows, a=self.heads)

        def copied(t: torch.Tensor) -> torch.Tensor:
            t = t.index_select(1, key_y.flatten()).index_select(2, key_x.flatten())
            return rearrange(t, "b (h y) (w x) a d -> b h w a d (y x)", h=rows, w=columns)

        bias = self.rpb[:, entry_y[:, None, :, None], entry_x[None, :, None, :]]
        logits = torch.einsum("bhwad,bhwadn->bhwan", q * self.scale, copied(k))
        logits = logits + rearrange(bias, "a h w y x -> h w a (y x)")
        weights = self.attn_drop(logits.softmax(-1)).to(v.dtype)
        out = torch.einsum("bhwan,bhwadn->bhwad", weights, copied(v))
        return rearrange(out, "b h w a d -> b (h w) (a d)")

    def _windows(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of each pixel of an axis, and their entries in the bias table, (length, k)."""
        pixel, size = torch.arange(length, device=device), self.kernel_size
        place, line = pixel // self.dilation, pixel % self.dilation
        last = (length - line + self.dilation - 1) // self.dilation - 1
        first = (place - size // 2).clamp(min=0).minimum(last - size + 1)
        seen = first[:, None] + torch.arange(size, device=device)
        return seen * self.dilation + line[:, None], seen - place[:, None] + size - 1

    def _whole(self, qkv: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Attend in all tiles at once, (b, rows * columns, 3 dim) to (b, rows * columns, dim)."""
        tiles = self._tiles(rows, columns, qkv.device)
        q, k, v = rearrange(qkv, "b s (three a d) -> three b a s d", three=3, a=self.heads)
        queries = _gathered(q * self.scale, tiles.query)  # (b, heads, tiles, n, d)
        keys, values = _gathered(k, tiles.key), _gathered(v, tiles.key)
        logits = queries @ keys.transpose(-1, -2) + self._bias(tiles.entry_y, tiles.entry_x)
        out = self.attn_drop(logits.softmax(-1)).to(values.dtype) @ values
        out = out.flatten(2, 3).index_select(2, tiles.home.flatten())
        return rearrange(out, "b a s d -> b s (a d)")

    def _by_parts(self, qkv: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """`_whole` for a CPU, with as many tiles at a time as the cache holds logits of.

        A head of a pixel is one row of memory, so a tile is gathered in the order in which the
        products want it. Tiles away from the map's sides share their bias.
        """
        key = (rows, columns)
        queries, keys, home, kind, entry_y, entry_x = self.prepared(
            "places", lambda: self._places(rows, columns), key=key
        )
        biases = self.prepared(
            "bias",
            lambda: self._bias(entry_y, entry_x).transpose(0, 1).contiguous(),
            self.rpb,
            key=key,
        )
        (tiles, heads, n), m = queries.shape, keys.shape[2]
        out = qkv.new_empty(len(qkv), tiles, n, qkv.shape[-1] // 3)
        step = max(1, LOGITS // 2 // (heads * n * m))
        for image, attended in zip(qkv, out, strict=True):
            q, k, v = (image.view(-1, attended.shape[-1] // heads)[i * heads :] for i in range(3))
            for i in range(0, tiles, step):
                part = slice(i, min(i + step, tiles))
                seen, seers = keys[part].flatten(), queries[part].flatten()
                logits = biases.index_select(0, kind[part]).flatten(0, 1)
                logits.baddbmm_(
                    q.index_select(0, seers).view(-1, n, q.shape[1]),
                    k.index_select(0, seen).view(-1, m, q.shape[1]).transpose(1, 2),
                    alpha=self.scale,
                )
                values = v.index_select(0, seen).view(-1, m, q.shape[1])
                found = torch.bmm(logits.softmax(-1), values)
                attended[part] = rearrange(found, "(t a) n d -> t n (a d)", a=heads)
        return out.flatten(1, 2).index_select(1, home)

    def _places(self, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
        """First rows of queries and keys, (tiles, heads, n or m); and of each pixel among those.

        Then which bias each tile has, and the entries of all different ones along both axes.
        """
        tiles = self._tiles(rows, columns, torch.device("cpu"))
        head = torch.arange(self.heads)[:, None]
        queries, keys = (t[:, None] * (3 * self.heads) + head for t in (tiles.query, tiles.key))
        entry_y, kind_y = torch.unique(tiles.entry_y, dim=0, return_inverse=True)
        entry_x, kind_x = torch.unique(tiles.entry_x, dim=0, return_inverse=True)
        kind = kind_y[:, None] * len(entry_x) + kind_x
        return queries, keys, tiles.home.flatten(), kind.flatten(), entry_y, entry_x

    def excess_macs(self, x: torch.Tensor) -> int:
        """Multiply-adds for one image like `x` with keys outside the windows, masked by the tiles.

        A kernel made for the operator does not do them.
        """
        if self.impl == "reference":
            return 0
        rows, columns = self._padded(x.shape[-2], x.shape[-1])
        tiles = self._tiles(rows, columns, x.device)
        done = tiles.query.numel() * tiles.key.shape[1]
        return 2 * x.shape[1] * (done - rows * columns * self.kernel_size**2)

    def _padded(self, h: int, w: int) -> tuple[int, int]:
        window = self.kernel_size * self.dilation
        return max(h, window), max(w, window)

    def _tiles(self, rows: int, columns: int, device: torch.device) -> Tiles:
        if (rows, columns) == self.map_size:
            return Tiles(*map(self.get_buffer, Tiles._fields))
        return self.prepared(
            "tiles",
            lambda: cut(rows, columns, self.kernel_size, self.dilation, device),
            key=(rows, columns, device),
        )

    def _bias(self, entry_y: torch.Tensor, entry_x: torch.Tensor) -> torch.Tensor:
        """Bias of each query and key of each tile, (heads, tiles, n, m)."""
        table = F.pad(self.rpb, (0, 1, 0, 1), value=float("-inf"))
        bias = table.index_select(1, entry_y.flatten()).index_select(2, entry_x.flatten())
        (i, y, _), (j, x, _) = entry_y.shape, entry_x.shape
        pattern = "a (i y ky) (j x kx) -> a (i j) (y x) (ky kx)"
        return rearrange(bias, pattern, i=i, j=j, y=y, x=x)


def cut(
    h: int, w: int, kernel_size: int, dilation: int, device: torch.device | None = None
) -> Tiles:
    """Cut a map into tiles; its sides are at least the window."""
    rows = cut_axis(h, kernel_size, dilation, device)
    columns = cut_axis(w, kernel_size, dilation, device)

    def pixels(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        grid = y[:, None, :, None] * w + x[None, :, None, :]
        return grid.flatten(0, 1).flatten(1)

    (tile_y, place_y), (tile_x, place_x) = rows.home, columns.home
    across, side = len(columns.query), columns.query.shape[1]
    tile, place = tile_y[:, None] * across + tile_x, place_y[:, None] * side + place_x
    return Tiles(
        query=pixels(rows.query, columns.query),
        key=pixels(rows.key, columns.key),
        entry_y=rows.entry,
        entry_x=columns.entry,
        home=tile * side * rows.query.shape[1] + place,
    )


def cut_axis(
    length: int, kernel_size: int, dilation: int, device: torch.device | None = None
) -> Axis:
    """Cut an axis into tiles of about half a window.

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
    own = pixel // dilation  # place of a pixel in its line
    return Axis(
        query=place * dilation + line[:, None],
        key=seen.minimum(last[:, None]) * dilation + line[:, None],
        entry=torch.where(inside, entry, 2 * kernel_size - 1),
        home=(pixel % dilation * per_line + own // side, own % side),
    )


def _gathered(x: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Collect the pixels of tiles, (b, a, h * w, d) to (b, a, tiles, n, d)."""
    return x.index_select(2, pixels.flatten()).unflatten(2, pixels.shape)


@reference("NeighborhoodAttention2D")
def neighborhood_attention_2d(
    *,
    dim: int,
    kernel_size: int,
    num_heads: int,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    dilation: int | None = None,
    impl: Impl = "fast",
) -> NeighborhoodAttention:
    """Build the module whose state dict the official class has."""
    return NeighborhoodAttention(
        dim,
        heads=num_heads,
        kernel_size=kernel_size,
        dilation=dilation or 1,
        attn_drop=attn_drop,
        proj_drop=proj_drop,
        impl=impl,
    )
