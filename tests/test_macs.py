"""Multiply-adds against counts done by hand; fused and unfused alike."""

from __future__ import annotations

import types

import pytest
import timm
import torch
from torch import nn

import zoo
from datbench.counters import copies_of, count
from datbench.metrics.macs import macs


def counted(model, *shape):
    return count(copies_of(model.eval()), torch.randn(1, *shape))


def total(model, *shape):
    found = counted(model, *shape)
    assert found.doubts == ()
    return found.macs


def measured(model, *shape):
    """Run the metric itself."""
    trial = types.SimpleNamespace(model=model.eval(), inputs=torch.randn(2, *shape))
    found = list(macs(trial))
    return {m.name: m.value for m in found}, [w for m in found for w in m.warnings]


def test_convolution_and_linear():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert total(net, 3, 4, 4) == 4 * 4 * 8 * 3 * 9 + 8 * 16 * 5


def test_a_window_layer():
    h, w, c, window = 6, 9, 8, 3
    by_hand = h * w * c * 3 * c + 2 * h * w * window**2 * c + h * w * c * c
    assert total(zoo.create_block("window", c, heads=2, window=window), c, h, w) == by_hand


def test_an_sra_layer():
    h, w, c, reduction = 8, 12, 16, 2
    keys = h * w // reduction**2
    norm = 5 * keys * c
    by_hand = h * w * c * c + keys * (reduction**2 * c) * c + keys * c * 2 * c
    by_hand += 2 * h * w * keys * c + h * w * c * c + norm
    block = zoo.create_block("sra", c, heads=2, reduction=reduction)
    assert total(block, c, h, w) == by_hand


def test_a_deformable_layer():
    h, w, c, heads, groups, k = 6, 8, 16, 4, 2, 3
    m = n = h * w
    offsets = groups * m * (c // groups) * (k * k + 2) + 5 * m * c  # depthwise, to 2, norm
    sampling = 4 * n * c
    bias = 4 * heads * m * n
    by_hand = 4 * m * c * c + offsets + sampling + bias + 2 * m * n * c
    options = {"heads": heads, "groups": groups, "kernel_size": k}
    table = zoo.create_block("dat", c, position="table", table_size=(h, w), **options)
    assert total(table, c, h, w) == by_hand
    dwc = zoo.create_block("dat", c, position="dwc", **options)
    assert total(dwc, c, h, w) == by_hand - bias + m * c * 9


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "pvt_v2_b0", "vit_tiny_patch16_224"]
)
def test_fused_and_unfused_attention_count_the_same(name):
    try:
        timm.layers.set_fused_attn(True, experimental=True)
        fused = counted(timm.create_model(name), 3, 224, 224)
        timm.layers.set_fused_attn(False)
        plain = counted(timm.create_model(name), 3, 224, 224)
    finally:
        timm.layers.set_fused_attn(True)
    assert "scaled_dot_product_attention" in {row.name for row in fused.operators}
    assert "scaled_dot_product_attention" not in {row.name for row in plain.operators}
    assert (fused.macs, fused.second) == (plain.macs, plain.second)
    assert fused.modules[0].activations == plain.modules[0].activations
    assert fused.doubts == plain.doubts == ()


@pytest.mark.parametrize("layers", [1, 2])
def test_the_fast_path_of_transformer_layers_is_counted(layers):
    n, c, hidden = 20, 16, 32
    layer = nn.TransformerEncoderLayer(c, nhead=4, dim_feedforward=hidden, batch_first=True)
    net = nn.TransformerEncoder(layer, layers)
    products = layers * (n * c * 3 * c + 2 * n * n * c + n * c * c + 2 * n * c * hidden)
    norms = layers * 2 * 5 * n * c
    found = counted(net, n, c)
    assert (found.macs, found.second, found.doubts) == (products + norms, products, ())
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_metric_counts_one_image_and_doubles_for_flops():
    values, doubts = measured(nn.Conv2d(3, 8, 1), 3, 5, 5)
    assert values == {"macs": 600, "flops": 1200, "macs_second_opinion": 600}
    assert doubts == []


class Timed(nn.Module):
    def forward(self, x):
        assert torch.is_inference_mode_enabled(), "only where it is timed"
        return x


def test_a_model_that_cannot_be_counted_has_empty_cells_and_says_why():
    values, doubts = measured(Timed(), 3, 5, 5)
    assert values == {"macs": None, "flops": None, "macs_second_opinion": None}
    (doubt,) = doubts
    assert doubt.startswith("not_counted: fvcore: AssertionError: only where it is timed")


@pytest.mark.parametrize(("h", "w"), [(14, 14), (9, 13), (4, 20)])
def test_neighborhood_attention_counts_the_keys_in_its_windows(h, w):
    block = zoo.create_block("neighborhood", channels=32, heads=4)
    rows, columns = max(h, 7), max(w, 7)  # a short side is padded to the window
    projections = rows * columns * 32 * 3 * 32 + h * w * 32 * 32
    by_hand = projections + 2 * rows * columns * 32 * 49
    values, doubts = measured(block, 32, h, w)
    assert values["macs"] == values["macs_second_opinion"] == by_hand
    assert doubts == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dat_tiny", 4.5889e9),
        ("swin_tiny", 4.5092e9),
        ("dat_pp_tiny", 4.2877e9),
        ("pvt_v2_b1", 2.1203e9),
        ("pvt_small", 3.8330e9),
        ("yolov8n", 4.4010e9),
    ],
)
def test_the_zoo_counts_what_is_known(name, expected):
    side = 640 if name == "yolov8n" else 224
    values, doubts = measured(zoo.create_model(name), 3, side, side)
    assert values["macs"] == pytest.approx(expected, rel=1e-4)
    assert doubts == []


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).half().train()
    trial = types.SimpleNamespace(model=net, inputs=torch.randn(1, 3, 4, 4).half())
    list(macs(trial))
    assert net[0].weight.dtype == torch.float16
    assert net.training


@pytest.mark.parametrize(
    ("name", "channels", "side", "options", "expected"),
    [
        ("sea", 64, 20, {"heads": 4, "key_dim": 16}, 18.637),
        ("msda", 72, 20, {"heads": 6, "dilations": (1, 2, 3)}, 8.813),
        ("cpca", 64, 20, {}, 7.582),
        ("acmix", 64, 20, {"heads": 4}, 7.693 + 2.509),  # the window products are not in the first
        ("psa", 64, 20, {}, 2.524 - 0.0128),  # it counts the pooling of half the channels
        ("psa_s", 64, 20, {}, 2.522 - 0.0128),
        ("dlka", 64, 20, {}, 159.846 + 1.894),  # nor the convolutions with moved taps
        ("hat", 60, 16, {"heads": 6, "window": 8}, 18.724),
        ("ocab", 60, 16, {"heads": 6}, 11.950),
        ("ema", 64, 20, {}, 2.145 - 4 * 0.0256),  # and four poolings of all
        ("msca", 64, 20, {}, 4.275),
        ("msca_layer", 64, 20, {}, 7.552),
    ],
)
def test_attention_blocks_count_as_the_official_code_does(name, channels, side, options, expected):
    """fvcore's count of the official modules in millions, and by hand what it leaves out."""
    block = zoo.create_block(name, channels, **options)
    found, warnings = measured(block, channels, side, side)
    assert found["macs"] / 1e6 == pytest.approx(expected, abs=0.004 * expected)
    assert warnings == []
