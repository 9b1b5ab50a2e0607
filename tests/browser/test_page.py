"""The HTML report in a browser: sorting, choosing, plots, copying, and what must not happen."""

from __future__ import annotations

import dataclasses

import pytest

from datbench.records import Comparison, Workload
from datbench.reports import Content, render

pytestmark = pytest.mark.browser

NAMES = ".figures tbody th"
LATENCY = ".figures thead th:has-text('latency')"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}${alert(1)}",
    "line\u2028separator",
)


def names(page):
    return page.locator(f"{NAMES}:visible").all_inner_texts()


def marks(page, plot):
    """What the marks of a plot tell under the pointer."""
    return page.locator(f"#{plot} svg.chart title").all_text_contents()


def models_of(page, plot):
    return {told.partition(": ")[0].partition(", ")[0] for told in marks(page, plot)}


def choose(page, label):
    page.locator("#toggles").evaluate("one => one.open = true")
    page.get_by_label(label, exact=True).click()


def latencies(page):
    cells = page.locator(".figures tbody tr").evaluate_all(
        "rows => rows.map(row => row.querySelector('[title*=\" ms\"]')?.title ?? null)"
    )
    return [None if cell is None else float(cell.split()[0]) for cell in cells]


def test_numbers_sort_both_ways_by_click_and_failed_models_stay_last(twelve, open_page):
    page = open_page(twelve)
    head = page.locator(LATENCY)
    known = sorted(r.values["latency_ms_median"] for r in twelve.records[:-1])
    assert head.get_attribute("aria-sort") is None
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert latencies(page) == [*known, None]
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert latencies(page) == [*known[::-1], None]


def test_words_sort_by_keyboard(twelve, open_page):
    page = open_page(twelve)
    button = page.locator(".figures thead button").first
    button.focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted(names(page))
    page.keyboard.press("Space")
    assert names(page) == sorted(names(page), reverse=True)
    page.locator(LATENCY).locator("button").focus()
    page.keyboard.press("Enter")
    assert page.locator("[aria-sort]").count() == 1


def test_numbers_of_a_column_are_not_sorted_as_words(twelve, open_page):
    page = open_page(twelve)
    page.locator(".figures thead th:has-text('params') button").click()
    assert names(page)[:2] == ["yolov8n+dat", "pvt_v2_b0"]


def test_the_filter_takes_words_of_model_family_and_flags(twelve, open_page):
    page = open_page(twelve)
    status = page.locator("#shown")
    assert status.inner_text() == "13 of 13 shown"
    assert status.get_attribute("aria-live") == "polite"
    for words, expected in (
        ("PVT v2", ["pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b0", "pvt_v2_b1"]),
        ("noisy", ["swin_tiny"]),
        ("nothing like it", []),
    ):
        page.locator("#filter").fill(words)
        assert names(page) == expected
        assert status.inner_text() == f"{len(expected)} of 13 shown"
        for plot in ("pareto", "times", "drift", "memory", "ratios"):
            assert models_of(page, plot) == set(expected), (words, plot)
    page.locator("#filter").fill("")
    assert len(names(page)) == 13


def test_boxes_act_on_the_table_and_on_every_plot(twelve, open_page):
    page = open_page(twelve)
    plots = ("pareto", "times", "ratios", "drift", "memory")
    assert all("pvt_small" in models_of(page, plot) for plot in plots)
    choose(page, "pvt_small")
    assert "pvt_small" not in names(page)
    assert all("pvt_small" not in models_of(page, plot) for plot in plots)
    assert page.locator("#shown").inner_text() == "12 of 13 shown"
    page.locator("#none").click()
    assert names(page) == []
    assert "change the filter" in page.locator("#pareto .left-out").inner_text()
    page.locator("#all").click()
    assert len(names(page)) == 13


def test_the_axes_of_the_scatter_can_be_chosen(twelve, open_page):
    page = open_page(twelve)
    figure = page.locator("#pareto")
    assert "published" in figure.locator("[name=y] option:checked").inner_text()
    before = figure.locator("svg.chart").inner_html()
    figure.locator("[name=x]").select_option("params")
    figure.locator("[name=y]").select_option("macs")
    assert "dat_tiny: parameters, M 28.3; GMACs of one image 4.59" in marks(page, "pareto")
    assert figure.locator("svg.chart").inner_html() != before
    places = figure.locator("path.full").evaluate_all("all => all.map(a => a.outerHTML)")
    figure.get_by_label("log x").check()
    assert figure.locator("path.full").evaluate_all("all => all.map(a => a.outerHTML)") != places


def test_the_front_holds_what_no_model_beats(twelve, open_page):
    page = open_page(twelve)
    on = {told.partition(": ")[0] for told in marks(page, "pareto") if "on the front" in told}
    points = [
        (r.values["latency_ms_median"], -r.published_top1, r.model)
        for r in twelve.records
        if r.published_top1 and not r.error
    ]
    beaten = {
        model
        for time, lost, model in points
        if any(t <= time and m <= lost and (t, m) != (time, lost) for t, m, _ in points)
    }
    assert on == {model for _, _, model in points} - beaten
    assert 2 < len(on) < len(points)
    assert page.locator("#pareto path.front").count() == 1


def test_verdicts_are_told_by_shape_and_word(twelve, open_page):
    page = open_page(twelve)
    shapes = page.locator("#ratios path.full, #ratios path.open").evaluate_all(
        "all => Object.fromEntries(all.map(a => [a.textContent.split(':')[0],"
        " a.getAttribute('class') + a.getAttribute('d')]))"
    )
    kinds = [shapes[name] for name in ("swin_tiny", "swin_small", "pvt_v2_b2", "dat_pp_tiny")]
    assert len(set(kinds)) == 4
    words = page.locator("#ratios svg.chart > text").all_text_contents()
    for word in ("faster", "slower", "the same", "inconclusive"):
        assert any(word in text for text in words)
    assert page.locator("#ratios .band").count() == len(shapes)
    assert page.locator("#ratios .one").count() == 1


def test_disturbed_and_redone_slots_are_marked(twelve, open_page):
    page = open_page(twelve)
    told = marks(page, "drift")
    slots = twelve.samples[twelve.records[0].run_id, "dat_tiny"]
    redone = sum(slot["redone"] for slot in slots)
    disturbed = sum(bool(slot["disturbed"]) for slot in slots) - redone
    mine = [text for text in told if text.startswith("dat_tiny:")]
    assert sum(text.endswith("redone") for text in mine) == redone > 0
    assert sum(text.endswith("disturbed") for text in mine) == disturbed > 0
    assert page.locator("#drift path.redone").count() == 12 * redone
    outlines = page.locator("#drift path.disturbed").evaluate_all(
        "all => all.map(one => one.getAttribute('d'))"
    )
    assert set(outlines) == {"M-4,-4L4,4M-4,4L4,-4"}
    page.locator("#drift [name=y]").select_option("ms")
    assert "slot median, ms" in page.locator("#drift svg.chart").text_content()


def test_curves_against_the_batch_ring_where_throughput_saturates(make_record, open_page):
    rates = {"dat_tiny": {1: 100, 8: 400, 32: 410}, "swin_tiny": {1: 50, 8: 200, 32: 600}}
    records = [
        make_record(
            model,
            work=Workload("cpu", (3, 224, 224), batch_size=batch, threads=2),
            latency_ms_median=1000 * batch / rate,
            throughput_img_s=float(rate),
            peak_allocated_mib=100.0 + batch,
        )
        for model, of in rates.items()
        for batch, rate in of.items()
    ]
    page = open_page(Content(records))
    told = marks(page, "batches")
    assert len(told) == 18  # three panels of six points
    assert "dat_tiny, batch 8: throughput, img/s 400; saturated from here on" in told
    assert "swin_tiny, batch 32: peak memory, MiB 132" in told
    assert page.locator("#batches path.open").count() == 3  # a ring in each panel
    assert page.locator("#batches .legend li").all_inner_texts() == [" dat_tiny", " swin_tiny"]
    aria = page.locator("#batches svg.chart").get_attribute("aria-label")
    assert "dat_tiny: saturated from batch 8 on; swin_tiny: not saturated" in aria
    page.locator("#batches").get_by_label("log y").check()
    assert len(marks(page, "batches")) == 18
    page.locator("#filter").fill("swin")
    assert {mark.partition(",")[0] for mark in marks(page, "batches")} == {"swin_tiny"}


def test_plots_without_data_do_not_appear(make_record, open_page):
    page = open_page(Content([make_record(), make_record("b")]))
    shown = page.locator("figure:visible").evaluate_all("all => all.map(one => one.id)")
    assert shown == ["pareto"]


def test_every_plot_has_a_name_a_caption_and_marks_for_the_keyboard(twelve, open_page):
    page = open_page(twelve)
    for plot in ("pareto", "times", "ratios", "drift", "memory"):
        chart = page.locator(f"#{plot} svg.chart")
        assert chart.get_attribute("role") == "img"
        assert len(chart.get_attribute("aria-label")) > 20
        assert len(page.locator(f"#{plot} figcaption").inner_text()) > 40
        chart.focus()
        page.keyboard.press("ArrowRight")
        first = page.locator(f"#{plot} .readout").inner_text()
        page.keyboard.press("ArrowRight")
        assert page.locator(f"#{plot} .current").count() == 1
        assert [first, page.locator(f"#{plot} .readout").inner_text()] == marks(page, plot)[:2]


def test_methods_and_command_are_copied(twelve, open_page):
    page = open_page(twelve, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy command").click()
    page.locator("#again [role=status]", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "datbench compare"
    page.get_by_role("button", name="Copy methods").click()
    page.locator("#methods [role=status]", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "\n\n".join(page.locator("#methods .source p").all_text_contents()) == copied


def test_machines_are_drawn_one_at_a_time(twelve, open_page):
    first = twelve.records[0]
    where = dataclasses.replace(first.environment, host="bench-2")
    there = [dataclasses.replace(r, environment=where, run_id="there") for r in twelve.records[:2]]
    page = open_page(Content([*twelve.records, *there], twelve.samples))
    assert page.locator("table.figures").count() == 2
    select = page.locator("#machine select")
    assert select.is_visible()
    assert len(models_of(page, "pareto")) > 2
    select.select_option("1")
    assert models_of(page, "pareto") == {"dat_tiny", "swin_tiny"}
    assert page.locator("#drift").is_hidden()


def test_hostile_names_run_nothing(twelve, open_page, make_record):
    first = twelve.records[0]
    records = [first]
    samples = {(first.run_id, first.model): twelve.samples[first.run_id, first.model]}
    for name in HOSTILE:
        record = make_record(
            name,
            comparison=Comparison(name, 1.1, 1.0, 1.2, "SLOWER"),
            warnings=[f"{name}: {name}"],
            weights_mib=3.0,
        )
        records.append(dataclasses.replace(record, family=name, command=name, source=name))
        samples[record.run_id, name] = samples[first.run_id, first.model]
    page = open_page(Content(records, samples))
    assert names(page) == [first.model, *HOSTILE]
    assert {told.partition(", weights")[0] for told in marks(page, "memory")} >= set(HOSTILE)
    page.locator("#filter").fill("<img")
    assert names(page) == [HOSTILE[1]]
    choose(page, HOSTILE[1])
    assert names(page) == []
    assert page.locator("img, script[src], iframe, object").count() == 0
    assert page.evaluate("document.scripts.length") == 2


def test_the_policy_stops_what_is_put_in_later(twelve, chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(twelve, "html"), encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    stopped = page.evaluate(
        """() => new Promise(done => {
          document.addEventListener("securitypolicyviolation", one => done(one.effectiveDirective));
          document.body.setAttribute("onclick", "window.ran = true");
          document.body.click();
          setTimeout(() => done(`ran: ${window.ran}`), 1000);
        })"""
    )
    page.close()
    assert stopped == "script-src-attr"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(twelve, open_page, scheme):
    page = open_page(twelve, color_scheme=scheme)
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = "rgb(255, 255, 255)"
    assert (paper == light) == (scheme == "light")
    assert paper != ink
    mark = page.locator("#pareto path.full").first
    assert mark.evaluate("one => getComputedStyle(one).fill") != paper


def test_on_paper_everything_stands_and_no_control(twelve, open_page):
    page = open_page(twelve, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for control in ("#filter", "select", "button.copy", "nav", "#toggles", ".skip"):
        assert page.locator(f"{control}:visible").count() == 0, control
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#columns table").is_visible()
    assert page.locator("details:not([open])").count() == 0
    width = "one => Number(one.getAttribute('viewBox').split(' ')[2])"
    assert page.locator("#pareto svg.chart").evaluate(width) == 700
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert page.locator("#columns table").is_hidden()
    assert page.locator("#pareto svg.chart").evaluate(width) > 700
    assert page.pdf().startswith(b"%PDF")


def test_a_narrow_page_does_not_overflow(twelve, open_page):
    page = open_page(twelve, viewport={"width": 360, "height": 780})
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    outside = page.locator("svg.chart text").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().right > 360).map(a => a.textContent)"
    )
    assert outside == []


def test_names_in_a_plot_cover_no_mark_and_no_other_name(twelve, open_page):
    page = open_page(twelve, viewport={"width": 1200, "height": 900})
    boxes = page.locator("#pareto svg.chart > text:not(.quiet)").evaluate_all(
        "all => all.map(one => one.getBBox()).map(b => [b.x, b.y, b.x + b.width, b.y + b.height])"
    )
    assert len(boxes) > 8
    for place, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:place]:
            apart = left >= other[2] or right <= other[0] or top + 3 >= other[3]
            assert apart or bottom - 3 <= other[1]


def test_without_javascript_the_tables_stand(twelve, open_page):
    page = open_page(twelve, java_script_enabled=False)
    assert len(names(page)) == 13
    assert page.locator("#methods .source").is_visible()
    assert page.locator("#environment table").is_visible()
    assert page.locator("noscript").inner_text().startswith("Plots, sorting and filters need")
    assert page.locator("button:visible, select:visible, input:visible").count() == 0
    assert page.locator("figure:visible").count() == 0


def test_the_skip_link_is_the_first_stop_and_focus_is_seen(twelve, open_page):
    page = open_page(twelve)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "figures"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_plots_of_many_models_say_what_they_leave_out(make_record, open_page):
    records = [
        make_record(
            f"model_{i:02}",
            latency_ms_median=10.0 + i,
            macs=int(1e9) * (i + 1),
            weights_mib=5.0 + i,
        )
        for i in range(50)
    ]
    page = open_page(Content(records))
    assert "20 of 50 models are drawn" in page.locator("#memory .left-out").inner_text()
    page.locator("#filter").fill("model_4")
    assert page.locator("#memory .left-out").inner_text() == ""
    assert len(models_of(page, "memory")) == 10
