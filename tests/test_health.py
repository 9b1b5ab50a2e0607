"""The machine's health, from files of a made-up kernel and answers of a made-up driver."""

from __future__ import annotations

import pytest

from datbench import health


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Findings by name: found({"cpu0/cpufreq/scaling_governor": "powersave"})."""
    monkeypatch.setattr(health, "CPUS", tmp_path)

    def look(files, load=0.0, quota=None):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        monkeypatch.setattr(health.os, "getloadavg", lambda: (load, 0, 0), raising=False)
        monkeypatch.setattr(health.os, "cpu_count", lambda: 8)
        monkeypatch.setattr(health, "cpu_quota", lambda: quota)
        return {finding.what: finding for finding in health.host(threads=4)}

    return look


def test_a_steady_machine_needs_nothing(found):
    seen = found({"cpu0/cpufreq/scaling_governor": "performance", "cpufreq/boost": "0"})
    for name in ("frequency governor", "turbo", "load of the last minute", "CPU quota"):
        assert seen[name].advice == "", name


@pytest.mark.parametrize(
    ("files", "options", "name", "said", "advised"),
    [
        ({"cpu0/cpufreq/scaling_governor": "powersave"}, {}, "frequency governor", "powersave",
         "cpupower"),
        ({"cpufreq/boost": "1"}, {}, "turbo", "on", "heat"),
        ({"intel_pstate/no_turbo": "0"}, {}, "turbo", "on", "heat"),
        ({"intel_pstate/no_turbo": "1"}, {}, "turbo", "off", ""),
        ({}, {}, "turbo", "not visible", ""),
        ({}, {"load": 3.0}, "load of the last minute", "3.00", "close"),
        ({}, {"quota": 2}, "CPU quota", "2 cores", "--threads 2"),
        ({}, {"quota": 8}, "CPU quota", "8 cores", ""),
    ],
)  # fmt: skip
def test_what_makes_times_unsteady_is_told(found, files, options, name, said, advised):
    finding = found(files, **options)[name]
    assert finding.found == said
    assert advised in finding.advice
    assert bool(finding.advice) == bool(advised)


def test_a_gpu_tells_its_clocks_and_settings():
    state = {
        "persistence_mode": 0, "sm_clock_mhz": 345, "sm_clock_most_mhz": 1980,
        "power_limit_w": 700.0, "mig": False,
        "throttled": "the temperature",
    }  # fmt: skip
    seen = {finding.what: finding for finding in health.gpu(state)}
    assert "nvidia-smi -pm 1" in seen["persistence mode"].advice
    assert seen["GPU clock"].found == "now 345, at most 1980 MHz"
    assert seen["clocks held down by"].found == "the temperature"
    assert seen["power limit"].found == "700 W"
    assert list(health.gpu({})) == []


def test_a_driver_that_tells_nothing_is_no_error():
    state = dict.fromkeys(("persistence_mode", "sm_clock_mhz", "throttled", "mig"))
    assert {finding.found for finding in health.gpu(state)} >= {"not visible", "nothing"}
