"""Reports from records alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from datbench.errors import UserError
from datbench.records import COLUMNS, Comparison, Record, Workload
from datbench.reports import REPORTS, Content, ReportFile, check_output, render, write
from datbench.reports.cells import rounded, tabulate, told
from datbench.reports.machines import by_machine, side_by_side
from datbench.reports.md import code, prose
from datbench.reports.txt import MANY, straight
from datbench.rows import inert

HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>[red]x[/red]"
TEXTS = ("csv", "html", "json", "jsonl", "md", "tex", "txt")  # that tell of every fault


def bare(name: str) -> Record:
    """A record of which nothing is known but the model; made without fixtures, for hypothesis."""
    work = Workload(device="cpu", input_shape=(3, 224, 224))
    return Record("run", "key", name, "dat", "", work, "2026-11-22T11:00:00+00:00")


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
    for start in ("=", "+", "-", "@", "\t", "\r", "\n", " =", "\xa0 =", "\u200b-", "\ufeff@", "＝",
                  "＋", "－", "＠", "﹦", "\x00=", " \t+"):  # fmt: skip
        assert inert(f"{start}1") == f"'{start}1"
    for harmless in ("", " ", "dat", "(1)", "'=1", "a=1", "~", "日本"):
        assert inert(harmless) == harmless
    assert inert(-1.5) == -1.5
    assert inert("yolov8n+dat") == "yolov8n+dat"
    frame = pd.read_csv(io.StringIO(render([make_record(HOSTILE)], "csv")))
    assert frame["model"][0] == f"'{HOSTILE}"


def test_cells_do_not_fall_apart_in_spreadsheets_that_split_at_semicolons(make_record):
    assert '"dat;\'=cmd",' in render([make_record("dat;=cmd")], "csv")


@given(st.lists(st.text(), min_size=1, max_size=3), st.sampled_from([None, ["model"]]))
def test_any_name_comes_back_from_csv(names, columns):
    text = render(Content([bare(name) for name in names], columns=columns), "csv")
    frame = pd.read_csv(
        io.BytesIO(text.encode()), keep_default_na=False, dtype=str, skip_blank_lines=False
    )
    assert frame["model"].tolist() == [inert(name) for name in names]


def test_a_row_of_one_empty_cell_is_a_row(three_records):
    text = render(Content(three_records, columns=["ratio"]), "csv")
    assert len(pd.read_csv(io.StringIO(text))) == 3


def test_json_holds_everything(three_records):
    content = json.loads(render(three_records, "json"))
    assert content["schema"] == 2
    assert content["records"] == [json.loads(json.dumps(r.to_json())) for r in three_records]
    assert content["samples"] == []
    slots = [{"model": "dat_tiny", "latency_ms": [1.25, 1.5]}, {"model": "dat_tiny"}]
    text = render(Content(three_records, {("run", "dat_tiny"): slots}), "json")
    assert json.loads(text)["samples"] == [{"run_id": "run", **slot} for slot in slots]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_records_come_back_from_json(tmp_path, three_records, suffix):
    path = tmp_path / f"a.{suffix}"
    write([*three_records, bare("line\nend\u2028\ud800")], path)
    assert ReportFile(path).records() == [*three_records, bare("line\nend\u2028\ud800")]
    assert render(ReportFile(path).records(), suffix) == path.read_text()
    write([], path)
    assert ReportFile(path).records() == []


def test_every_line_of_jsonl_is_a_record_with_its_schema(three_records):
    lines = render(three_records, "jsonl").splitlines()
    assert [json.loads(line)["model"] for line in lines] == [r.model for r in three_records]
    assert {json.loads(line)["schema"] for line in lines} == {2}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "holds no records"),
        ("a.json", "[]", "holds no records"),
        ("a.json", '{"records": [{"schema": 99}]}', "newer datbench"),
        ("a.jsonl", "1\n", "holds no records"),
        ("b.json", None, "cannot be read: No such file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        ReportFile(tmp_path / name).records()


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


def test_control_characters_in_names_do_not_reach_the_terminal(make_record):
    for records in (
        [make_record("\x1b[2Jx", error="\x9b\u202e")],
        [make_record("\x1b[2Jx")] * (MANY + 1),
    ):
        text = render(records, "txt")
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}
        assert "\\x1b[2Jx" in text


def test_many_rows_have_the_same_cells_and_notes_in_little_time(make_record):
    slower = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")
    records = [make_record(), make_record("swin", comparison=slower, warnings=["noisy: wide"])]
    few = render(records, "txt")
    many = render(records * MANY, "txt")
    lines = [line.split() for line in few.splitlines()]
    assert {tuple(line) for line in lines[:6]} <= {tuple(x.split()) for x in many.splitlines()}
    assert many.splitlines().count("  noisy") == MANY
    assert "swin: noisy: wide" in many


def test_all_columns_are_shown_however_wide(three_records):
    table = render(Content(three_records, columns=COLUMNS), "txt").split("\n\n")[0]
    line = next(line for line in table.splitlines() if line.startswith("swin_tiny"))
    shown = line.split("  ")
    for cell in ("76.6", "SLOWER", "2026-11-22T11:00:00+00:00", "f" * 40, "bench-1"):
        assert cell in map(str.strip, shown), cell


@given(st.lists(st.lists(st.text(max_size=80), min_size=2, max_size=2), max_size=4))
def test_columns_stand_under_their_titles_whatever_the_cells(rows):
    lines = list(straight(["model", "img/s"], rows))
    assert all(line == line.rstrip() for line in lines)
    assert len(lines) >= 2 + len(rows)


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


MARKUP = (
    "a|b", "`a`", "``", "*a*", "__init__", "<b>x</b>", "<!--", "&lt;", "[a](http://b)", "![a](b)",
    "[a]: http://b", "[1.5, 2]: http://b", "[1, 2](x)", "# a", "1. a", "- a", "+ a", "=", "a\\|b",
    "~~a~~", "\\", "$a$", "a\nb", "    a", "http://a.b", "&#124;", "> a", "[red]x[/red]",
    "<http://a.b>", "\x1b[0m",
)  # fmt: skip


@pytest.mark.parametrize("name", MARKUP)
def test_markup_in_names_is_text_in_markdown(make_record, name):
    told = Comparison(name, 1.31, 1.29, 1.33, "SLOWER")
    records = [make_record(name, error=name), make_record("b", comparison=told)]
    page = rendered(render(records, "md"))
    tags = set(re.findall(r"<(/?\w+)", page))
    assert tags <= {
        p + t for t in "table thead tbody tr th td ul li code".split() for p in ("", "/")
    }
    assert page.count("<tr") == 3
    assert page.count("<li>") == 2


@given(st.text())
def test_any_name_is_one_cell_of_markdown_and_says_the_same(name):
    import html

    table = render([bare(name), bare("b")], "md").split("\n\n")[0]
    page = rendered(table)
    width = page.count("<th ")
    assert [row.count("<td") for row in page.split("<tr>")[2:]] == [width, width]
    for line in table.splitlines():
        assert len(re.findall(r"\|", line)) == width + 1
    shown = re.search(r"<td style=\"text-align:left\">(.*?)</td>", page)[1]
    text = html.unescape(re.sub(r"</?code>", "", shown))
    if name.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text:
        assert text == " ".join(name.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@user", "@&#8203;user"), ("see #12", "see &#35;&#8203;12"), ("GH-12", "GH&#8203;-12"),
        ("https://a.b", "https:&#8203;//a.b"), ("www.a.b", "www&#8203;.a.b"),
        ("a@b.c", "a@&#8203;b.c"), (":smile:", ":&#8203;smile:"),
        ("yolov8n+dat@neck", "yolov8n+dat@neck"),
        ("dat_tiny 1.5 [1, 2.5] ms [95 %]", "dat_tiny 1.5 [1, 2.5] ms [95 %]"),
    ],
)  # fmt: skip
def test_nothing_in_prose_makes_github_link_or_notify(text, expected):
    assert prose(text) == expected


def test_names_are_code_where_github_links_nothing():
    assert code("yolov8n+dat@neck") == "`yolov8n+dat@neck`"
    assert code("a`@b|c") == "<code>a&#96;&#64;b&#124;c</code>"


@pytest.mark.parametrize("engine", ["xlsxwriter", "openpyxl"])
def test_a_workbook_holds_the_columns_with_numbers_as_numbers(monkeypatch, make_record, engine):
    pytest.importorskip(engine)
    openpyxl = pytest.importorskip("openpyxl", reason="it reads the workbook back")
    there = importlib.util.find_spec
    other = {"xlsxwriter", "openpyxl"} - {engine}
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in other else there(n))
    names = [
        HOSTILE,
        "#N/A",
        "http://a.b",
        "12",
        "a\x00\x1bb",
        "x" * 40_000,
        "{=1}",
        "＝1",
        "\ud800",
    ]
    data = render([make_record(name, latency_ms_median=0.1 + 0.2) for name in names], "xlsx")
    sheet = openpyxl.load_workbook(io.BytesIO(data)).active
    head, *rows = sheet.iter_rows()
    assert tuple(cell.value for cell in head) == COLUMNS
    shown = [row[0].value for row in rows]
    assert shown[:4] == [f"'{HOSTILE}", "#N/A", "http://a.b", "12"]
    assert shown[4:] == ["a\ufffd\ufffdb", "x" * 32_766 + "…", "{=1}", "'＝1", "\ufffd"]
    for row in rows:
        assert {c.data_type for c in row if isinstance(c.value, str)} == {"s"}
        assert not any(cell.hyperlink for cell in row)
        assert row[COLUMNS.index("latency_ms_median")].value == pytest.approx(0.3, rel=1e-15)
        assert row[COLUMNS.index("params")].value == 28_319_138
        assert row[COLUMNS.index("ratio")].value is None


def test_a_workbook_without_an_engine_says_what_to_install(monkeypatch, make_record):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install openpyxl"):
        render([make_record()], "xlsx")


@pytest.fixture
def several_machines(make_record, environment):
    """Two machines of one name and a third, each with its own run and baseline."""
    gpu = Workload(device="cuda:0", input_shape=(3, 224, 224), threads=2)
    where = [
        (environment, None, "dat_tiny"),
        (dataclasses.replace(environment, host="bench-2"), None, "dat_tiny"),
        (dataclasses.replace(environment, device_name="NVIDIA H100"), gpu, "swin_tiny"),
    ]
    records = []
    for n, (found, work, baseline) in enumerate(where, start=1):
        for model in ("dat_tiny", "swin_tiny"):
            told = Comparison(baseline, 1 + n / 10, 1.05, 1.5, "SLOWER")
            record = make_record(
                model, work=work, comparison=None if model == baseline else told,
                latency_ms_median=10.0 * n + len(model),
            )  # fmt: skip
            records.append(dataclasses.replace(record, environment=found, run_id=f"run-{n}"))
    return records


def test_machines_have_a_table_each_and_no_ratio_is_formed_between_them(several_machines):
    machines = by_machine(several_machines)
    labels = [label for label, _ in machines]
    assert labels == [
        "machine A: Test CPU, 2 threads",
        "machine B: Test CPU, 2 threads",
        "NVIDIA H100",
    ]
    assert [[r.run_id for r in group] for _, group in machines] == [
        [f"run-{n}"] * 2 for n in (1, 2, 3)
    ]
    titles, rows = side_by_side(machines)
    assert titles == ["model", *(f"{label}\nms" for label in labels)]
    assert rows == [["dat_tiny", "18.0", "28.0", "38.0"], ["swin_tiny", "19.0", "29.0", "39.0"]]
    for suffix in ("txt", "md", "tex"):
        text = render(several_machines, suffix)
        assert text.index("machine A") < text.index("machine B") < text.index("NVIDIA H100")
        assert "No ratios between machines" in text
        assert re.findall(r"1\.\d\d(?=x|\$\\times)", text) == ["1.10", "1.20", "1.30"]
        shown = re.findall(r"1\d\.0.{1,45}?2\d\.0.{1,40}?3\d\.0", text)
        assert len(shown) == 2
    assert "machine A" not in render(several_machines[:2], "txt")


def test_models_that_differ_in_workload_have_rows_of_their_own_side_by_side(several_machines):
    large = dataclasses.replace(several_machines[0].workload, batch_size=8)
    more = [*several_machines, dataclasses.replace(several_machines[0], workload=large)]
    _, rows = side_by_side(by_machine(more))
    assert [row[0] for row in rows] == [
        "dat_tiny, batch 1", "swin_tiny, batch 1", "dat_tiny, batch 8"
    ]  # fmt: skip
    _, rows = side_by_side(by_machine([*several_machines, several_machines[0]]))
    assert rows[0][1] == "18.0, 18.0"


def test_baselines_are_named_where_several_runs_share_a_table(several_machines, make_record):
    here = [dataclasses.replace(r, environment=several_machines[0].environment, run_id=f"run-{n}")
            for n, r in enumerate(several_machines[2:]) for n in [n // 2]]  # fmt: skip
    titles, rows = tabulate(here)
    assert titles[-1] == "time against\nthe baseline"
    assert titles[1] == "run"
    assert [row[1] for row in rows] == ["1", "1", "2", "2"]
    assert [row[-1] for row in rows] == [
        "baseline", "1.20x slower [1.05, 1.50], against dat_tiny",
        "1.30x slower [1.05, 1.50], against swin_tiny", "baseline",
    ]  # fmt: skip
    assert "Run 2 is run-1." in render(here, "txt")
    alone = dataclasses.replace(here[0], run_id="alone")
    assert tabulate([*here, alone])[1][-1][-1] == ""


@pytest.mark.parametrize(
    ("bound", "ending"),
    [
        ((), "]"),
        (("model",), "], but the model is limited by launching kernels"),
        (("baseline",), "], but the baseline is limited by launching kernels"),
        (("model", "baseline"), "], of launching kernels: the GPU waits in both"),
    ],
)
def test_a_ratio_of_launching_says_so(make_record, bound, ending):
    """No reader shall take the time of Python for that of the GPU."""
    slower = Comparison("dat_tiny", 1.31, 1.29, 1.33, "SLOWER")
    doubt = ["host_bound: limited by Python launching kernels, not by the GPU"]
    records = [
        make_record(warnings=doubt * ("baseline" in bound)),
        make_record("swin_tiny", comparison=slower, warnings=doubt * ("model" in bound)),
    ]
    _, (_, row) = tabulate(records)
    assert row[-1].endswith(ending)


def test_a_model_that_failed_before_it_knew_its_machine_stands_with_its_run(three_records):
    lost = dataclasses.replace(three_records[2], environment=None)
    assert len(by_machine([lost, *three_records[:2]])) == 1


def test_html_escapes_names_and_requests_nothing(three_records, make_record):
    page = render([*three_records, make_record(HOSTILE, error=HOSTILE)], "html")
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"src=|url\(|@import", page)
    for part in ("dat_tiny", "1.31x slower [1.29, 1.33]", "Test CPU"):
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
    assert isinstance(text, bytes) == REPORTS[suffix].binary
    if isinstance(text, str):
        assert path.read_bytes() == text.encode()
    else:  # workbooks and pictures hold the time at which they were made
        assert len(path.read_bytes()) > 1000
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", REPORTS)
def test_records_that_know_nothing_make_a_report_too(suffix):
    record = dataclasses.replace(bare("dat_tiny"), error="failed early")
    text = render([record], suffix)
    assert text
    assert suffix not in TEXTS or "failed early" in text


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


@pytest.mark.parametrize("suffix", ["txt", "md", "tex", "html"])
def test_rows_of_several_conditions_are_told_apart(make_record, suffix):
    batch = dataclasses.replace(make_record().workload, batch_size=8)
    records = [make_record(), make_record(work=batch)]
    text = render(records, suffix)
    assert "conditions" in text
    assert "batch 8" in text
    assert "conditions" not in tabulate(records[:1])[0]


def test_formulas_are_inert_in_every_part_of_a_text(make_record):
    error = "boom;=cmd|' /C calc'!A0;\t+1\n@x; fine"
    text = render([make_record(error=error)], "csv")
    assert "boom;'=cmd|' /C calc'!A0;\t'+1\n'@x; fine" in text
