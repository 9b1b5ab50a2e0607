"""Reports from records alone."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pandas as pd
import pytest

from datbench.errors import UserError
from datbench.records import COLUMNS, Comparison, Record
from datbench.reports import REPORTS, check_output, render, write
from datbench.reports.txt import rounded, tabulate, told
from datbench.rows import inert

HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>[red]x[/red]"


def test_pandas_reads_the_csv_back_with_the_right_types(three_records):
    frame = pd.read_csv(io.StringIO(render(three_records, "csv")))
    assert list(frame.columns) == list(COLUMNS)
    kinds = frame.dtypes.map(lambda t: t.kind)
    assert {kinds[c] for c in ("params", "macs", "batch_size", "img_size", "threads")} == {"i"}
    assert {kinds[c] for c in ("latency_ms_median", "ratio", "published_top1")} == {"f"}
    assert frame["latency_ms_median"].tolist()[:2] == [76.5631, 76.5631]
    assert frame["latency_ms_median"].isna().tolist() == [False, False, True]
    assert frame["verdict"].tolist()[1] == "SLOWER"
    assert frame["error"].tolist()[2] == "out of memory: tried 3 GiB"


def test_integers_stay_integers_beside_empty_cells(make_record):
    text = render([make_record(samples=60), make_record("b", samples=None)], "csv")
    rows = [dict(zip(COLUMNS, line.split(","), strict=False)) for line in text.splitlines()[1:]]
    assert ",60," in text
    assert "60.0" not in text
    assert len(rows) == 2


def test_spreadsheet_formulas_are_inert(make_record):
    for start in "=+-@\t\r":
        assert inert(f"{start}1") == f"'{start}1"
    assert inert(-1.5) == -1.5
    assert inert("yolov8n+dat") == "yolov8n+dat"
    frame = pd.read_csv(io.StringIO(render([make_record(HOSTILE)], "csv")))
    assert frame["model"][0] == f"'{HOSTILE}"


def test_json_holds_everything(three_records):
    content = json.loads(render(three_records, "json"))
    assert content["schema"] == 2
    assert content["records"] == [json.loads(json.dumps(r.to_json())) for r in three_records]


def test_the_table_tells_figures_verdicts_doubts_and_faults(three_records):
    text = render(three_records, "txt")
    for part in (
        "28.3", "4.59", "76.6 [75.9, 78.0]", "baseline", "1.31x slower [1.29, 1.33]", "failed",
        "yolov8n+dat failed: out of memory: tried 3 GiB", "swin_tiny: noisy: the interval is wide",
        "cpu (Test CPU), 2 threads, float32",
    ):  # fmt: skip
        assert part in text, part
    assert "No verdict" not in text


def test_published_figures_stand_beside_the_measured_ones(make_record):
    known = {"published_params": 29e6, "published_source": "the paper"}
    record = dataclasses.replace(make_record(), **known)
    text = render([record], "txt")
    assert "paper" in text.splitlines()[1]
    assert "dat_tiny as published: 29 M parameters, 4.6 GMACs, 82.0 % top-1; the paper" in text
    titles, _ = tabulate([record])
    assert {"GMACs\npaper", "top-1\n%"} <= set(titles)
    assert "the paper" in render([record], "html")
    narrow, _ = tabulate([record], published=False)
    assert not {"GMACs\npaper", "top-1\n%"} & set(narrow)
    bare = dataclasses.replace(record, published_macs=None, published_top1=None)
    assert tabulate([bare])[0] == narrow
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_quick_comparisons_say_that_there_is_no_verdict(make_record):
    text = render([make_record(), make_record("b", comparison=Comparison("dat_tiny", 1.1))], "txt")
    assert "No verdict: one process pair" in text


def test_markup_in_names_is_text(make_record):
    text = render([make_record(HOSTILE)], "txt")
    assert "[red]x[/red]" in re.sub(r"[\s│]", "", text)


def test_html_is_one_escaped_file_without_requests(three_records, make_record):
    page = render([*three_records, make_record(HOSTILE, error=HOSTILE)], "html")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=|url\(|@import|https?://(?!arxiv)""", page)
    assert page.count("<tr") > 10
    for part in ("dat_tiny", "1.31x slower [1.29, 1.33]", "Test CPU", "bench-1"):
        assert part in page


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (0, "0"),
        (0.01234, "0.0123"),
        (76.563, "76.6"),
        (1188.4, "1188"),
        (99.96, "100.0"),
    ],
)
def test_rounding_keeps_three_digits_without_exponents(value, expected):
    assert rounded(value) == expected


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (Comparison("a", 1.31, 1.29, 1.33, "SLOWER"), "1.31x slower [1.29, 1.33]"),
        (Comparison("a", 0.8, 0.78, 0.82, "FASTER"), "1.25x faster [1.22, 1.28]"),
        (Comparison("a", 1.001, 0.995, 1.006, "SAME"), "1.00x, the same [0.995, 1.01]"),
        (Comparison("a", 1.02, 0.98, 1.06, "INCONCLUSIVE"), "1.02x, inconclusive [0.980, 1.06]"),
        (Comparison("a", 1.02, 1.01, 1.03), "1.02x [1.01, 1.03]"),
        (Comparison("a", 1.02), "1.02x"),
    ],
)
def test_comparisons_are_put_into_words(comparison, expected):
    assert told(comparison) == expected


@pytest.mark.parametrize("suffix", REPORTS)
def test_every_format_is_written_whole(tmp_path, three_records, suffix):
    path = tmp_path / f"report.{suffix}"
    check_output(path)
    write(three_records, path)
    text = render(three_records, suffix)
    assert path.read_bytes() == (text.encode() if isinstance(text, str) else text)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", REPORTS)
def test_records_that_know_nothing_make_a_report_too(make_record, suffix):
    import dataclasses

    bare = dataclasses.replace(
        make_record(error="failed early"), measurements=(), environment=None,
        published_macs=None, published_top1=None,
    )  # fmt: skip
    assert "failed early" in render([bare], suffix)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.foo", "no known format; end it in one of: .csv"),
        ("a", "no known format"),
        ("missing/a.csv", "there is no folder"),
        ("folder.csv", "is a folder"),
    ],
)
def test_outputs_that_cannot_be_are_refused_beforehand(tmp_path, name, message):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=message):
        check_output(tmp_path / name)
