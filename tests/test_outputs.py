"""How far two runtimes' answers are apart."""

from __future__ import annotations

import math

import pytest
import torch

from datbench.outputs import TOLERANCE, BadOutput, answers, parity


def test_equal_answers_are_not_apart():
    x = torch.randn(2, 5, 3, 3)
    found = parity([x], [x.clone()], "float32")
    assert (found.absolute, found.relative, found.right) == (0.0, 0.0, True)


def test_an_error_counts_by_the_magnitude_of_its_channel():
    boxes, scores = torch.full((1, 4, 9), 640.0), torch.full((1, 80, 9), 1e-3)
    expected = torch.cat((boxes, scores), 1)
    found = expected.clone()
    found[0, 50, 3] *= 1.5  # a millionth of the largest box
    apart = parity([expected], [found], "float32")
    assert apart.relative == pytest.approx(0.5 * 1e-3 / 1e-3, rel=0.01)
    assert not apart.right
    assert "channel 50" in apart.where
    assert [m.name for m in apart.measurements()] == ["parity_abs", "parity_rel"]
    (doubt,) = list(apart.measurements())[1].warnings
    assert doubt.startswith("wrong_output: ")


def test_a_channel_of_nothing_is_measured_by_its_tensor():
    expected = torch.zeros(1, 2, 4)
    expected[0, 0] = 1.0
    found = expected.clone()
    found[0, 1] = 1e-8
    assert parity([expected], [found], "float32").relative == pytest.approx(0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_wrong(bad):
    expected = torch.ones(2, 3)
    found = expected.clone()
    found[0, 0] = bad
    assert not parity([expected], [found], "bfloat16").right


def test_the_tolerance_is_that_of_the_arithmetic():
    expected, found = torch.ones(1, 1, 4), torch.full((1, 1, 4), 1.005)
    right = {dtype: parity([expected], [found], dtype).right for dtype in TOLERANCE}
    assert right == {"float32": False, "float16": True, "bfloat16": True}
    assert parity([expected], [found], "float32", tf32=True).right


def test_other_shapes_are_refused():
    with pytest.raises(BadOutput, match=r"shape \[\(2, 3\)\], eager PyTorch \[\(3, 2\)\]"):
        parity([torch.zeros(3, 2)], [torch.zeros(2, 3)], "float32")


def test_integers_and_empty_tensors_are_compared_too():
    one, two = torch.tensor([[1, 2]]), torch.tensor([[1, 3]])
    assert not parity([one], [two], "float32").right
    assert parity([torch.zeros(0, 6)], [torch.zeros(0, 6)], "float32").right


def test_the_answer_of_a_detector_is_its_first_tensor():
    output = (torch.zeros(1), {"raw": [torch.ones(2)]})
    assert [len(t) for t in answers(output)] == [1, 2]
    assert [len(t) for t in answers(output, first=True)] == [1]
