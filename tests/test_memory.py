"""Memory on the CPU against counts done by hand."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from datbench.device import MIB, CpuDevice
from datbench.metrics.memory import memory
from datbench.metrics.params import params
from datbench.trial import Trial


def mib(n):
    return torch.empty(n * MIB // 4)


def chain():
    a = mib(4)
    b = mib(2)
    del a
    return b, mib(1)


@pytest.mark.parametrize(
    ("step", "peak_mib"),
    [
        pytest.param(lambda: None, 0, id="nothing"),
        pytest.param(lambda: mib(3), 3, id="one tensor"),
        pytest.param(lambda: (mib(3), mib(2)), 5, id="two alive together"),
        pytest.param(lambda: [mib(3) for _ in range(1)] and mib(2), 3, id="one after the other"),
        pytest.param(chain, 6, id="the peak is before the end"),
    ],
)
def test_peak_is_the_most_alive_at_once(step, peak_mib):
    resident = 7 * MIB
    found = {m.name: m.value for m in CpuDevice().memory(step, resident)}
    assert found["peak_allocated_mib"] == pytest.approx(7 + peak_mib, abs=1e-3)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return x + self.two(self.one(x))


def sequence():
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    net.register_buffer("table", torch.zeros(1000))
    return net


# The widest moment of each, in elements: a layer's output beside its ReLU; two layers' outputs;
# the sum of the residual beside the branch.
@pytest.mark.parametrize(
    ("make", "shape", "weights", "widest"),
    [
        pytest.param(
            sequence, (512, 64), 64 * 256 + 256 + 256 * 8 + 8 + 1000, 2 * 512 * 256, id="sequence"
        ),
        pytest.param(
            lambda: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=4)),
            (2, 3, 64, 64), 0, 2 * 3 * 32 * 32 + 2 * 3 * 128 * 128, id="pooling",
        ),
        pytest.param(Residual, (256, 32), 2 * (32 * 32 + 32), 2 * 256 * 32, id="residual"),
    ],
)  # fmt: skip
def test_networks_by_hand(make, shape, weights, widest):
    net, x = make(), torch.randn(*shape)

    def step():
        with torch.inference_mode():
            return net(x)

    found = {m.name: m.value for m in memory(Trial(None, net, x, step, CpuDevice()))}
    resident = 4 * weights + x.nbytes
    assert found["weights_mib"] * MIB == 4 * weights
    assert found["allocated_before_mib"] * MIB == resident
    assert found["peak_allocated_mib"] * MIB == pytest.approx(resident + 4 * widest, rel=0.01)
    assert found["activations_mib"] * MIB == pytest.approx(4 * widest, rel=0.02)


def test_what_a_step_leaves_behind_shows():
    kept = []
    found = {m.name: m.value for m in CpuDevice().memory(lambda: kept.append(mib(2)), 5 * MIB)}
    assert found["allocated_before_mib"] == 5
    assert found["allocated_after_mib"] == pytest.approx(7, abs=1e-3)


def test_resident_memory_peaks_with_a_large_tensor():
    def step():
        return torch.ones(512 * MIB // 4).sum()

    device = CpuDevice()
    small = {m.name: m.value for m in device.memory(lambda: None, 0)}["rss_peak_mib"]
    large = {m.name: m.value for m in device.memory(step, 0)}["rss_peak_mib"]
    assert large - small > 400  # the kernel counts in batches on each core, and may be behind


def test_shared_parameters_count_once_and_frozen_ones_apart():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    net[1].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    found = {m.name: m.value for m in params(types.SimpleNamespace(model=net))}
    assert found == {"params": 16 + 8, "params_trainable": 16 + 4}
