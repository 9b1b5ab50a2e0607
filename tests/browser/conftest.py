"""Pages made of records and synthetic samples, and a browser to look at them."""

from __future__ import annotations

import dataclasses
import random
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from datbench.records import Comparison
from datbench.reports import Content, render

START = datetime(2026, 11, 22, 11, tzinfo=UTC)
MODELS = (  # name, latency in ms, GMACs, M parameters, published top-1
    ("dat_tiny", 127.0, 4.59, 28.3, 82.0),
    ("swin_tiny", 107.0, 4.51, 28.3, 81.2),
    ("pvt_small", 96.0, 3.83, 24.5, 79.8),
    ("pvt_v2_b2", 101.0, 4.03, 25.4, 82.0),
    ("dat_pp_tiny", 150.0, 4.60, 24.0, 83.9),
    ("swin_small", 190.0, 8.77, 49.6, 83.2),
    ("dat_small", 231.0, 9.14, 49.9, 83.7),
    ("pvt_v2_b3", 163.0, 6.92, 45.2, 83.1),
    ("pvt_v2_b0", 24.0, 0.57, 3.7, 70.5),
    ("yolov8n+dat", 27.2, 1.13, 3.42, None),
    ("pvt_v2_b1", 55.0, 2.11, 14.0, 78.7),
    ("timm:convnext_tiny.fb_in22k_ft_in1k", 90.0, 4.46, 28.6, 82.1),
)


def synthetic_slots(record, latency_ms, seed, slots=60, iterations=5):
    """Slots of a model as `samples.jsonl` has them; some were disturbed, some redone."""
    dice = random.Random(seed)
    for place in range(slots):
        disturbed = place % 17 == 5
        speed = latency_ms * (1 + 0.02 * (place / slots)) * (1.3 if disturbed else 1)
        yield {
            "model": record.model,
            "key": record.key,
            "pair": place // 12,
            "round": place % 12,
            "slot": 0,
            "ended_utc": (START + timedelta(seconds=1 + 2 * place + 0.1 * seed)).isoformat(),
            "latency_ms": [speed * dice.lognormvariate(0, 0.03) for _ in range(iterations)],
            "disturbed": ["contended: a thread waited for a core"] if disturbed else [],
            "redone": disturbed and place % 2 == 0,
        }


def compared(latency_ms, place):
    """A comparison with the first model, each verdict in turn; the second one has none."""
    ratio = latency_ms / MODELS[0][1]
    wide = 0.03 if place % 4 else 0.3
    verdict = "INCONCLUSIVE" if wide > 0.1 else "FASTER" if ratio < 1 else "SLOWER"
    if place == 3:
        ratio, wide, verdict = 1.001, 0.004, "SAME"
    return Comparison("dat_tiny", ratio, ratio * (1 - wide), ratio * (1 + wide), verdict)


@pytest.fixture
def twelve(make_record):
    """Twelve models with everything that a page shows, and one that failed."""
    records, samples = [], {}
    for place, (name, latency_ms, gmacs, params, top1) in enumerate(MODELS):
        record = make_record(
            name,
            comparison=compared(latency_ms, place) if place else None,
            warnings=["noisy: the interval is 14% of the median wide"] if place == 1 else [],
            params=int(params * 1e6),
            macs=int(gmacs * 1e9),
            latency_ms_median=latency_ms,
            latency_ms_lo=0.95 * latency_ms,
            latency_ms_hi=1.05 * latency_ms,
            throughput_img_s=1000 / latency_ms,
            weights_mib=params * 4 / 1.048576,
            peak_allocated_mib=60 + params * 5,
            rss_peak_mib=400 + params * 6,
            pairs=5,
            samples=300,
        )
        family = name.partition("_")[0]
        record = dataclasses.replace(
            record, family=family, published_top1=top1, published_params=params * 1e6,
            published_source=f"the paper of {family}", min_effect=0.01, command="datbench compare",
        )  # fmt: skip
        records.append(record)
        samples[record.run_id, name] = list(synthetic_slots(record, latency_ms, place))
    failed = make_record("dat_base", error="out of memory: tried 3 GiB", latency_ms_median=None)
    records.append(dataclasses.replace(failed, published_top1=84.0))
    return Content(records, samples)


@pytest.fixture(scope="session")
def chromium():
    """The system's chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """Open the page of some content; what it says on its console or requests must be nothing."""
    contexts, troubles, requests = [], [], []
    path = tmp_path / "report.html"

    def open_(content, **options):
        path.write_text(render(content, "html"), encoding="utf-8")
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []
    assert {url for url in requests if not url.startswith("data:")} <= {path.as_uri()}
