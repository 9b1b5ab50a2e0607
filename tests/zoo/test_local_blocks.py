"""Blocks with neighbourhoods or groups on maps that are not square, against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import zoo


def mirrored(i: int, length: int) -> int:
    """Place on an axis that goes on mirrored beyond its ends."""
    i = abs(i)
    return i if i < length else 2 * (length - 1) - i


def test_dilated_attention_is_the_slow_loop(fill, noise):
    module = fill(zoo.create_block("msda", channels=12, heads=4, dilations=(1, 3)))
    x = noise("msda", 2, 12, 4, 7)
    q, k, v = module.qkv(x).chunk(3, 1)
    out = torch.zeros(2, 4, 7, 12)
    for n in range(2):
        for y in range(4):
            for z in range(7):
                for head in range(4):
                    step = (1, 3)[head // 2]
                    part = slice(3 * head, 3 * head + 3)
                    keys, values = [], []
                    for ky in (y - step, y, y + step):
                        for kx in (z - step, z, z + step):
                            inside = 0 <= ky < 4 and 0 <= kx < 7
                            keys.append(k[n, part, ky, kx] if inside else torch.zeros(3))
                            values.append(v[n, part, ky, kx] if inside else torch.zeros(3))
                    scores = torch.stack(keys) @ q[n, part, y, z] / math.sqrt(3)
                    out[n, y, z, part] = scores.softmax(0) @ torch.stack(values)
    expected = module.proj(out).permute(0, 3, 1, 2)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_acmix_is_the_slow_loop_with_the_whole_position_term(fill, noise, stride):
    h, w, heads, d = 4, 6, 2, 3
    options = {"heads": heads, "kernel_size": 5, "stride": stride}
    module = fill(zoo.create_block("acmix", channels=6, **options))
    x = noise("acmix", 2, 6, h, w)
    q, k, v = module.conv1(x), module.conv2(x), module.conv3(x)
    places = torch.zeros(1, 2, h, w)
    for y in range(h):
        for z in range(w):
            places[0, :, y, z] = torch.tensor([2 * z / (w - 1) - 1, 2 * y / (h - 1) - 1])
    position = module.conv_p(places)[0]
    attended = torch.zeros(2, 6, h // stride, w // stride)
    for n in range(2):
        for y in range(0, h, stride):
            for z in range(0, w, stride):
                seen = [
                    (mirrored(y + i, h), mirrored(z + j, w))
                    for i in range(-2, 3)
                    for j in range(-2, 3)
                ]
                for a in range(heads):
                    part = slice(a * d, (a + 1) * d)
                    query = q[n, part, y, z] / math.sqrt(d)
                    scores = torch.stack(
                        [
                            query @ (k[n, part, i, j] + position[:, y, z] - position[:, i, j])
                            for i, j in seen
                        ]
                    )
                    values = torch.stack([v[n, part, i, j] for i, j in seen])
                    attended[n, part, y // stride, z // stride] = scores.softmax(0) @ values
    convolved = torch.zeros(2, 6, h // stride, w // stride)
    for out in range(6):
        c = out // heads  # the convolution's channels are laid out (d, heads)
        stacked = [t[:, a * d + c] for t in (q, k, v) for a in range(heads)]
        taps = torch.einsum("tm,mbhw->bthw", module.fc.weight[:, :, 0, 0], torch.stack(stacked))
        kernel = module.dep_conv.weight[out : out + 1]
        convolved[:, out] = F.conv2d(taps, kernel, stride=stride, padding=1)[:, 0]
    expected = module.rate1 * attended + module.rate2 * convolved
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_the_convolution_of_acmix_starts_as_nine_shifts():
    weight = zoo.create_block("acmix", channels=16).dep_conv.weight
    for tap in range(9):
        kernel = torch.zeros(3, 3)
        kernel[tap // 3, tap % 3] = 1
        assert torch.equal(weight[:, tap], kernel.expand(16, 3, 3))


def test_multi_scale_weights_are_the_slow_loop(fill, noise):
    module = fill(zoo.create_block("ema", channels=12, groups=4))
    x = noise("ema", 2, 12, 3, 5)
    expected = torch.zeros_like(x)
    for n in range(2):
        for g in range(4):
            part = slice(3 * g, 3 * g + 3)
            group = x[n, part]
            rows = module.conv1x1(group.mean(2)[None, :, :, None])[0, :, :, 0].sigmoid()
            columns = module.conv1x1(group.mean(1)[None, :, :, None])[0, :, :, 0].sigmoid()
            gated = group * rows[:, :, None] * columns[:, None, :]
            axial = torch.stack(
                [
                    (m - m.mean()) / (m.var(correction=0) + 1e-5).sqrt() * module.gn.weight[c]
                    + module.gn.bias[c]
                    for c, m in enumerate(gated)
                ]
            )
            local = module.conv3x3(group[None])[0]
            weights = torch.zeros(3, 5)
            for pooled, places in ((axial, local), (local, axial)):
                share = pooled.mean((1, 2)).softmax(0)
                weights = weights + sum(share[c] * places[c] for c in range(3))
            expected[n, part] = group * weights.sigmoid()
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_unmoved_taps_make_an_ordinary_convolution(fill, noise):
    module = fill(zoo.create_block("dlka", channels=6))
    u = F.gelu(module.proj_1(x := noise("dlka", 2, 6, 9, 14)))
    gate = u
    for name, step in (("conv0", 1), ("conv_spatial", 3)):
        layer = getattr(module.spatial_gating_unit, name)
        torch.nn.init.zeros_(layer.offset_net.weight)
        torch.nn.init.zeros_(layer.offset_net.bias)
        kernel = layer.deform_conv.weight
        padding = step * (kernel.shape[-1] // 2)
        gate = F.conv2d(gate, kernel, padding=padding, dilation=step, groups=6)
    expected = module.proj_2(u * module.spatial_gating_unit.conv1(gate)) + x
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("msda", {"heads": 8, "dilations": (1, 2, 3)}, "heads=8 is not a multiple of the 3 dilat"),
        ("msda", {"kernel_size": 4}, "expected an odd side"),
        ("msda", {"heads": 3, "dilations": (1, 2, 3)}, "dim=32 is not a multiple of heads=3"),
        ("acmix", {"heads": 5}, "dim=32 is not a multiple of heads=5"),
        ("acmix", {"kernel_size": 4}, "expected an odd window"),
        ("ema", {"groups": 5}, "dim=32 is not a multiple of groups=5"),
        ("cpca", {"reduction": 33}, "leaves no channel of dim=32"),
        ("sea", {"heads": 33}, "no channels for a head"),
        ("sea", {"act": "Linear"}, "no activation 'Linear'"),
        ("sea", {"act": "GLU"}, "no activation 'GLU'; there is: ReLU6"),
        ("sea", {"key_dim": 0}, "no channels for a head"),
        ("sea", {"ratio": 0.001}, "no channels for a head"),
        ("msda", {"kernel_size": -1}, "expected an odd side"),
        ("acmix", {"kernel_size": -3}, "expected an odd window"),
        ("msda", {"dilations": 3}, "msda of 32 channels cannot be built: .*int"),
        ("dat", {"stride": "two"}, "dat of 32 channels cannot be built"),
        ("hat", {"compress": 0}, "leave no channel of dim=32"),
        ("ocab", {"window": 0}, "window=0, overlap=0.5: expected 1 or more"),
        ("ocab", {"overlap": -0.5}, "expected 1 or more, and 0 or more"),
        ("sra", {"heads": 0}, "dim=32 is not a multiple of heads=0"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(zoo.ZooError, match=message):
        zoo.create_block(name, channels=32, **options)


@pytest.mark.parametrize(("name", "channels"), [("psa", 1), ("psa_s", 7)])
def test_too_few_channels_are_refused(name, channels):
    with pytest.raises(zoo.ZooError, match=f"dim={channels} has no"):
        zoo.create_block(name, channels=channels)


def test_a_map_smaller_than_the_mirror_is_refused():
    with pytest.raises(zoo.ZooError, match="input is 3x9; a window of kernel_size=7 mirrors 3"):
        zoo.create_block("acmix", channels=16)(torch.zeros(1, 16, 3, 9))


@pytest.mark.parametrize(
    ("class_", "kwargs"),
    [
        ("ACmix", {"in_planes": 8, "out_planes": 8, "kernel_conv": 5}),
        ("ACmix", {"in_planes": 8, "out_planes": 8, "dilation": 2}),
        ("PSA_p", {"inplanes": 8, "planes": 16}),
        ("PSA_s", {"inplanes": 8, "planes": 8, "stride": 2}),
        ("RepBlock (CPCA)", {"in_channels": 8, "out_channels": 16}),
        ("Sea_Attention", {"dim": 8, "key_dim": 4, "num_heads": 2}),
        ("Sea_Attention", {"dim": 8, "key_dim": 4, "num_heads": 2, "activation": "ReLU6",
                           "norm_cfg": {"type": "SyncBN"}}),
        ("HAB", {"dim": 60, "input_resolution": (8, 8), "num_heads": 6, "qk_scale": 1.0}),
        ("OCAB", {"dim": 60, "window_size": 8, "overlap_ratio": 0.5, "num_heads": 6,
                  "qk_scale": 1.0}),
    ],
)  # fmt: skip
def test_official_arguments_that_do_not_work_are_refused(class_, kwargs):
    with pytest.raises(zoo.ZooError):
        zoo.build_reference({"class_": class_, "kwargs": kwargs})


def test_official_arguments_may_be_classes_too(fill, noise):
    kwargs = {"dim": 8, "key_dim": 4, "num_heads": 2}
    named = zoo.build_reference(
        {"class_": "Sea_Attention", "kwargs": {**kwargs, "activation": "ReLU6"}}
    )
    given = zoo.build_reference(
        {"class_": "Sea_Attention", "kwargs": {**kwargs, "activation": torch.nn.ReLU6}}
    )
    x = noise("sea", 1, 8, 5, 6)
    assert torch.equal(fill(named)(x), fill(given)(x))


def test_the_gate_of_sea_starts_at_one_half(noise):
    module = zoo.create_block("sea", channels=16).eval()
    x = noise("sea", 1, 16, 5, 6)
    q, k, v = module.to_q(x), module.to_k(x), module.to_v(x)
    detail = module.pwconv(module.act(module.dwconv(torch.cat((q, k, v), 1))))
    torch.testing.assert_close(module(x), detail / 2)


def test_the_official_layout_of_msda_has_channels_last(fill, noise):
    kwargs = {"dim": 12, "num_heads": 6}
    case = {"class_": "MultiDilatelocalAttention", "kwargs": kwargs, "input_layout": "NHWC"}
    official = fill(zoo.build_reference(case))
    ours = fill(zoo.create_block("msda", channels=12, heads=6, dilations=(1, 2, 3)))
    x = noise("msda", 1, 12, 4, 5)
    before = x.clone()
    torch.testing.assert_close(official(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ours(x))
    assert torch.equal(x, before)  # the official code writes into its input


def test_a_scale_of_ones_own_takes_the_place_of_the_usual_one(fill, noise):
    usual = fill(zoo.create_block("msda", channels=32))
    same = fill(zoo.create_block("msda", channels=32, scale=0.5))  # 4 channels a head
    other = fill(zoo.create_block("msda", channels=32, scale=0.4))
    x = noise("scale", 1, 32, 5, 6)
    assert torch.equal(usual(x), same(x))
    assert not torch.equal(usual(x), other(x))


@pytest.mark.parametrize(
    ("name", "option"),
    [("msda", "attn_drop"), ("msda", "proj_drop"), ("hat", "attn_drop"), ("hat", "drop"),
     ("sea_layer", "drop"), ("sea_layer", "drop_path")],
)  # fmt: skip
def test_dropout_acts_in_training_alone(name, option, fill, noise):
    block = fill(zoo.create_block(name, channels=32, **{option: 0.5}))
    x = noise("drop", 8, 32, 7, 7)
    assert torch.equal(block(x), fill(zoo.create_block(name, channels=32))(x))
    for norm in (m for m in block.train().modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eval()
    assert not torch.equal(block(x), block(x))


def test_small_windows_take_small_maps():
    zoo.names.parse_name("block:acmix[kernel_size=3]").check_input(2, 3)
    assert zoo.create_block("acmix[kernel_size=3]", 8)(torch.zeros(1, 8, 2, 3)).shape == (
        1,
        8,
        2,
        3,
    )
