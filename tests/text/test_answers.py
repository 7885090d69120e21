import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.text.answers import (
    lettered,
    official_letter,
    official_number,
    option_index,
    spoken,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"
NAMES = ("red chair", "table lamp")


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("red chair", NAMES, 0),
        ("The Red Chair.", NAMES, 0),
        ("It is the table lamp", NAMES, 1),
        ("Yes, they touch.", ("yes", "no"), 0),
        ("No", ("yes", "no"), 1),
        # "table lamp" must not count as a mention of "table".
        ("the table lamp", ("table", "table lamp"), 1),
        ("the table", ("table", "table lamp"), 0),
        # Both named: what is meant depends on the sentence, so nothing is guessed.
        ("the red chair is smaller than the table lamp", NAMES, None),
        ("left or right", ("left", "right"), None),
        ("to the right, not to the left", ("left", "right"), 1),
        ("not left", ("left", "right"), None),
        ("left, I think, though right is possible", ("left", "right"), 0),
        ("b", NAMES, 1),
        ("(B)", NAMES, 1),
        ("E", NAMES, None),
        ("in front of", ("in front of", "behind"), 0),
        ("In front of it", ("in front of", "behind"), 0),
        # "yesterday" is not "yes".
        ("yesterday", ("yes", "no"), None),
        ("", NAMES, None),
        ("🪑", NAMES, None),
        ("three", NAMES, None),
    ],
)
def test_an_option_is_found_in_an_answer(text, options, index):
    assert option_index(text, options) == index


def test_two_equal_options_are_never_told_apart():
    assert option_index("mug", ("mug", "mug")) is None


def test_lettered_options_are_spoken_by_letter_and_plain_ones_by_text():
    assert lettered(("A. chair", "B. lamp"))
    assert not lettered(("A. chair", "C. lamp"))
    assert not lettered(())
    assert spoken(("A. chair", "B. lamp"), 1) == "B"
    assert spoken(NAMES, 1) == "table lamp"


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("b", "B"), ("C.", "C"), ("A. chair", "A"), ("(A)", "(A)"), ("The answer", "THE")],
)
def test_the_official_letter_is_the_first_piece(text, letter):
    assert official_letter(text) == letter


def test_official_numbers_match_the_recorded_scorer():
    pairs = json.loads((FIXTURES / "vsi_numeric.json").read_text())["pairs"]
    assert len(pairs) == 34
    for pair in pairs:
        recorded = pair["scorers"]["vsi_official_2024"]["extracted"]
        assert official_number(pair["prediction"]) == recorded, pair["prediction"]


@given(text=st.text(), options=st.lists(st.text(), max_size=5))
def test_no_text_makes_parsing_raise(text, options):
    index = option_index(text, options)
    assert index is None or 0 <= index < len(options)
    official_number(text)
    official_letter(text)


@given(options=st.lists(st.text(), max_size=5))
def test_an_empty_answer_never_names_an_option(options):
    assert option_index("", options) is None


def test_a_page_of_text_is_read_quickly():
    assert option_index("chair " * 20_000, NAMES) is None
