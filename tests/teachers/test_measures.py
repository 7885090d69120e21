"""The numbers behind answers, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillroom.records import Question
from stillroom.teachers.measures import MEASURES, apart, measure_error, measured
from stillroom.testing import tiny_questions, tiny_scene

ASKED = {q.family: q for q in tiny_questions(tiny_scene(0), count=4)}


def target(question: Question) -> tuple[float, float]:
    found = measured(question)
    assert found is not None
    assert MEASURES[found[0]] == (question.family, question.unit)
    return found[1]


@pytest.mark.parametrize("family", ["proximity", "size"])
def test_a_ratio_has_the_sign_of_the_option_named_first(family: str) -> None:
    question = ASKED[family]
    assert question.answer == question.options[0]
    assert target(question)[0] == pytest.approx(math.log(2.0))
    other = replace(question, answer=question.options[1])
    assert target(other)[0] == pytest.approx(-math.log(2.0))
    plain = replace(question, value=100.0)
    assert target(plain)[0] == 1.5


def test_gaps_angles_and_estimates() -> None:
    assert target(ASKED["contact"])[0] == 0.6
    assert target(replace(ASKED["contact"], value=-0.001))[0] == 0.0
    sine, cosine = target(replace(ASKED["orientation"], value=-90.0))
    assert (sine, cosine) == (pytest.approx(-1.0), pytest.approx(0.0, abs=1e-12))
    long = replace(ASKED["size"], family="object_size_estimation", unit="cm", value=86.0)
    assert target(long)[0] == pytest.approx(math.log(0.86))


def test_what_has_no_number_is_not_measured() -> None:
    assert measured(replace(ASKED["contact"], value=None)) is None
    assert measured(replace(ASKED["contact"], family="obj_appearance_order", unit="views")) is None


def test_names_are_measured_against_those_before_them() -> None:
    table = np.zeros((4, 8))
    table[1, 2:5], table[2, 2:5], table[3, 2:5] = (0, 0, 0), (3, 4, 0), (0, 0, 2)
    # Two tokens for the first name, one for each of the others, the first named again.
    found = apart(table, [1, 1, 2, 3, 1])
    assert all(math.isnan(value) for row in (found[0], found[1], found[4]) for value in row)
    assert found[2][0] == pytest.approx(math.log(5.0))
    assert math.isnan(found[2][1])
    assert found[3] == (pytest.approx(math.log(2.0)), pytest.approx(math.log(29**0.5)))


def test_the_error_is_smooth_l1_and_nothing_where_nothing_is_asked() -> None:
    said = torch.tensor([[0.5, 7.0], [0.05, 1.0]], requires_grad=True)
    truth = torch.tensor([[0.0, math.nan], [0.0, 1.0]])
    error = measure_error(said, truth)
    torch.testing.assert_close(error, torch.tensor([[0.45, 0.0], [0.0125, 0.0]]))
    error.sum().backward()
    assert said.grad is not None
    torch.testing.assert_close(said.grad, torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
