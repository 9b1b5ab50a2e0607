"""Loading weights: official layouts, safely, with mismatches named."""

from __future__ import annotations

import argparse
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import zoo
import zoo.blocks.window

CASE = {
    "class_": "ShiftWindowAttention",
    "kwargs": {"dim": 8, "heads": 2, "window_size": 3, "shift_size": 2, "fmap_size": (6, 6)},
}


@pytest.fixture
def trained(fill):
    return fill(zoo.build_reference(CASE))


@pytest.mark.parametrize("layout", ["plain", "model", "state_dict", "safetensors"])
def test_every_layout_gives_the_weights_back(tmp_path, trained, layout):
    state = trained.state_dict()
    if layout == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "w.pth"
        torch.save(state if layout == "plain" else {layout: state, "epoch": 3}, path)
    fresh = zoo.build_reference(CASE)
    zoo.load_checkpoint(fresh, path)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(fresh.eval()(x), trained(x))


def test_entries_that_follow_from_the_size_are_the_models_own(tmp_path, trained):
    path = tmp_path / "w.pth"
    torch.save({"model": trained.state_dict()}, path)
    larger = zoo.build_reference({**CASE, "kwargs": {**CASE["kwargs"], "fmap_size": (9, 12)}})
    mask = larger.attn_mask.clone()
    zoo.load_checkpoint(larger, path)
    assert torch.equal(larger.attn_mask, mask)
    assert torch.equal(larger.proj_qkv.weight, trained.proj_qkv.weight)


def sparse(side: int) -> torch.Tensor:
    """A table of one head whose entries grow along both axes."""
    axis = torch.linspace(-1, 1, side)
    return (axis[:, None] + 2 * axis)[None]


def test_a_table_for_another_window_is_resized_bicubically(tmp_path, fill):
    narrow, wide = (
        fill(zoo.create_block("window", channels=8, heads=2, window=window)) for window in (3, 5)
    )
    path = tmp_path / "w.pth"
    table = torch.cat([sparse(5), -sparse(5)]).flatten(1).mT
    torch.save({"model": {**narrow.state_dict(), "relative_position_bias_table": table}}, path)
    zoo.load_checkpoint(wide, path)
    expected = F.interpolate(table.mT.reshape(1, 2, 5, 5), size=(9, 9), mode="bicubic")
    found = wide.relative_position_bias_table.mT.reshape(2, 9, 9)
    torch.testing.assert_close(found, expected[0])
    assert torch.equal(wide.relative_position_index, zoo.blocks.window.relative_index(5))
    assert torch.equal(wide.proj_qkv.weight, narrow.proj_qkv.weight)


def test_a_table_for_another_map_is_resized_bicubically(tmp_path, fill):
    options = {"heads": 2, "groups": 1, "position": "table"}
    small, large = (
        fill(zoo.create_block("dat", 8, table_size=size, **options)) for size in ((7, 7), (7, 10))
    )
    path = tmp_path / "w.pth"
    torch.save({"model": small.state_dict()}, path)
    zoo.load_checkpoint(large, path)
    expected = F.interpolate(small.rpe_table[None], size=(13, 19), mode="bicubic")[0]
    torch.testing.assert_close(large.rpe_table, expected)


def test_a_dat_checkpoint_for_224_gives_a_network_for_448(tmp_path):
    path = tmp_path / "dat.pth"
    torch.manual_seed(1)
    saved = zoo.create_model("dat_tiny")
    torch.save({"model": saved.state_dict(), "epoch": 300}, path)
    loaded = zoo.create_model("dat_tiny", img_size=448, checkpoint=path)
    assert loaded.stages[2].attns[1].rpe_table.shape == (12, 55, 55)
    assert torch.equal(loaded.cls_head.weight, saved.cls_head.weight)
    assert loaded.eval()(torch.zeros(1, 3, 448, 448)).isfinite().all()


def test_a_pvt_checkpoint_for_another_size_acts_as_the_network_it_was_made_for(tmp_path, noise):
    path = tmp_path / "pvt.pth"
    torch.manual_seed(1)
    saved = zoo.create_model("pvt_tiny", img_size=96).eval()
    torch.save({"model": saved.state_dict()}, path)
    loaded = zoo.create_model("pvt_tiny", img_size=(128, 160), checkpoint=path).eval()
    x = noise("x", 1, 3, 128, 160)
    torch.testing.assert_close(loaded(x), saved(x), atol=1e-5, rtol=1e-4)


def test_a_pyramid_takes_the_checkpoint_of_the_classifier(tmp_path, noise):
    path = tmp_path / "pvt.pth"
    torch.manual_seed(1)
    saved = zoo.create_model("pvt_tiny", img_size=64).eval()
    torch.save({"model": saved.state_dict()}, path)
    loaded = zoo.create_model("pvt_tiny", img_size=64, features_only=True, checkpoint=path)
    x = noise("x", 1, 3, 64, 64)
    assert torch.equal(loaded.eval()(x)[0], saved.forward_stage(0, x))


def test_mismatches_are_listed_and_nothing_is_loaded(tmp_path, trained):
    state = trained.state_dict()
    state["extra"] = state.pop("proj_out.bias")
    state["proj_qkv.bias"] = torch.zeros(7)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    fresh = zoo.build_reference(CASE)
    before = fresh.proj_qkv.weight.clone()
    with pytest.raises(zoo.ZooError) as caught:
        zoo.load_checkpoint(fresh, path)
    for part in ("proj_out.bias is missing", "extra is not in the model", "(7,), expected (24,)"):
        assert part in str(caught.value)
    assert torch.equal(fresh.proj_qkv.weight, before)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, trained):
    path, trace = tmp_path / "evil.pth", tmp_path / "was_run"
    torch.save({"model": trained.state_dict(), "trap": Trap(trace)}, path)
    with pytest.raises(zoo.ZooError, match=r"refused: it holds \S*mkdir, which is code"):
        zoo.load_checkpoint(trained, path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "text.pth", "empty.pth"])
def test_damaged_files_are_refused_in_one_line(tmp_path, trained, name):
    path = tmp_path / name
    if name == "cut.safetensors":
        save_file(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes({"text.pth": b"hello\n", "empty.pth": b""}.get(name, whole[: len(whole) // 2]))
    with pytest.raises(zoo.ZooError) as caught:
        zoo.load_checkpoint(trained, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_of_wrappers_are_dropped(tmp_path, trained, prefix):
    path = tmp_path / "w.pth"
    torch.save({"model": {prefix + k: v for k, v in trained.state_dict().items()}}, path)
    fresh = zoo.build_reference(CASE)
    zoo.load_checkpoint(fresh, path)
    assert torch.equal(fresh.proj_qkv.weight, trained.proj_qkv.weight)


def test_arguments_of_the_training_may_stand_beside_the_weights(tmp_path, trained):
    path = tmp_path / "w.pth"
    torch.save({"model": trained.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    fresh = zoo.build_reference(CASE)
    zoo.load_checkpoint(fresh, path)
    assert torch.equal(fresh.proj_qkv.weight, trained.proj_qkv.weight)


def test_faults_of_every_kind_are_named_and_the_rest_is_counted(tmp_path):
    path = tmp_path / "w.pth"
    state = zoo.create_model("pvt_tiny").state_dict()
    torch.save({k.replace("block1", "blk1"): v for k, v in state.items()}, path)
    with pytest.raises(zoo.ZooError) as caught:
        zoo.load_checkpoint(zoo.create_model("pvt_tiny", num_classes=10), path)
    for part in (
        "block1.0.attn.kv.bias is missing", "31 more are missing",
        "blk1.0.attn.kv.bias is not in the model", "31 more are not in it",
        "head.weight is (1000, 512), expected (10, 512)",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_parameter_of_a_derived_name_is_loaded(tmp_path):
    model = torch.nn.Module()
    model.reference = torch.nn.Parameter(torch.zeros(3))
    path = tmp_path / "w.pth"
    torch.save({"reference": torch.ones(3)}, path)
    zoo.load_checkpoint(model, path)
    assert torch.equal(model.reference, torch.ones(3))


@pytest.mark.parametrize("content", [{"weights": {"a": 1}}, {1: torch.ones(1)}])
def test_what_a_file_holds_instead_is_told(tmp_path, trained, content):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(zoo.ZooError, match=r"nor under model, state_dict, .*it holds a dict of \["):
        zoo.load_checkpoint(trained, path)


def test_a_file_without_tensors_is_refused(tmp_path, trained):
    path = tmp_path / "w.pth"
    torch.save({"model": [1, 2]}, path)
    with pytest.raises(zoo.ZooError, match="holds no state dict of tensors"):
        zoo.load_checkpoint(trained, path)


def test_create_model_takes_a_checkpoint(tmp_path):
    path = tmp_path / "w.pth"
    torch.manual_seed(1)
    saved = zoo.create_model("pvt_tiny")
    torch.save({"model": saved.state_dict()}, path)
    loaded = zoo.create_model("pvt_tiny", checkpoint=path)
    assert torch.equal(loaded.head.weight, saved.head.weight)
    with pytest.raises(zoo.ZooError, match=r"head.weight is \(1000, 512\), expected \(10, 512\)"):
        zoo.create_model("pvt_tiny", checkpoint=path, num_classes=10)
