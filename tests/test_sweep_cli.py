"""Sweeps on the command line: words of options, plan files, dry runs, and how they end."""

from __future__ import annotations

import csv
import io
import json
import shlex

import pytest
from click.testing import CliRunner

from datbench.cli import cli
from datbench.request import read_request
from datbench.store import RunFolder

from .test_runner import FakePool  # isort: skip

TIMES = {"pvt_tiny": 100.0, "swin_tiny": 92.0, "dat_tiny": 110.0}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command line in an empty folder, with models that are not built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datbench.runner.Pool", FakePool(TIMES))
    monkeypatch.setattr("datbench.executors.local.Pool", FakePool(TIMES))
    return lambda text: CliRunner().invoke(cli, shlex.split(text), prog_name="datbench")


@pytest.fixture
def asked(monkeypatch):
    """Requests that commands make, instead of measuring."""
    found = []
    monkeypatch.setattr(
        "datbench.cli._measure", lambda request, **options: found.append(request) or []
    )
    return found


@pytest.mark.parametrize(
    "text",
    [
        "compare --models dat swin --batch-size 1 8 --dtype float32 bfloat16 --img-size 224 384",
        "compare --batch-size 1 8 --dtype float32 bfloat16 --img-size 224 384 --models dat swin",
        "compare --models=dat swin --batch-size=1 8 --img-size 224 --dtype=float32 "
        "--dtype bfloat16 --img-size 384",
        "compare --models dat --models swin --batch-size 1 --batch-size 8 --dtype float32 bfloat16 "
        "--img-size 224 384",
    ],
)
def test_options_take_several_words(call, asked, text):
    result = call(text)
    assert result.exit_code == 0, result.stderr
    (request,) = asked
    assert request.models == ("dat", "swin")
    assert (request.batch_size, request.img_size) == ((1, 8), (224, 384))
    assert request.dtype == ("float32", "bfloat16")


def test_models_may_stand_behind_values(call, asked):
    call("profile --batch-size 1 8 dat swin --runtime eager compile pvt --mode train inference")
    (request,) = asked
    assert request.models == ("dat", "swin", "pvt")
    assert (request.batch_size, request.runtime) == ((1, 8), ("eager", "compile"))
    assert request.mode == ("train", "inference")


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("--slurm-partition gpu", {"partition": "gpu"}),
        ("--slurm-gres gpu:a100:1 --slurm-time 1:00:00", {"gres": "gpu:a100:1", "time": "1:00:00"}),
        ("--slurm-cpus-per-task 4 --slurm-mem=8G", {"cpus_per_task": "4", "mem": "8G"}),
        ("--slurm-exclusive --slurm-comment 'x y'", {"exclusive": True, "comment": "x y"}),
        ("--slurm partition=gpu --slurm-qos low", {"partition": "gpu", "qos": "low"}),
        ("--slurm-comment=--odd", {"comment": "--odd"}),
    ],
)
def test_whatever_sbatch_takes_goes_through(call, asked, words, known):
    result = call(f"compare --models dat swin --executor slurm {words} --batch-size 1 8")
    assert result.exit_code == 0, result.stderr
    assert asked[0].slurm == known
    assert asked[0].batch_size == (1, 8)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("compare --models dat --batch-size 1 x", "unexpected extra argument"),
        ("compare --models dat --slurm partition", "expected KEY=VALUE"),
        ("compare --models dat --device cpu --slurm-partition gpu", "is for --executor slurm"),
        ("compare --models dat --executor slrum", "did you mean slurm"),
        ("compare --models 'zz*' --batch-size 1 2", "nothing in the zoo matches 'zz*'"),
        ("compare --models dat --dry-run --output a.html", "--dry-run measures nothing"),
        ("compare --models dat --dry-run --format tex", "printed as table, csv or json; got tex"),
        ("compare --models dat --img-size 224 --input 3x224x224", "both set the size"),
        ("run none.toml", "none.toml cannot be read: No such file"),
        ("run bad.toml", "there is no option 'batchsize'; did you mean batch_size?"),
        ("run single.toml --fail-if 'slower>5%'", "--fail-if needs a comparison"),
        ("profile dat --by-module --batch-size 1 2", "--batch-size takes one value here; got 1, 2"),
    ],
)
def test_mistakes_take_one_line_and_exit_with_2(call, tmp_path, text, told):
    (tmp_path / "bad.toml").write_text("models = ['dat']\nbatchsize = 4")
    (tmp_path / "single.toml").write_text("models = ['dat']\ndevice = 'cpu'")
    result = call(text)
    assert result.exit_code == 2, result.stdout
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_plan_file_measures_what_the_command_does(call, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'models = ["pvt_tiny", "swin_tiny"]\nbatch_size = [1, 2]\ndevice = "cpu"\n'
    )
    first = call("run plan.toml --format csv")
    assert first.exit_code == 0, first.stderr
    second = call("compare --models pvt_tiny swin_tiny --batch-size 1 2 --device cpu --format csv")
    keys = [[row["key"] for row in csv.DictReader(io.StringIO(r.stdout))] for r in (first, second)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 4
    runs = sorted((tmp_path / "results").iterdir())
    assert read_request(runs[0] / "plan.toml") == read_request(runs[1] / "plan.toml")


def test_a_run_folder_is_a_plan_and_its_command_makes_the_same(call, tmp_path):
    call("compare --models pvt_tiny swin_tiny --batch-size 1 2 --dtype float32 bfloat16 "
         "--device cpu --rigorous --min-effect 2.5 --seed 3")  # fmt: skip
    (run,) = (tmp_path / "results").iterdir()
    known = RunFolder(run).records()
    assert call(f"run {run} --format csv --resume {run}").exit_code == 0
    assert RunFolder(run).records() == known  # all of it was there
    command = known[0].command
    assert {record.command for record in known} == {command}
    assert call(command.removeprefix("datbench ")).exit_code == 0
    *_, again = sorted((tmp_path / "results").iterdir())
    assert [r.key for r in RunFolder(again).records()] == [r.key for r in known]
    assert read_request(again / "plan.toml").seed == 3


def test_impossible_cases_do_not_fail_a_sweep(call):
    text = "compare --models dat_tiny pvt_tiny --img-size 64 224 --device cpu"
    result = call(text)
    assert result.exit_code == 0, result.stderr
    assert "impossible" in result.stdout
    assert "dat_tiny (64) cannot be: dat_tiny needs an input of at least 224x224" in " ".join(
        result.stdout.split()
    )
    assert call(f"{text} --strict").exit_code == 3


def test_a_sweep_of_nothing_possible_is_status_1(call):
    result = call("compare --models dat_tiny --img-size 32 64 --device cpu")
    assert result.exit_code == 1, result.stdout
    assert result.stdout.count("impossible") >= 2


@pytest.mark.usefixtures("at_once")
def test_a_dry_run_lists_cases_for_people_and_programs(call, tmp_path):
    text = "compare --models pvt_v2_b0 dat --batch-size 1 2 --img-size 64 --device cpu --dry-run"
    table = call(text)
    assert table.exit_code == 0, table.stderr
    assert "4 cases in 2 units, 2 of them impossible" in table.stdout
    rows = json.loads(call(f"{text} --format json").stdout)
    assert [row["model"] for row in rows] == ["pvt_v2_b0", "dat_tiny"] * 2
    assert rows[0]["predicted_peak_mib"] > 10
    assert not (tmp_path / "results").exists()


def test_gates_hold_for_each_comparison_of_a_sweep(call):
    text = "compare --models pvt_tiny dat_tiny --batch-size 1 2 --device cpu --fail-if 'slower>5%'"
    result = call(text)
    assert result.exit_code == 4
    assert result.stderr.count("beyond slower>5%") == 2


def test_verdicts_of_a_sweep_are_counted(call):
    text = "compare --models pvt_tiny dat_tiny swin_tiny --batch-size 1 2 4 --device cpu"
    told = " ".join(call(text).stdout.split())
    assert "Against pvt_tiny - faster: swin_tiny (3 of 3); slower: dat_tiny (3 of 3)." in told
    assert "batch 1, 2 or 4 of photo" in told
