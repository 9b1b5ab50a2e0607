"""datbench on the simulated runtime: the whole CUDA path, and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from zoo.spec import BLOCKS

HERE = Path(__file__).parent
# So much for each launch that the device is the slower side, on whatever machine this runs, however
# busy: its clock is virtual.
SLOW = {"launch_ns": 2_000_000, "gflops": 200}
MODELS = ["dat", "dat_pp", "swin", "pvt", "yolov8n", "yolov8n+dat"]
TABLE = "position=table,table_size=(28,28)"
ALONE = [
    *(f"block:{name}" for name in BLOCKS),
    f"block:dat[{TABLE}]",
    f"block:dat[version=1,{TABLE}]",
    "block:dat[position=log_cpb]",
]
WORKLOADS = {
    "batch 1": {},
    "batch 8": {"batch_size": 8},
    "amp": {"amp": True},
    "bfloat16": {"dtype": "bfloat16"},
    "channels last": {"channels_last": True},
    "second device": {"device": "cuda:1"},
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(w, marks=() if w == "batch 1" else pytest.mark.slow) for w in WORKLOADS],
)
def measured(simulator, request):
    """What measure.py saw of all models and blocks under one workload."""
    found = []
    for models, shape in ((MODELS, None), (ALONE, "256x28x28")):
        options = {"models": models, "input_shape": shape, **WORKLOADS[request.param]}
        ran = simulator.python(
            HERE / "measure.py", json.dumps(options), PYTHONPATH=HERE, device_count=2, **SLOW
        )
        found += ran.lines()
    assert [f["model"].partition("_")[0] for f in found[:2]] == ["dat", "dat"]
    assert len(found) == len(MODELS) + len(ALONE)
    return request.param, found


def test_event_latency_is_the_time_that_the_device_worked(measured):
    for found in measured[1]:
        busy_ms = found["step"]["busy_ns"] / 1e6
        assert busy_ms > found["host_ms"], found["model"]
        assert found["latency_ms"] == pytest.approx(busy_ms, rel=0.02), found["model"]


def test_memory_is_torchs_own_to_the_byte(measured):
    for found in measured[1]:
        assert found["peak_allocated"] == found["torch_allocated"], found["model"]
        assert found["peak_reserved"] == found["torch_reserved"], found["model"]
        assert found["process"] == found["used"] >= found["peak_reserved"], found["model"]


def test_warm_up_leaves_nothing_behind(measured):
    assert {found["model"]: found["left_behind"] for found in measured[1]} == {
        found["model"]: 0 for found in measured[1]
    }


def test_a_step_neither_copies_from_the_host_nor_waits_for_the_device(measured):
    steps = {f["model"]: [f["step"][k] for k in ("h2d", "d2h", "syncs")] for f in measured[1]}
    assert {model: step for model, step in steps.items() if any(step)} == {}


def test_half_precision_is_what_runs(measured):
    workload, models = measured
    for found in models:
        half, products = found["half_kernels"], found["step"]["half_products"]
        if workload in ("amp", "bfloat16"):
            whole = found["step"]["gemms"] + found["step"]["convolutions"]
            if found["model"] == "block:dlka":  # torchvision's deform_conv2d: float32, by group
                whole -= 2 * 256
            assert half > 0, found["model"]
            assert products == whole, found["model"]
        else:
            assert (half, products) == (0, 0), found["model"]


def test_the_device_asked_for_is_the_one_that_works(measured):
    workload, models = measured
    assert {found["device"] for found in models} == {int(workload == "second device")}


@pytest.fixture
def compare(simulator, tmp_path):
    """Run `datbench compare --quick` and read its CSV: compare("dat", "swin", gflops=100)."""

    def run(*models, options=(), status=0, **settings):
        table = tmp_path / "table.csv"
        ran = simulator.datbench(
            "compare", "--quick", "--models", *models, "--device", "cuda", "--image", "noise",
            "--results", tmp_path, "--output", table, *options, **{**SLOW, **settings},
        )  # fmt: skip
        assert ran.process.returncode == status, ran.process.stdout + ran.process.stderr
        return ran, pd.read_csv(table)

    return run


def test_a_comparison_goes_from_the_command_line_to_the_table(compare):
    ran, table = compare("dat", "yolov8n+dat", options=["--device", "cuda:1"], device_count=2)
    assert list(table["device"]) == ["cuda:1"] * 2
    assert list(table["device_name"]) == ["Simulated GPU"] * 2
    assert all("simulated" in flags for flags in table["flags"])
    assert "simulated" in ran.process.stdout
    assert table["latency_ms_median"].notna().all()
    assert (table["process_memory_mib"] >= table["peak_reserved_mib"]).all()
    assert (table["peak_reserved_mib"] >= table["peak_allocated_mib"]).all()
    assert not any(used[0] for used in ran.used)  # nothing is left on the first device


def test_profile_runs_on_the_device(simulator, tmp_path):
    ran = simulator.datbench(
        "profile", "block:dat", "--input", "256x20x20", "--device", "cuda", "--cold-cache",
        "--format", "json", "--results", tmp_path, "--budget", "10", **SLOW,
    )  # fmt: skip
    assert ran.process.returncode == 0, ran.process.stderr
    (record,) = json.loads(ran.process.stdout)["records"]
    assert record["environment"]["driver"] == "simulated"
    assert "simulated" in " ".join(record["warnings"])


def test_a_model_that_does_not_fit_is_a_row_and_the_others_finish(compare):
    ran, table = compare(
        "pvt_v2_b0", "dat_base_384", options=["--batch-size", "32"], status=1, mem_total="2G"
    )
    errors = dict(zip(table["model"], table["error"], strict=True))
    assert "out of memory" in errors["dat_base_384"]
    assert pd.isna(errors["pvt_v2_b0"])
    assert table["latency_ms_median"].notna().sum() == 1
    assert "dat_base_384 failed: out of memory" in ran.process.stdout


@pytest.mark.slow
def test_an_allocation_that_fails_once_does_no_harm(compare):
    ran, table = compare("pvt_v2_b0", "swin", fail_malloc_in=4)
    assert ran.total("ooms") >= 2
    assert table["error"].isna().all()


def test_a_device_that_vanishes_is_a_row_with_an_error(compare):
    ran, table = compare("pvt_v2_b0", "swin", status=1, lost_after=3000)
    assert table["error"].str.contains("unavailable").any()
    assert "Traceback" not in ran.process.stdout


def test_without_a_device_the_error_takes_one_line(simulator, tmp_path):
    ran = simulator.datbench(
        "compare", "--models", "dat", "--device", "cuda", "--results", tmp_path, device_count=0
    )
    assert ran.process.returncode == 2
    assert ran.process.stderr.splitlines() == [
        "Error: device cuda is not there: no CUDA device is visible; use --device cpu"
    ]


@pytest.mark.parametrize(
    ("model", "options", "settings"),
    [("swin", {"amp": True}, {}),
     ("yolov8n+dat", {"amp": True, "dtype": "bfloat16"}, {"scalar_reads": 1})],
)  # fmt: skip
def test_a_training_step_is_timed_in_parts_and_runs_in_half_precision(
    simulator, model, options, settings
):
    asked = json.dumps({"models": [model], "mode": "train", "batch_size": 2, **options})
    settings = {"PYTHONPATH": HERE, **settings, **SLOW}
    ran = simulator.python(HERE / "measure.py", asked, **settings)
    for found in ran.lines():
        busy_ms = found["step"]["busy_ns"] / 1e6
        assert found["latency_ms"] == pytest.approx(busy_ms, rel=0.02), found["model"]
        assert sum(found["parts_ms"].values()) == pytest.approx(found["latency_ms"], rel=0.02)
        assert found["half_kernels"] > 0
        assert found["left_behind"] == 0
        assert found["peak_allocated"] == found["torch_allocated"], found["model"]


BROKEN = """
import sys, torch
from probe import get
from datbench.metrics.latency import time_slot
from datbench.plan import make_plan
from datbench.trial import build_trial

trial = build_trial(make_plan(["pvt_v2_b0"], device="cuda", image="noise").cases[0])
torch.cuda.synchronize()
if sys.argv[1] == "broken":
    torch.cuda.synchronize = lambda *_: None
before = get("busy_ns")
print(sum(time_slot(trial, 3).latency_ms), (get("busy_ns") - before) / 1e6)
"""


def test_a_timer_that_does_not_synchronise_is_caught(simulator):
    settings = {"PYTHONPATH": HERE, **SLOW}
    right = simulator.python("-c", BROKEN, "right", **settings)
    timed, busy = map(float, right.process.stdout.split())
    assert timed == pytest.approx(busy * 3 / 5, rel=0.02)  # two of the five are untimed
    broken = simulator.python("-c", BROKEN, "broken", status=None, **settings)
    assert broken.process.returncode != 0
    assert "Both events must be completed" in broken.process.stderr


def test_weights_lie_elsewhere_in_their_segment_in_each_process(simulator):
    program = """
import json, os
import torch
from datbench.device import CudaDevice
from datbench.memory_layout import draw

for number in range(8):
    child = os.fork()
    if not child:
        kept = CudaDevice("cuda:0").occupy(draw(number).device)
        addresses = [torch.empty(size, device="cuda").data_ptr() for size in (2**10, 2**19)]
        print(json.dumps([address % 2**21 for address in addresses]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    found = simulator.python("-c", program).lines()
    assert len(found) == 8
    for offsets in zip(*found, strict=True):  # in segments of small tensors, and of large ones
        assert len(set(offsets)) >= 7
