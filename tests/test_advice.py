"""Advice: what would help, and never what is done already."""

from __future__ import annotations

import dataclasses

import pytest

from datbench.advice import advice
from datbench.records import Comparison, Workload


@pytest.fixture
def told(make_record, environment):
    """Return the advice for one record: told("noisy", tier="default", threads=2, cores=2)."""

    def make(*flags, tier="default", cores=2, comparison=None, budget_s=None, spent_s=(), **work):
        work = Workload(**{"device": "cpu", "input_shape": (3, 8, 8), "threads": 2, **work})
        record = make_record(work=work, warnings=[f"{f}: x" for f in flags], comparison=comparison)
        environment_ = dataclasses.replace(environment, cores=cores)
        record = dataclasses.replace(
            record, tier=tier, environment=environment_, budget_s=budget_s, spent_s=dict(spent_s)
        )
        return " ".join(advice([record]))

    return make


@pytest.mark.parametrize(
    ("flag", "options", "part"),
    [
        ("noisy", {}, "--rigorous"),
        ("noisy", {}, "No process of this machine was in the way"),
        (
            "noisy",
            {"spent_s": {"waiting for quiet": 3.0}},
            "Something else had the cores for a while",
        ),
        ("few_samples", {}, "--rigorous"),
        ("contended", {}, "Close what competes for the cores, or leave it a core with --threads 1"),
        ("throttled", {"device": "cuda:0"}, "nvidia-smi -lgc"),
        ("throttled", {}, "No process of this machine was in the way"),
        ("foreign_process", {"device": "cuda:0"}, "--device"),
        ("host_bound", {"device": "cuda:0"}, "--batch-size"),
        ("host_bound", {"device": "cuda:0"}, "--runtime cudagraph"),
        ("not_warm", {"budget_s": 10.0}, "--budget"),
        ("oom", {"batch_size": 8}, "a smaller --batch-size"),
        ("oom", {"device": "cuda:0"}, "--dtype bfloat16"),
    ],
)
def test_a_flag_brings_advice(told, flag, options, part):
    assert part in told(flag, **options)


@pytest.mark.parametrize(
    ("flag", "options", "part"),
    [
        ("noisy", {"tier": "rigorous"}, "--rigorous"),
        ("noisy", {"device": "cuda:0"}, "this machine"),
        ("host_bound", {"device": "cuda:0", "runtime": "cudagraph"}, "--runtime"),
        ("throttled", {}, "nvidia-smi"),
        ("contended", {"threads": 1}, "--threads"),
        ("contended", {"cores": 1, "threads": 1}, "--threads"),
        ("not_warm", {}, "--budget"),
        ("oom", {}, "--batch-size"),
        ("oom", {"dtype": "bfloat16", "device": "cuda:0"}, "--dtype"),
    ],
)
def test_what_is_done_already_is_not_advised(told, flag, options, part):
    assert part not in told(flag, **options)


def test_without_a_flag_there_is_no_advice(told):
    assert told() == ""


@pytest.mark.parametrize(
    ("needed", "tier", "part", "absent"),
    [
        (14, "default", "dat_tiny about 14. --rigorous runs up to 40.", "calibrate"),
        (14, "rigorous", "dat_tiny about 14.", "--rigorous"),
        (60, "default", "`datbench calibrate`", "--rigorous"),
        (None, "default", "`datbench calibrate`", "about"),
    ],
)
def test_an_open_comparison_tells_what_would_settle_it(told, needed, tier, part, absent):
    found = told(comparison=Comparison("a", 1.01, 0.98, 1.04, "INCONCLUSIVE", needed), tier=tier)
    assert part in found
    assert absent not in found
