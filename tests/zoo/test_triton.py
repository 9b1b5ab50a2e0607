"""The Triton kernels of deformable attention, without a GPU: what they give, what they need."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo

PROGRAMS = Path(__file__).parent / "triton"
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
CASES = [
    "kernels alone", "version 1", "version 2", "one point", "narrow", "larger than a tile",
    "strided", "table of another size", "version 1, another size", "clamped", "far outside",
    "16 channels", "24 channels", "64 channels", "128 channels", "float16",
]  # fmt: skip
KERNELS = list(
    itertools.product(("forward", "queries", "keys"), ("float32", "float16", "bfloat16"))
)
SOME = [
    ("forward", "bfloat16", 32, 90), ("forward", "float32", 128, 80), ("keys", "float32", 64, 80)
]  # fmt: skip


def used(kernel, dtype):
    """All that runs of a kernel: gradients of 128 channels in float32 are left to the mask."""
    widths = [
        w for w in (16, 24, 32, 64, 128) if (dtype, w) != ("float32", 128) or kernel == "forward"
    ]
    return [(kernel, dtype, width, capability) for width in widths for capability in (80, 90)]


SHARED = 99 * 1024  # bytes of shared memory that a block can have at capability 8.6 and 8.9


def run(program, *arguments, **environment):
    """Run one of the programs and read what it prints."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / program, *arguments], env=os.environ | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def interpreted(request):
    """How far each case that runs is, by its name."""
    names = [
        i.callspec.params["case"] for i in request.session.items if "interpreted" in i.fixturenames
    ]
    found = run("interpreted.py", json.dumps(names), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return {line.pop("case"): line for line in found}


@needs_triton
@pytest.mark.slow(but=CASES[:4])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_the_papers(interpreted, case):
    for against, differences in interpreted[case].items():
        print(case, against, max(differences.values()))
        allowed = 3e-3 if case == "float16" else 1e-5
        assert {name: d for name, d in differences.items() if not d <= allowed} == {}, against


@needs_triton
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(SOME, id="some"),
        *(pytest.param(used(*k), id="-".join(k), marks=pytest.mark.slow) for k in KERNELS),
    ],
)
def test_kernels_compile_and_keep_all_in_registers(asked, tmp_path):
    found = run("compiled.py", json.dumps(asked), TRITON_CACHE_DIR=str(tmp_path))
    for line in found:
        print("|", " | ".join(map(str, line.values())), "|")
        assert line["spilled"] == 0, line
        assert line["shared"] <= SHARED, line
    assert len(found) == len(asked)


@needs_triton
def test_the_operator_is_one_that_torch_can_trace():
    from zoo.blocks import _deformable_triton as kernels

    q, k, v = (torch.randn(2, 4, n, 16, device="meta", requires_grad=True) for n in (12, 9, 9))
    table, queries = torch.randn(4, 7, 5, device="meta"), torch.randn(2, 12, device="meta")
    points = torch.randn(2, 2, 2, 9, device="meta", requires_grad=True)
    out = kernels.attend(q, k, v, table, points, queries, 0.25)
    out.sum().backward()
    assert out.shape == q.shape
    assert points.grad.shape == points.shape


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(zoo.ZooError, match=r"impl='triton' needs Triton, which torch's wheels"):
        zoo.create_block("dat[impl=triton]", 32)
    assert zoo.create_block("dat", 32).impl == "fast"
