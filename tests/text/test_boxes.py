"""Boxes that a model says in words: what is one, and what is left of a caption without it."""

import numpy as np
import pytest

from stillroom.teachers.prompts import box_text
from stillroom.text.boxes import boxes_said, caption_and_box

BOX = [0.123, -1.5, 0.4, 0.5, 0.6, 0.7]


def numbers(text: str) -> list[list[float]]:
    return [[*box.center.tolist(), *box.size.tolist()] for box in boxes_said(text)]


@pytest.mark.parametrize(
    "text",
    [
        "[0.123, -1.5, 0.4, 0.5, 0.6, 0.7]",
        "[0.123,-1.5,0.4,0.5,0.6,0.7]",
        "(0.123 -1.5 0.4 0.5 0.6 0.7)",
        "It is localized at [0.123, -1.5, 0.4, 0.5, 0.6, 0.7",
        "[[0.123, \u22121.5, .4, .5, 0.600, 0.7]]",
        "0.123m, -1.5 m, 0.4m, 0.5m, 0.6m, 0.7m",
        "[0.123, -1.5, 0.4, 0.5, 0.6, 0.7, 0.1, 0.2, 0.3]",
        "chair 3: [ 0.123 , -1.5 , 0.4 ,\n0.5 , 0.6 , 0.7 ].",
    ],
)
def test_a_box_is_found_however_it_is_written(text: str) -> None:
    assert numbers(text) == [BOX]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no box here, only 3 chairs",
        "[0.123, -1.5, 0.4, 0.5, 0.6]",
        "[1, 2, 3, 4, 5, 6, 7]",
        "[1, 2, 3, 4, 5, -6]",
        "[1, 2, 3, 4, 5, 0]",
        "version 1.2.3 4 5 6 7 8",
        "9" * 5000,
        " " * 50_000,
        "[" * 50_000,
        "1 " * 50_000,
    ],
)
def test_what_is_no_box_is_none(text: str) -> None:
    assert numbers(text) == []
    assert caption_and_box(text) == (text[:4000].strip(), None)


def test_the_release_s_own_formatter_is_read_back() -> None:
    rows = [BOX, [1.0, 2.0, 3.0, 0.1, 0.2, 0.3]]
    assert numbers(box_text(rows)) == rows


def test_a_caption_stands_before_its_box_or_behind_it() -> None:
    before, box = caption_and_box(
        "A red chair by the wall. It is localized at [0.123, -1.5, 0.4, 0.5, 0.6, 0.7]."
    )
    assert before == "A red chair by the wall."
    np.testing.assert_allclose(box.center, BOX[:3])
    np.testing.assert_allclose(box.size, BOX[3:])
    np.testing.assert_array_equal(box.rotation, np.eye(3))
    behind, _ = caption_and_box("[0.123, -1.5, 0.4, 0.5, 0.6, 0.7] This is a red chair.")
    assert behind == "This is a red chair."
