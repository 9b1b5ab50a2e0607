"""The HTML report as text: what stands in it, how large it is, and that nothing of it can run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import importlib.resources
import json
import random
import re

import pytest

from datbench.flags import FLAGS
from datbench.published import anchors
from datbench.records import COLUMNS, Comparison, Workload
from datbench.reports import Content, render
from datbench.reports.cells import differences
from datbench.reports.html import MOST_RAW
from datbench.reports.html_plots import (
    MOST_PLOTTED,
    MOST_SAMPLED,
    MOST_SLOTS,
    MOST_TIMES,
    inert_json,
    labels,
)

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}${7*7}",
    "line\u2028separator\u2029&amp;<!--",
)


class Page(html.parser.HTMLParser):
    """Elements of a page with their attributes and text, and the rows of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append((dict(attrs) | {"tag": tag}, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "link", "input", "br"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if self._inside and self._inside[-1] in ("script", "style"):
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
            return
        self.words += data
        if "td" in self._inside or "th" in self._inside:
            self.rows[-1][-1] += data

    def text_of(self, tag):
        return [text for attributes, text in self.scripts if attributes["tag"] == tag]

    @property
    def data(self):
        found = [text for attributes, text in self.scripts if attributes.get("id") == "data"]
        return json.loads(found[0]) if found else None

    def titled(self, start):
        return [a["title"] for _, a in self.elements if (a.get("title") or "").startswith(start)]


def rows_title(page, title):
    return page.rows[0].index(title)


def slots(record, count, *, iterations=5, disturbed=(), redone=()):
    dice = random.Random(count)
    return [
        {
            "model": record.model,
            "key": record.key,
            "ended_utc": f"2026-11-22T11:{place // 60:02}:{place % 60:02}+00:00",
            "latency_ms": [
                (900 if place in redone else 76) * dice.lognormvariate(0, 0.02)
                for _ in range(iterations)
            ],
            "disturbed": ["contended: a thread waited"] if place in disturbed else [],
            "redone": place in redone,
        }
        for place in range(count)
    ]


def with_samples(records, count, **options):
    return Content(records, {(r.run_id, r.model): slots(r, count, **options) for r in records})


def test_the_page_holds_figures_full_precision_doubts_and_faults(three_records):
    page = Page(render(three_records, "html"))
    rows = {row[0]: row for row in page.rows if len(row) == len(page.rows[0])}
    assert "76.6 [75.9, 78.0]" in rows["dat_tiny"]
    assert "1.31x slower [1.29, 1.33]" in rows["swin_tiny"]
    assert rows["yolov8n+dat"][-1] == "out of memory: tried 3 GiB"
    assert page.titled("28319138")
    assert page.titled("76.5631 ms, interval 75.9 to 78.0")
    assert page.titled("1.31 times the time of dat_tiny, interval 1.29 to 1.33")
    assert page.titled("1, as the baseline")
    assert "swin_tiny: noisy: the interval is wide" in page.words
    assert FLAGS["noisy"] in page.words
    assert "Run 20261122T110000Z-compare" in page.words


def test_what_was_not_measured_is_an_empty_cell(make_record):
    page = Page(render([make_record(throughput_img_s=None)], "html"))
    rows = [row for row in page.rows if row[0].startswith("dat_tiny")]
    assert rows[0][rows_title(page, "img/s")] == ""
    cells = {cell for row in page.rows for cell in row}
    assert not {"0", "None", "nan", "-1"} & cells


def test_methods_and_the_command_can_be_copied(make_record):
    record = dataclasses.replace(make_record(), command="datbench compare --models 'a b'")
    page = Page(render([record], "html"))
    assert "datbench compare --models 'a b'" in page.words
    copies = [a for tag, a in page.elements if tag == "button" and a.get("class") == "copy"]
    assert len(copies) == 2
    assert "Measure it again" not in Page(render([make_record()], "html")).words


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_stay_text(make_record, name):
    clean = Page(render(with_samples([full(make_record, "plain")], 3), "html"))
    record = full(make_record, name)
    dirty = Page(render(with_samples([record], 3), "html"))
    assert [tag for tag, _ in dirty.elements] == [tag for tag, _ in clean.elements]
    assert {n for _, a in dirty.elements for n in a} == {n for _, a in clean.elements for n in a}
    assert dirty.text_of("script")[1] == clean.text_of("script")[1]
    assert dirty.text_of("style") == clean.text_of("style")
    assert dirty.data["models"][0]["label"] == name
    assert name in dirty.words
    assert not [a["href"] for _, a in dirty.elements if (a.get("href") or "#")[0] not in "#d"]


def full(make_record, text):
    """A record that has this text wherever a user's text may stand."""
    record = make_record(text, warnings=[f"noisy: {text}", f"{text}: odd"], error=text)
    environment = dataclasses.replace(
        record.environment, host=text, device_name=text, settings={text: text}
    )
    return dataclasses.replace(
        record, family=text, source=text, run_id=text, command=text, published_source=text,
        environment=environment, comparison=Comparison(text, 1.1, 1.0, 1.2, "SLOWER"),
    )  # fmt: skip


def test_json_in_the_page_cannot_end_its_element():
    text = inert_json(HOSTILE)
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == list(HOSTILE)


def test_the_policy_allows_this_style_and_this_script_alone(three_records):
    page = Page(render(three_records, "html"))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    for kind in ("style", "script"):
        blocks = [
            text for a, text in page.scripts if a["tag"] == kind and "json" not in a.get("type", "")
        ]
        hashed = [
            base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in blocks
        ]
        assert re.findall(rf"{kind}-src ([^;]*);", policy) == [f"'sha256-{hashed[0]}'"]
        assert len(blocks) == 1
    assert not [a for _, a in page.elements if any(n == "style" or n.startswith("on") for n in a)]


def test_the_page_asks_for_nothing(three_records):
    text = render(three_records, "html")
    page = Page(text)
    assert not [a for _, a in page.elements if "src" in a or "action" in a]
    assert {a["href"] for _, a in page.elements if "href" in a and a["href"][0] != "#"} == {
        "data:,"
    }
    for block in page.text_of("style") + page.text_of("script"):
        assert not re.search(r"url\(|@import|\bfetch\(|XMLHttp|\beval\(|innerHTML|insertAdj", block)


def test_fifty_models_with_their_times_stay_under_a_megabyte(make_record):
    records = [
        make_record(
            f"yolov8n+dat[groups={i}]@backbone",
            comparison=Comparison("yolov8n+dat[groups=0]@backbone", 1.1, 1.0, 1.2, "SLOWER"),
            warnings=["noisy: the interval is 14% of the median wide"],
        )
        for i in range(50)
    ]
    text = render(with_samples(records, 400), "html")
    assert len(text.encode()) < 1e6
    drawn = Page(text).data["models"]
    assert {len(model["times"]) for model in drawn} == {MOST_TIMES}
    assert {model["count"] for model in drawn} == {2000}
    assert {len(model["slots"]) for model in drawn} == {MOST_SLOTS}


def test_thinning_keeps_both_ends_and_marked_slots(make_record):
    record = make_record()
    marked = {17, 203, 390}
    content = with_samples([record], 400, disturbed=marked, redone={203})
    model = Page(render(content, "html")).data["models"][0]
    slots_ = content.samples[record.run_id, record.model]
    times = sorted(t for slot in slots_ if not slot["redone"] for t in slot["latency_ms"])
    assert [model["times"][0], model["times"][-1]] == pytest.approx([times[0], times[-1]], rel=1e-5)
    assert model["times"][-1] < 200, "a redone slot stands in the distribution"
    kinds = {round(slot[0]): slot[2] for slot in model["slots"] if slot[2]}
    assert kinds == {17: "disturbed", 203: "redone", 390: "disturbed"}
    seconds = [slot[0] for slot in model["slots"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(399, abs=1)


def test_samples_of_another_case_of_the_same_name_are_left_out(make_record):
    record = make_record()
    other = [{**slot, "key": "another"} for slot in slots(record, 3)]
    content = Content([record], {(record.run_id, record.model): slots(record, 2) + other})
    assert Page(render(content, "html")).data["models"][0]["count"] == 10


def test_machines_have_tables_of_their_own_and_no_ratio_between_them(make_record):
    here = make_record()
    where = dataclasses.replace(here.environment, host="bench-2", device_name="Other CPU")
    there = dataclasses.replace(here, environment=where, run_id="other-run")
    page = Page(render([here, there], "html"))
    tables = [a for tag, a in page.elements if tag == "table" and a["class"] == "figures"]
    assert len(tables) == 2
    assert [m["machine"] for m in page.data["models"]] == [0, 1]
    assert "Other CPU, 2 threads" in page.words
    assert "No ratios between machines" in page.words
    assert ["bench-1" in row for row in page.rows if row[0] == "host"] == [True, False]


def test_rows_of_one_model_are_told_apart(make_record):
    work = Workload(device="cpu", input_shape=(3, 224, 224), threads=2)
    eight = dataclasses.replace(work, batch_size=8, dtype="bfloat16")
    larger = dataclasses.replace(work, input_shape=(3, 384, 384))
    records = [make_record(work=w) for w in (work, eight)]
    assert labels(records) == ["dat_tiny (batch 1, float32)", "dat_tiny (batch 8, bfloat16)"]
    assert differences(records) == ["batch 1, float32", "batch 8, bfloat16"]
    assert labels([records[0], make_record(work=larger)]) == ["dat_tiny (224)", "dat_tiny (384)"]
    again = dataclasses.replace(records[0], run_id="later")
    assert labels([records[0], again]) == [
        "dat_tiny (20261122T110000Z-compare)",
        "dat_tiny (later)",
    ]
    assert differences([records[0], again]) == ["", ""]
    assert "batch 8, bfloat16" in Page(render(records, "html")).words


def test_columns_that_were_asked_for_are_the_columns(three_records):
    chosen = ("model", "params", "latency_ms_median", "error")
    page = Page(render(Content(three_records, columns=chosen), "html"))
    assert next(len(row) for row in page.rows if row[0].startswith("dat_tiny")) == len(chosen)
    assert list(chosen) in page.rows
    assert page.titled("28319138")
    assert list(COLUMNS) in Page(render(three_records, "html")).rows


def test_published_throughput_has_a_ratio_only_on_the_same_gpu(make_record):
    ours = make_record("swin_tiny", throughput_img_s=2000.0)
    published = anchors(ours)[0]
    figure = f"images/s on {published.gpu}"
    rows = [row for row in Page(render([ours], "html")).rows if row[1:2] == [figure]]
    assert [row[0] for row in rows] == ["swin_tiny"]
    assert rows[0][3:5] == ["", ""]
    where = dataclasses.replace(ours.environment, device_name=f"NVIDIA GeForce {published.gpu}")
    work = dataclasses.replace(ours.workload, device="cuda:0")
    same = dataclasses.replace(ours, environment=where, workload=work)
    rows = [row for row in Page(render([same], "html")).rows if row[1:2] == [figure]]
    assert rows[0][3] == "2000"
    assert float(rows[0][4]) == pytest.approx(2000 / published.throughput_img_s, rel=0.01)


def test_large_reports_leave_out_plots_and_columns_and_say_so(make_record):
    records = [make_record(f"model_{i}") for i in range(MOST_PLOTTED + 1)]
    page = Page(render(with_samples(records, 1), "html"))
    assert page.data is None
    assert f"no plots for more than {MOST_PLOTTED} rows" in page.words
    assert "Every column in full precision" in page.words
    some = Page(render(with_samples(records[:-1], 1), "html")).data["models"]
    assert sum("times" in model for model in some) == MOST_SAMPLED
    many = [make_record(f"model_{i}") for i in range(MOST_RAW + 1)]
    words = Page(render(many, "html")).words
    assert f"Left out, with more than {MOST_RAW} rows" in words
    assert "Every column in full precision" not in words


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(scheme):
    style = (importlib.resources.files("datbench.reports") / "page" / "page.css").read_text()
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: pair[scheme] for name, *pair in found}
    for paper in ("paper", "raised"):
        for words in ("ink", "quiet", "accent", "bad"):
            assert contrast(colours[words], colours[paper]) >= 4.5, (words, paper)
    marks = [name for name in colours if re.fullmatch(r"s\d", name)]
    assert len(marks) == 8
    for mark in marks:
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
