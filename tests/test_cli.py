"""The command line, up to the point where something is measured."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import shlex
import subprocess
import sys
import types
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from datbench.calibration import MODELS
from datbench.cli import _until_interrupted, cli
from datbench.records import Comparison
from datbench.store import RunFolder


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli, args, prog_name="datbench")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare --models dta swin", "no model named 'dta'; did you mean dat?"),
        ("compare --models dat --device cuda", "no CUDA device is visible"),
        ("compare --models dat swin --quick --fail-if slower>5%", "--fail-if needs verdicts"),
        ("compare --models dat --fail-if slower>5%", "--fail-if needs a comparison"),
        ("compare --models dat swin --fail-if slower", "write e.g. 'slower>5%' or 'faster>2%'"),
        ("compare --models dat --device cpu --cold-cache", "--cold-cache is for CUDA devices"),
        ("compare --models dat --device cpu --tf32", "--tf32 is for CUDA devices"),
        ("compare --models dat --min-effect 0", "'--min-effect': 0.0 is not in the range"),
        ("calibrate dta", "no model named 'dta'; did you mean dat?"),
        ("calibrate --pairs 4", "'--pairs': 4 is not in the range"),
        ("calibrate --rigorous", "give --pairs here"),
        ("compare --models dat --batch-size 0", "'--batch-size': 0 is not in the range"),
        ("compare --models dat --batch-size two", "'two' is not a valid integer"),
        (
            "compare --models yolov8n+dat --img-size 32",
            "needs an input of at least 64x64; got 32x32",
        ),
        ("compare --models dat --image text.jpg", "text.jpg cannot be read as an image"),
        ("compare --models dat --image none.jpg", "none.jpg is not a file"),
        ("compare --models dat --output none/a.csv", "there is no folder none"),
        ("compare --models dat --output a.foo", "no known format"),
        ("compare --models dat --results text.jpg", "is a file"),
        ("compare --models dat swin --baseline pvt", "baseline pvt is not among the models"),
        ("compare --models dat --quick --rigorous", "exclude each other"),
        ("compare --models dat --half --dtype bfloat16", "--half is float16"),
        ("compare --models yolov8n --nms --end-to-end", "--end-to-end has --nms in it"),
        ("compare --models swin --nms", "--nms is for detectors of ultralytics; swin_tiny is none"),
        (
            "compare --models dat --runtime onnx",
            "no runtime named 'onnx'; did you mean onnxruntime",
        ),
        ("compare --models dat --runtime cudagraph --device cpu", "needs --device cuda"),
        ("profile dat --by-op --runtime compile", "are for measuring; leave them out of a count"),
        ("compare", "Missing option '--models'"),
        ("compare --models", "'--models' requires an argument"),
        ("compare --modles dat", "Did you mean one of: '--mode', '--models', '--nms'?"),
        ("profile", "Missing argument"),
        ("profile block:dat", "--input 256x20x20"),
        ("export-report", "no run under results"),
        ("export-report none", "no run folder none"),
        ("export-report none --format pdf", "'pdf' is not one of"),
        ("compare --models dat --resume none", "no run folder none, nor results/none"),
        ("profile dat --by-op --resume none", "a count has no run to --resume"),
        ("profile dat --by-op --format md", "is printed as table, csv or json"),
        ("diff none none", "no run folder none"),
        ("runs", "no run under results"),
        ("list nothing*", "nothing in the zoo matches"),
        ("list --format xml", "'xml' is not one of"),
        ("frobnicate", "No such command"),
    ],
)
def test_mistakes_take_one_line_and_exit_with_2(call, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("datbench.device.count_cuda_devices", lambda: 0)
    monkeypatch.delattr("datbench.cli._progress")  # no bar may start before the mistake is found
    (tmp_path / "text.jpg").write_text("hello")
    result = call(*arguments.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "results").exists()


def test_an_output_that_cannot_be_written_is_refused(call, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datbench.reports.tempfile.TemporaryFile", refuse)
    result = call("compare", "--models", "dat", "--output", "a.csv")
    assert result.exit_code == 2
    assert result.stderr == "Error: output a.csv cannot be written: Permission denied\n"


def test_models_may_follow_one_option_or_repeat_it(call, monkeypatch):
    seen = []
    note = lambda request, **options: seen.append(request) or []  # noqa: E731
    monkeypatch.setattr("datbench.cli._measure", note)
    forms = (
        "compare --models dat swin --quick",
        "compare --quick --models dat swin",
        "compare --models dat --models swin --quick",
        "compare --models=dat --quick --models=swin",
        "compare --models=dat swin --quick",
    )
    for form in forms:
        result = call(*form.split())
        assert result.exit_code == 0, result.stderr
    assert {(request.models, request.tier) for request in seen} == {(("dat", "swin"), "quick")}


def test_options_reach_the_measuring(call, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "datbench.cli._measure",
        lambda request, **options: seen.update(dict(request), **options) or [],
    )
    options = (
        "--device cpu --batch-size 4 --img-size 448 --dtype bfloat16 --amp --channels-last "
        "--threads 1 --seed 9 --image noise --output a.csv --output b.html --format json "
        "--baseline swin --runtime eager --runtime compile[dynamic=True] --fuse"
    )
    assert call("compare", "--models", "dat", "swin", *options.split()).exit_code == 0
    assert (seen["batch_size"], seen["img_size"]) == ((4,), (448,))
    assert (seen["dtype"], seen["amp"], seen["channels_last"]) == (("bfloat16",), True, True)
    assert [str(path) for path in seen["outputs"]] == ["a.csv", "b.html"]
    assert (seen["seed"], seen["threads"], seen["image"]) == (9, 1, "noise")
    assert (seen["form"], seen["baseline"], seen["device"]) == ("json", "swin", "cpu")
    assert (seen["runtime"], seen["fuse"]) == (("eager", "compile[dynamic=True]"), True)
    assert seen["scope"] == "forward"


@pytest.mark.parametrize(
    ("flag", "option", "value"),
    [("--half", "dtype", ("float16",)), ("--nms", "scope", "nms"),
     ("--end-to-end", "scope", "end-to-end")],
)  # fmt: skip
def test_flags_stand_for_a_value(call, monkeypatch, flag, option, value):
    seen = {}
    monkeypatch.setattr(
        "datbench.cli._measure",
        lambda request, **options: seen.update(dict(request), **options) or [],
    )
    assert call("compare", "--models", "yolov8n", flag).exit_code == 0
    assert seen[option] == value
    assert not {"half", "nms", "end_to_end"} & set(seen)


@pytest.mark.parametrize("pattern", ["dat", "dat*", "*"])
def test_list_finds_models_by_name_and_alias(call, pattern):
    rows = json.loads(call("list", pattern, "--format", "json").stdout)
    dat = next(row for row in rows if row["model"] == "dat_tiny")
    assert (dat["params"], dat["published_macs"], dat["published_top1"]) == (
        28_319_138,
        4.6e9,
        82.0,
    )
    table = call("list", pattern).stdout
    assert "dat_tiny" in table
    assert "28.3" in table
    found = list(csv.DictReader(io.StringIO(call("list", pattern, "--format", "csv").stdout)))
    assert [row["model"] for row in found] == [row["model"] for row in rows]


def test_the_models_of_a_library_are_listed_by_its_name(call):
    rows = json.loads(call("list", "torchvision:resnet1*", "--format", "json").stdout)
    assert [row["model"] for row in rows] == [f"torchvision:resnet{n}" for n in (101, 152, 18)]
    assert [row["img_size"] for row in rows] == [224] * 3
    assert "timm:NAME, torchvision:NAME, FILE.py:FACTORY" in call("list", "dat").stdout


def test_every_model_and_block_is_listed(call):
    rows = json.loads(call("list", "--format", "json").stdout)
    names = {row["model"] for row in rows}
    assert {"dat_tiny", "swin_tiny", "pvt_small", "yolov8n", "block:dat"} <= names
    assert all(row["source"] and row["summary"] for row in rows)


def test_the_latest_run_is_exported(call, tmp_path, three_records):
    folder = RunFolder.create(tmp_path / "results", "compare")
    for record in three_records:
        folder.append(record)
    assert call("export-report").exit_code == 0
    assert "dat_tiny" in (folder.path / "report.csv").read_text()
    assert "dat_tiny" in (folder.path / "report.html").read_text()
    assert call("export-report", folder.run_id, "--output", "mine.json").exit_code == 0
    assert len(json.loads((tmp_path / "mine.json").read_text())["records"]) == 3
    shown = call("export-report", str(folder.path), "--format", "csv")
    assert shown.stdout == (folder.path / "report.csv").read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_offered(shell):
    result = CliRunner().invoke(
        cli,
        env={"_DATBENCH_COMPLETE": f"{shell}_source"},
        prog_name="datbench",
        standalone_mode=True,
    )
    assert result.exit_code == 0
    assert "_DATBENCH_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("datbench comp", {"compare"}),
        ("datbench compare --models da", {"dat_tiny"}),
        ("datbench compare --models dat_tiny sw", {"swin_tiny"}),
        ("datbench compare --models yolov8n+da", {"yolov8n+dat"}),
        ("datbench compare --models yolov8+da", {"yolov8+dat"}),
        ("datbench profile block:d", {"block:dat"}),
        ("datbench compare --models dat --qu", {"--quick"}),
        ("datbench compare --models dat --dtype bf", {"bfloat16"}),
    ],
)
def test_names_and_options_complete(words, expected):
    environment = {
        "_DATBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(cli, env=environment, prog_name="datbench")
    found = {line.partition(",")[2] for line in result.stdout.splitlines()}
    assert expected <= found
    prefix = words.split()[-1]
    assert all(word.startswith(prefix) for word in found)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["compare", "--help"], ["compare", "--models", "dta"]]
)
def test_nothing_before_the_measuring_imports_torch(arguments):
    code = (
        "import sys; from datbench.cli import cli\n"
        "try: cli(sys.argv[1:], prog_name='datbench')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'ultralytics', 'pandas', 'scipy', 'fvcore'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_photograph_of_ones_own_is_taken(call, tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr("datbench.api.run", lambda plan, *_: plans.append(plan) or [])
    Image.new("RGB", (10, 10)).save(tmp_path / "mine.png")
    result = call("profile", "dat", "--image", "mine.png", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert plans[0].cases[0].workload.image == str(tmp_path / "mine.png")


SLOWER = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")


@pytest.mark.parametrize(
    ("arguments", "flagged", "status"),
    [
        ("--fail-if slower>5%", (), 4),
        ("--fail-if slower>29.5%", (), 0),
        ("--fail-if slower>40% --fail-if slower>10%", (), 4),
        ("--fail-if faster>1%", (), 0),
        ("", ("noisy: it moved",), 0),
        ("--strict", ("noisy: it moved",), 3),
        ("--strict", (), 0),
        ("--strict --fail-if slower>5%", ("noisy: it moved",), 4),
    ],
)
def test_verdicts_and_flags_become_exit_statuses(
    call, monkeypatch, make_record, arguments, flagged, status
):
    records = [make_record(), make_record("swin_tiny", comparison=SLOWER, warnings=flagged)]
    monkeypatch.setattr("datbench.cli._measure", lambda *_, **__: records)
    result = call("compare", "--models", "dat", "swin", *arguments.split())
    assert result.exit_code == status, result.stderr
    said = "swin_tiny: 1.31x slower [1.29, 1.33] than dat_tiny, beyond slower>"
    assert (said in result.stderr) == (status == 4)


def test_a_model_that_failed_is_status_1_though_others_pass_the_gate(
    call, monkeypatch, make_record
):
    records = [make_record(), make_record("swin_tiny", error="broke")]
    monkeypatch.setattr("datbench.cli._measure", lambda *_, **__: records)
    assert call("compare", "--models", "dat", "swin", "--fail-if", "slower>5%").exit_code == 1


def test_a_gate_that_cannot_be_judged_does_not_pass(call, monkeypatch, make_record):
    records = [make_record(), make_record("swin_tiny", comparison=Comparison("dat_tiny", 2.0))]
    monkeypatch.setattr("datbench.cli._measure", lambda *_, **__: records)
    result = call("compare", "--models", "dat", "swin", "--fail-if", "slower>5%")
    assert result.exit_code == 1
    assert "too few process pairs to judge swin_tiny" in result.stderr


def test_verbose_tells_where_the_time_went(call, monkeypatch, make_record):
    spent = {"facts, MACs and memory": 2.0, "warm-up": 1.0, "timed": 3.0}
    records = [dataclasses.replace(make_record(), spent_s=spent)]
    monkeypatch.setattr("datbench.api.run", lambda *_: records)
    quiet = call("compare", "--models", "dat", "--device", "cpu")
    verbose = call("compare", "--models", "dat", "--device", "cpu", "--verbose")
    assert "After facts, MACs and memory, 75% of it was timed iterations." in verbose.stdout
    assert verbose.stdout.startswith(quiet.stdout)


def test_calibrate_tells_the_noise_and_the_health_and_keeps_it(
    call, monkeypatch, make_record, tmp_path
):
    rng = random.Random(1)
    planned = []

    class Measured:
        health: ClassVar = {"persistence_mode": 0}

        def __init__(self, plan, folder, progress):
            assert (plan.protocol.looks, plan.protocol.budget_s) == ((20,), 30)
            self.label = plan.baseline
            labels = [self.label, f"{self.label}#2", f"{self.label}#3"]
            assert [case.label for case in plan.cases] == labels
            planned.append(self.label)
            self.arms = []
            for label in labels:
                rounds = [[rng.gauss(0, 0.004)] * 2 for _ in range(20)]
                pairs = [first for first, _ in rounds]
                arm = types.SimpleNamespace(label=label, pairs=pairs, differences=rounds)
                self.arms.append(arm)

        def measure(self):
            pass

        def finish(self):
            return [make_record(self.label)]

    monkeypatch.setattr("datbench.calibration.Run", Measured)
    result = call("calibrate", "--device", "cpu", "--budget", "90")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert planned == list(MODELS)
    for model in MODELS:
        assert f"Noise floor: the ratio of {model} to itself scatters by 0." in text
    assert text.count("called different in 0 of 6 comparisons of 6 pairs") == 3
    assert text.count("100% of that, in squares, is what differs from process to process") == 3
    assert text.count("nvidia-smi -pm 1 (as root)") == 1
    assert text.count("frequency governor") == 1
    assert len(list(tmp_path.glob("results/*/calibration.json"))) == 3


def test_a_calibration_with_too_few_pairs_names_the_model(call, monkeypatch, make_record):
    class Measured:
        def __init__(self, plan, folder, progress):
            self.arms, self.health = [], {}
            self.label = plan.baseline

        def measure(self):
            pass

        def finish(self):
            return [make_record(self.label, pairs=4)]

    monkeypatch.setattr("datbench.calibration.Run", Measured)
    result = call("calibrate", "pvt", "swin", "--device", "cpu", "--budget", "1")
    assert result.exit_code == 2
    assert "calibration: pvt_small 4, swin_tiny 4, expected 6 or more" in result.stderr


def test_an_interrupt_keeps_what_was_found_before_it(capsys):
    def results():
        yield 1
        yield 2
        raise KeyboardInterrupt

    assert _until_interrupted(results(), 5) == ([1, 2], True)
    assert capsys.readouterr().err == "Interrupted after 2 of 5.\n"
    assert _until_interrupted(iter("ab"), 2) == (["a", "b"], False)
    with pytest.raises(click.Abort):
        _until_interrupted(map(_interrupted, [1]), 1)


def _interrupted(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments",
    [
        "compare --models dat swin",
        "compare --models dat swin --baseline swin --rigorous --min-effect 2.5 --budget 90",
        "compare --models dat dat --quick --batch-size 4 --img-size 448 --seed 3 --threads 1",
        "compare --models dat swin --amp --channels-last --image noise --device cpu",
        "compare --models dat --checkpoint w.pth --dtype bfloat16",
        "compare --models block:dat[groups=4,stride=2] block:ema --input 256x20x20",
        "compare --models dat swin --mode train --optimizer sgd",
        "profile dat pvt swin --rigorous",
        "profile dat",
        "profile 'timm:vit_tiny_patch16_224' --budget 5.5",
        "compare --plugin own_block.py --models 'yolov8n+mine_too[kernel=5]@neck' yolov8n",
    ],
)
@pytest.mark.usefixtures("zoo_as_it_was")
def test_a_record_carries_the_command_that_measures_it_again(
    call, tmp_path, monkeypatch, arguments
):
    (tmp_path / "w.pth").write_bytes(b"x")
    own = "import zoo\n\n\n@zoo.block('mine_too')\nclass Mine:\n    ...\n"
    (tmp_path / "own_block.py").write_text(own)
    plans = []
    monkeypatch.setattr("datbench.api.run", lambda plan, *_: plans.append(plan) or [])
    call(*shlex.split(arguments))
    call(*shlex.split(plans[0].shell)[1:])
    first, again = plans
    assert again.cases == first.cases
    assert (again.protocol, again.baseline) == (first.protocol, first.baseline)
    assert again.shell == first.shell


@pytest.fixture
def kept(tmp_path, three_records):
    """Two runs on disk, the second of another machine."""
    folders = [RunFolder.create(tmp_path / "results", "compare") for _ in range(2)]
    for folder, host in zip(folders, ("bench-1", "bench-2"), strict=True):
        for record in three_records:
            there = dataclasses.replace(record.environment, host=host)
            folder.append(dataclasses.replace(record, run_id=folder.run_id, environment=there))
        folder.append_samples(
            {
                "model": "dat_tiny",
                "key": three_records[0].key,
                "pair": 0,
                "latency_ms": [1.5, 2.5],
                "disturbed": [],
                "redone": False,
                "ended_utc": "2026-11-22T11:00:01+00:00",
            }
        )
    return [folder.run_id for folder in folders]


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "md", "tex", "txt"])
def test_a_report_is_printed_in_every_format_that_is_text(call, kept, form):
    found = call("export-report", kept[0], "--format", form)
    assert found.exit_code == 0, found.stderr
    assert "swin" in found.stdout
    assert "1.31" in found.stdout
    assert found.stderr == ""


@pytest.mark.parametrize("form", ["html", "xlsx", "png", "svg"])
def test_pages_and_pictures_become_files_in_the_run(call, tmp_path, kept, form):
    found = call("export-report", kept[0], "--format", form)
    assert (found.exit_code, found.stdout) == (0, "")
    path = tmp_path / "results" / kept[0] / f"report.{form}"
    assert f"Wrote {path.relative_to(tmp_path)}" in found.stderr
    assert path.stat().st_size > 1000


def test_runs_of_two_machines_become_one_report_without_a_ratio_between_them(call, kept):
    text = call("export-report", *kept).stderr
    assert text.count("Wrote") == 2
    shown = call("export-report", *kept, "--format", "table").stdout
    assert "machine A: Test CPU" in shown
    assert "No ratios between machines" in shown


def test_the_host_is_left_out_unless_it_is_asked_for(call, kept):
    for form in ("csv", "json"):
        hidden = call("export-report", kept[0], "--format", form).stdout
        assert "bench-1" not in hidden
        assert "host-" in hidden
        told = call("export-report", kept[0], "--format", form, "--include-host").stdout
        assert "bench-1" in told


def test_rows_and_columns_are_chosen(call, kept):
    chosen = ("--columns", "model,macs", "--sort", "-model", "--filter", "error.isna()")
    text = call("export-report", kept[0], "--format", "csv", *chosen).stdout
    assert [line.split(",")[0] for line in text.splitlines()] == ["model", "swin_tiny", "dat_tiny"]
    for option, value, told in (
        ("--columns", "modle", "did you mean mode or model"),
        ("--sort", "latency", "no column named 'latency'"),
        ("--filter", "batch_size ==", "--filter"),
    ):
        found = call("export-report", kept[0], "--format", "csv", option, value)
        assert found.exit_code == 2
        assert told in found.stderr


def test_a_json_report_is_a_run_like_any_other(call, tmp_path, kept):
    call("export-report", kept[0], "--output", "a.json", "--output", "a.jsonl")
    direct = call("export-report", kept[0], "--format", "csv").stdout
    for name in ("a.json", "a.jsonl"):
        assert call("export-report", name, "--format", "csv").stdout == direct
    samples = json.loads((tmp_path / "a.json").read_text())["samples"]
    again = call("export-report", "a.json", "--format", "json").stdout
    assert json.loads(again)["samples"] == samples
    assert samples[0]["latency_ms"] == [1.5, 2.5]
    found = call("export-report", "a.jsonl")
    assert "Wrote a.csv" in found.stderr
    assert call("diff", "a.json", "a.jsonl").exit_code == 0


def test_damage_is_told_beside_the_report(call, tmp_path, kept):
    with (tmp_path / "results" / kept[0] / "records.jsonl").open("a") as file:
        file.write('{"model"')
    found = call("export-report", kept[0], "--format", "csv")
    assert found.exit_code == 0
    assert "line 4 is damaged and was left out" in found.stderr


def test_a_run_is_resumed_by_its_name(call, tmp_path, monkeypatch, kept):
    folders = []
    monkeypatch.setattr("datbench.api.run", lambda _, folder, *__: folders.append(folder) or [])
    call("compare", "--models", "dat", "swin", "--resume", kept[0])
    assert [folder.run_id for folder in folders] == [kept[0]]
    assert len(list((tmp_path / "results").iterdir())) == 2  # and no folder of its own
