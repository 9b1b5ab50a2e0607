"""Real workers, real networks, small inputs."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from datbench.store import RunFolder

DATBENCH = [sys.executable, "-m", "datbench"]
SMALL = ["--img-size", "64", "--device", "cpu"]


def call(folder, *arguments, **options):
    """Run the command line in a process of its own."""
    command = [*DATBENCH, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def failed(datbench, tmp_path_factory):
    """One comparison with a model that fails; everything else looks at what it left."""
    folder = tmp_path_factory.mktemp("compare")
    models = ["pvt_tiny", "swin", "yolov8n+dat", "yolov8n+dat[heads=7]"]
    outputs = ["--output", "a.csv", "--output", "a.html"]
    done = datbench(folder, "compare", "--models", *models, "--quick", *SMALL, *outputs)
    return folder, done


def test_a_failed_model_gives_status_1_and_its_own_row(failed):
    folder, done = failed
    assert done.returncode == 1, done.stderr
    frame = pd.read_csv(folder / "a.csv").set_index("model")
    assert frame.loc["yolov8n+dat[heads=7]", "error"] == "dim=256 is not a multiple of heads=7"
    assert pd.isna(frame.loc["yolov8n+dat[heads=7]", "latency_ms_median"])
    assert frame["error"].notna().sum() == 1
    assert "Traceback" not in done.stderr


MINE = """
from torch import nn
from width import WIDTH

class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, WIDTH, 3), kind
    def forward(self, x):
        y = self.conv(x)
        return {"tensor": y, "tuple": (y, y), "list": [y], "dict": {"maps": [y], "y": y}}[self.kind]

def build(kind="tensor"):
    return Net(kind)
"""


def test_models_of_ones_own_are_measured_whatever_they_return(datbench, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "width.py").write_text("WIDTH = 4")
    kinds = ["tuple", "list", "dict"]
    models = [*(f"mine.py:build[kind={kind}]" for kind in kinds), "mine:build", "timm:resnet10t"]
    done = datbench(tmp_path, "profile", *models, *SMALL, "--budget", "5", "--format", "json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)["records"]
    assert [r["model"] for r in records] == models
    values = [{m["name"]: m["value"] for m in r["measurements"]} for r in records]
    assert [v["macs"] for v in values[:4]] == [62 * 62 * 27 * 4] * 4
    assert values[4]["params"] == 5_435_488


def test_every_column_that_a_cpu_can_fill_is_filled(failed):
    folder, _ = failed
    frame = pd.read_csv(folder / "a.csv").set_index("model").iloc[:3]
    filled = """
        params macs flops latency_ms_median latency_ms_lo latency_ms_hi latency_ms_min
        latency_ms_p90 throughput_img_s weights_mib peak_allocated_mib rss_peak_mib samples pairs
        run_id key timestamp_utc torch python device_name cpu_name host
    """
    for column in filled.split():
        assert frame[column].notna().all(), column
    for column in (
        "host_ms_median",
        "peak_reserved_mib",
        "process_memory_mib",
        "verdict",
        "driver",
    ):
        assert frame[column].isna().all(), column
    assert (
        frame.loc["pvt_tiny", "params"]
        == 13_229_288 - (3136 - 256) * 64 - (784 - 64) * 128 - (196 - 16) * 320 - (49 - 4) * 512
    )
    assert frame["ratio"].isna().tolist() == [True, False, False]
    assert (frame["flops"] == 2 * frame["macs"]).all()


def test_the_figures_follow_from_the_raw_samples(failed):
    folder, _ = failed
    run = RunFolder(next((folder / "results").iterdir()))
    frame = pd.read_csv(folder / "a.csv").set_index("model")
    kept = [slot for slot in run.samples() if not slot["redone"]]
    slots = pd.DataFrame(kept).explode("latency_ms")
    slots["latency_ms"] = slots["latency_ms"].astype(float)
    raw = slots.groupby("model")["latency_ms"]
    for model in ("pvt_tiny", "swin_tiny", "yolov8n+dat"):
        assert frame.loc[model, "latency_ms_median"] == pytest.approx(raw.median()[model])
        assert frame.loc[model, "latency_ms_min"] == pytest.approx(raw.min()[model])
        assert frame.loc[model, "samples"] == raw.size()[model]
        assert frame.loc[model, "throughput_img_s"] == pytest.approx(1000 / raw.mean()[model])


@pytest.mark.skipif(sys.platform != "linux", reason="variables of glibc")
def test_workers_keep_freed_memory_but_as_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    done = call(tmp_path, "profile", "block:ema", "--input", "8x8x8", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (record,) = RunFolder(next((tmp_path / "results").iterdir())).records()
    kept = record.environment.settings["malloc"]
    assert kept["MALLOC_TRIM_THRESHOLD_"] == kept["MALLOC_MMAP_THRESHOLD_"] == str(2**32)
    assert kept["MALLOC_TOP_PAD_"] == "4096"


def test_the_table_is_on_stdout_and_the_rest_on_stderr(datbench, failed):
    folder, done = failed
    assert "pvt_tiny" in done.stdout
    assert "No verdict" in done.stdout
    assert "Records and samples: results" in done.stderr
    assert "Wrote a.html" in done.stderr
    exported = datbench(folder, "export-report", "--format", "csv")
    assert exported.stdout == (folder / "a.csv").read_text()


def test_a_script_without_a_main_guard_works(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""\
        import sys, datbench
        records = datbench.profile(["block:window"], input_shape="16x14x14", device="cpu")
        assert "torch" not in sys.modules, "the parent must not import torch"
        print(records[0].model, records[0].values["samples"] > 0, records[0].error)
        """)
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "block:window True None\n", done.stderr


def test_what_a_worker_prints_stays_out_of_the_table():
    code = """
import multiprocessing, os
from datbench.worker import serve
ours, theirs = multiprocessing.Pipe()
ours.close()  # the worker finds its pipe closed and returns
serve(theirs, None, None)
os.write(1, b"chatter")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.stderr.endswith("chatter")


BLOCKS = ("block:ema", "block:psa")


def started(folder, *arguments):
    """Start a comparison in a process group of its own, and wait for the first timed slot."""
    process = subprocess.Popen(
        [*DATBENCH, "compare", "--models", *BLOCKS, "--input", "16x8x8", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with interrupts ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("results/*/samples.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was timed within two minutes"
        time.sleep(0.05)
    return process


def workers(process) -> list[int]:
    """Process ids of the workers: the children of the fork server, a child of the parent."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = status.read_text().split(" (", 1)
        except OSError:
            continue
        children.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
    servers = children.get(process.pid, [])
    return [pid for server in servers for pid in children.get(server, [])]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_worker_is_a_row_and_the_rest_goes_on(tmp_path):
    process = started(tmp_path, "--quick")
    os.kill(workers(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "failed: the worker was killed by SIGKILL" in out
    assert out.count("failed") == 2  # one cell, one note


@pytest.mark.skipif(os.name == "nt", reason="sends signals to a process group")
def test_an_interrupt_shows_what_was_measured_and_leaves_nothing_running(tmp_path):
    process = started(tmp_path)
    ours = workers(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_parent_leaves_no_workers_behind(tmp_path):
    process = started(tmp_path)
    ours = workers(process)
    assert len(ours) == 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    run = RunFolder(next((tmp_path / "results").iterdir()))
    assert {record.model for record in run.records()} == {*BLOCKS}
    assert run.samples()


GATE = """
import zoo
from torch import nn

@zoo.block("mine")
class Mine(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return x * self.gate(x).sigmoid()

@zoo.block("half")
class Half(nn.Module):
    def __init__(self, dim):
        super().__init__()

    def forward(self, x):
        return x[..., ::2]
"""


@pytest.mark.usefixtures("zoo_as_it_was")
def test_a_block_of_the_users_is_measured_alone_and_in_a_detector(datbench, tmp_path):
    (tmp_path / "my_block.py").write_text(GATE)
    plugin = ["--plugin", "my_block.py", "--device", "cpu", "--format", "csv", "--quick"]
    models = ["yolov8n", "yolov8n+mine", "yolov8n+mine@c2f"]
    done = datbench(tmp_path, "compare", "--models", *models, "--img-size", "64", *plugin)
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(io.StringIO(done.stdout)).set_index("model")
    params = frame["params"] - frame.loc["yolov8n", "params"]
    assert params.tolist() == [0, 256 * 256 + 256, 128 * 128 + 128]
    assert (frame["macs"][1:] > frame.loc["yolov8n", "macs"]).all()
    assert frame.loc["yolov8n+mine", "ratio"] > 0
    words = ["profile", "block:mine", "block:half", "--input", "8x5x7", *plugin[:-1]]
    alone = datbench(tmp_path, *words)
    assert alone.returncode == 1, alone.stderr
    frame = pd.read_csv(io.StringIO(alone.stdout)).set_index("model")
    assert frame.loc["block:mine", "macs"] == 8 * 8 * 5 * 7
    assert frame.loc["block:half", "error"] == (
        "block half makes (1, 8, 5, 4) of (1, 8, 5, 7); a block keeps the shape"
    )
    assert "Traceback" not in alone.stderr


def test_the_yaml_of_a_detector_is_all_that_stands_on_stdout(tmp_path):
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}  # where it greets newcomers
    done = call(tmp_path, "yolo-yaml", "yolov8n+dat@neck", env=environment)
    assert done.returncode == 0, done.stderr
    layers = yaml.safe_load(done.stdout)
    assert layers["head"][-1][0] == [16, 20, 24]
    refused = call(tmp_path, "yolo-yaml", "dat_tiny")
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: dat_tiny is not a detector of ultralytics; e.g. yolov8n+dat is\n"
    )
