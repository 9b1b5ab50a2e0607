"""The latency metric on a device whose clock is scripted."""

from __future__ import annotations

import itertools
import types

import pytest
import torch
from torch import nn

from datbench import gauges
from datbench.device import Timing
from datbench.metrics import energy, latency
from datbench.metrics.latency import Samples, summarise, time_slot, warm_up


class FakeDevice:
    """Each iteration takes the next of the scripted times."""

    warm_up_s, switch_steps, switch_s = 0.2, 1, 0.01

    def __init__(self, times_ms):
        self.times = iter(times_ms)
        self.now_s = 0.0
        self.calls = []

    def step(self):
        self.calls.append("untimed")
        self.now_s += next(self.times) / 1000

    def reference_ms(self):
        self.calls.append("reference")
        return 0.5

    def read(self, reference_ms=None):
        self.calls.append("read")
        return gauges.Readings(self.now_s)

    def time(self, step, iterations):
        self.calls.append(iterations)
        spent = [next(self.times) for _ in range(iterations)]
        self.now_s += sum(spent) / 1000
        return Timing(spent)


@pytest.fixture
def trial(monkeypatch):
    def make(times_ms, own_threads=False):
        device = FakeDevice(times_ms)
        monkeypatch.setattr(latency.time, "monotonic", lambda: device.now_s)
        return types.SimpleNamespace(
            device=device,
            step=device.step,
            forget_parts=lambda: None,
            parts_ms=dict,
            own_threads=own_threads,
        )

    return make


def test_warm_up_goes_on_until_the_times_are_steady(trial):
    falling = [300 - 10 * i for i in range(20)]
    made = trial([*falling, *itertools.repeat(100, 1000)])
    result = warm_up(made)
    assert result.steady
    assert result.step_ms == 100
    assert len(made.device.calls) >= 20


def test_warm_up_of_a_fast_model_lasts_as_long_as_the_device_asks(trial):
    made = trial(itertools.repeat(1.0))
    assert warm_up(made).step_ms == 1.0
    assert made.device.warm_up_s < made.device.now_s < 2 * made.device.warm_up_s


def test_warm_up_that_never_settles_ends_and_says_so(trial):
    made = trial(100 * 1.05**i for i in itertools.count())
    result = warm_up(made)
    assert not result.steady
    assert made.device.now_s < latency.WARMUP_MOST_S * 1.5


def test_a_slot_starts_with_an_untimed_iteration(trial):
    made = trial([999.0, 1.0, 2.0, 3.0])
    slot = time_slot(made, 3)
    assert slot.latency_ms == [1.0, 2.0, 3.0]
    assert made.device.calls == ["untimed", "read", 3, "read"]
    assert slot.before.at_s <= slot.after.at_s


def test_threads_of_torch_calm_down_before_those_of_another_runtime(trial, monkeypatch):
    made = trial([9.0, 9.0, 1.0, 2.0], own_threads=True)
    monkeypatch.setattr(latency.time, "sleep", made.device.calls.append)
    assert time_slot(made, 2).latency_ms == [1.0, 2.0]
    untimed = ["untimed"] * 2
    assert made.device.calls == ["reference", latency.SPUN_S, *untimed, "read", 2, "read"]


def test_untimed_iterations_outlast_the_threads_of_the_model_before(trial):
    made = trial([4.0] * 3 + [1.0, 2.0])
    assert time_slot(made, 2).latency_ms == [1.0, 2.0]
    assert made.device.calls == [*["untimed"] * 3, "read", 2, "read"]


def test_a_model_that_ran_last_needs_one_untimed_iteration_less(trial):
    made = trial([1.0, 2.0])
    assert time_slot(made, 2, switched=False).latency_ms == [1.0, 2.0]
    assert made.device.calls == ["read", 2, "read"]


class MarkedDevice(FakeDevice):
    """A clock that each module moves on, and each mark by a tenth of a millisecond."""

    def __init__(self):
        super().__init__([])

    def time(self, step, iterations):
        before = self.now_s
        step()
        return Timing([1000 * (self.now_s - before)])

    def mark(self):
        self.now_s += 0.0001
        return self.now_s

    def between(self, marks):
        return [1000 * (end - start) for start, end in marks]


def test_modules_are_timed_with_all_calls_of_a_step_and_what_the_marks_cost(monkeypatch):
    device = MarkedDevice()
    monkeypatch.setattr(latency.time, "monotonic", lambda: device.now_s)

    class Takes(nn.Module):
        def __init__(self, ms):
            super().__init__()
            self.ms = ms

        def forward(self, x):
            device.now_s += self.ms / 1000
            return x

    twice, once = Takes(2.0), Takes(5.0)
    net = nn.Sequential(twice, nn.Sequential(once), twice)
    made = types.SimpleNamespace(device=device, model=net, step=lambda: net(torch.zeros(1)))
    found = latency.time_modules(made, depth=1)
    assert found.latency_ms == {
        "": pytest.approx(9.7),  # six marks and its own second one
        "0": pytest.approx(4.2),
        "1": pytest.approx(5.1),
    }
    assert found.overhead == pytest.approx(9.7 / 9 - 1)
    assert found.steps >= 10
    assert not any(module._forward_hooks for module in net.modules())


def test_a_module_inside_itself_is_timed_once(monkeypatch):
    device = MarkedDevice()
    monkeypatch.setattr(latency.time, "monotonic", lambda: device.now_s)

    class Twice(nn.Module):
        def forward(self, x):
            device.now_s += 0.001
            return self(x - 1) if x > 0 else x

    net = Twice()
    made = types.SimpleNamespace(device=device, model=net, step=lambda: net(torch.ones(1)))
    assert latency.time_modules(made).latency_ms == {"": pytest.approx(2.3)}


def columns(processes, batch_size=1):
    found = list(summarise(processes, batch_size))
    return {m.name: m.value for m in found}, [w for m in found for w in m.warnings]


def test_columns_follow_from_the_samples():
    samples = Samples(0, [1.0 + 0.001 * i for i in range(59)])
    values, doubts = columns([samples], batch_size=8)
    assert values["latency_ms_median"] == pytest.approx(1.029)
    assert values["latency_ms_lo"] < 1.029 < values["latency_ms_hi"]
    assert values["latency_ms_min"] == 1.0
    assert values["latency_ms_p90"] == pytest.approx(1.0522)
    assert values["latency_ms_p95"] is not None
    assert values["latency_ms_p99"] is None
    assert values["throughput_img_s"] == pytest.approx(8 * 1000 / 1.029)
    assert (values["samples"], values["pairs"]) == (59, 1)
    assert values["host_ms_median"] is None
    assert doubts == []


def test_throughput_is_work_over_time_and_not_the_mean_of_rates():
    values, _ = columns([Samples(0, [1.0, 9.0])])
    assert values["throughput_img_s"] == pytest.approx(2 * 1000 / 10)


@pytest.mark.parametrize(
    ("samples", "flag"),
    [
        (Samples(0, [1.0] * 5), "few_samples"),
        (Samples(0, [1.0] * 28), "few_samples"),
        (Samples(0, [1.0] * 30 + [2.0] * 30), "noisy"),
        (Samples(0, [1.0] * 60, [1.1] * 60), "host_bound"),
        (Samples(0, [1.0] * 60, [0.9] * 60), None),
    ],
)
def test_doubts_become_flags(samples, flag):
    _, doubts = columns([samples])
    assert [d.partition(":")[0] for d in doubts] == ([flag] if flag else [])


class Counter(FakeDevice):
    """A board that uses 3 mJ a millisecond, and tells it."""

    def energy_mj(self):
        return 5000 + round(3000 * self.now_s)


def test_energy_is_the_boards_counter_over_the_images(monkeypatch):
    device = Counter(itertools.repeat(10.0))
    monkeypatch.setattr(energy.time, "monotonic", lambda: device.now_s)
    case = types.SimpleNamespace(workload=types.SimpleNamespace(batch_size=4))
    made = types.SimpleNamespace(device=device, step=device.step, case=case)
    (found,) = energy.energy(made)
    assert (found.name, found.value) == ("energy_mj_img", pytest.approx(30 / 4))
    assert device.now_s >= 2
    device.energy_mj = lambda: None
    assert list(energy.energy(made)) == []
