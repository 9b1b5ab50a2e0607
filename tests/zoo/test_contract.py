"""What every registered model and block must do."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.names import parse_name
from zoo.spec import BLOCKS, MODELS

GOLDENS = Path(__file__).parents[1] / "goldens"
BACKBONES = [name for name, spec in MODELS.items() if spec.task == "classify"]
SMALLEST = ["yolov8n", "yolov10n", "yolo11n"]  # of each family
NAMES = [*BACKBONES, *SMALLEST, "yolov8n+dat"]
FAMILIES = ["dat_tiny", "dat_pp_tiny", "dat_p_tiny", "pvt_tiny", "pvt_v2_b0", "swin_tiny"]
OFTEN = [*FAMILIES, "yolov8n", "yolov8n+dat"]
HALVES = [torch.bfloat16, torch.float16]


def small(name: str, **options) -> tuple[torch.nn.Module, int]:
    """A model with few classes at the smallest input, or that of two cells of the last map."""
    named = parse_name(name)
    side = max(64, named.spec.minimum)
    given = {"num_classes": 10, "img_size": side, **options}
    torch.manual_seed(0)
    model = zoo.create_model(name, **{k: v for k, v in given.items() if takes(named.spec, k)})
    return model, side


def takes(spec, option: str) -> bool:
    return option in (*spec.options, *zoo.spec.PYRAMID)


def micro(case: str) -> tuple[torch.nn.Module, int]:
    """A shallow network with all the parts of its family."""
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    return zoo.build_reference(golden), golden["kwargs"]["img_size"]


def logits(output):
    return output[0] if isinstance(output, tuple) else output


def tensors_of(output) -> list[torch.Tensor]:
    """Every tensor of nested dictionaries and lists."""
    if isinstance(output, dict):
        output = list(output.values())
    return [output] if torch.is_tensor(output) else [t for o in output for t in tensors_of(o)]


@pytest.mark.slow(but=[*BACKBONES, *SMALLEST])
@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_official_one(name):
    with torch.device("meta") if name in BACKBONES else contextlib.nullcontext():
        model = zoo.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].params


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_published_with_their_source(name):
    spec = MODELS[name]
    assert spec.source
    assert spec.family != "external"
    assert bool(spec.published_source) == bool(spec.published_macs)
    assert bool(spec.published_macs) == (name != "dat_p_tiny")  # no paper prints it
    assert bool(spec.published_top1) == (bool(spec.published_macs) and spec.task == "classify")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_common_options(name):
    defaults = {k: p.default for k, p in inspect.signature(MODELS[name].load()).parameters.items()}
    assert defaults["img_size"] == MODELS[name].img_size
    assert defaults["num_classes"] == 1000
    assert 0 < defaults["drop_path_rate"] < 1


@pytest.mark.slow(but=OFTEN)
@pytest.mark.parametrize("name", NAMES)
def test_output_is_finite_repeatable_and_independent_of_the_batch(name):
    model, side = small(name)
    model.eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        both, again, second = model(x), model(x), model(x[1:])
    both, again, second = logits(both), logits(again), logits(second)
    assert both.shape[:2] == ((2, 14) if "yolo" in name else (2, 10))
    assert both.isfinite().all()
    assert torch.equal(both, again)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-3)


@pytest.mark.slow(but=OFTEN)
@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_training_changes_every_parameter(name):
    model, side = small(name, drop_path_rate=0.0)  # a dropped block would see no gradient
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    # A key's bias has no gradient but rounding, since softmax does not see it: hence the eps.
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, eps=1e-12)
    output = model(torch.randn(2, 3, side, side))
    sum((t.float() ** 2).sum() for t in tensors_of(output)).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert [n for n, p in before.items() if torch.equal(p, after[n])] == []
    assert [n for n, p in after.items() if not p.isfinite().all()] == []


@pytest.mark.slow(but=FAMILIES)
@pytest.mark.parametrize("name", [n for n in BACKBONES if MODELS[n].minimum < 64])
def test_the_smallest_input_that_is_let_through_works(name):
    side = MODELS[name].minimum
    model = zoo.create_model(name, num_classes=10, input_size=(side, side)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, side)).isfinite().all()


@pytest.mark.slow(but=["pvt_v2_b0", "swin_tiny"])
@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_steps_learn_to_tell_two_patterns_apart(name):
    model, side = small(name, num_classes=2)
    stripes = torch.arange(side).div(4, rounding_mode="floor").remainder(2).float() * 2 - 1
    across = stripes.expand(3, side, side)
    x = torch.stack([across, across.mT]) + 0.1 * torch.randn(2, 3, side, side)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-4)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


@pytest.mark.slow(but=FAMILIES)
@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_a_pyramid_as_timm_has_it(name):
    model, side = small(name, features_only=True)
    info = model.feature_info
    with torch.no_grad():
        maps = model.eval()(torch.randn(1, 3, side, side))
    assert info.reduction() == [4, 8, 16, 32]
    sides = [side // 4, side // 8, side // 16, side // 32]
    expected = [(1, c, s, s) for c, s in zip(info.channels(), sides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_pyramid_has_the_same_maps_and_no_idle_parameter(name):
    whole, side = small(name, features_only=True, drop_path_rate=0.0)
    cut, _ = small(name, features_only=True, out_indices=(0, -2), drop_path_rate=0.0)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        maps = whole.eval()(x)
    first, third = cut.eval()(x)
    torch.testing.assert_close(first, maps[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(third, maps[2], atol=1e-4, rtol=1e-4)
    assert cut.feature_info.channels() == [whole.feature_info.channels()[i] for i in (0, 2)]
    (first.square().mean() + third.square().mean()).backward()
    assert [n for n, p in cut.named_parameters() if p.grad is None] == []


def test_the_last_map_of_pvt_leaves_the_class_token_out(fill, noise):
    model = fill(zoo.create_model("pvt_tiny", img_size=64, num_classes=10))
    x = noise("map", 1, 512, 2, 2)
    model.patch_embed4 = torch.nn.Identity()
    model.patch_embed4.forward = lambda x: (x.flatten(2).mT, (2, 2))
    tokens, _ = model._tokens(3, x)
    assert tokens.shape == (1, 5, 512)
    assert torch.equal(model.forward_stage(3, x).flatten(2).mT, tokens[:, 1:])


@pytest.mark.parametrize("indices", [(4,), (1, 0), (0, 0), ("a",), ()])
def test_stages_that_are_not_there_are_refused(indices):
    with pytest.raises(zoo.ZooError, match="numbers of stages in rising order, out of 0 to 3"):
        zoo.create_model("pvt_tiny", features_only=True, out_indices=indices)


def test_out_indices_want_features_only():
    with pytest.raises(zoo.ZooError, match="without features_only"):
        zoo.create_model("pvt_tiny", out_indices=(1,))


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_is_near_float32(name, dtype):
    model, side = small(name)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = model.eval()(x)
        with torch.autocast("cpu", dtype):
            output = model(x)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def check_export(model: torch.nn.Module, side: int) -> None:
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = model.eval()(x)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-5, rtol=1e-4)


def check_compile(model: torch.nn.Module, side: int) -> None:
    x = torch.randn(1, 3, side, side)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model.eval(), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-4)


SHALLOW = {
    "dat": lambda: micro("dat_v1_micro_128"),
    "dat_pp": lambda: micro("dat_pp_micro_128"),
    "pvt": lambda: small("pvt_tiny"),
    "pvt_v2": lambda: small("pvt_v2_b0"),
    "swin": lambda: small("swin_tiny"),
    "features": lambda: small("pvt_tiny", features_only=True),
}


@pytest.mark.slow(but=["dat", "pvt_v2", "swin"])
@pytest.mark.parametrize("family", SHALLOW)
def test_every_family_is_exported(family):
    check_export(*SHALLOW[family]())


@pytest.mark.slow(but=["dat", "pvt_v2"])
@pytest.mark.parametrize("family", SHALLOW)
def test_every_family_is_compiled_without_a_break(family):
    check_compile(*SHALLOW[family]())


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_exported_and_compiled_without_a_break(name):
    model, side = small(name)
    check_export(model, side)
    check_compile(model, side)


@pytest.mark.parametrize("name", ["dat_pp_tiny", "dat_p_tiny", "pvt_tiny", "pvt_v2_b0"])
def test_other_sizes_than_that_of_the_tables_work(name, fill, noise):
    model = fill(zoo.create_model(name, num_classes=10))
    for h, w in ((96, 160), (224, 64)):
        assert model(noise("x", 1, 3, h, w)).isfinite().all()


def test_dat_takes_multiples_of_its_windows(fill, noise):
    model = fill(zoo.create_model("dat_tiny", num_classes=10))
    assert model(noise("x", 1, 3, 224, 448)).isfinite().all()


def test_dat_pp_takes_any_size(fill, noise):
    model = fill(zoo.create_model("dat_pp_tiny", num_classes=10))
    assert model(noise("x", 1, 3, 33, 71)).isfinite().all()


def test_the_tables_of_dat_pp_base_384_are_those_of_224():
    model = zoo.create_model("dat_pp_base_384")
    assert model.stages[0].attns[1].rpe_table.shape == (4, 111, 111)
    larger = zoo.create_model("dat_pp_base_384", img_size=768)
    assert larger.stages[0].attns[1].rpe_table.shape == (4, 223, 223)


# Maps that are not square; those of odd sides, and the smallest, for the blocks that take any.
WIDE, TALL = (14, 21), (28, 14)
MAPS = [
    *((name, size) for name in BLOCKS for size in (WIDE, TALL)),
    *(
        (name, size)
        for name, spec in BLOCKS.items()
        if spec.any_size
        for size in ((9, 13), (11, 5), (spec.minimum, spec.minimum + 1))
    ),
]
# Softmax does not see what shifts all logits of a query alike: rounding is all of its gradient.
UNSEEN = {
    "proj_k.bias", "conv2.bias", "conv_p.bias", "qkv.bias", "kv.bias", "proj_qkv.bias",
    "attn.qkv.bias",
}  # fmt: skip


def block(name: str, channels: int = 32) -> torch.nn.Module:
    torch.manual_seed(0)
    return zoo.create_block(name, channels=channels)


@pytest.mark.parametrize(("name", "size"), MAPS)
def test_blocks_keep_the_shape_and_treat_each_sample_alike(name, size, fill):
    module = fill(block(name))
    x = torch.randn(2, 32, *size)
    before = x.clone()
    with torch.no_grad():
        y = module(x)
        assert torch.equal(x, before)
        assert y.shape == x.shape
        assert y.isfinite().all()
        assert torch.equal(y, module(x))
        torch.testing.assert_close(module(x[1:]), y[1:], atol=1e-5, rtol=1e-4)
        strided = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(module(strided), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_of_a_block_gets_a_gradient(name, fill):
    module = fill(block(name)).train()
    x = torch.randn(2, 32, *WIDE, requires_grad=True)
    module(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    grads = {n: p.grad for n, p in module.named_parameters()}
    assert [n for n, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert [n for n, grad in grads.items() if n not in UNSEEN and grad.abs().max() < 1e-6] == []


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_under_autocast_are_near_float32(name, dtype):
    module = block(name).eval()
    x = torch.randn(2, 32, *WIDE)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype):
            output = module(x)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_in_half_types_keep_theirs_and_are_near_float32(name, dtype):
    module = block(name).eval()
    x = torch.randn(2, 32, *WIDE)
    with torch.no_grad():
        expected = module(x)
        output = module.to(dtype)(x.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow(but=["dat", "ema", "window", "hat"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_compiled_without_a_break(name, fill):
    module = fill(block(name))
    x = torch.randn(2, 32, *WIDE, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected, output = module(x), compiled(x)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    g = torch.randn_like(output)
    (theirs,) = torch.autograd.grad(expected, x, g)
    (ours,) = torch.autograd.grad(output, x, g)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_copied_and_pickled(name, tmp_path):
    module = block(name).eval()
    x = torch.randn(1, 32, *WIDE)
    torch.save(copy.deepcopy(module), tmp_path / "block.pt")
    loaded = torch.load(tmp_path / "block.pt", weights_only=False)
    assert torch.equal(loaded(x), module(x))
