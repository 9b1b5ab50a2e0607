"""Where a worker's memory lies: drawn, taken, recorded, and told where it matters."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import subprocess
import sys

import pytest

from datbench.arms import layout_doubt
from datbench.memory_layout import LINE, PAGE, draw
from datbench.metrics.latency import Samples
from datbench.pool import KEEPING

FORKED = """
import json, os, sys
import torch
from datbench.memory_layout import draw, occupy
{imports}

def ask(how, size):
    for number in range(12):
        child = os.fork()
        if not child:
            kept = occupy(draw(number)) if how == "drawn" else None
            os.write(1, b"%d\\n" % {address})
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

for word in sys.argv[1:]:
    how, _, size = word.partition(" ")
    ask(how, int(size))
"""
ADDRESSES = {
    "eager": ("", "torch.nn.Linear(size, size).weight.data_ptr()"),
    "onnxruntime": (
        "import numpy, onnxruntime",
        "onnxruntime.OrtValue.ortvalue_from_shape_and_type([size, size], numpy.float32).data_ptr()",
    ),
    "openvino": (
        "import openvino",
        "openvino.Tensor(openvino.Type.f32, openvino.Shape([size, size])).data.ctypes.data",
    ),
}


def test_the_same_draw_for_the_same_seed_and_another_for_another():
    assert draw(0, "run", 1, "dat_tiny") == draw(0, "run", 1, "dat_tiny")
    others = [draw(0, "run", 1, "dat_tiny#2"), draw(0, "run", 2, "dat_tiny"), draw(1, "run", 1)]
    assert len({draw(0, "run", 1, "dat_tiny"), *others}) == 4


def test_every_place_in_a_page_is_drawn():
    drawn = [draw(number) for number in range(1000)]
    assert {layout.heap // LINE % (PAGE // LINE) for layout in drawn} == {*range(PAGE // LINE)}
    assert all(layout.heap % LINE == 0 and layout.mapped % PAGE == 0 for layout in drawn)
    assert {len(layout.gaps) for layout in drawn} >= {0, 2, 4, 6, 8}
    assert all(len(layout.gaps) % 2 == 0 for layout in drawn)
    assert all(size % 512 == 0 for layout in drawn for size in layout.device)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("runtime", ADDRESSES)
def test_processes_of_one_server_lie_alike_without_a_draw_and_apart_with_it(runtime):
    if runtime != "eager":
        pytest.importorskip(runtime)
    imports, address = ADDRESSES[runtime]

    program = FORKED.format(imports=imports, address=address)
    asked = ["plain 64", *(f"drawn {size}" for size in (16, 64, 700))]  # room was left for some
    done = subprocess.run(
        [sys.executable, "-c", program, *asked], env={**os.environ, **KEEPING},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places = [json.loads(line) % PAGE // LINE for line in done.stdout.splitlines()]
    plain, *drawn = (set(places[i : i + 12]) for i in range(0, 48, 12))
    assert len(places) == 48
    assert len(plain) == 1  # this is what draws are for
    assert min(map(len, drawn)) >= 7


def timed(medians, within=0.001, rounds=4):
    """An arm whose process of each pair has slots around a median; its ratios to 10 ms."""
    rng = random.Random(0)
    processes, differences = [], []
    for pair, median in enumerate(medians):
        samples = Samples(pair)
        for _ in range(2 * rounds):
            samples.take([median * math.exp(rng.gauss(0, within))] * 3, None, None)
        processes.append(samples)
        logs = [math.log(median / 10) + rng.gauss(0, within) for _ in range(rounds)]
        differences.append(logs)
    return Arm(processes, differences)


@dataclasses.dataclass
class Arm:
    processes: list[Samples]
    differences: list[list[float]]


LOTTERY, STEADY = (19.0, 27.0, 19.5, 26.0, 19.1, 25.0), (10.0, 10.1, 9.9, 10.05, 10.0, 9.95)


def test_a_model_that_is_fast_or_slow_by_its_layout_says_so():
    arm = timed(LOTTERY)
    for compared in ([arm], []):
        (doubt,) = layout_doubt(arm, compared)
        assert doubt.startswith("layout_sensitive: 19 ms in the fastest of 6 layouts of its memory")
        assert doubt.endswith("27 ms in the slowest")


@pytest.mark.parametrize(
    ("arm", "compared"),
    [
        pytest.param(timed(STEADY), [timed(STEADY)], id="steady"),
        pytest.param(timed(LOTTERY), [timed(STEADY)], id="the machine drifts for both"),
        pytest.param(timed(LOTTERY, within=0.9), [timed(LOTTERY, within=0.9)], id="noise"),
        pytest.param(timed(LOTTERY[:2]), [timed(LOTTERY[:2])], id="two processes tell nothing"),
    ],
)
def test_what_else_makes_processes_differ_is_no_layout(arm, compared):
    assert list(layout_doubt(arm, compared)) == []


def test_a_baseline_is_sensitive_if_all_that_is_compared_with_it_says_so():
    baseline = timed(LOTTERY)
    assert list(layout_doubt(baseline, [timed(LOTTERY), timed(LOTTERY[::-1])]))
    assert not list(layout_doubt(baseline, [timed(LOTTERY), timed(STEADY)]))
