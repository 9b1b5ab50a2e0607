"""Windows of HAT on maps that they do not fill, against slow loops."""

from __future__ import annotations

import math

import pytest
import torch

import zoo


def slow_window_attention(attn, x, window, shift):
    """Every pixel meets those of its shifted window; a window that the map cuts has fewer."""
    b, h, w, c = x.shape
    d = c // attn.heads
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).split(c, -1)
    pixels = [(y, z) for y in range(h) for z in range(w)]
    out = torch.zeros_like(x)
    for n in range(b):
        for qy, qx in pixels:
            home = ((qy - shift) // window, (qx - shift) // window)
            seen = [
                p for p in pixels if ((p[0] - shift) // window, (p[1] - shift) // window) == home
            ]
            for a in range(attn.heads):
                part = slice(a * d, (a + 1) * d)
                scores = []
                for ky, kx in seen:
                    entry = (qy - ky + window - 1) * (2 * window - 1) + qx - kx + window - 1
                    bias = attn.relative_position_bias_table[entry, a]
                    scores.append(q[n, qy, qx, part] @ k[n, ky, kx, part] / math.sqrt(d) + bias)
                values = torch.stack([v[n, ky, kx, part] for ky, kx in seen])
                out[n, qy, qx, part] = torch.stack(scores).softmax(0) @ values
    return out @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(6, 9), (7, 11), (2, 5)], ids=["filled", "cut", "small"])
def test_hybrid_attention_is_the_slow_loop_plus_its_convolution(fill, noise, size, shift):
    options = {"heads": 2, "window": 3, "shift": shift, "compress": 2, "squeeze": 3}
    module = fill(zoo.create_block("hat", channels=6, conv_scale=0.5, **options))
    x = noise("hat", 2, 6, *size).permute(0, 2, 3, 1)
    normed = module.norm1(x)
    conv = module.conv_block(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = x + slow_window_attention(module.attn, normed, 3, shift) + 0.5 * conv
    expected = expected + module.mlp(module.norm2(expected))
    found = module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def slow_overlapping_attention(module, x, window, margin):
    """Every pixel meets those of its window and a margin around it; beyond the map lie zeros."""
    b, h, w, c = x.shape
    d, side = c // module.heads, 2 * window + 2 * margin - 1
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).split(c, -1)
    out = torch.zeros_like(x)
    for n in range(b):
        for qy in range(h):
            for qx in range(w):
                top, left = qy // window * window - margin, qx // window * window - margin
                across = range(window + 2 * margin)
                for a in range(module.heads):
                    part = slice(a * d, (a + 1) * d)
                    scores, values = [], []
                    for i in across:
                        for j in across:
                            ky, kx = top + i, left + j
                            inside = 0 <= ky < h and 0 <= kx < w
                            key = k[n, ky, kx, part] if inside else torch.zeros(d)
                            # As the official code counts: from below zero, around the table's end.
                            dy = i - qy % window - 2 * margin + 1
                            dx = j - qx % window - 2 * margin + 1
                            bias = module.relative_position_bias_table[dy * side + dx, a]
                            scores.append(q[n, qy, qx, part] @ key / math.sqrt(d) + bias)
                            values.append(v[n, ky, kx, part] if inside else torch.zeros(d))
                    weights = torch.stack(scores).softmax(0)
                    out[n, qy, qx, part] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize("size", [(4, 6), (5, 7)], ids=["filled", "cut"])
def test_overlapping_attention_is_the_slow_loop(fill, noise, size):
    module = fill(zoo.create_block("ocab", channels=6, heads=2, window=2, overlap=1.0))
    x = noise("ocab", 1, 6, *size).permute(0, 2, 3, 1)
    attended = slow_overlapping_attention(module, module.norm1(x), window=2, margin=1)
    expected = module.proj(attended) + x
    expected = expected + module.mlp(module.norm2(expected))
    found = module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_window_as_large_as_its_map_shrinks_and_stays():
    module = zoo.create_block("hat", channels=32, window=8, shift=4, map_size=(5, 12))
    assert (module.window, module.shift) == (5, 0)


def test_whole_samples_skip_a_branch_in_training_alone(noise):
    torch.manual_seed(0)
    module = zoo.create_block("hat", channels=32, conv_scale=0.0, drop_path=0.999)
    x = noise("drop", 4, 32, 7, 7)
    assert torch.equal(module.train()(x), x)
    assert not torch.equal(module.eval()(x), x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hat", {"shift": 7}, "shift=7 is not between 0 and window=7"),
        ("hat", {"squeeze": 33}, "leave no channel of dim=32"),
        ("hat", {"heads": 5}, "dim=32 is not a multiple of heads=5"),
        ("ocab", {"window": 7}, "10 pixels of keys cannot be centred on 7"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_block(name, channels=32, **options)


def test_tokens_that_do_not_fill_their_map_are_refused(noise):
    module = zoo.create_block("hat", channels=32)
    with pytest.raises(zoo.ZooError, match=r"12 tokens with size=\(3, 5\)"):
        module(noise("x", 1, 12, 32), (3, 5))
