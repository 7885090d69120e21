import pytest

from stillroom.evaluate.letters import (
    cvbench_letter,
    mmvp_letter,
    stated_letter,
    vsi_letter,
    vstar_letter,
)

SIDES = ["left", "right", "front", "back"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. right", "B"),
        ("B) to the right", "B"),
        ("The answer is B", "B"),
        ("So the answer is A, not B.", "A"),
        ("to the right", "B"),
        ("It is behind, that is, back", "D"),
        ("<think>A looks good</think>B", "B"),
        # What names two options, or none, or one that is not there, is no answer.
        ("B. left", None),
        ("A or B", None),
        ("Both A and E", None),
        ("A chair is closer", None),
        ("I cannot tell", None),
        ("E", None),
        ("red", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_letter_is_taken_only_where_it_is_clear(text, letter):
    assert stated_letter(text, SIDES) == letter


def test_the_oddities_of_the_published_rules_are_kept():
    assert vsi_letter("(A)", SIDES) is None
    assert cvbench_letter("The answer is A", SIDES) == "T"
    assert vstar_letter("Brown", SIDES) == "B"
    assert mmvp_letter("a slab", ["yes", "no"]) == "A"
    assert mmvp_letter("the slab", ["yes", "no"]) == "B"
