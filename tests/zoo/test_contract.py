"""What every registered model and block must do."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.names import parse_name
from zoo.spec import BLOCKS, MODELS

NAMES = [*MODELS, "yolov8n+dat"]
SIDE = {"dat_tiny": 224}  # the smallest input of each family; elsewhere two cells of the last map


def small(name: str) -> tuple[torch.nn.Module, int]:
    """A model with few classes at a small input."""
    side = SIDE.get(name, 64)
    spec = parse_name(name).spec
    options = {"num_classes": 10, "img_size": side}
    options = {k: v for k, v in options.items() if k in spec.options}
    torch.manual_seed(0)
    return zoo.create_model(name, **options), side


def logits(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_official_one(name):
    assert sum(p.numel() for p in zoo.create_model(name).parameters()) == MODELS[name].params


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


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_reaches_every_parameter(name):
    model, side = small(name)
    output = model.train()(torch.randn(2, 3, side, side))
    parts = output.values() if isinstance(output, dict) else [output]
    tensors = [t for part in parts for t in (part if isinstance(part, list) else [part])]
    sum((t.float() ** 2).sum() for t in tensors).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    unreached = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias shifts all logits of a query alike, which softmax does not see.
    assert [n for n in unreached if not n.endswith(("proj_k.bias", "kv.bias"))] == []


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("side", [(14, 21), (28, 14)], ids=["wide", "tall"])
def test_blocks_keep_the_shape_and_reach_every_parameter(name, side):
    torch.manual_seed(0)
    block = zoo.create_block(name, channels=32)
    x = torch.randn(2, 32, *side, requires_grad=True)
    y = block.eval()(x)
    assert y.shape == x.shape
    assert torch.equal(y, block(x))
    torch.testing.assert_close(block(x[1:]), y[1:], atol=1e-5, rtol=1e-4)
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    unreached = [n for n, p in block.named_parameters() if p.grad is None]
    assert unreached == []


@pytest.mark.parametrize("name", ["dat_tiny", "pvt_small", "swin_tiny"])
def test_options_reach_the_network(name):
    model, side = small(name)
    assert model(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_pvt_takes_other_sizes_than_it_was_built_for(fill, noise):
    model = fill(zoo.create_model("pvt_tiny", num_classes=10))
    assert model(noise("x", 1, 3, 96, 160)).shape == (1, 10)


def test_dat_takes_other_sizes_than_it_was_built_for(fill, noise):
    model = fill(zoo.create_model("dat_tiny", num_classes=10))
    assert model(noise("x", 1, 3, 224, 448)).isfinite().all()
