"""Run folders."""

from __future__ import annotations

import os

import pytest

from datbench.errors import UserError
from datbench.store import RunFolder, latest_run


def test_two_runs_of_one_second_get_their_own_folders(tmp_path):
    folders = {RunFolder.create(tmp_path, "compare").path for _ in range(5)}
    assert len(folders) == 5
    assert all(path.name.partition("-")[2].startswith("compare") for path in folders)


def test_the_last_record_of_a_model_counts(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    folder.append(make_record("a", latency_ms_median=None))
    folder.append(make_record("b"))
    folder.append(make_record("a", latency_ms_median=2.0))
    found = folder.records()
    assert [r.model for r in found] == ["a", "b"]
    assert found[0].values["latency_ms_median"] == 2.0


def test_a_record_cut_off_by_a_kill_is_left_out(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    folder.append(make_record("a"))
    folder.append(make_record("b"))
    path = folder.path / "records.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [r.model for r in folder.records()] == ["a"]


def test_a_damaged_line_is_named(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    (folder.path / "records.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"records.jsonl, line 1 cannot be read"):
        folder.records()


def test_samples_come_back_in_order(tmp_path):
    folder = RunFolder.create(tmp_path, "compare")
    assert folder.samples() == []
    for slot in range(3):
        folder.append_samples({"slot": slot, "latency_ms": [1.0, 2.0]})
    assert [line["slot"] for line in folder.samples()] == [0, 1, 2]


def test_the_latest_run_is_the_one_last_written(tmp_path, make_record):
    with pytest.raises(UserError, match="no run under"):
        latest_run(tmp_path)
    first, second = (RunFolder.create(tmp_path, c) for c in ("compare", "profile"))
    first.append(make_record())
    second.append(make_record())
    os.utime(first.path / "records.jsonl", (2e9, 2e9))
    assert latest_run(tmp_path).path == first.path


def test_a_folder_without_records_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder(tmp_path).records()


def test_results_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="choose another --results"):
        RunFolder.create(tmp_path / "results", "compare")
