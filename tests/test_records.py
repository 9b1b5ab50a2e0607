"""Records survive JSON, and their row has the promised columns."""

from __future__ import annotations

import dataclasses
import json

import pytest

from datbench.records import COLUMNS, Measurement, Record, Workload

CONTRACT = """
model, family, source, device, dtype, runtime, mode, img_size, batch_size, params,
params_trainable, macs, flops, latency_ms_median, latency_ms_lo, latency_ms_hi, latency_ms_min,
latency_ms_p90, latency_ms_p95, latency_ms_p99, host_ms_median, throughput_img_s, weights_mib,
peak_allocated_mib, peak_reserved_mib, process_memory_mib, rss_peak_mib, samples, pairs,
baseline, ratio, ratio_lo, ratio_hi, verdict, flags, error, published_macs, published_top1,
run_id, key, timestamp_utc, datbench_version, torch, python, device_name, cpu_name, driver,
cuda, cudnn, threads, git_commit, host, preprocess_ms_median, forward_ms_median,
postprocess_ms_median, boxes_img, prepare_s, load_s, first_call_ms, graph_breaks, recompiles,
parity_abs, parity_rel
"""


def test_the_columns_are_the_contract():
    assert list(COLUMNS) == " ".join(CONTRACT.split()).split(", ")


def test_a_record_survives_json(three_records):
    for record in three_records:
        again = Record.from_json(json.loads(json.dumps(record.to_json())))
        assert again == record
        assert again.row() == record.row()


def test_a_record_of_a_newer_version_is_refused(make_record):
    with pytest.raises(ValueError, match=r"schema 99; .* reads up to 2\); upgrade"):
        Record.from_json({**make_record().to_json(), "schema": 99})
    for none in ({}, {"schema": 0}, {"schema": "2"}):
        with pytest.raises(ValueError, match="names no schema"):
            Record.from_json(none)


def test_a_record_of_the_first_schema_is_read(make_record):
    old = make_record().to_json()
    for added in ("command", "finished", "min_effect"):
        del old[added]
    found = Record.from_json({**old, "schema": 1})
    assert (found.command, found.finished, found.min_effect) == ("", None, None)
    assert found.schema == 2
    assert found.row() == make_record().row()


def test_fields_that_a_later_version_added_are_left_out(make_record):
    data = make_record().to_json()
    for part in (data, data["workload"], data["environment"], data["measurements"][0]):
        part["added_later"] = 1
    assert Record.from_json(data) == make_record()


def test_what_was_not_measured_is_none(make_record):
    row = make_record(latency_ms_median=None).row()
    assert row["latency_ms_median"] is None
    assert row["ratio"] is None
    assert row["verdict"] is None
    assert row["flags"] is None


def test_flags_are_the_words_before_the_colon_once(make_record):
    record = make_record(warnings=["noisy: a", "noisy: b", "oom: c"])
    doubted = Measurement("macs", 1, ("uncounted_ops: aten::x",))
    record = dataclasses.replace(record, measurements=(doubted,))
    assert record.flags == ("noisy", "oom", "uncounted_ops")
    assert record.row()["flags"] == "noisy oom uncounted_ops"


@pytest.mark.parametrize(
    ("options", "column", "expected"),
    [
        ({}, "dtype", "float32"),
        ({"dtype": "bfloat16", "amp": True}, "dtype", "amp_bfloat16"),
        ({"channels_last": True}, "runtime", "eager-channels-last"),
        ({}, "img_size", 224),
        ({"input_shape": (3, 480, 640)}, "img_size", "480x640"),
    ],
)
def test_the_workload_shows_in_the_row(make_record, options, column, expected):
    work = Workload(**{"device": "cpu", "input_shape": (3, 224, 224), **options})
    assert make_record(work=work).row()[column] == expected
