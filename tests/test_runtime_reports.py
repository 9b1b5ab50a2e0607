"""What reports tell of runtimes: parity, the host's share, how a model was run."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from datbench.records import Comparison, Record, Workload
from datbench.reports import render
from datbench.reports.cells import conditions_of, differences, tabulate
from datbench.reports.methods import methods
from datbench.reports.notes import notes


@pytest.fixture
def rows(make_record):
    """A model in eager mode, as a CUDA graph, and wrong in ONNX Runtime."""
    shape = (3, 224, 224)

    def record(runtime, comparison=None, warnings=(), facts=(), **values):
        work = Workload(device="cuda:0", input_shape=shape, runtime=runtime)
        label, against = f"dat_tiny ({runtime})", comparison
        made = make_record(label, work=work, comparison=against, warnings=warnings, **values)
        return dataclasses.replace(made, facts=dict(facts))

    faster = Comparison("dat_tiny (eager)", 0.3, 0.29, 0.31, "FASTER")
    return [
        record("eager", host_ms_median=13.5),
        record("cudagraph", faster, host_ms_median=0.05, parity_abs=0.0, parity_rel=0.0,
               prepare_s=0.09, facts={"warm_ups": 3}),
        record("onnxruntime", Comparison("dat_tiny (eager)", 0.5), ["wrong_output: off by 0.5"],
               {"opset": 20, "providers": {"CPUExecutionProvider": 35}, "exporter": "torch"},
               host_ms_median=2.0, parity_abs=1.5, parity_rel=0.5, first_call_ms=8.25),
    ]  # fmt: skip


def test_the_table_shows_parity_and_the_share_of_the_host(rows):
    titles, cells = tabulate(rows)
    table = dict(zip(titles, zip(*cells, strict=True), strict=True))
    assert table["off from\neager"] == ("", "0e+00", "5e-01")
    assert table["host\nms"] == ("13.5", "0.0500", "2.00")
    assert "GFLOPs" not in titles
    assert "conditions" not in titles  # the labels tell the runtimes


def test_a_table_of_one_runtime_stays_as_it_was(make_record):
    titles, _ = tabulate([make_record(host_ms_median=1.0)])
    assert "GFLOPs" in titles
    assert not {"host\nms", "off from\neager"} & set(titles)


def test_runtimes_that_no_label_tells_are_conditions(make_record):
    def record(runtime):
        return make_record(work=Workload(device="cpu", input_shape=(3, 8, 8), runtime=runtime))

    assert differences([record("eager"), record("pt2")]) == ["eager", "pt2"]
    fused = dataclasses.replace(record("eager").workload, fuse=True, scope="nms")
    found = conditions_of(make_record(work=fused))
    assert (found["fused"], found["scope"]) == ("fused", "nms")


def test_notes_tell_how_each_ran_and_that_wrong_answers_have_no_verdict(rows):
    told = list(notes(rows))
    assert "dat_tiny (onnxruntime): wrong_output: off by 0.5" in told
    assert (
        "dat_tiny (onnxruntime): opset 20, providers CPUExecutionProvider (35), first call 8.25 "
        "ms, off from eager by 5.0e-01 of a channel (1.5e+00)"
    ) in told
    assert not any("process pair" in line for line in told)
    (conditions,) = [line for line in told if "batch 1" in line]
    assert "eager, cudagraph, onnxruntime, batch 1" in conditions


def test_parts_of_a_step_have_one_column(make_record):
    values = {"preprocess_ms_median": 7.0, "forward_ms_median": 20.0, "postprocess_ms_median": 0.5}
    titles, cells = tabulate([make_record(**values)])
    at = titles.index("preprocess\n+ forward\n+ postprocess ms")
    assert cells[0][at] == "7.00 + 20.0 + 0.500"


def test_facts_survive_json_and_columns_reach_the_csv(rows, tmp_path):
    for record in rows:
        assert Record.from_json(record.to_json()) == record
    file = tmp_path / "a.csv"
    file.write_text(render(rows, "csv"))
    frame = pd.read_csv(file)
    assert list(frame["runtime"]) == ["eager", "cudagraph", "onnxruntime"]
    assert frame["parity_rel"].tolist()[1:] == [0.0, 0.5]
    assert frame["first_call_ms"].tolist()[2] == 8.25


def test_every_report_can_show_them(rows):
    for suffix in ("html", "md", "tex", "txt", "json"):
        assert "onnxruntime" in render(rows, suffix)


def test_the_methods_say_how_it_was_run(make_record):
    whole = Workload(
        device="cpu", input_shape=(3, 64, 64), runtime="pt2", fuse=True, scope="end-to-end"
    )
    text = " ".join(methods([make_record("yolov8n", work=whole)]))
    assert "under the runtime pt2, whose outputs were held against eager's" in text
    assert "batch norms folded into the convolutions before them" in text
    assert "A step begins with decoded photographs" in text
    assert "in PyTorch's eager mode." in " ".join(methods([make_record()]))
