import pytest

from stillroom.evaluate.numbers import final_part, lmms_number, stated_number, vlmevalkit_number


@pytest.mark.parametrize(
    ("text", "official", "kit", "ours"),
    [
        ("three", 3, 3, 3),
        ("20 m^2", 20, 2, 20),
        ("1e1", 1, 10, 10),
        (".5", 5, 0.5, 0.5),
        ("1/2", 1, 2, 0.5),
        ("twenty-one", 21, -1, 21),
        ("1,200 mm", 1, 200, 1200),
        ("two or three", 2 + 3, 3, None),
        ("2 or 3", 2, 3, None),
        ("3 (three)", 3, 3, 3),
        ("about 80cm", 80, 80, 80),
        ("16 m2", 16, 2, 16),
        ("", None, None, None),
        ("no idea", None, None, None),
        ("1/0", 1, 0, None),
        ("two hundred and five", 205, 5, 205),
    ],
)
def test_each_rule_reads_a_number_in_its_own_way(text, official, kit, ours):
    if text == "two or three":
        official = 2  # the run ends at a word that is no number
    assert lmms_number(text) == official
    assert vlmevalkit_number(text) == kit
    assert stated_number(text) == ours


def test_only_the_conclusion_is_read():
    assert final_part("<think>3 or 4</think> <answer>5</answer> so") == "5"
    assert stated_number("<think>3 or 4</think>\n<answer>5 chairs</answer>") == 5
    assert stated_number("word " * 2_000 + "5") is None
