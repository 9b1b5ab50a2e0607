"""Run folders."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datbench.errors import UserError
from datbench.store import RunFolder, find_run, latest_run


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


def test_a_line_that_was_cut_off_is_reported_and_what_comes_after_it_is_read(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    folder.append(make_record("a"))
    with (folder.path / "records.jsonl").open("ab") as file:
        file.write(b'{"model": "b", "meas')  # killed here
    folder.append(make_record("c"))
    assert [r.model for r in folder.records()] == ["a", "c"]
    assert folder.damage == [f"{folder.path / 'records.jsonl'}, line 2 is damaged and was left out"]


def test_every_place_at_which_a_write_can_be_cut_off_leaves_a_readable_run(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    path = folder.path / "records.jsonl"
    folder.append(make_record("a"))
    folder.append(make_record("b"))
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for end in range(start, len(content) + 1, 97):
        path.write_bytes(content[:end])
        folder.append(make_record("c"))
        found = [record.model for record in folder.records()]
        assert found == (["a", "c"] if end < len(content) - 1 else ["a", "b", "c"])


def test_processes_that_write_to_one_folder_at_once_do_not_mix_their_lines(tmp_path):
    folder = RunFolder.create(tmp_path, "compare")
    script = (
        "import sys; from pathlib import Path; from datbench.store import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]))\n"
        "for i in range(200):\n"
        "    folder.append_samples({'by': sys.argv[2], 'i': i, 'x': sys.argv[2] * 20000})"
    )
    command = [sys.executable, "-c", script, str(folder.path)]
    writers = [subprocess.Popen([*command, name]) for name in "pq"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    slots = folder.samples()
    assert folder.damage == []
    for name in "pq":
        own = [slot for slot in slots if slot["by"] == name]
        assert [slot["i"] for slot in own] == list(range(200))
        assert {slot["x"] for slot in own} == {name * 20000}


def test_a_run_of_a_newer_version_is_refused(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    folder.append(dataclasses.replace(make_record("a"), schema=3))
    with pytest.raises(UserError, match=r"line 1 cannot be read: .*newer datbench \(schema 3"):
        folder.records()


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


def test_runs_are_found_by_path_or_by_name(tmp_path, make_record):
    folder = RunFolder.create(tmp_path, "compare")
    assert find_run(folder.path, tmp_path / "none").path == folder.path
    assert find_run(Path(folder.run_id), tmp_path).path == folder.path
    with pytest.raises(UserError, match=r"no run folder x, nor .*`datbench runs` lists the runs"):
        find_run(Path("x"), tmp_path)
