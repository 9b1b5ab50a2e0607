"""Columns, order and filters of what is reported."""

from __future__ import annotations

import dataclasses
import io

import pandas as pd
import pytest

from datbench.errors import UserError
from datbench.records import COLUMNS, Comparison, Workload
from datbench.reports import Content, render
from datbench.reports.cells import TEXT
from datbench.reports.select import select


@pytest.fixture
def content(make_record):
    """Four models: a slower one, one of another size, and one that failed."""
    slower = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")
    wide = Workload(device="cpu", input_shape=(3, 224, 320), batch_size=8)
    records = [
        make_record(latency_ms_median=9.0),
        make_record("swin_tiny", comparison=slower, warnings=["noisy: x"], latency_ms_median=100.0),
        make_record("yolov8n+dat@neck", work=wide, latency_ms_median=20.0),
        make_record("pvt_small", error="out of memory", latency_ms_median=None),
    ]
    records[1] = dataclasses.replace(records[1], family="swin")
    return Content(records, {(r.run_id, r.model): [{"model": r.model}] for r in records})


def models(content) -> str:
    return " ".join(record.model.partition("_")[0] for record in content.records)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('batch_size == 1 and family == "dat"', "dat pvt"),
        ('model.str.startswith("yolo")', "yolov8n+dat@neck"),
        ('model == "yolov8n+dat@neck"', "yolov8n+dat@neck"),
        ("latency_ms_median > 5", "dat swin yolov8n+dat@neck"),
        ("5 < latency_ms_median < 50", "dat yolov8n+dat@neck"),
        ("latency_ms_median.isna()", "pvt"),
        ("verdict.isna()", "dat yolov8n+dat@neck pvt"),
        ("error.notna()", "pvt"),
        ('not flags.str.contains("(no)isy")', "dat yolov8n+dat@neck pvt"),
        ('verdict == "SLOWER" or error != ""', "swin pvt"),
        ('model in ["dat_tiny", "pvt_small"]', "dat pvt"),
        ("img_size == 224", "dat swin pvt"),
        ('img_size == "224x320"', "yolov8n+dat@neck"),
        ("(batch_size == 8) | (ratio >= 1.3)", "swin yolov8n+dat@neck"),
        ("latency_ms_p99 > 0 or batch_size * 2 == 16", "yolov8n+dat@neck"),
    ],
)
def test_a_filter_keeps_the_rows_for_which_it_is_true(content, where, expected):
    assert models(select(content, where=where)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("batch_size ==", "cannot be read"),
        ("batch_size = 1", "cannot be read"),
        ("", "cannot be read"),
        ("\0", "cannot be read"),
        ("@x == 1", "cannot be read.*there are no @variables"),
        ("batch_sise == 1", r"no column named 'batch_sise'; did you mean batch_size"),
        ("__import__('os') == 0", "no column named '__import__'"),
        ("model.__class__ == 1", ".__class__ is not for filters"),
        ("model.to_csv('written') == 1", ".to_csv is not for filters"),
        ("model.str.startwith('a')", "did you mean startswith"),
        ("model.str.cat(['a']) == 'x'", ".cat is not for filters"),
        ("(lambda: 1)() == 1", "Lambda is not for filters"),
        ("model[0] == 'd'", "Subscript is not for filters"),
        ("9 ** 9 == params", "Pow is not for filters"),
        ("params", "says no yes or no of each row"),
        ("1 == 1", "says no yes or no of each row"),
        ("model.str.len()", "says no yes or no of each row"),
        ("family > 1", "does not work"),
        ("params.str.contains('1')", "does not work"),
        ("model.str.contains('(')", "does not work"),
        ("batch_size == 77", "leaves none of the 4 rows"),
    ],
)
def test_a_filter_that_cannot_work_says_why_in_one_line(content, where, message):
    with pytest.raises(UserError, match=message) as caught:
        select(content, where=where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("latency_ms_median", "dat yolov8n+dat@neck swin pvt"),
        ("-latency_ms_median", "swin yolov8n+dat@neck dat pvt"),
        ("-batch_size,model", "yolov8n+dat@neck dat pvt swin"),
        ("family, -latency_ms_median", "yolov8n+dat@neck dat pvt swin"),
        ("img_size", "dat swin pvt yolov8n+dat@neck"),
        ("verdict", "swin dat yolov8n+dat@neck pvt"),
    ],
)
def test_numbers_sort_as_numbers_and_empty_cells_come_last(content, sort, expected):
    assert models(select(content, sort=sort)) == expected


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("columns", "model,lateny_ms_median", "--columns.*did you mean latency_ms_median"),
        ("columns", "model,", "--columns: no column named ''"),
        ("sort", "--model", "--sort: no column named '-model'"),
        ("sort", "speed", "--sort: no column named 'speed'.*known: model, family"),
    ],
)
def test_unknown_columns_are_refused_with_the_nearest_names(content, option, given, message):
    with pytest.raises(UserError, match=message):
        select(content, **{option: given})


def test_chosen_columns_are_those_of_every_table(content):
    chosen = select(content, columns="verdict, model,params,throughput_img_s,model")
    frame = pd.read_csv(io.StringIO(render(chosen, "csv")))
    assert list(frame.columns) == ["verdict", "model", "params", "throughput_img_s"]
    assert frame["params"].tolist() == [28_319_138] * 4
    table = render(chosen, "txt")
    assert "throughput" in table
    assert "img/s" in table
    assert "28.3" in table
    assert "GFLOPs" not in table
    assert "| verdict | model | params M | throughput img/s |" in render(chosen, "md")
    assert "\n{} & & params & throughput \\\\\n" in render(chosen, "tex").replace("  ", " ")


def test_samples_of_rows_that_are_left_out_are_left_out(content):
    left = select(content, where='model == "dat_tiny"')
    assert [model for _, model in left.samples] == ["dat_tiny"]
    assert select(content).samples == content.samples


def test_every_column_is_known_to_hold_words_or_numbers(content):
    full = dataclasses.replace(content.records[1].environment, driver="1", cuda="1", cudnn="1")
    row = dataclasses.replace(content.records[1], environment=full, error="x").row()
    assert set(COLUMNS) >= TEXT
    for column, value in row.items():
        assert value is None or isinstance(value, str) == (column in TEXT), column
    assert {column for column, value in row.items() if value is None} & TEXT == set()
