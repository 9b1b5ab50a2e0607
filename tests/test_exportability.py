"""`datbench exportability` and `datbench export`."""

from __future__ import annotations

import functools
import json

import pandas as pd
import pytest
import torch

from datbench.catalogue import models_of
from datbench.errors import UserError
from datbench.exportability import (
    FAILS,
    WORKS,
    WRONG,
    Survival,
    cases_of,
    runtime_of,
    runtimes_for,
    show,
    survivals,
)
from datbench.reports.txt import plain_text
from datbench.runtimes import RUNTIMES

pytestmark = pytest.mark.filterwarnings("ignore")

BRANCH = """
from torch import nn

class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.mean() > 0 else x

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Branch())
"""


@pytest.fixture
def run_cli(datbench, tmp_path):
    return functools.partial(datbench, tmp_path)


def test_patterns_name_models_detectors_with_blocks_and_blocks_alone():
    assert models_of("swin_tiny") == ["swin_tiny"]
    assert models_of("nets/mine.py:build") == ["nets/mine.py:build"]
    assert "yolov8n+hat" in models_of("yolov8n+*")
    assert "block:sra" in models_of("block:s*")
    assert {"dat_tiny", "block:dat", "yolov8n+dat"} <= set(models_of("*"))
    with pytest.raises(UserError, match="nothing in the zoo matches 'x\\*y'"):
        models_of("x*y")


def test_all_runtimes_of_the_device_are_tried_but_eager():
    found = runtimes_for("cpu", [])
    assert {"compile", "torchscript", "pt2"} <= set(found)
    assert not {"eager", "cudagraph"} & set(found)
    assert runtimes_for("cuda:0", [])[:2] == ["compile", "cudagraph"]
    assert runtimes_for("cpu", ["pt2"]) == ["pt2"]


def test_blocks_alone_get_a_map_and_models_their_own_size():
    cases = cases_of(["block:ema", "pvt_tiny"], ["pt2"], device="cpu")
    assert [case.workload.input_shape for case in cases] == [(64, 28, 28), (3, 224, 224)]


def test_a_model_survives_or_says_what_stops_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BRANCH)
    cases = cases_of([f"{file}:build"], ["pt2", "torchscript"], device="cpu", img_size=32)
    pt2, traced = survivals(cases)
    assert (pt2.verdict, pt2.relative) == (FAILS, None)
    assert "in 1 (Branch), mine.py:6: `return x * 2 if x.mean() > 0 else x`" in pt2.reason
    assert (traced.verdict, traced.relative, traced.reason) == (WORKS, 0.0, "")


def test_the_matrix_has_a_row_a_model_and_the_reasons_below():
    found = [
        Survival("dat", "3x224x224", "pt2", WORKS, 1e-7, 1e-6, 1e-3, 2.0),
        Survival("dat", "3x224x224", "openvino", WRONG, 0.5, 1.0, 1e-3, 2.0, "shape (1, 1000)"),
        Survival("swin", "3x224x224", "openvino", FAILS, reason="operator roll, in layers.0"),
    ]
    lines = plain_text(show(found)).splitlines()
    assert lines[0].split() == ["model", "input", "pt2", "openvino"]
    assert lines[2].split() == ["dat", "3x224x224", "works", "1e-07", "wrong", "5e-01"]
    assert lines[3].split() == ["swin", "3x224x224", "fails"]
    assert "swin (openvino) fails: operator roll, in layers.0" in lines
    assert "1 of 3 work" in lines[-2] + lines[-1]


@pytest.mark.parametrize(
    ("form", "file", "opset", "found"),
    [(None, "a.onnx", None, "onnxruntime"), ("onnx", "a.onnx", 18, "onnxruntime[opset=18]"),
     (None, "a.xml", None, "openvino"), (None, "a.pt2", None, "pt2"),
     ("torchscript", "a.torchscript", None, "torchscript")],
)  # fmt: skip
def test_a_file_is_for_the_runtime_of_its_suffix(form, file, opset, found, tmp_path):
    assert runtime_of(form, tmp_path / file, opset) == found


@pytest.mark.parametrize(
    ("form", "file", "opset", "message"),
    [(None, "a.tflite", None, "no known format; end it in .onnx"),
     ("onnx", "a.pt2", None, "a file for onnx ends in .onnx"),
     ("pt2", "a.pt2", 18, "--opset is for onnx and openvino; pt2 has none")],
)  # fmt: skip
def test_a_file_that_cannot_be_is_refused(form, file, opset, message, tmp_path):
    with pytest.raises(UserError, match=message):
        runtime_of(form, tmp_path / file, opset)


@pytest.mark.parametrize("suffix", [spec.suffix for spec in RUNTIMES.values() if spec.form])
def test_export_writes_what_eager_gives(run_cli, tmp_path, suffix):
    file = tmp_path / f"net{suffix}"
    done = run_cli("export", "block:ema", str(file), "--input", "32x12x12")
    if "not installed" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "as eager within" in done.stdout
    assert file.exists()
    beside = [".bin"] if suffix == ".xml" else []
    assert sorted(p.suffix for p in tmp_path.glob("net.*")) == sorted([suffix, *beside])
    if suffix == ".torchscript":
        assert torch.jit.load(file)(torch.zeros(1, 32, 12, 12))[0].shape == (1, 32, 12, 12)


def test_an_export_that_fails_writes_nothing(run_cli, tmp_path):
    (tmp_path / "mine.py").write_text(BRANCH)
    file = tmp_path / "net.pt2"
    done = run_cli("export", f"{tmp_path}/mine.py:build", str(file), "--img-size", "32")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "in 1 (Branch)" in line
    assert "nothing was written" in line
    assert not list(tmp_path.glob("*net*"))


def test_the_command_line_prints_the_matrix_and_fails_if_one_fails(run_cli, tmp_path):
    (tmp_path / "mine.py").write_text(BRANCH)
    model = f"{tmp_path}/mine.py:build"
    options = ["--runtime", "pt2", "--runtime", "torchscript", "--format", "json"]
    done = run_cli("exportability", "block:ema", *options)
    assert done.returncode == 0, done.stderr
    assert [row["verdict"] for row in json.loads(done.stdout)] == ["works", "works"]
    assert pd.DataFrame(json.loads(done.stdout))["parity_rel"].max() < 1e-5
    done = run_cli("exportability", model, *options, "--img-size", "32")
    assert done.returncode == 1
