"""The figure of a paper, looked at as artists and as text."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import matplotlib as mpl
import matplotlib.style
import pytest

from datbench.records import Comparison, Workload
from datbench.reports import Content, render
from datbench.reports.figures import MOST_SETS, STYLE, draw
from datbench.reports.panels import MARKERS, front
from datbench.reports.placing import plain, short
from datbench.reports.sets import MOST_ROWS, sets_of

HOSTILE = (r"$\frac{", "a$b$", "_x_$", r"a^b\c_", "line\nbreak", "<b>&\"'", "模型", "\x00\ud800.")
START = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def rows(make_record):
    """Records of one run: rows(3), or with names of their own; each but the first compared."""

    def make(models=3, *, run_id="run", work=None, **facts):
        names = [f"model_{i}" for i in range(models)] if isinstance(models, int) else models
        found = []
        for i, name in enumerate(names):
            against = Comparison(names[0], 1.2**i, 1.2**i / 1.05, 1.2**i * 1.05, "SLOWER")
            record = make_record(
                name, macs=1e9 * (i + 1), latency_ms_median=10.0 * 1.3**i, weights_mib=20.0,
                peak_allocated_mib=40.0 + i, comparison=against if i else None, work=work,
            )  # fmt: skip
            known = {"run_id": run_id, "published_top1": 75 + i % 7, "min_effect": 0.01, **facts}
            found.append(dataclasses.replace(record, **known))
        return found

    return make


def slots(record, count=4, **facts):
    """Slots of a record in two process pairs, four iterations each."""
    return [
        {
            "model": record.model, "key": record.key, "pair": i * 2 // count, "redone": False,
            "ended_utc": (START + timedelta(seconds=i)).isoformat(), "disturbed": [],
            "latency_ms": [10.0 + i, 11.0 + i, 12.0 + i, 20.0 + i], **facts,
        }
        for i in range(count)
    ]  # fmt: skip


def sampled(records, **facts):
    return Content(records, {(r.run_id, r.model): slots(r, **facts) for r in records})


def drawn(content):
    content = content if isinstance(content, Content) else Content(content)
    with matplotlib.style.context(["default", STYLE]):
        return draw(content)


def axes_of(figure, label):
    """The axes whose x axis says so."""
    return next(axes for axes in figure.axes if axes.get_xlabel().startswith(label))


def labels(figure):
    return [axes.get_xlabel() for axes in figure.axes]


def texts(content):
    """Every text of the SVG."""
    root = ET.fromstring(render(content, "svg"))  # noqa: S314 - our own
    return [node.text for node in root.iter() if node.tag.endswith("}text")]


def everything(content):
    return " ".join(texts(content))


def test_a_png_is_as_wide_as_two_columns_and_a_pixel_image(rows):
    data = render(rows(), "png")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1440


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_content_gives_the_same_bytes(rows, form):
    content = sampled(rows())
    assert render(content, form) == render(content, form)
    assert render(content, form) != render(rows(), form)


def test_an_svg_holds_text_and_neither_dates_nor_paths(rows):
    data = render(sampled(rows()), "svg")
    assert ">model_1<" in data
    assert "<dc:date>" not in data
    assert "/home" not in data
    assert "site-packages" not in data
    assert "dataclass" not in data


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_written_as_they_are(rows, name):
    records = rows([name, "other"])
    content = sampled(records)
    found = texts(content)
    assert plain(name) in found
    assert f"time against {plain(name)} (band: the same within 1 %)" in found
    assert render(content, "png")


def test_names_are_put_on_one_line_and_cut_in_the_middle():
    assert plain("a\nb\t c\x00\ud800d") == "a b c d"
    assert short("x" * 30) == "x" * 30
    assert short("a" * 40 + "b" * 40) == "a" * 14 + "…" + "b" * 15


def test_panels_are_those_that_have_data(rows, make_record):
    full = labels(drawn(sampled(rows())))
    assert full == [
        "GMACs of one image", "latency, ms", "time against model_0 (band: the same within 1 %)",
        "peak memory of tensors, MiB", "latency, ms", "seconds into the run",
    ]  # fmt: skip
    assert labels(drawn(rows())) == full[:4]
    assert labels(drawn(rows(published_top1=None))) == [full[0], *full[2:4]]
    assert labels(drawn(rows(comparison=None))) == [*full[:2], full[3]]
    assert labels(drawn(rows(1))) == [full[3]]
    counted = [
        make_record(name, latency_ms_median=None, peak_allocated_mib=None) for name in ("a", "b")
    ]
    assert labels(drawn(counted)) == []


@pytest.mark.parametrize("form", ["png", "svg"])
def test_where_nothing_can_be_drawn_the_figure_says_so(rows, make_record, form):
    assert render([], form)
    assert "Nothing to draw: there are no records." in everything([])
    failed = [dataclasses.replace(r, error="died", measurements=()) for r in rows()]
    told = everything(failed)
    assert "Nothing to draw: no row has" in told
    assert "Failed: model_0, model_1 and model_2." in told
    assert render(failed, form)


def test_ratios_stand_where_they_are_with_their_verdicts_and_the_margin(rows):
    records = rows(["base", "fast", "slow", "same", "open", "quick"])
    verdicts = [None, "FASTER", "SLOWER", "SAME", "INCONCLUSIVE", None]
    found = [Comparison("base", 0.9 + i / 10, 0.8, 1.6, v) for i, v in enumerate(verdicts)]
    records = [
        dataclasses.replace(record, comparison=compared if compared is not found[0] else None)
        for record, compared in zip(records, found, strict=True)
    ]
    axes = axes_of(drawn(records), "time against base")
    marks = {
        (round(line.get_xdata()[0], 3), line.get_ydata()[0]): (
            line.get_marker(), line.get_markerfacecolor(),
        )
        for line in axes.lines if len(line.get_xdata()) == 1
    }  # fmt: skip
    assert marks == {
        (1.0, 1): ("<", "black"), (1.1, 2): (">", "black"), (1.2, 3): ("s", "black"),
        (1.3, 4): ("o", "white"), (1.4, 5): ("D", "white"),
    }  # fmt: skip
    (band,) = axes.patches
    assert band.get_x() == pytest.approx(1 / 1.01)
    assert band.get_x() + band.get_width() == pytest.approx(1.01)
    intervals = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert intervals.count([0.8, 1.6]) == 5
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["faster", "slower", "same", "inconclusive", "no verdict"]
    assert [t.get_text() for t in axes.texts][:2] == ["baseline", "1.00 [0.800, 1.60]"]
    low, high = axes.get_ylim()
    assert low > 5
    assert high < 0  # the first row is the uppermost


def test_margins_that_differ_have_no_band(rows):
    records = [*rows(2), *rows(2, run_id="other", min_effect=0.05)]
    axes = axes_of(drawn(records), "time against")
    assert not axes.patches
    assert "band" not in axes.get_xlabel()


def test_memory_bars_are_as_long_as_the_memory(rows):
    axes = axes_of(drawn(rows()), "peak memory")
    assert [bar.get_width() for bar in axes.patches] == [40, 41, 42, 20, 20, 20]
    assert axes.get_xlim()[0] == 0


def test_failed_rows_keep_their_place_and_say_so(rows):
    records = rows()
    records[1] = dataclasses.replace(records[1], error="out of memory: tried")
    axes = axes_of(drawn(records), "time against")
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "model_0", "model_1", "model_2",
    ]  # fmt: skip
    assert ("failed", 1) in [(text.get_text(), text.get_position()[1]) for text in axes.texts]
    assert "Failed: model_1." in everything(records)
    assert [bar.get_y() + 0.3 for bar in axes_of(drawn(records), "peak").patches[:2]] == [0, 2]


def test_flags_mark_their_rows_and_are_told(rows):
    records = rows()
    records[2] = dataclasses.replace(records[2], warnings=("noisy: wide", "oom: none"))
    found = texts(records)
    assert "model_2 †" in found
    assert "model_1 †" not in found
    assert "† noisy: model_2; oom: model_2." in " ".join(found)


@pytest.mark.parametrize(
    ("points", "high", "expected"),
    [
        ([(1, 1), (2, 2)], False, [(1, 1)]),
        ([(1, 3), (2, 2), (3, 2), (4, 1), (2, 5)], False, [(1, 3), (2, 2), (4, 1)]),
        ([(1, 1), (2, 2)], True, [(1, 1), (2, 2)]),
        ([(1, 5), (2, 4), (3, 6), (3, 7)], True, [(1, 5), (3, 7)]),
    ],
)
def test_the_front_is_what_no_other_beats_in_both(points, high, expected):
    assert front(points, high=high) == expected
    assert front(points[::-1], high=high) == expected


def test_the_front_is_drawn_through_its_points(rows):
    axes = axes_of(drawn(rows()), "latency, ms")
    line = next(line for line in axes.lines if len(line.get_xdata()) > 1)
    assert list(line.get_xdata()) == pytest.approx([10, 13, 13, 16.9, 16.9])
    assert list(line.get_ydata()) == [75, 75, 76, 76, 77]


@pytest.mark.parametrize("models", [2, 12, 50])
def test_names_cover_no_point_and_no_other_name(rows, models):
    figure = drawn(rows(models))
    for axes in figure.axes[:2]:
        frame = axes.get_window_extent()
        boxes = [t.get_window_extent() for t in axes.texts if t.get_text().startswith("model_")]
        assert len(boxes) == models if models == 2 else len(boxes) > 4
        points = [
            axes.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
            for line in axes.lines if line.get_marker() != "None"
        ]  # fmt: skip
        assert len(points) == min(models, len(MARKERS))
        for box in boxes:
            assert frame.x0 - 1 <= box.x0
            assert box.x1 <= frame.x1 + 1
            assert not any(box.contains(*point) for point in points)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_names_without_room_are_counted(rows):
    told = everything(rows(50))
    figure = drawn(rows(50))
    written = sum(t.get_text().startswith("model_") for t in figure.axes[0].texts)
    assert f"{50 - written} of 50 names left out for want of room" in told


def test_lines_of_models_differ_without_colour():
    styles = {(i % 4, MARKERS[i]) for i in range(len(MARKERS))}
    assert len(styles) == len(MARKERS) == len(set(MARKERS))


def test_a_distribution_ends_at_one_and_leaves_out_what_was_redone(rows):
    records = rows(2)
    content = sampled(records)
    content.samples["run", "model_0"][3]["redone"] = True
    axes = drawn(content).axes[4]
    first, second = axes.lines
    assert (first.get_xdata()[0], first.get_xdata()[-1]) == (10.0, 22.0)
    assert second.get_xdata()[-1] == 23.0
    assert (first.get_ydata()[0], first.get_ydata()[-1]) == (0, 1)
    at_12 = max(y for x, y in zip(*first.get_data(), strict=True) if x <= 12.0)
    assert at_12 == 6 / 12


def test_slots_stand_in_time_cut_by_process_pairs_with_disturbed_ones_crossed(rows):
    content = sampled(rows(2))
    for slot in content.samples["run", "model_1"][1:3]:
        slot["disturbed"] = ["contended: somebody"]
    content.samples["run", "model_1"][2]["redone"] = True
    axes = axes_of(drawn(content), "seconds into the run; crosses: disturbed slots")
    data = [
        (line.get_marker(), list(map(float, line.get_xdata())), list(line.get_ydata()))
        for line in axes.lines
    ]
    assert data == [
        ("o", [0, 1], [11.5, 12.5]), ("o", [2, 3], [13.5, 14.5]),
        ("s", [0, 1], [11.5, 12.5]), ("s", [3], [14.5]), ("x", [1, 2], [12.5, 13.5]),
    ]  # fmt: skip


def test_samples_of_another_key_are_not_drawn(rows):
    records = rows(2)
    assert labels(drawn(sampled(records, key="another")))[-1] == "peak memory of tensors, MiB"
    old = sampled(records)
    for of_model in old.samples.values():
        for slot in of_model:
            del slot["key"]
    assert labels(drawn(old))[-1] == "seconds into the run"


def test_machines_and_kinds_of_runs_have_panels_of_their_own(rows, environment):
    there = [
        dataclasses.replace(r, environment=dataclasses.replace(environment, host="bench-2"))
        for r in rows(2)
    ]
    work = Workload("cpu", (3, 224, 224), batch_size=8, threads=2)
    records = [*rows(2), *rows(2, run_id="batch", work=work), *there]
    titles = [one.title for one in sets_of(Content(records))]
    assert titles == [
        "machine A: Test CPU, 2 threads; float32, eager, batch 1",
        "machine A: Test CPU, 2 threads; float32, eager, batch 8",
        "machine B: Test CPU, 2 threads; float32, eager, batch 1",
    ]
    assert labels(drawn(records)) == labels(drawn(rows(2))) * 3
    assert all(title in texts(records) for title in titles)


def test_a_simulated_device_stands_first(rows, environment):
    pretended = dataclasses.replace(environment, device_name="Simulated GPU")
    work = Workload("cuda:0", (3, 224, 224), amp=True, dtype="float16", mode="train",
                    optimizer="sgd", cudnn_benchmark=False)  # fmt: skip
    (one,) = sets_of(Content(rows(2, environment=pretended, work=work)))
    assert one.title == (
        "SIMULATED, nothing here was measured: Simulated GPU; amp_float16, trained with sgd, "
        "eager, cudnn.benchmark off, batch 1"
    )


def test_rows_of_one_name_are_told_apart(rows):
    larger = Workload("cpu", (3, 384, 384), threads=2)
    records = [*rows(1), *rows(1, work=larger)]
    assert [row.name for row in sets_of(Content(records))[0].rows] == [
        "model_0 224", "model_0 384",
    ]  # fmt: skip
    again = [*rows(1), *rows(1, run_id="later")]
    assert [row.name for row in sets_of(Content(again))[0].rows] == [
        "model_0, run 1", "model_0, run 2",
    ]  # fmt: skip


def test_what_is_left_out_of_many_is_said(rows):
    many = sampled(rows(60))
    told = everything(many)
    assert f"Of 60 rows the first {MOST_ROWS} have a line; points are those of all." in told
    assert f"Of 60 models with samples those of the first {len(MARKERS)} are drawn." in told
    figure = drawn(many)
    assert len(axes_of(figure, "time against").get_yticklabels()) == MOST_ROWS
    assert len(figure.axes[4].lines) == len(MARKERS)
    (grey,) = figure.axes[0].collections
    assert len(grey.get_offsets()) + len(MARKERS) == 60
    kinds = [
        record
        for i in range(MOST_SETS + 2)
        for record in rows(1, work=Workload("cpu", (3, 224, 224), batch_size=i + 1))
    ]
    assert "2 more kinds of runs would follow." in everything(kinds)
    assert f"batch {MOST_SETS + 1}" not in everything(kinds)


def test_the_figure_grows_with_its_rows(rows):
    few, more = drawn(rows(2)).get_figheight(), drawn(rows(50)).get_figheight()
    assert more - few == pytest.approx(48 * 0.16, abs=0.3)


def test_axes_of_values_far_apart_are_logarithmic_with_plain_numbers(rows):
    figure = drawn(rows(10))
    axes = axes_of(figure, "GMACs")
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert "$" not in everything(rows(10))
    assert axes_of(drawn(rows(2)), "GMACs").get_xscale() == "linear"


def test_a_users_settings_change_nothing_and_are_left_alone(rows):
    expected = render(rows(), "svg")
    with mpl.rc_context({"font.size": 30, "text.parse_math": True, "axes.facecolor": "red"}):
        assert render(rows(), "svg") == expected
        assert mpl.rcParams["font.size"] == 30


def test_neither_torch_nor_pyplot_is_imported():
    code = (
        "import sys; from datbench.reports import render; render([], 'png'); "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_warning_reaches_the_user(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render(sampled(rows(["模型", "b"])), "png")
