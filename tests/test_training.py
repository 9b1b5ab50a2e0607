"""Training steps: what is learned from, what moves, and what is measured of it."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import datbench
import datbench.training
from datbench.errors import UserError
from datbench.inputs import BOXES, load_targets
from datbench.metrics.latency import time_slot
from datbench.metrics.memory import memory
from datbench.plan import make_plan
from datbench.records import Workload
from datbench.training import TrainStep
from datbench.trial import build_trial

pytestmark = pytest.mark.filterwarnings("ignore")  # ultralytics warns


def trial_of(model, img_size=64, **options):
    shape = {"input_shape": "32x8x8"} if model.startswith("block:") else {"img_size": img_size}
    options = {"image": "noise", **shape, **options}
    plan = make_plan([model], device="cpu", mode="train", batch_size=2, **options)
    return build_trial(plan.cases[0])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("model", ["pvt_v2_b0", "yolov8n", "yolov10n+ema", "block:cpca"])
def test_a_step_moves_what_is_trained(model, optimizer, monkeypatch):
    monkeypatch.setattr(datbench.training, "LEARNING_RATE", 0.01)
    trial = trial_of(model, optimizer=optimizer)
    assert trial.model.training
    before = {name: p.clone() for name, p in trial.model.named_parameters()}
    loss = trial.step()
    assert loss.ndim == 0
    assert loss.isfinite()
    moved = [
        name for name, p in trial.model.named_parameters()
        if p.requires_grad and p.grad is not None and p.grad.abs().max() > 0
    ]  # fmt: skip
    assert len(moved) > 0.8 * len(before)
    changed = [
        name for name in moved if not torch.equal(before[name], trial.model.get_parameter(name))
    ]
    assert len(changed) > 0.9 * len(moved)


def test_the_parts_of_a_step_make_up_its_time():
    trial = trial_of("pvt_v2_b0")
    slot = time_slot(trial, 3)
    assert tuple(slot.parts_ms) == TrainStep.parts
    for i, whole in enumerate(slot.latency_ms):
        parts = sum(times[i] for times in slot.parts_ms.values())
        assert 0 < parts <= whole
        assert all(times[i] > 0 for times in slot.parts_ms.values())


def test_memory_of_a_step_holds_what_the_optimiser_keeps():
    found = {}
    for optimizer in ("adamw", "sgd"):
        measured = {m.name: m.value for m in memory(trial_of("pvt_v2_b0", optimizer=optimizer))}
        found[optimizer] = measured
        assert measured["peak_allocated_mib"] > measured["allocated_before_mib"]
        assert measured["allocated_after_mib"] == pytest.approx(
            measured["allocated_before_mib"], rel=0.01
        )
    # Weights, gradients and one or two moments stay between two steps.
    weights = found["adamw"]["weights_mib"]
    assert found["adamw"]["allocated_before_mib"] == pytest.approx(4 * weights, rel=0.02)
    assert found["sgd"]["allocated_before_mib"] == pytest.approx(3 * weights, rel=0.02)


def test_boxes_on_the_photographs_lie_in_the_letterboxed_image():
    work = Workload(device="cpu", input_shape=(3, 320, 640), batch_size=3)
    targets = load_targets(work, "detect")
    counts = [len(boxes) for boxes in BOXES.values()]
    assert targets["batch_idx"].long().bincount().tolist() == [*counts, counts[0]]
    centre, size = targets["bboxes"][:, :2], targets["bboxes"][:, 2:]
    assert (centre - size / 2 >= -1e-3).all()
    assert (centre + size / 2 <= 1 + 1e-3).all()
    # The bus stands upright in a wide input: it takes up about the middle third.
    bus = targets["bboxes"][0]
    assert bus[0] == pytest.approx(0.5, abs=0.02)
    assert bus[2] == pytest.approx(801 / 810 * (810 / 1080 * 320) / 640, abs=0.01)


def test_targets_of_other_images_follow_from_the_seed():
    work = Workload(device="cpu", input_shape=(3, 64, 64), batch_size=2, image="noise", seed=3)
    one, two = load_targets(work, "detect"), load_targets(work, "detect")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert load_targets(work, "classify")["labels"].shape == (2,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "sgd"}, "--optimizer is for training; add --mode train"),
        ({"mode": "train", "dtype": "float16"}, "float16 weights do not train"),
        ({"mode": "training"}, "mode 'training' is not one of inference, train"),
        ({"mode": "train", "optimizer": "lion"}, "optimizer 'lion' is not one of adamw, sgd"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_built(options, told):
    with pytest.raises(UserError, match=told):
        make_plan(["swin"], device="cpu", **options)


@pytest.mark.slow
def test_a_profile_of_training_reaches_the_table(tmp_path):
    records = datbench.profile(
        ["pvt_v2_b0", "yolov8n"], device="cpu", img_size=64, mode="train", optimizer="sgd",
        budget=6, results=tmp_path,
    )  # fmt: skip
    from datbench.reports import render

    table = render(records, "txt")
    assert "+ backward" in table
    assert "trained with sgd" in table
    for record in records:
        assert record.error is None
        parts = [record.values[f"{part}_ms_median"] for part in TrainStep.parts]
        assert sum(parts) == pytest.approx(record.values["latency_ms_median"], rel=0.5)
    assert pd.DataFrame([r.row() for r in records])["mode"].tolist() == ["train-sgd"] * 2
