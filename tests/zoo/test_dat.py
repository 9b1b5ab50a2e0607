"""The skeleton of the DAT networks: stage letters and the parts around the attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zoo

BASE = {
    "img_size": 64, "dim_stem": 8, "dims": [8, 16, 32, 64], "depths": [1, 1, 1, 1],
    "stage_spec": ["D", "D", "D", "D"], "heads": [2, 2, 4, 4], "groups": [1, 1, 2, 2],
    "strides": [4, 2, 1, 1], "offset_range_factor": [-1, 2, 2, 2], "use_pes": [True] * 4,
    "ksizes": [5, 5, 3, 3], "window_sizes": [4, 4, 2, 2], "num_classes": 10,
}  # fmt: skip


def network(**change):
    return zoo.build_reference({"class_": "DAT (++)", "kwargs": {**BASE, **change}})


LETTERS = {
    "L": {"stage_spec": ["LL", "LL", "LL", "LL"], "depths": [2] * 4},
    "S": {"stage_spec": ["LS", "LS", "LS", "LS"], "depths": [2] * 4},
    "N": {"stage_spec": ["ND", "ND", "ND", "ND"], "depths": [2] * 4},
    "P": {"stage_spec": ["PD", "PD", "PP", "PP"], "depths": [2] * 4, "sr_ratios": [8, 4, 2, 1]},
    "X": {"stage_spec": ["XD", "XD", "DX", "XX"], "depths": [2] * 4, "window_sizes": [7] * 4},
}
OPTIONS = {
    "dwc_pe": {"dwc_pes": [True] * 4},
    "fixed_pe": {"fixed_pes": [True] * 4},
    "log_cpb": {"log_cpb": [True] * 4},
    "no_off": {"no_offs": [True] * 4},
    "no position": {"use_pes": [False] * 4},
    "zero offsets": {"offset_range_factor": [0] * 4},
    "conv stem": {"use_conv_patches": True},
    "lpu": {"use_lpus": [True] * 4},
    "conv mlp": {"use_dwc_mlps": [True] * 4},
    "layer scale": {"layer_scale_values": [1e-5] * 4},
    "another stem width": {"dim_stem": 12},
}


@pytest.mark.parametrize("change", [*LETTERS.values(), *OPTIONS.values()], ids=[*LETTERS, *OPTIONS])
def test_every_letter_and_option_runs_and_learns(change):
    torch.manual_seed(0)
    model = network(**change)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both = model.eval()(x)
        torch.testing.assert_close(model(x[1:]), both[1:], atol=1e-5, rtol=1e-4)
    model.train()(x).square().sum().backward()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    unreached = [n for n, p in trained if p.grad is None]
    # Zeroed offsets leave the network that predicts them without a gradient.
    if change not in (OPTIONS["no_off"], OPTIONS["zero offsets"]):
        assert unreached == []
    assert both.isfinite().all()


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (LETTERS["P"], ["stages.0.attns.0.proj_ds.1.norm.weight", "stages.3.attns.1.kv.bias"]),
        (LETTERS["X"], ["stages.2.ln_cnvnxt.1.norm.bias", "stages.0.attns.0.weight"]),
        (LETTERS["N"], ["stages.1.attns.0.rpb", "stages.1.attns.0.qkv.weight"]),
        (OPTIONS["log_cpb"], ["stages.0.attns.0.rpe_table.0.bias"]),
        (OPTIONS["dwc_pe"], ["stages.0.attns.0.rpe_table.weight"]),
        (OPTIONS["layer scale"], ["stages.3.layer_scales.1.weight"]),
        (OPTIONS["lpu"], ["stages.2.local_perception_units.0.weight"]),
        (OPTIONS["conv mlp"], ["stages.0.mlps.0.linear1.0.weight", "stages.0.mlps.0.dwc.bias"]),
        (OPTIONS["conv stem"], ["patch_proj.4.norm.weight", "patch_proj.3.bias"]),
        (OPTIONS["another stem width"], ["stages.0.proj.weight", "stages.0.proj.bias"]),
    ],
)  # fmt: skip
def test_the_parts_stand_under_the_official_keys(change, keys):
    assert set(keys) <= network(**change).state_dict().keys()


@pytest.mark.parametrize(
    ("change", "prefix", "expected"),
    [
        (
            LETTERS["P"],
            "stages.0.attns.0.",
            {
                "q.weight": (8, 8, 1, 1), "q.bias": (8,), "kv.weight": (16, 8, 1, 1),
                "kv.bias": (16,), "proj.weight": (8, 8, 1, 1), "proj.bias": (8,),
                "proj_ds.0.weight": (8, 8, 8, 8), "proj_ds.0.bias": (8,),
                "proj_ds.1.norm.weight": (8,), "proj_ds.1.norm.bias": (8,),
            },
        ),
        (LETTERS["X"], "stages.0.attns.0.", {"weight": (8, 1, 7, 7), "bias": (8,)}),
        (LETTERS["X"], "stages.0.ln_cnvnxt.", {"0.norm.weight": (8,), "0.norm.bias": (8,)}),
        (
            OPTIONS["log_cpb"],
            "stages.2.attns.0.rpe_table.",
            {"0.weight": (32, 2), "0.bias": (32,), "2.weight": (2, 32)},
        ),
        (OPTIONS["fixed_pe"], "stages.1.attns.0.rpe_", {"table": (2, 64, 16)}),
        (OPTIONS["no_off"], "stages.1.attns.0.rpe_", {}),
        (OPTIONS["layer scale"], "stages.0.layer_scales.", {"0.weight": (8,), "1.weight": (8,)}),
        (
            OPTIONS["conv mlp"],
            "stages.0.mlps.0.",
            {
                "linear1.0.weight": (32, 8, 1, 1), "linear1.0.bias": (32,),
                "dwc.weight": (32, 1, 3, 3), "dwc.bias": (32,),
                "linear2.0.weight": (8, 32, 1, 1), "linear2.0.bias": (8,),
            },
        ),
    ],
)  # fmt: skip
def test_a_part_has_the_official_entries_and_no_other(change, prefix, expected):
    state = network(**change).state_dict()
    found = {
        k.removeprefix(prefix): tuple(v.shape) for k, v in state.items() if k.startswith(prefix)
    }
    assert found == expected


def test_a_stage_is_its_blocks_in_the_official_order(fill, noise):
    parts = {"use_lpus": [True] * 4, "layer_scale_values": [0.5] * 4}
    spec = {"stage_spec": ["XD", "D", "D", "D"], "depths": [2, 1, 1, 1], "window_sizes": [3] * 4}
    stage = fill(network(**parts, **spec)).stages[0]
    x = noise("stage", 2, 8, 16, 16)
    y = x + stage.local_perception_units[0](x)
    y = y + stage.mlps[0](stage.ln_cnvnxt["0"](stage.attns[0](y)))
    y = y + stage.local_perception_units[1](y)
    scales = [stage.layer_scales[j].weight[:, None, None] for j in (2, 3)]
    y = y + scales[0] * stage.attns[1](stage.layer_norms[2](y))
    y = y + scales[1] * stage.mlps[1](stage.layer_norms[3](y))
    torch.testing.assert_close(stage(x), y)


def test_pyramid_attention_is_spatial_reduction_attention(fill, noise):
    kwargs = {"dim": 16, "num_heads": 4, "sr_ratio": 2}
    maps = fill(zoo.build_reference({"class_": "PyramidAttention", "kwargs": kwargs}))
    tokens = zoo.create_block("sra", 16, heads=4, reduction=2).eval()
    own = maps.state_dict()
    renamed = {
        key: own[key.replace("sr.", "proj_ds.0.").replace("norm.", "proj_ds.1.norm.")]
        for key in tokens.state_dict()
    }
    shaped = {key: renamed[key].view_as(value) for key, value in tokens.state_dict().items()}
    tokens.load_state_dict(shaped)
    x = noise("pyramid", 2, 16, 6, 8)
    torch.testing.assert_close(maps(x), tokens(x), atol=1e-5, rtol=1e-4)


def test_the_conv_mlp_of_2023_adds_its_convolution_and_that_of_2022_does_not(fill, noise):
    x = noise("mlp", 1, 8, 5, 7)
    v1 = {k: v for k, v in BASE.items() if k != "ksizes"} | {"use_dwc_mlps": [True] * 4}
    v1 |= {"stage_spec": ["L"] * 4, "strides": [1] * 4, "offset_range_factor": [2] * 4}
    first = fill(zoo.build_reference({"class_": "DAT (v1)", "kwargs": v1})).stages[0].mlps[0]
    second = fill(network(use_dwc_mlps=[True] * 4)).stages[0].mlps[0]
    torch.testing.assert_close(first(x), first.linear2(F.gelu(first.dwc(first.linear1(x)))))
    hidden = second.linear1(x)
    torch.testing.assert_close(second(x), second.linear2(F.gelu(hidden + second.dwc(hidden))))


@pytest.mark.parametrize(
    ("class_", "change", "message"),
    [
        ("DAT (++)", {"stage_spec": ["Q", "D", "D", "D"]}, r"blocks \['Q'\]; expected one letter"),
        ("DAT (++)", {"stage_spec": ["E", "D", "D", "D"]}, r"blocks \['E'\]"),
        ("DAT (++)", {"depths": [2, 1, 1, 1]}, "stage 0 has depth 2"),
        ("DAT (++)", {"dims": [8, 16, 32, 48]}, "twice as wide"),
        ("DAT (++)", {"no_offs": [True] * 4, "dwc_pes": [True] * 4}, "the official code fails"),
        ("DAT (++)", {"heads": [3, 2, 4, 4]}, "8 channels do not divide into 3 heads"),
        ("DAT (++)", {"heads": [0, 2, 4, 4]}, "into 0 heads"),
        ("DAT (++)", {"groups": [-1, 1, 2, 2]}, "groups=-1"),
        ("DAT (++)", {"depths": [1, 1, 1]}, "3 depths and 4 entries of stage_spec"),
        ("DAT (++)", {**LETTERS["X"], "window_sizes": [4] * 4}, "letter X needs an odd window"),
        ("DAT (++)", {**LETTERS["S"], "window_sizes": [7] * 4}, "not a multiple of window=7"),
        ("DAT (++)", {"use_conv_patches": True, "patch_size": 8}, "has patches of 4"),
        ("DAT (v1)", {"no_offs": [True] * 4}, "the official code fails"),
        ("DAT (v1)", {"fixed_pes": [True] * 4}, "the official code fails"),
        ("DAT (v1)", {"stage_spec": ["N", "D", "D", "D"]}, "'L': 'local window'"),
    ],
)
def test_what_the_official_code_fails_on_is_refused(class_, change, message):
    kwargs = {**BASE, **change}
    if class_ == "DAT (v1)":
        del kwargs["ksizes"]
    with pytest.raises(zoo.ZooError, match=message):
        zoo.build_reference({"class_": class_, "kwargs": kwargs})
