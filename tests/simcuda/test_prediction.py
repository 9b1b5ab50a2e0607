"""Predicted memory against torch's own allocator on the simulated runtime."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from datbench.device import MIB
from zoo.spec import BLOCKS, MODELS

HERE = Path(__file__).parent
SIZES = ["dat", "dat_pp", "swin", "pvt", "pvt_v2_b0"]
VARIANTS = ["yolov8n", *(f"yolov8n+{name}" for name, spec in BLOCKS.items() if spec.any_size)]
# Of the least workload, and of the one that has all there is; the rest is slow.
OFTEN = {
    "inference": {"dat", "swin", "pvt_v2_b0", "yolov8n+dat", "yolov8n+acmix", "yolov8n+hat"},
    "training, bfloat16": {"pvt_v2_b0", "yolov8n+dat"},
}
KINDS = ("allocated", "reserved")
WORKLOADS = {
    "inference": ({}, 0.01),
    "inference, batch 8": ({"batch_size": 8}, 0.01),
    "inference, bfloat16": ({"dtype": "bfloat16"}, 0.01),
    "inference, amp": ({"batch_size": 8, "amp": True}, 0.01),
    "training": ({"mode": "train", "batch_size": 2}, 0.03),
    "training, amp": ({"mode": "train", "batch_size": 2, "amp": True}, 0.03),
    "training, bfloat16": (
        {"mode": "train", "batch_size": 2, "amp": True, "dtype": "bfloat16"},
        0.03,
    ),
    "training, sgd": ({"mode": "train", "batch_size": 2, "optimizer": "sgd"}, 0.03),
}


def every(workloads, models):
    """Each workload with each model, those that take long as slow ones."""
    return [
        pytest.param(w, m, marks=() if m in OFTEN.get(w, ()) else pytest.mark.slow)
        for w, m in itertools.product(workloads, models)
    ]


@pytest.fixture
def ask(datbench, tmp_path):
    """Run the command line on this machine as it is, and read its JSON."""

    def run(*arguments):
        done = datbench(tmp_path, *arguments, "--format", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def as_options(workload):
    for name, value in workload.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield value


@pytest.mark.parametrize(("workload", "model"), every(WORKLOADS, SIZES))
def test_what_is_predicted_for_a_size_is_what_torch_allocates(simulator, ask, workload, model):
    check(simulator, ask, model, workload)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workload", ["inference", "training"])
def test_every_size_is_predicted(simulator, ask, workload, model):
    check(simulator, ask, model, workload)


# A detector's loss reads counts of boxes, and where they are not 0 a gradient scaler sees overflow.
@pytest.mark.parametrize(
    ("workload", "model"), every((name for name in WORKLOADS if name != "training, amp"), VARIANTS)
)
def test_what_is_predicted_for_a_variant_is_what_torch_allocates(simulator, ask, workload, model):
    check(simulator, ask, model, workload)


def check(simulator, ask, model, workload):
    options, tolerance = WORKLOADS[workload]
    asked = json.dumps({"models": [model], "timed": False, **options})
    (theirs,) = simulator.python(
        HERE / "measure.py", asked, PYTHONPATH=HERE, scalar_reads=int(workload != "training, amp")
    ).lines()
    (ours,) = ask("predict", model, *as_options(options))
    assert ours["model"] == theirs["model"]
    allocated, reserved = (ours[f"predicted_peak_{what}_mib"] for what in KINDS)
    ratio = allocated * MIB / theirs["torch_allocated"]
    print(
        f"| {ours['model']} | {workload} | {allocated:.1f} | {theirs['torch_allocated'] / MIB:.1f} "
        f"| {ratio - 1:+.2%} | {reserved:.0f} | {theirs['torch_reserved'] / MIB:.0f} |"
    )
    assert ratio == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize(
    ("model", "shape", "memory"),
    [("block:ema", "64x40x40", "256M"),
     pytest.param("pvt_v2_b0", "3x224x224", "1G", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_largest_batch_that_is_predicted_fits_and_one_of_a_few_more_does_not(
    simulator, ask, model, shape, memory
):
    rows = ask("fit", model, "--memory", f"{memory}iB", "--input", shape)
    assert [row["mode"] for row in rows] == ["inference", "train-adamw"]
    for row in rows:
        batch = row["largest_batch"]
        assert row["peak_reserved_mib"] <= row["memory_mib"]
        asked = {"models": [model], "input_shape": shape, "timed": False}
        asked["mode"] = row["mode"].partition("-")[0]
        for size, fits in ((int(0.97 * batch), True), (int(1.05 * batch) + 1, False)):
            ran = simulator.python(
                HERE / "measure.py", json.dumps({**asked, "batch_size": size}), status=None,
                PYTHONPATH=HERE, mem_total=memory,
            )  # fmt: skip
            assert (ran.process.returncode == 0) == fits, (row, size, ran.process.stderr[-500:])


def test_the_largest_batch_is_found_on_the_device(simulator, ask):
    ran = simulator.datbench(
        "fit", "block:ema", "--input", "64x40x40", "--device", "cuda", "--memory", "256MiB",
        "--format", "json",
    )  # fmt: skip
    assert ran.process.returncode == 0, ran.process.stderr
    rows = json.loads(ran.process.stdout)
    assert [row["source"] for row in rows] == ["measured"] * 2
    inference, training = (row["largest_batch"] for row in rows)
    assert inference > training > 1
    assert all(row["peak_reserved_mib"] <= 256 for row in rows)
    predicted = ask("fit", "block:ema", "--input", "64x40x40", "--memory", "256MiB")
    for row, other in zip(rows, predicted, strict=True):
        assert row["largest_batch"] == pytest.approx(other["largest_batch"], rel=0.05)
