"""The runner against scripted workers: verdicts, faults, budget, what is on disk when."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import random
import statistics
import time

import pytest

import datbench.runner
from datbench import gauges
from datbench.metrics.latency import Slot, Warmup
from datbench.plan import make_plan
from datbench.pool import WorkerFault
from datbench.records import Measurement
from datbench.runner import run
from datbench.schedule import DEFAULT, PAUSES_S, QUICK, RIGOROUS, Protocol
from datbench.store import RunFolder


class FakeWorker:
    def __init__(self, pool, case):
        self.pool, self.case, self.stopped = pool, case, False
        scatter = pool.per_process
        scatter = scatter.get(case.label, 0.0) if isinstance(scatter, dict) else scatter
        self.factor = math.exp(pool.random.gauss(0, scatter))

    def ask(self, request, **arguments):
        assert not self.stopped
        self.pool.asked.append((self.case.label, request))
        fault = self.pool.faults.get((self.case.label, request))
        if fault is not None:
            if isinstance(fault, BaseException):
                raise fault
            if self.pool.asked.count((self.case.label, request)) > fault:
                raise WorkerFault(f"{request} broke")
        answers = {
            "lay_out": self.lay_out,
            "build": lambda: None,
            "facts": lambda: {"device_name": "Fake", "settings": {"x": 1}},
            "room": lambda: self.pool.room_mib,
            "health": dict,
            "how": lambda: {"opset": 20},
            "metrics": self.metrics,
            "warm_up": lambda most_s: Warmup(10.0, self.case.label not in self.pool.cold),
            "slot": self.slot,
        }
        return answers[request](**arguments)

    def lay_out(self, layout):
        """Remember how memory was to lie."""
        self.pool.layouts[self.case.label].append(layout)

    def metrics(self):
        """What needs no clock; answers that are off from eager's for some."""
        wrong = ("wrong_output: off",) if self.case.label in self.pool.wrong else ()
        known = [Measurement("params", 7), Measurement("rss_peak_mib", 400.0)]
        return [*known, Measurement("parity_abs", 0.5), Measurement("parity_rel", 0.5, wrong)]

    def slot(self, iterations, switched):
        """Times of a machine that slows all the while, with noise; a hog makes them wait."""
        pool = self.pool
        pool.switches.append((self.case.label, switched))
        pool.clock += 1
        base = pool.steps_ms[self.case.label] * self.factor * (1 + 0.002 * pool.clock)
        waited = 0.0
        if pool.hogged(pool.clock):
            base, waited = base * pool.random.uniform(1.5, 4), 1.0
        times = [base * math.exp(pool.random.gauss(0, pool.noise)) for _ in range(iterations)]
        gpu = [gauges.Gpu(processes=pool.processes)] if pool.processes else [None]
        before = gauges.Readings(0.0, waited_s={1: 0.0}, gpu=gpu[0])
        return Slot(times, None, before, gauges.Readings(1.0, waited_s={1: waited}, gpu=gpu[0]))

    def stop(self):
        self.stopped = True


class FakePool:
    def __init__(
        self, steps_ms, noise=0.01, per_process=0.0, faults=None, cold=(), room_mib=1e6,
        hogged=lambda clock: False, processes=None, wrong=(),
    ):  # fmt: skip
        self.wrong = wrong
        self.steps_ms, self.noise, self.per_process = steps_ms, noise, per_process
        self.room_mib, self.hogged, self.processes = room_mib, hogged, processes
        self.faults, self.cold = faults or {}, cold
        self.random = random.Random(3)
        self.layouts = collections.defaultdict(list)
        self.clock, self.asked, self.workers, self.switches = 0, [], [], []

    def __call__(self, timeout_s, modules):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.renew()

    def renew(self):
        for worker in self.workers:
            worker.stop()

    most_alive = 0

    def start(self, case):
        self.workers.append(FakeWorker(self, case))
        alive = sum(not worker.stopped for worker in self.workers)
        self.most_alive = max(self.most_alive, alive)
        return self.workers[-1]


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Pauses before slots that are redone, which take no time here."""
    found = []
    sleep = lambda s: found.append(s) if s in PAUSES_S else None  # noqa: E731 - git's are shorter
    monkeypatch.setattr(time, "sleep", sleep)
    return found


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Run a plan on a fake pool: measure(pool, protocol) gives the records by label."""

    def go(pool, protocol=DEFAULT, command="compare", models=("pvt_tiny", "pvt_small", "swin")):
        monkeypatch.setattr(datbench.runner, "Pool", pool)
        plan = make_plan(models, protocol=protocol, command=command, device="cpu")
        go.folder = RunFolder.create(tmp_path, command)
        return {record.model: record for record in run(plan, go.folder)}

    return go


def test_verdicts_follow_the_truth_under_drift(measure):
    steps = {"pvt_tiny": 100.0, "pvt_small": 105.0, "swin_tiny": 92.0, "pvt_tiny#2": 100.0}
    pool = FakePool(steps)
    records = measure(pool, models=("pvt_tiny", "pvt_small", "swin", "pvt_tiny"))
    assert records["pvt_tiny"].comparison is None
    for label, verdict in (
        ("pvt_small", "SLOWER"),
        ("swin_tiny", "FASTER"),
        ("pvt_tiny#2", "SAME"),
    ):
        compared = records[label].comparison
        assert compared.verdict == verdict
        truth = steps[label] / 100
        assert compared.lo <= truth <= compared.hi
        assert compared.ratio == pytest.approx(truth, rel=0.01)
        assert compared.baseline == "pvt_tiny"


def test_pairs_stop_at_the_first_look_when_all_is_clear(measure):
    pool = FakePool({"pvt_tiny": 100.0, "pvt_small": 120.0}, per_process=0.002)
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    assert records["pvt_small"].values["pairs"] == 6
    slots = measure.folder.samples()
    assert records["pvt_small"].values["samples"] == sum(
        len(slot["latency_ms"]) for slot in slots if slot["model"] == "pvt_small"
    )
    assert {slot["pair"] for slot in slots} == set(range(6))
    for pair in range(6):
        assert len({slot["round"] for slot in slots if slot["pair"] == pair}) >= DEFAULT.rounds


def test_processes_that_differ_leave_it_open_to_the_last_look(measure):
    pool = FakePool({"pvt_tiny": 100.0, "pvt_small": 100.5}, per_process=0.05)
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    assert records["pvt_small"].comparison.verdict == "INCONCLUSIVE"
    assert records["pvt_small"].values["pairs"] == DEFAULT.looks[-1]


def test_quick_gives_a_ratio_and_no_verdict(measure):
    records = measure(
        FakePool({"pvt_tiny": 100.0, "pvt_small": 120.0}), QUICK, models=("pvt_tiny", "pvt_small")
    )
    compared = records["pvt_small"].comparison
    assert compared.verdict is None
    assert compared.lo < 1.2 < compared.hi
    assert records["pvt_small"].values["pairs"] == 1


@pytest.mark.parametrize(
    ("wrong", "verdicts"),
    [("swin_tiny", {"pvt_small": "SLOWER", "swin_tiny": None}),
     ("pvt_tiny", {"pvt_small": None, "swin_tiny": None})],
)  # fmt: skip
def test_wrong_answers_get_a_ratio_and_no_verdict(measure, wrong, verdicts):
    steps = {"pvt_tiny": 100.0, "pvt_small": 120.0, "swin_tiny": 80.0}
    records = measure(FakePool(steps, wrong=[wrong]))
    assert {m: records[m].comparison.verdict for m in verdicts} == verdicts
    assert records["swin_tiny"].comparison.ratio == pytest.approx(0.8, rel=0.02)
    assert records["swin_tiny"].facts == {"opset": 20}
    assert "wrong_output" in records[wrong].flags


def test_a_profile_compares_nothing(measure):
    records = measure(
        FakePool({"pvt_tiny": 1.0, "swin_tiny": 2.0}), QUICK, "profile", ("pvt_tiny", "swin")
    )
    assert all(record.comparison is None for record in records.values())
    assert records["swin_tiny"].values["latency_ms_median"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("request_", "works"), [("build", 0), ("build", 1), ("metrics", 0), ("warm_up", 1), ("slot", 5)]
)
def test_one_broken_model_does_not_stop_the_rest(measure, request_, works):
    steps = {"pvt_tiny": 100.0, "pvt_small": 120.0, "swin_tiny": 90.0}
    pool = FakePool(steps, faults={("pvt_small", request_): works})
    records = measure(pool)
    assert records["pvt_small"].error == f"{request_} broke"
    assert records["pvt_small"].comparison is None
    assert records["swin_tiny"].error is None
    assert records["swin_tiny"].comparison.verdict == "FASTER"


def test_a_broken_baseline_leaves_the_others_their_latency(measure):
    pool = FakePool(
        {"pvt_tiny": 100.0, "pvt_small": 120.0, "swin_tiny": 90.0},
        faults={("pvt_tiny", "build"): 0},
    )
    records = measure(pool)
    assert records["pvt_tiny"].error == "build broke"
    assert records["swin_tiny"].values["latency_ms_median"] > 0
    assert records["swin_tiny"].comparison is None


def test_all_broken_is_a_table_of_errors(measure):
    pool = FakePool({}, faults={(m, "build"): 0 for m in ("pvt_tiny", "pvt_small", "swin_tiny")})
    assert all(record.error for record in measure(pool).values())


def test_out_of_memory_is_flagged(measure):
    fault = WorkerFault("out of memory: tried 3 GiB")
    pool = FakePool({"pvt_tiny": 1.0, "swin_tiny": 1.0}, faults={("swin_tiny", "build"): fault})
    records = measure(pool, QUICK, models=("pvt_tiny", "swin"))
    assert records["swin_tiny"].flags == ("oom",)


def test_an_interrupt_keeps_what_was_measured(measure, monkeypatch):
    pool = FakePool({"pvt_tiny": 100.0, "pvt_small": 120.0})
    slot = FakeWorker.slot

    def interrupted(self, iterations, switched):
        if self.pool.clock == 30:
            raise KeyboardInterrupt
        return slot(self, iterations, switched)

    monkeypatch.setattr(FakeWorker, "slot", interrupted)
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    assert all("interrupted" in record.flags for record in records.values())
    assert records["pvt_small"].values["latency_ms_median"] > 0
    assert records["pvt_small"].error is None
    assert all(worker.stopped for worker in pool.workers)


def test_a_model_that_never_settled_is_flagged(measure):
    pool = FakePool({"pvt_tiny": 1.0, "swin_tiny": 1.0}, cold=("swin_tiny",))
    records = measure(pool, QUICK, models=("pvt_tiny", "swin"))
    assert "not_warm" in records["swin_tiny"].flags
    assert "not_warm" not in records["pvt_tiny"].flags


def test_a_spent_budget_ends_after_the_round_in_hand(measure, monkeypatch):
    ticks = iter(range(0, 100_000, 4))
    monkeypatch.setattr(datbench.runner.time, "monotonic", lambda: float(next(ticks)))
    pool = FakePool({"pvt_tiny": 100.0, "pvt_small": 120.0})
    protocol = Protocol(looks=(5, 8), rounds=6, budget_s=100)
    records = measure(pool, protocol, models=("pvt_tiny", "pvt_small"))
    assert records["pvt_small"].values["pairs"] < 3
    assert records["pvt_small"].values["samples"] > 0
    assert records["pvt_small"].comparison.verdict is None
    assert records["pvt_small"].budget_s == 100


def test_records_and_samples_are_on_disk_and_only_one_worker_works_at_a_time(measure):
    pool = FakePool({"pvt_tiny": 100.0, "pvt_small": 120.0})
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    assert {r.model: r for r in measure.folder.records()}.keys() == records.keys()
    slots = measure.folder.samples()
    for label, record in records.items():
        raw = [t for s in slots if s["model"] == label for t in s["latency_ms"]]
        assert len(raw) == record.values["samples"]
        pairs = collections.defaultdict(list)
        for slot in slots:
            pairs[slot["pair"]] += slot["latency_ms"] if slot["model"] == label else []
        medians = [statistics.median(times) for times in pairs.values()]
        assert record.values["latency_ms_median"] == statistics.median(medians)
    # Every round holds each model twice, in mirrored order.
    for pair in range(5):
        for number in range(DEFAULT.rounds):
            order = [s["model"] for s in slots if (s["pair"], s["round"]) == (pair, number)]
            assert len(order) == 4
            assert order == order[::-1]


def test_each_worker_of_each_pair_has_a_layout_of_its_own_which_its_samples_tell(measure):
    pool = FakePool(TWO)
    measure(pool, models=("pvt_tiny", "pvt_small"))
    drawn = [layout for layouts in pool.layouts.values() for layout in layouts]
    assert len(set(drawn)) == len(drawn) == 2 * DEFAULT.looks[0]
    for slot in measure.folder.samples():
        told = dataclasses.asdict(pool.layouts[slot["model"]][slot["pair"]])
        assert slot["layout"] == json.loads(json.dumps(told))
    again = FakePool(TWO)
    measure(again, models=("pvt_tiny", "pvt_small"))  # in another folder
    assert not {layout for layouts in again.layouts.values() for layout in layouts} & set(drawn)


def test_a_model_that_its_layout_makes_fast_or_slow_is_flagged(measure):
    pool = FakePool(TWO, per_process={"pvt_small": 0.1}, noise=0.002)
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    assert "layout_sensitive" in records["pvt_small"].flags
    steady = measure(FakePool(TWO, noise=0.002), models=("pvt_tiny", "pvt_small"))
    assert not any("layout_sensitive" in record.flags for record in steady.values())


def test_the_environment_comes_from_the_worker_and_the_host(measure):
    record = measure(FakePool({"pvt_tiny": 1.0}), QUICK, models=("pvt_tiny",))["pvt_tiny"]
    assert record.environment.device_name == "Fake"
    assert record.environment.settings == {"x": 1}
    assert record.environment.host
    assert record.environment.packages["torch"]
    assert record.published_macs == 1.9e9


TWO = {"pvt_tiny": 100.0, "pvt_small": 120.0}


def test_a_budget_that_ends_a_comparison_early_takes_the_next_look_right_there(
    measure, monkeypatch
):
    pool = FakePool(TWO)
    monkeypatch.setattr(datbench.runner.time, "monotonic", lambda: 0.1 * pool.clock)
    protocol = Protocol(looks=(8,), rounds=4, budget_s=0.1 * 16 * 4.5)
    record = measure(pool, protocol, models=("pvt_tiny", "pvt_small"))["pvt_small"]
    assert record.values["pairs"] == 5  # the last ones shorter
    assert record.comparison.verdict == "SLOWER"


def test_a_slot_that_someone_disturbed_is_redone_after_a_pause(measure, pauses):
    pool = FakePool(TWO, hogged=lambda clock: clock in (10, 11, 40))
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    slots = measure.folder.samples()
    again = [i for i, slot in enumerate(slots) if slot["redone"]]
    assert [i + 1 for i in again] == [10, 11, 40]
    assert pauses == [0.1, 0.2, 0.1]
    for i in again:
        places = [(s["model"], s["pair"], s["round"], s["slot"]) for s in slots[i : i + 2]]
        assert places[0] == places[1]
        assert "a thread waited for a core for 100% of the time" in slots[i]["disturbed"][0]
    assert all("contended" not in record.flags for record in records.values())
    assert records["pvt_small"].comparison.ratio == pytest.approx(1.2, rel=0.01)
    timed = [s for s in slots if s["model"] == "pvt_small" and not s["redone"]]
    assert records["pvt_small"].values["samples"] == sum(len(s["latency_ms"]) for s in timed)


def test_a_slot_knows_whether_another_model_ran_before(measure):
    pool = FakePool(TWO, hogged=lambda clock: clock in (10, 11, 40))
    measure(pool, models=("pvt_tiny", "pvt_small"))
    slots = measure.folder.samples()
    before = [None, *(None if s["redone"] else (s["model"], s["pair"]) for s in slots)]
    here = [(s["model"], s["pair"]) for s in slots]
    expected = [(s[0], s != earlier) for s, earlier in zip(here, before, strict=False)]
    assert pool.switches == expected
    assert 0.5 < sum(switched for _, switched in pool.switches) / len(slots) < 0.8


def test_what_cannot_be_redone_is_kept_and_the_row_says_so(measure):
    pool = FakePool(TWO, hogged=lambda clock: clock % 2)
    records = measure(pool, models=("pvt_tiny", "pvt_small"))
    slots = measure.folder.samples()
    redone = sum(slot["redone"] for slot in slots)
    assert redone <= 4 + 0.1 * len(slots) + 1
    assert redone > 0.08 * len(slots)
    for record in records.values():
        assert "contended" in record.flags
        assert record.values["samples"] > 0


def test_models_that_do_not_fit_together_are_timed_in_groups_with_the_baseline(measure):
    steps = {"pvt_tiny": 100.0, "pvt_small": 120.0, "swin_tiny": 90.0}
    pool = FakePool(steps, room_mib=1100.0)  # two of 400 MiB each
    records = measure(pool)
    assert pool.most_alive == 2
    pairs = [records[label].values["pairs"] for label in ("pvt_tiny", "swin_tiny")]
    assert pairs == [DEFAULT.looks[0]] * 2
    slots = measure.folder.samples()
    places = [(s["model"], s["pair"], s["group"], s["round"], s["slot"]) for s in slots]
    assert len(places) == len(set(places))
    assert records["pvt_small"].comparison.verdict == "SLOWER"
    assert records["swin_tiny"].comparison.verdict == "FASTER"


def test_other_processes_on_the_gpu_are_told(measure):
    records = measure(FakePool(TWO, processes=3), models=("pvt_tiny", "pvt_small"))
    assert "1 other processes" in records["pvt_small"].warnings[0]
    assert "foreign_process" in records["pvt_small"].flags
    records = measure(FakePool(TWO, processes=2), models=("pvt_tiny", "pvt_small"))
    assert "foreign_process" not in records["pvt_small"].flags


def test_a_record_tells_where_the_time_went(measure):
    record = measure(FakePool(TWO), models=("pvt_tiny", "pvt_small"))["pvt_small"]
    assert set(record.spent_s) == {
        "facts, MACs and memory", "start and build", "warm-up", "timed", "switching",
    }  # fmt: skip
    assert record.spent_s["timed"] > 0
    assert record.tier == "default"


def test_an_interrupt_in_the_middle_of_a_pair_leaves_that_pair_out_of_the_verdict(
    measure, monkeypatch
):
    pool = FakePool(TWO)
    slot = FakeWorker.slot

    def interrupted(self, iterations, switched):
        if measure.folder.samples()[-1:] and measure.folder.samples()[-1]["pair"] == 3:
            raise KeyboardInterrupt
        return slot(self, iterations, switched)

    monkeypatch.setattr(FakeWorker, "slot", interrupted)
    record = measure(pool, models=("pvt_tiny", "pvt_small"))["pvt_small"]
    assert record.comparison.verdict == "SLOWER"
    assert "interrupted" in record.flags


def test_a_baseline_that_dies_ends_the_run_with_what_was_compared(measure):
    slots_until_the_look = DEFAULT.looks[0] * 2 * DEFAULT.rounds
    equal = {"pvt_tiny": 100.0, "pvt_small": 100.0}
    faults = {("pvt_tiny", "slot"): slots_until_the_look + 20}
    pool = FakePool(equal, per_process=0.05, faults=faults)
    records = measure(pool, RIGOROUS, models=("pvt_tiny", "pvt_small"))
    assert records["pvt_tiny"].error == "slot broke"
    assert records["pvt_small"].values["pairs"] == RIGOROUS.looks[1]  # the next one
    assert records["pvt_small"].comparison.verdict is not None


def test_the_process_to_close_is_the_one_of_a_disturbed_pair(measure, monkeypatch):
    equal = {"pvt_tiny": 100.0, "pvt_small": 100.0}
    pool = FakePool(equal, hogged=lambda clock: clock < 60, per_process=0.05)
    busy = lambda *_: f"at {pool.clock}"  # noqa: E731
    monkeypatch.setattr(datbench.runner.gauges, "busiest", busy)
    record = measure(pool, models=("pvt_tiny", "pvt_small"))["pvt_small"]
    told = next(w for w in record.warnings if w.startswith("contended"))
    assert 0 < int(told.rpartition("at ")[2]) < pool.clock


def test_cores_that_others_slow_from_outside_are_seen_by_the_reference_product(
    measure, monkeypatch
):
    slot = FakeWorker.slot

    def slowed(self, iterations, switched):
        found = slot(self, iterations, switched)
        ms = 1.5 if 30 <= self.pool.clock < 33 else 1.0
        before = dataclasses.replace(found.before, reference_ms=ms)
        return dataclasses.replace(found, before=before)

    monkeypatch.setattr(FakeWorker, "slot", slowed)
    records = measure(FakePool(TWO), models=("pvt_tiny", "pvt_small"))
    redone = [s for s in measure.folder.samples() if s["redone"]]
    assert len(redone) == 3
    assert all("waiting for quiet" not in record.spent_s for record in records.values())
    assert "the cores were 50% slower than before" in redone[0]["disturbed"][0]
    assert "throttled" not in records["pvt_small"].flags
