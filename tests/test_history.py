"""The list of runs."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from click.testing import CliRunner

from datbench.cli import cli
from datbench.store import RunFolder


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(cli, ["runs", *args], prog_name="datbench")


def test_runs_are_listed_with_how_to_go_on(call, tmp_path, make_record):
    assert call().exit_code == 2
    done, cut, old, broken = (RunFolder.create(tmp_path / "results", "compare") for _ in range(4))
    command = "datbench compare --models dat_tiny swin_tiny --device cpu"
    done.append(dataclasses.replace(make_record(), finished=True))
    done.append(dataclasses.replace(make_record("b", error="broke"), finished=True))
    early = dataclasses.replace(make_record(), finished=True, command=f"{command} --threads 2")
    part = RunFolder.create(tmp_path / "results", "compare")
    part.append(early)
    cut.append(dataclasses.replace(make_record(), finished=False, command=command))
    old.append(make_record())
    (broken.path / "records.jsonl").write_text('{"schema": 99}\n')
    with (cut.path / "records.jsonl").open("a") as file:
        file.write("{")
    text = " ".join(call().stdout.split())
    assert f"{done.run_id} finished 1 Test CPU dat_tiny b" in text
    assert f"{part.run_id} unfinished Test CPU dat_tiny" in text  # one of two models
    assert f"{cut.run_id} unfinished Test CPU dat_tiny" in text
    assert f"{cut.run_id} goes on with: {command} --resume results/{cut.run_id}" in text
    assert "records.jsonl, line 2 is damaged" in text
    assert f"{old.run_id} unknown" in text
    assert f"{broken.run_id} unreadable" in text
    rows = list(csv.DictReader(io.StringIO(call("--format", "csv").stdout)))
    assert {row["run"]: row["state"] for row in rows}[done.run_id] == "finished"
    assert len(rows) == 5
    assert all(row["started_utc"].startswith("20") for row in rows if row["state"] == "finished")
