"""The blocks against slow loops that are obviously right, and exact identities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import zoo

ROOT = Path(__file__).parents[2]


def slow_window_attention(module, x, region):
    """Query by query over maps; `region` tells which pixels may see each other."""
    b, c, h, w = x.shape
    window, heads = module.window, module.heads
    d = c // heads
    tokens = x.permute(0, 2, 3, 1)
    qkv = tokens @ module.proj_qkv.weight.T + module.proj_qkv.bias
    out = torch.zeros_like(tokens)
    for n in range(b):
        for qy in range(h):
            for qx in range(w):
                top, left = qy // window * window, qx // window * window
                keys = [(top + i, left + j) for i in range(window) for j in range(window)]
                for a in range(heads):
                    part = slice(a * d, (a + 1) * d)
                    q = qkv[n, qy, qx, :c][part]
                    scores = []
                    for ky, kx in keys:
                        k = qkv[n, ky, kx, c : 2 * c][part]
                        dy, dx = qy - ky + window - 1, qx - kx + window - 1
                        bias = module.relative_position_bias_table[dy * (2 * window - 1) + dx, a]
                        apart = -100.0 if region[qy, qx] != region[ky, kx] else 0.0
                        scores.append(q @ k / math.sqrt(d) + bias + apart)
                    weights = torch.stack(scores).softmax(0)
                    values = torch.stack([qkv[n, y, z, 2 * c :][part] for y, z in keys])
                    out[n, qy, qx, part] = weights @ values
    out = out @ module.proj_out.weight.T + module.proj_out.bias
    return out.permute(0, 3, 1, 2)


def test_window_attention_is_the_slow_loop(fill, noise):
    module = fill(zoo.create_block("window", channels=6, heads=2, window=3))
    x = noise("window", 1, 6, 6, 9)  # 2 by 3 windows
    expected = slow_window_attention(module, x, torch.zeros(6, 9))
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stored", [True, False], ids=["mask of this size", "mask on the fly"])
def test_shifted_window_attention_is_the_slow_loop_on_the_rolled_map(fill, noise, stored):
    h, w, window, shift = 6, 9, 3, 2
    size = (h, w) if stored else (12, 12)
    options = {"heads": 2, "window": window, "shift": shift, "map_size": size}
    module = fill(zoo.create_block("shifted_window", channels=6, **options))
    x = noise("shifted", 1, 6, h, w)
    rolled = torch.roll(x, (-shift, -shift), (2, 3))
    # Which side of the seam a pixel of the rolled map came from.
    came = torch.arange(h)[:, None].ge(h - shift) * 2 + torch.arange(w)[None].ge(w - shift)
    expected = slow_window_attention(module, rolled, came)
    expected = torch.roll(expected, (shift, shift), (2, 3))
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_one_full_window_without_bias_is_plain_attention(fill, noise):
    module = fill(zoo.create_block("window", channels=8, heads=2, window=4))
    torch.nn.init.zeros_(module.relative_position_bias_table)
    x = noise("full", 1, 8, 4, 4)
    q, k, v = module.proj_qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    heads = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    out = module.proj_out(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), out, atol=1e-5, rtol=1e-4)


def slow_deformable_attention(module, x):
    """Point by point: bilinear sampling, softmax and each position term spelled out."""
    b, c, h, w = x.shape
    heads, groups, v2 = module.heads, module.groups, module.version == 2
    d, per_group = c // heads, c // groups
    q = module.proj_q(x)
    pos_yx, _ = module.points(x)
    rows, columns = pos_yx.shape[2:4]
    out = torch.zeros_like(x)

    def bilinear(plane, y, z):
        """Value of a (c, h, w) plane at normalised (y, z), corners aligned, zeros outside."""
        height, width = plane.shape[1:]
        py, pz = (y + 1) / 2 * (height - 1), (z + 1) / 2 * (width - 1)
        total = torch.zeros(plane.shape[0])
        for iy in (math.floor(py), math.floor(py) + 1):
            for iz in (math.floor(pz), math.floor(pz) + 1):
                if 0 <= iy < height and 0 <= iz < width:
                    total = total + plane[:, iy, iz] * (1 - abs(py - iy)) * (1 - abs(pz - iz))
        return total

    for n in range(b):
        points = [(i, j) for i in range(rows) for j in range(columns)]
        sampled = torch.stack(
            [
                torch.cat(
                    [
                        bilinear(x[n, g * per_group : (g + 1) * per_group], *pos_yx[n, g, i, j])
                        for g in range(groups)
                    ]
                )
                for i, j in points
            ],
            1,
        )[None, :, None]
        k, v = module.proj_k(sampled)[0, :, 0], module.proj_v(sampled)[0, :, 0]
        for a in range(heads):
            part, group = slice(a * d, (a + 1) * d), a // (heads // groups)
            for qy in range(h):
                for qx in range(w):
                    scores = q[n, part, qy, qx] @ k[part] / math.sqrt(d)
                    if module.position == "fixed":
                        scores = scores + module.rpe_table[a, qy * w + qx]
                    if module.position in ("table", "log_cpb"):
                        if v2:
                            here = torch.tensor([2 * qy / (h - 1) - 1, 2 * qx / (w - 1) - 1])
                        else:
                            here = torch.tensor([2 * (qy + 0.5) / h - 1, 2 * (qx + 0.5) / w - 1])
                        away = [here - pos_yx[n, group, i, j] for i, j in points]
                        if module.position == "table":
                            table = module.rpe_table[a : a + 1]
                            bias = [bilinear(table, *(delta / 2)) for delta in away]
                        else:
                            far = [4 * delta for delta in away]
                            logs = [t.sign() * torch.log2(t.abs() + 1) / 3 for t in far]
                            in_group = a % (heads // groups)
                            bias = [module.rpe_table(t)[in_group, None] for t in logs]
                        scores = scores + torch.cat(bias)
                    out[n, part, qy, qx] = v[part] @ scores.softmax(0)
    if module.position == "dwc":
        out = out + module.rpe_table(q)
    return module.proj_out(out)


@pytest.mark.parametrize(
    ("version", "position"),
    [(v, p) for v in (1, 2) for p in ("table", "dwc", None)] + [(2, "fixed"), (2, "log_cpb")],
)
@pytest.mark.parametrize("offset_range", [2.0, -1.0], ids=["bounded", "unbounded"])
def test_deformable_attention_is_the_slow_loop(fill, noise, version, position, offset_range):
    options = {"heads": 4, "groups": 2, "stride": 2, "kernel_size": 3, "table_size": (4, 6)}
    module = zoo.create_block(
        "dat", channels=8, version=version, position=position, offset_range=offset_range, **options
    )
    module = fill(module)
    x = noise("deformable", 1, 8, 4, 6)
    with torch.no_grad():
        expected = slow_deformable_attention(module, x)
        torch.testing.assert_close(module(x), expected, atol=2e-5, rtol=1e-4)


def test_without_offsets_the_pooled_map_is_attended_to(fill, noise):
    options = {"heads": 2, "groups": 2, "stride": 2, "position": None, "no_offset": True}
    module = fill(zoo.create_block("dat", channels=8, **options))
    x = noise("pooled", 2, 8, 4, 6)
    pooled = torch.nn.functional.avg_pool2d(x, 2)
    maps = (module.proj_q(x), module.proj_k(pooled), module.proj_v(pooled))
    heads = [t.flatten(2).unflatten(1, (2, 4)).mT for t in maps]
    out = torch.nn.functional.scaled_dot_product_attention(*heads).mT.flatten(1, 2)
    torch.testing.assert_close(module(x), module.proj_out(out.view_as(x)), atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in module.conv_offset.parameters())
    pos_yx, reference_yx = module.points(x)
    assert torch.equal(pos_yx, reference_yx)


def slow_neighborhood_attention(module, x):
    """Query by query: the window moved inside the map, of pixels `dilation` apart."""
    b, c, h, w = x.shape
    k, step, heads = module.kernel_size, module.dilation, module.heads
    d = c // heads
    padded = torch.zeros(b, max(h, k * step), max(w, k * step), c)
    padded[:, :h, :w] = x.permute(0, 2, 3, 1)
    qkv = padded @ module.qkv.weight.T + module.qkv.bias
    out = torch.zeros(b, h, w, c)

    def window(i, length):
        line = list(range(i % step, length, step))
        first = min(max(line.index(i) - k // 2, 0), len(line) - k)
        return [(j, (j - i) // step + k - 1) for j in line[first : first + k]]

    for n in range(b):
        for qy in range(h):
            for qx in range(w):
                rows, columns = window(qy, padded.shape[1]), window(qx, padded.shape[2])
                for a in range(heads):
                    part = slice(a * d, (a + 1) * d)
                    q = qkv[n, qy, qx, :c][part] / math.sqrt(d)
                    scores, values = [], []
                    for ky, ey in rows:
                        for kx, ex in columns:
                            scores.append(
                                q @ qkv[n, ky, kx, c : 2 * c][part] + module.rpb[a, ey, ex]
                            )
                            values.append(qkv[n, ky, kx, 2 * c :][part])
                    out[n, qy, qx, part] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return (out @ module.proj.weight.T + module.proj.bias).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kept", [True, False], ids=["tiles of this size", "tiles on the fly"])
@pytest.mark.parametrize(
    ("kernel_size", "dilation", "h", "w"),
    [
        pytest.param(3, 1, 5, 7, id="odd map"),
        pytest.param(5, 1, 6, 11, id="last tile cut"),
        pytest.param(3, 2, 7, 9, id="lines of two lengths"),
        pytest.param(3, 3, 9, 13, id="dilated"),
        pytest.param(7, 1, 4, 9, id="padded below"),
        pytest.param(3, 2, 3, 4, id="padded and dilated"),
    ],
)
def test_neighborhood_attention_is_the_slow_loop(fill, noise, kernel_size, dilation, h, w, kept):
    options = {"heads": 2, "kernel_size": kernel_size, "dilation": dilation}
    size = (h, w) if kept else None
    module = fill(zoo.create_block("neighborhood", channels=4, map_size=size, **options))
    x = noise("neighborhood", 2, 4, h, w)
    with torch.no_grad():
        expected = slow_neighborhood_attention(module, x)
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_a_window_as_large_as_the_map_is_full_attention(fill, noise):
    module = fill(zoo.create_block("neighborhood", channels=8, heads=2, kernel_size=5))
    torch.nn.init.zeros_(module.rpb)
    x = noise("full", 2, 8, 5, 5)
    qkv = module.qkv(x.flatten(2).mT).chunk(3, -1)
    heads = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in qkv]
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    out = module.proj(out.transpose(1, 2).flatten(2)).mT.reshape(x.shape)
    torch.testing.assert_close(module(x), out, atol=1e-5, rtol=1e-4)


def test_neighborhood_attention_needs_memory_linear_in_the_window():
    """The largest tensor grows as the window does, not as the map squared."""

    def largest(side: int, kernel_size: int) -> int:
        block = zoo.create_block("neighborhood", channels=8, heads=1, kernel_size=kernel_size)
        seen = []

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                if torch.is_tensor(result):
                    seen.append(result.numel())
                return result

        with Watch(), torch.no_grad():
            block(torch.zeros(1, 8, side, side))
        return max(seen)

    assert largest(56, 7) <= 1.1 * 4 * largest(28, 7)
    assert largest(56, 7) <= 3 * 56 * 56 * 7 * 7


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        pytest.param(1, [[-0.75, -0.25, 0.25, 0.75]], id="pixel centres"),
        pytest.param(2, [[-2 / 3, 0.0, 2 / 3, 4 / 3]], id="half a step into the corner grid"),
    ],
)
def test_zero_offsets_leave_the_points_on_their_references(fill, version, expected):
    module = fill(zoo.create_block("dat", channels=8, heads=4, groups=2, version=version))
    torch.nn.init.zeros_(module.conv_offset[3].weight)
    pos_yx, reference_yx = module.points(torch.randn(1, 8, 4, 4))
    assert torch.equal(pos_yx, reference_yx)
    torch.testing.assert_close(pos_yx[0, :1, :, 0, 0], torch.tensor(expected))


def test_offsets_move_y_by_their_first_channel(fill):
    module = fill(zoo.create_block("dat", channels=8, heads=4, groups=1, offset_range=1.0))
    torch.nn.init.constant_(module.conv_offset[3].weight[0], 9.0)  # dy, far into tanh
    torch.nn.init.zeros_(module.conv_offset[3].weight[1])  # dx
    pos_yx, reference_yx = module.points(torch.randn(1, 8, 4, 6))
    moved = (pos_yx - reference_yx).abs().amax((0, 1, 2, 3))
    assert moved[0] > 0.1
    assert moved[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_attention_in_half_types_is_near_float32(fill, noise, dtype):
    options = {"heads": 4, "groups": 2, "position": "table", "table_size": (14, 14)}
    module = fill(zoo.create_block("dat", channels=32, **options))
    x = noise("half", 1, 32, 14, 14).contiguous(memory_format=torch.channels_last)
    expected = module(x)
    error = (module.to(dtype)(x.to(dtype)).float() - expected).abs().max()
    assert error < 0.1 * expected.abs().max()  # NaN would fail too


def test_sra_without_reduction_is_plain_attention(fill, noise):
    module = fill(zoo.create_block("sra", channels=8, heads=2, reduction=1))
    x = noise("sra", 2, 8, 3, 5)
    tokens = x.flatten(2).transpose(1, 2)
    k, v = module.kv(tokens).chunk(2, -1)
    heads = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (module.q(tokens), k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    out = module.proj(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), out, atol=1e-5, rtol=1e-4)


def test_sra_takes_maps_and_tokens_alike(fill, noise):
    module = fill(zoo.create_block("sra", channels=8, heads=2, reduction=2))
    x = noise("sra", 2, 8, 4, 6)
    tokens = module(x.flatten(2).transpose(1, 2), (4, 6))
    assert torch.equal(module(x).flatten(2).transpose(1, 2), tokens)


POOLED = "dat[no_offset=true,position=none,stride=2]"
FIXED = "dat[position=fixed,table_size=(4, 4)]"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: zoo.create_block("window", 32)(torch.zeros(1, 32, 4, 10)), "4x10.*window=7"),
        (lambda: zoo.create_block("shifted_window", 32)(torch.zeros(1, 32, 7, 10)), "7x10"),
        (lambda: zoo.create_block("dat", 32)(torch.zeros(1, 32, 1, 8)), "1x8 reference points"),
        (lambda: zoo.create_block("sra", 32)(torch.zeros(1, 32, 1, 8)), "smaller than reduction"),
        (lambda: zoo.create_block("dat", 30), "dim=30 is not a multiple of heads=8"),
        (lambda: zoo.create_block("dat", 32, groups=3), "heads=8 is not a multiple of groups=3"),
        (lambda: zoo.create_block("dat", 32, position="table"), "needs table_size"),
        (lambda: zoo.create_block("shifted_window", 32, shift=7), "shift=7"),
        (lambda: zoo.create_block("dat[version=3]", 32), "version=3"),
        (lambda: zoo.create_block("dat[version=1,position=fixed]", 32), "use version 2"),
        (lambda: zoo.create_block("dat[no_offset=true]", 32), "there is no position term"),
        (lambda: zoo.create_block(POOLED, 32)(torch.zeros(1, 32, 7, 8)), "multiple of stride=2"),
        (lambda: zoo.create_block(FIXED, 32)(torch.zeros(1, 32, 4, 8)), "16 queries and 16 points"),
        (lambda: zoo.create_block("neighborhood", 30), "dim=30 is not a multiple of heads=8"),
        (lambda: zoo.create_block("neighborhood[kernel_size=4]", 32), "kernel_size=4"),
    ],
)
def test_what_cannot_work_says_so(build, message):
    with pytest.raises(zoo.ZooError, match=message):
        build()
