"""Our modules against the official implementations: state dict, output, input gradient."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.features import Features

GOLDENS = Path(__file__).parents[1] / "goldens"


def used_tolerance(ours: torch.Tensor, official: torch.Tensor, tolerance: dict) -> float:
    """Largest error in units of what is allowed; NaN counts as infinite."""
    allowed = tolerance["atol"] + tolerance["rtol"] * official.abs()
    return ((ours - official).abs() / allowed).nan_to_num(nan=float("inf")).max().item()


def test_state_dict_has_the_official_keys_and_shapes(golden):
    module = zoo.build_reference(golden)
    ours = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    assert ours == dict(golden["state_dict"])
    assert sum(p.numel() for p in module.parameters()) == golden["n_params"]


def test_output_and_input_gradient_are_the_official_ones(golden, fill, noise, record_property):
    module = fill(zoo.build_reference(golden))
    expected = load_file(GOLDENS / f"{golden['case']}.safetensors")
    x = noise(golden["input_seed_name"], *golden["input_shape"]).requires_grad_()
    size = (tuple(golden["hw"]),) if golden["input_layout"] == "BNC" else ()
    output = module(x, *size)
    output = output[0] if isinstance(output, tuple) else output
    used = {"output": used_tolerance(output, expected["output"], golden["tolerance"]["output"])}
    if "grad_input" in expected:
        (output * noise(golden["g_seed_name"], *output.shape)).sum().backward()
        allowed = golden["tolerance"]["grad_input"]
        used["grad_input"] = used_tolerance(x.grad, expected["grad_input"], allowed)
    record_property("used_tolerance", used)
    assert all(share <= 1 for share in used.values()), used


ATTENTION = ("dattn_*", "local_*", "shift_*", "natten_*", "dat_v1_micro*", "dat_pp_micro*")
WITH_IMPL = sorted(path.stem for pattern in ATTENTION for path in GOLDENS.glob(f"{pattern}.json"))


@pytest.mark.parametrize("case", WITH_IMPL)
@pytest.mark.parametrize("learns", [False, True])
def test_the_papers_sequence_of_operations_gives_them_too(case, learns, fill, noise):
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    expected = load_file(GOLDENS / f"{case}.safetensors")
    for impl in ("reference", "fast", *(["masked"] if case.startswith("dattn") else [])):
        module = fill(zoo.build_reference(golden, impl=impl))
        x = noise(golden["input_seed_name"], *golden["input_shape"]).requires_grad_()
        with torch.set_grad_enabled(learns):
            output = module(x)
        allowed = golden["tolerance"]
        assert used_tolerance(output, expected["output"], allowed["output"]) <= 1
        if learns and "grad_input" in expected:
            (output * noise(golden["g_seed_name"], *output.shape)).sum().backward()
            assert used_tolerance(x.grad, expected["grad_input"], allowed["grad_input"]) <= 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["dattn_v1_rpe_s1_14", "dattn_v2_rpe_s2_clamp_14"])
def test_flex_attention_gives_them_too(case, fill, noise):
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    expected = load_file(GOLDENS / f"{case}.safetensors")["output"]
    module = fill(zoo.build_reference(golden, impl="flex"))
    with torch.no_grad():
        output = module(noise(golden["input_seed_name"], *golden["input_shape"]))
    assert used_tolerance(output, expected, golden["tolerance"]["output"]) <= 1


def test_deformable_points_are_the_official_ones(golden, fill, noise):
    expected = load_file(GOLDENS / f"{golden['case']}.safetensors")
    module = fill(zoo.build_reference(golden))
    pos_yx, reference_yx = module.points(noise(golden["input_seed_name"], *golden["input_shape"]))
    torch.testing.assert_close(pos_yx, expected["pos"], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(reference_yx, expected["reference"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["dat_v1_micro_128", "dat_pp_micro_128", "dat_pp_tiny_224"])
def test_a_pyramid_holds_the_official_stages(case, fill, noise):
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    model = Features(fill(zoo.build_reference(golden)))
    with torch.no_grad():
        maps = model(noise(golden["input_seed_name"], *golden["input_shape"]))
    for ours, official in zip(maps, golden["stage_stats"], strict=True):
        assert list(ours.shape) == official["shape"]
        found = {"mean": ours.mean(), "std": ours.std(), "absmax": ours.abs().max()}
        expected = {key: official[key] for key in found}
        assert {k: v.item() for k, v in found.items()} == pytest.approx(
            expected, rel=1e-5, abs=1e-4
        )


def test_pvt_is_built_from_the_arguments_of_its_class_too(fill, noise):
    sizes = {"embed_dims": [64, 128, 320, 512], "num_heads": [1, 2, 5, 8], "depths": [2, 2, 2, 2]}
    ratios = {"mlp_ratios": [8.0, 8.0, 4.0, 4.0], "sr_ratios": [8, 4, 2, 1]}
    kwargs = {**sizes, **ratios, "patch_size": 4, "qkv_bias": True, "norm_eps": 1e-6}
    case = {"class_": "PyramidVisionTransformer"}
    given = fill(zoo.build_reference({**case, "kwargs": kwargs}))
    named = fill(zoo.build_reference({**case, "kwargs": {"factory": "pvt_tiny"}}))
    x = noise("x", 1, 3, 64, 64)
    assert torch.equal(given(x), named(x))


def test_an_unknown_class_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no equivalent of class 'Nope'; .*DAT \(v1\)"):
        zoo.build_reference({"class_": "Nope", "kwargs": {}})


@pytest.mark.parametrize(
    ("class_", "change"),
    [
        pytest.param("LocalAttention", {"extra": 1}, id="argument that the class lacks"),
        pytest.param("LocalAttention", {"heads": 7}, id="heads that do not divide"),
        pytest.param("DAttentionBaseline (v1)", {"no_off": True}, id="crashes officially"),
        pytest.param("DAT (v1)", {"nonsense": 1}, id="network argument"),
        pytest.param("DAT (v1)", {"dims": [96, 192, 384, 400]}, id="widths that do not double"),
        pytest.param("PyramidVisionTransformer", {"factory": "dat_tiny"}, id="another family"),
        pytest.param("PyramidVisionTransformer", {"nonsense": 1}, id="argument of a factory"),
        pytest.param(
            "PyramidVisionTransformer", {"factory": None, "patch_size": 16}, id="no depths"
        ),
        pytest.param("DAttentionBaseline (v1)", {"kv_size": [4, 4]}, id="table of another size"),
    ],
)
def test_unsupported_arguments_are_refused(class_, change):
    base = {
        "LocalAttention": {"dim": 48, "heads": 3, "window_size": 7},
        "DAttentionBaseline (v1)": {
            "q_size": [8, 8], "kv_size": [8, 8], "n_heads": 4, "n_head_channels": 8,
            "n_groups": 2, "stride": 1, "offset_range_factor": 2, "use_pe": True,
            "dwc_pe": False, "no_off": False, "fixed_pe": False, "stage_idx": 2,
        },
        "DAT (v1)": {
            "dims": [96, 192, 384, 768], "depths": [1, 1, 1, 1], "heads": [3, 6, 12, 24],
            "stage_spec": [["L"]] * 4,
        },
        "PyramidVisionTransformer": {"factory": "pvt_small"},
    }[class_]  # fmt: skip
    with pytest.raises(ValueError):  # noqa: PT011 - the message differs, the class is the contract
        zoo.build_reference({"class_": class_, "kwargs": {**base, **change}})
