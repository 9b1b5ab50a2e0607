"""Deformable attention, window and neighborhood attention: every implementation is the same one."""

from __future__ import annotations

import copy
import itertools
import pickle
import shutil
from typing import get_args

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from datbench.device import _allocation
from zoo import chunked
from zoo.blocks import _positions
from zoo.blocks.deformable import DeformableAttention, Impl
from zoo.layers import Linear
from zoo.prepared import Prepared

SIDES = (12, 14)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks, and windows cut out of every table that was made for the map."""
    for name, value in {"LOGITS": 20_000, "QUERIES": 48, "COLUMNS": 5}.items():
        monkeypatch.setattr(chunked, name, value)
    monkeypatch.setattr(_positions, "FEW", 0)
    monkeypatch.setattr(_positions, "HIDDEN", 5_000)


def variants():
    """Every position term with bounded, unbounded and no offsets, of both versions."""
    for version, position, reach, stride in itertools.product(
        (1, 2), ("table", "other table", "dwc", "log_cpb", "fixed", None), (-1, 0, 3, 40), (1, 2)
    ):
        if version == 1 and position in ("log_cpb", "fixed"):
            continue
        size = {"table": SIDES, "fixed": SIDES, "other table": (9, 17)}.get(position)
        named = "table" if position == "other table" else position
        yield pytest.param(
            {"version": version, "position": named, "offset_range": reach, "stride": stride,
             "table_size": size, "groups": 2, "heads": 4},
            id=f"v{version}-{position}-{reach}-s{stride}",
        )  # fmt: skip
    yield pytest.param({"no_offset": True, "position": None, "stride": 2}, id="no offset")


def both(fill, options, dtype=torch.float32, dim=32):
    """The yardstick and the fast one, with the same weights."""
    made = [fill(zoo.create_block("dat", dim, impl=i, **options)) for i in ("reference", "fast")]
    return [module.to(dtype) for module in made]


def learned(module, x, g):
    """Output, and gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    out = module(x)
    (out * g).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in module.parameters() if p.requires_grad)]


@pytest.mark.parametrize("options", [*variants()])
def test_it_is_the_papers_operator_to_the_last_digits(fill, noise, small_blocks, options):
    reference, fast = both(fill, options, torch.float64)
    x, g = (noise(name, 2, 32, *SIDES).double() for name in "xg")
    for ours, expected in zip(learned(fast, x, g), learned(reference, x, g), strict=True):
        if expected is None:
            assert ours is None  # offsets that are not used
            continue
        torch.testing.assert_close(
            ours, expected, rtol=1e-9, atol=1e-9 * max(1, expected.abs().max())
        )
    with torch.no_grad():
        torch.testing.assert_close(fast(x), reference(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("position", ["table", "dwc", None])
def test_float32_agrees_within_1e_5_with_its_gradients(fill, noise, version, position):
    options = {"version": version, "position": position, "offset_range": 2, "table_size": (20, 20)}
    reference, fast = both(fill, options, dim=64)
    x, g = (noise(name, 2, 64, 20, 20) for name in "xg")
    for ours, expected in zip(learned(fast, x, g), learned(reference, x, g), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max()))


def test_blocks_do_not_show(fill, noise, monkeypatch):
    _, fast = both(fill, {"position": "table", "table_size": (20, 23)})
    x = noise("x", 2, 32, 20, 23)
    with torch.no_grad():
        whole = fast(x)
        monkeypatch.setattr(chunked, "LOGITS", 1)
        monkeypatch.setattr(chunked, "QUERIES", 4)
        torch.testing.assert_close(fast(x), whole, rtol=0, atol=1e-6)


def test_the_layout_of_the_input_is_kept(fill, noise):
    for impl in ("fast", "reference"):
        module = fill(zoo.create_block("dat", 32, impl=impl))
        x = noise("x", 2, 32, 8, 8)
        assert module(x).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last)
    module = fill(zoo.create_block("dat", 32))
    assert module(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(last), module(x), atol=1e-5, rtol=1e-4)


def test_what_is_not_a_number_stays_so_and_nothing_else_happens(fill):
    for impl in ("fast", "reference"):
        options = {"position": "table", "table_size": (8, 8)}
        module = fill(zoo.create_block("dat", 32, impl=impl, **options))
        assert module(torch.full((1, 32, 8, 8), float("nan"))).isnan().all()


def test_dropout_is_drawn_once_for_both_passes(fill, noise, small_blocks):
    options = {"position": "table", "table_size": SIDES, "attn_drop": 0.5}
    module = fill(zoo.create_block("dat", 32, **options)).double().train()
    x = noise("x", 1, 32, *SIDES).double()

    def loss(scale):
        torch.manual_seed(3)
        return module(x * scale).sum()

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    loss(scale).backward()
    slope = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
    assert scale.grad.item() == pytest.approx(slope.item(), rel=1e-4)
    module.eval()
    assert not torch.equal(module(x), module.train()(x))


@pytest.mark.parametrize("train", [False, True])
def test_memory_is_a_fraction(fill, train):
    peaks = []
    for impl in ("reference", "fast"):
        options = {"position": "table", "table_size": (40, 40), "impl": impl}
        module = zoo.create_block("dat", 256, **options).train(train)
        x = torch.randn(1, 256, 40, 40, requires_grad=train)

        def step(module=module, x=x):
            out = module(x)
            if train:
                out.sum().backward()

        with torch.set_grad_enabled(train):
            peaks.append(_allocation(step)[0])
    assert peaks[0] / peaks[1] > (3 if train else 8)


def test_memory_grows_as_queries_and_keys_do():
    def peak(side):
        options = {"position": "table", "table_size": (side, side), "stride": 4}
        module = zoo.create_block("dat", 32, heads=2, groups=1, **options).eval()
        x = torch.randn(1, 32, side, side)
        with torch.no_grad():
            return _allocation(lambda: module(x))[0]

    assert peak(160) / peak(80) < 8  # pairs: 16 times as many, queries and keys: 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_flex_attention_is_the_same_and_is_compiled_once_for_each_size(fill, noise):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for version, side in itertools.product((1, 2), (6, 8)):
        options = {"version": version, "position": "table", "table_size": (8, 8), "heads": 2}
        made = {i: fill(zoo.create_block("dat", 32, impl=i, groups=1, **options))
                for i in ("reference", "flex")}  # fmt: skip
        x = noise("x", 2, 32, side, side)
        with torch.no_grad():
            expected = made["reference"](x)
            torch.testing.assert_close(made["flex"](x), expected, atol=1e-5, rtol=1e-4)
    found = learned(made["flex"], x, x)  # a CPU has no gradients of it: another one learns
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("name", ["dat_tiny", "dat_pp_tiny"])
@pytest.mark.parametrize("impl", get_args(Impl))
def test_a_network_takes_each_implementation(name, impl):
    if impl == "triton":
        pytest.importorskip("triton")
    with torch.device("meta"):
        model = zoo.create_model(f"{name}[impl={impl}]")
    made = {m.impl for m in model.modules() if isinstance(m, DeformableAttention)}
    assert made == {impl}


def test_an_implementation_is_a_part_of_the_name():
    assert zoo.create_block("dat[impl=reference]", 32).impl == "reference"
    assert zoo.create_block("dat", 32).impl == "fast"
    assert zoo.create_model("dat_tiny[impl=reference]").stages[2].attns[1].impl == "reference"
    for block in ("dat", "window", "shifted_window", "neighborhood"):
        with pytest.raises(zoo.ZooError, match=r"impl='cuda': expected one of fast, reference"):
            zoo.create_block(f"{block}[impl=cuda]", 32)


@pytest.mark.parametrize("name", ["window", "shifted_window", "neighborhood"])
@pytest.mark.parametrize("train", [False, True])
def test_window_and_neighborhood_attention_are_the_same_too(fill, noise, name, train, monkeypatch):
    monkeypatch.setattr("zoo.blocks.window.LOGITS", 20_000)
    monkeypatch.setattr("zoo.blocks.neighborhood.LOGITS", 20_000)
    made = [fill(zoo.create_block(name, 32, impl=i)) for i in ("reference", "fast")]
    x, g = (noise(n, 3, 32, 14, 21) for n in "xg")
    reference, fast = made
    if train:
        pairs = zip(learned(fast, x, g), learned(reference, x, g), strict=True)
    else:
        with torch.no_grad():
            pairs = [(fast(x), reference(x)), (fast(x[1:]), reference(x)[1:])]
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * max(1, expected.abs().max()))


@pytest.mark.parametrize("options", [{"dilation": 2}, {"kernel_size": 5, "dilation": 3}])
def test_neighborhoods_with_holes_are_the_same_too(fill, noise, options):
    made = [fill(zoo.create_block("neighborhood", 32, impl=i, **options))
            for i in ("reference", "fast")]  # fmt: skip
    x = noise("x", 2, 32, 17, 16)
    with torch.no_grad():
        torch.testing.assert_close(made[1](x), made[0](x), atol=1e-5, rtol=1e-4)


@pytest.mark.slow(but=["dat_tiny"])
@pytest.mark.parametrize("name", ["dat_tiny", "dat_p_tiny", "dat_pp_tiny"])
def test_a_network_is_the_same(fill, noise, name):
    made = [fill(zoo.create_model(f"{name}[impl={i},num_classes=10]"))
            for i in ("reference", "fast")]  # fmt: skip
    assert made[0].state_dict().keys() == made[1].state_dict().keys()
    x = noise("x", 2, 3, 224, 224)
    with torch.no_grad():
        expected = made[0](x)
        torch.testing.assert_close(made[1](x), expected, atol=1e-5 * expected.abs().max(), rtol=0)
    gradients = []
    for module in made:
        module(x).square().sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    largest = max(theirs.abs().max() for theirs in gradients[0])
    for theirs, ours in zip(*gradients, strict=True):
        scale = max(theirs.abs().max(), 1e-4 * largest)  # biases of keys: rounding alone
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * scale)


def kept(module):
    """Names of what a module and the modules in it keep, and what each is made of."""
    found = (getattr(m, "prepared", None) for m in module.modules())
    return {
        name: made[1] for prepared in found if prepared for name, made in prepared._kept.items()
    }


@pytest.mark.parametrize("name", ["window", "neighborhood", "dat"])
def test_a_change_of_the_weights_is_seen(fill, noise, name):
    options = {"position": "table", "table_size": (14, 14)} if name == "dat" else {}
    module, other = (fill(zoo.create_block(name, 32, **options)) for _ in range(2))
    x = noise("x", 1, 32, 14, 14)
    for changed in (
        lambda: [p.mul_(1.5) for p in module.parameters()],
        lambda: module.load_state_dict({k: v * 1.25 for k, v in other.state_dict().items()}
                                       if name == "dat" else other.state_dict()),
        lambda: [setattr(p, "data", p.data * 0.5) for p in module.parameters()],
    ):  # fmt: skip
        with torch.no_grad():
            module(x)
            assert kept(module)
            changed()
            fresh = copy.deepcopy(module)
            assert not kept(fresh)
            torch.testing.assert_close(module(x), fresh(x), rtol=0, atol=0)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(module(x), copy.deepcopy(module)(x), rtol=0, atol=0)


def test_what_is_kept_is_in_no_file_and_not_there_where_it_is_learned(fill, noise):
    module = fill(zoo.create_block("window", 32))
    x = noise("x", 1, 32, 14, 14)
    size = len(pickle.dumps(module))
    with torch.inference_mode():
        expected = module(x)
    assert kept(module)
    assert len(pickle.dumps(module)) == size
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=0)  # gradients are recorded
    assert not any(kept(module).values())  # but for what is made of sizes alone


def test_keeping_is_by_name_source_and_key():
    prepared, weight, made = Prepared(), nn.Parameter(torch.ones(2)), []

    def make():
        made.append(1)
        return weight * 2

    with torch.no_grad():
        first = prepared("double", make, weight, key=1)
        assert prepared("double", make, weight, key=1) is first
        assert prepared("double", make, weight, key=2) is not first
        weight.add_(1)
        assert prepared("double", make, weight, key=2)[0] == 4
        prepared.clear()
        prepared("double", make, weight, key=2)
        assert len(made) == 4
        with torch.device("meta"):
            on_meta = torch.nn.Parameter(torch.ones(2))
        assert prepared("meta", lambda: on_meta * 2, on_meta).is_meta
        assert "meta" not in prepared._kept


def test_packed_weights_give_the_same_and_are_hidden_from_counters():
    layer = Linear(24, 40)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x, gelu=True), nn.functional.gelu(expected))
        with FlopCounterMode(display=False) as counter:
            layer(x)
    assert counter.get_total_flops() == 2 * 2 * 5 * 24 * 40
    layer(x, gelu=True).sum().backward()
    assert layer.weight.grad is not None
