"""Predicted memory against torch's own allocator on the simulated runtime."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from datbench.cli import cli
from datbench.device import MIB
from zoo.spec import BLOCKS, MODELS

HERE = Path(__file__).parent
SIZES = ["dat", "dat_pp", "swin", "pvt", "pvt_v2_b0"]
VARIANTS = ["yolov8n", *(f"yolov8n+{name}" for name, spec in BLOCKS.items() if spec.any_size)]
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


OFTEN = {"inference", "training, bfloat16"}  # one that is the least, one with all that there is


def every(workloads):
    """All workloads, those beyond `OFTEN` as slow ones."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in OFTEN else slow) for name in workloads]


def datbench(*arguments):
    """Run the command line on this machine as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def as_options(workload):
    for name, value in workload.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield value


@pytest.mark.parametrize("workload", every(WORKLOADS))
def test_what_is_predicted_for_a_size_is_what_torch_allocates(simulator, workload):
    check(simulator, SIZES, workload)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({spec.family for spec in MODELS.values()}))
@pytest.mark.parametrize("workload", ["inference", "training"])
def test_every_size_is_predicted(simulator, family, workload):
    check(simulator, [name for name, spec in MODELS.items() if spec.family == family], workload)


# A detector's loss reads counts of boxes, and where they are not 0 a gradient scaler sees overflow.
@pytest.mark.parametrize("workload", every(name for name in WORKLOADS if name != "training, amp"))
def test_what_is_predicted_for_a_variant_is_what_torch_allocates(simulator, workload):
    check(simulator, VARIANTS, workload)


def check(simulator, models, workload):
    options, tolerance = WORKLOADS[workload]
    asked = json.dumps({"models": models, "timed": False, **options})
    simulated = simulator.python(
        HERE / "measure.py", asked, PYTHONPATH=HERE, scalar_reads=int(workload != "training, amp")
    ).lines()
    predicted = datbench("predict", *models, *as_options(options), "--format", "json")
    off = {}
    for ours, theirs in zip(predicted, simulated, strict=True):
        assert ours["model"] == theirs["model"]
        allocated, reserved = (ours[f"predicted_peak_{what}_mib"] for what in KINDS)
        ratio = allocated * MIB / theirs["torch_allocated"]
        print(
            f"| {ours['model']} | {workload} | {allocated:.1f} | "
            f"{theirs['torch_allocated'] / MIB:.1f} | {ratio - 1:+.2%} | {reserved:.0f} | "
            f"{theirs['torch_reserved'] / MIB:.0f} |"
        )
        if abs(ratio - 1) > tolerance:
            off[ours["model"]] = f"{ratio - 1:+.2%}"
    assert off == {}


def test_the_largest_batch_that_is_predicted_fits_and_one_of_a_few_more_does_not(simulator):
    rows = datbench("fit", "pvt_v2_b0", "--memory", "1GiB", "--format", "json")
    assert [row["mode"] for row in rows] == ["inference", "train-adamw"]
    for row in rows:
        batch = row["largest_batch"]
        assert row["peak_reserved_mib"] <= 1024
        settings = {"PYTHONPATH": HERE, "mem_total": "1G"}
        asked = {"models": ["pvt_v2_b0"], "mode": row["mode"].partition("-")[0], "timed": False}
        for size, fits in ((int(0.97 * batch), True), (int(1.05 * batch) + 1, False)):
            command = [HERE / "measure.py", json.dumps({**asked, "batch_size": size})]
            ran = simulator.python(*command, status=None, **settings)
            assert (ran.process.returncode == 0) == fits, (row, size, ran.process.stderr[-500:])


def test_the_largest_batch_is_found_on_the_device(simulator):
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
    predicted = datbench(
        "fit", "block:ema", "--input", "64x40x40", "--memory", "256MiB", "--format", "json"
    )
    for row, other in zip(rows, predicted, strict=True):
        assert row["largest_batch"] == pytest.approx(other["largest_batch"], rel=0.05)
