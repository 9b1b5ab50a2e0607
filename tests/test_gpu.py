"""What only a CUDA device can show; `tox -e gpu` runs these alone."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pandas as pd
import pytest
import torch

import zoo
from datbench.device import MIB, count_cuda_devices, open_device
from datbench.metrics.latency import time_modules, time_slot, warm_up
from datbench.metrics.memory import memory
from datbench.plan import make_plan
from datbench.prediction import predict
from datbench.records import Workload
from datbench.trial import build_trial
from zoo.spec import BLOCKS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def device():
    return open_device(Workload(device="cuda:0", input_shape=(3, 8, 8)))


def test_the_driver_and_torch_count_alike():
    assert count_cuda_devices() == torch.cuda.device_count()


def test_events_time_the_device_and_not_the_launch(device):
    cycles = 20_000_000
    device.time(lambda: torch.cuda._sleep(cycles), 50)  # clocks rise for a while
    long = device.time(lambda: torch.cuda._sleep(2 * cycles), 5)
    short = device.time(lambda: torch.cuda._sleep(cycles), 5)
    for a, b in zip(long.latency_ms, short.latency_ms, strict=True):
        assert a == pytest.approx(2 * b, rel=0.1)
    assert sorted(long.host_ms)[2] < sorted(long.latency_ms)[2] / 10


def test_modules_take_as_long_as_their_work():
    trial = build_trial(make_plan(["dat"], device="cuda", batch_size=8).cases[0])
    found = time_modules(trial, depth=1)
    parts = ("patch_proj", "cls_norm", "cls_head")
    assert all(0 < found.latency_ms[name] < found.latency_ms[""] for name in parts)
    assert found.overhead > -0.2


def test_memory_is_the_allocators_own_figure(device):
    resident = torch.zeros(2**20, device="cuda")
    before = torch.cuda.memory_allocated()
    step = lambda: torch.zeros(2**22, device="cuda")  # noqa: E731 - a step is a callable
    found = {m.name: m.value for m in device.memory(step, resident.nbytes)}
    assert found["peak_allocated_mib"] * 2**20 == before + 2**24
    assert found["peak_reserved_mib"] >= found["peak_allocated_mib"]


OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"amp": True}, {"dtype": "bfloat16"}, {"channels_last": True}]
)


@OPTIONS
@pytest.mark.parametrize("name", ["dat", "dat_pp", "swin", "pvt", "pvt_v2_b0", "yolov8n+dat"])
def test_every_model_gives_finite_numbers(name, options):
    trial = build_trial(make_plan([name], device="cuda", batch_size=2, **options).cases[0])
    assert trial.inputs.is_cuda


@OPTIONS
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_gives_finite_numbers(name, options):
    given = {"input_shape": "256x28x21", "device": "cuda", **options}
    trial = build_trial(make_plan([f"block:{name}"], **given).cases[0])
    assert trial.inputs.is_cuda


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_gives_what_it_gives_on_the_cpu(name):
    block = zoo.create_block(name, channels=32).double().eval()
    x = torch.randn(2, 32, 28, 21, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        output = block.cuda()(x.cuda()).cpu()
    torch.testing.assert_close(output, expected, atol=1e-8, rtol=1e-6)


def test_a_comparison_fills_the_columns_of_a_gpu(tmp_path):
    command = [sys.executable, "-m", "datbench", "compare", "--models", "dat", "swin", "--quick"]
    command += ["--device", "cuda", "--output", "a.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(tmp_path / "a.csv")
    for column in ("host_ms_median", "peak_reserved_mib", "cuda", "cudnn", "driver"):
        assert frame[column].notna().all(), column
    assert (frame["device"] == "cuda:0").all()


@pytest.mark.parametrize("options", [{}, {"amp": True}, {"optimizer": "sgd"}])
@pytest.mark.parametrize("name", ["dat", "swin", "yolov8n+dat", "yolov10n"])
def test_a_training_step_is_timed_in_parts(name, options):
    plan = make_plan([name], device="cuda", batch_size=2, mode="train", **options)
    trial = build_trial(plan.cases[0])
    warm_up(trial)
    slot = time_slot(trial, 5)
    parts = sum(statistics.median(times) for times in slot.parts_ms.values())
    assert parts == pytest.approx(statistics.median(slot.latency_ms), rel=0.1)


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("name", ["dat", "dat_pp", "swin", "pvt", "yolov8n", "yolov8n+dat"])
def test_memory_is_about_what_was_predicted(name, mode):
    options = {"batch_size": 8, "mode": mode, "cudnn_benchmark": False}
    case = make_plan([name], device="cuda", **options).cases[0]
    found = {m.name: m.value for m in memory(build_trial(case))}
    predicted = predict(case).peak_allocated / MIB
    assert found["peak_allocated_mib"] > 0.97 * predicted
    # Above it are cuDNN's workspaces, and cuBLAS's where it takes more than 8 MiB.
    assert found["peak_allocated_mib"] < 1.3 * predicted + 64


def test_the_largest_batch_fits_and_the_next_does_not(tmp_path):
    command = [sys.executable, "-m", "datbench", "fit", "pvt_v2_b0", "--device", "cuda"]
    command += ["--memory", "1GiB", "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout):
        assert row["source"] == "measured"
        assert 512 < row["peak_reserved_mib"] <= 1024


@pytest.mark.parametrize("runtime", ["compile", "cudagraph", "compile[mode=reduce_overhead]"])
@pytest.mark.parametrize("name", ["dat", "swin", "pvt_v2_b0", "yolov8n+dat"])
def test_a_runtime_gives_eagers_answers(name, runtime, tmp_path):
    trial = build_trial(make_plan([name], device="cuda", runtimes=[runtime]).cases[0], tmp_path)
    assert trial.parity.right, trial.parity
    warm_up(trial)
    assert min(time_slot(trial, 5).latency_ms) > 0


def test_a_graph_takes_the_host_less_time_than_its_kernels_one_by_one():
    eager, graph = (
        build_trial(make_plan(["dat"], device="cuda", runtimes=[name]).cases[0])
        for name in ("eager", "cudagraph")
    )
    for trial in (eager, graph):
        warm_up(trial)
    host = [statistics.median(time_slot(trial, 20).host_ms) for trial in (eager, graph)]
    assert host[1] < host[0] / 5


def test_a_graph_reads_its_input_anew_in_each_step():
    trial = build_trial(make_plan(["pvt_v2_b0"], device="cuda", runtimes=["cudagraph"]).cases[0])
    before = trial.step().clone()
    trial.inputs.mul_(0.5)
    assert not torch.equal(trial.step(), before)


def test_a_photograph_becomes_boxes_on_the_device():
    case = make_plan(["yolov8n+dat"], device="cuda", scope="end-to-end").cases[0]
    trial = build_trial(case)
    warm_up(trial)
    slot = time_slot(trial, 5)
    assert list(slot.parts_ms) == ["preprocess", "forward", "postprocess"]
    parts = sum(statistics.median(times) for times in slot.parts_ms.values())
    assert parts == pytest.approx(statistics.median(slot.latency_ms), rel=0.2)
