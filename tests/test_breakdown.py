"""The tree of modules and the list of operators, as people and programs get them."""

from __future__ import annotations

import csv
import io
import json

import pytest

from datbench.breakdown import _branches, short


@pytest.fixture(scope="module")
def call(datbench):
    return lambda folder, *arguments: datbench(folder, "profile", *arguments)


def test_branches_join_a_name_to_the_one_that_holds_it():
    names = ["", "stem", "stages", "stages.0", "stages.0.norm", "stages.1", "stages.1.norm", "head"]
    assert list(_branches(names)) == [
        "",
        "├─ ",
        "├─ ",
        "│  ├─ ",
        "│  │  └─ ",
        "│  └─ ",
        "│     └─ ",
        "└─ ",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (96, "96"),
        (1000, "1.00 K"),
        (4_588_903_776, "4.59 G"),
        (-5e6, "-5.00 M"),
    ],
)
def test_figures_are_short(value, text):
    assert short(value) == text


@pytest.fixture(scope="module")
def modules(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    done = call(
        folder, "pvt_tiny", "yolov8n+dat", "--by-module", "--img-size", "320", "--batch-size", "2",
        "--format", "csv", "--output", "a.json", "--output", "a.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_modules_as_csv_add_up_and_follow_size_and_batch(modules):
    _, done = modules
    rows = [row for row in csv.DictReader(io.StringIO(done.stdout)) if row["model"] == "pvt_tiny"]
    found = {row["module"]: row for row in rows}
    assert list(rows[0]) == [
        "model", "module", "type", "params", "macs", "share", "macs_products",
        "macs_second_opinion", "activations", "output", "latency_ms",
    ]  # fmt: skip
    whole = found[""]
    top = [row for name, row in found.items() if name and "." not in name]
    assert sum(int(row["macs"]) for row in top) == int(whole["macs"])
    assert sum(float(row["share"]) for row in top) == pytest.approx(1)
    assert (found["head"]["output"], found["head"]["macs"]) == ("2x1000", "512000")
    assert found["patch_embed1.proj"]["macs"] == str(80 * 80 * 48 * 64)
    assert found["patch_embed1.proj"]["output"] == "2x64x80x80"
    assert whole["latency_ms"] == ""


def test_the_same_is_written_as_json_and_text(modules):
    folder, _ = modules
    pvt, yolo = json.loads((folder / "a.json").read_text())
    assert (pvt["model"], pvt["doubts"], pvt["error"]) == ("pvt_tiny", [], None)
    assert pvt["workload"]["input_shape"] == [3, 320, 320]
    assert pvt["environment"]["torch"]
    assert pvt["modules"][0]["macs"] == pvt["macs"]
    assert yolo["macs"] == pytest.approx(1.13e9, rel=0.01)
    text = (folder / "a.txt").read_text()
    assert "pvt_tiny, one input of 3x320x320 in a batch of 2: 13.6 M parameters" in text
    assert "├─ patch_embed1" in text
    assert "yolov8n+dat" in text


def test_the_tree_goes_as_deep_as_it_is_asked_to(call, tmp_path):
    done = call(tmp_path, "pvt_tiny", "--by-module", "--depth", "1")
    assert done.returncode == 0, done.stderr
    assert "└─ head" in done.stdout
    assert "proj" not in done.stdout
    assert not (tmp_path / "results").exists()


def test_depth_cuts_files_too(call, tmp_path):
    done = call(tmp_path, "pvt_tiny", "--by-module", "--depth", "1", "--format", "csv")
    names = [row["module"] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert names[0] == ""
    assert "head" in names
    assert not any("." in name for name in names)


def test_operators_are_listed_with_what_is_not_counted(call, tmp_path):
    done = call(tmp_path, "pvt_tiny", "--by-op", "--format", "json")
    (found,) = json.loads(done.stdout)
    rows = {row["operator"]: row for row in found["operators"]}
    assert sum(row["macs"] for row in rows.values()) == found["macs"]
    assert (rows["linear"]["counted"], rows["layer_norm"]["counted"]) == ("product", "other")
    assert (rows["gelu"]["counted"], rows["gelu"]["calls"], rows["gelu"]["macs"]) == (
        "negligible",
        8,
        0,
    )
    assert "Without multiply-adds worth counting: " in call(tmp_path, "pvt_tiny", "--by-op").stdout


MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.conv(x)
        for block in self.blocks:
            x = block(x)
        return torch.linalg.inv(x @ x.mT + torch.eye(x.shape[-2], device=x.device))

class Nan(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) / 0 * 0

class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("not today")
"""


def test_modules_are_timed_with_the_overhead_stated(call, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    arguments = ("mine.py:Net", "--by-module", "--time-modules", "--img-size", "64")
    done = call(tmp_path, *arguments, "--device", "cpu", "--format", "json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    times = {row["module"]: row["latency_ms"] for row in found["modules"]}
    assert times["blocks"] is None  # a list is not called
    assert 0 < times["blocks.0"] < times[""]
    assert times["conv"] + times["blocks.0"] + times["blocks.1"] < times[""]
    assert found["timing_overhead"] is not None
    assert found["doubts"] == ["uncounted_ops: no rule for linalg_inv (1)"]
    shown = call(tmp_path, *arguments, "--device", "cpu").stdout
    assert "marking the modules changes a step by" in " ".join(shown.split())


def test_what_was_counted_stays_where_the_timing_fails(call, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    arguments = ("mine.py:Nan", "--by-module", "--time-modules", "--img-size", "8")
    done = call(tmp_path, *arguments, "--device", "cpu")
    assert done.returncode == 1
    assert "conv" in done.stdout
    assert "mine.py:Nan failed: the output (1, 4, 8, 8) holds NaN" in done.stdout


def test_nothing_to_list_is_a_header_alone(call, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    done = call(tmp_path, "mine.py:Broken", "--by-op", "--format", "csv", "--img-size", "8")
    assert done.returncode == 1
    assert done.stdout == "model,operator,calls,macs,share,activations,counted\n"
    assert done.stderr.startswith("Error: mine.py:Broken failed: not_counted: fvcore: RuntimeError")


def test_a_model_that_fails_does_not_stop_the_rest(call, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    done = call(tmp_path, "mine.py:Broken", "mine.py:Net", "--by-module", "--img-size", "32")
    assert done.returncode == 1
    assert "mine.py:Broken failed: not_counted: fvcore: RuntimeError: not today" in done.stdout
    assert "mine.py:Net, one input of 3x32x32" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dat --depth 3", "--depth and --time-modules are for --by-module alone"),
        ("dat --by-op --time-modules", "are for --by-module alone"),
        ("dat --by-op --by-module", "exclude each other"),
        ("dat --by-op --rigorous", "--rigorous and --budget are for measuring"),
        ("dat --by-module --depth 0", "0 is not in the range x>=1"),
        ("dat --by-module --output a.html", "end it in one of: .csv, .json, .txt"),
        ("dta --by-module", "did you mean dat?"),
    ],
)
def test_mistakes_take_one_line(call, tmp_path, arguments, message):
    done = call(tmp_path, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
