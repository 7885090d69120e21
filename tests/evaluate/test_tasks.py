from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.evaluate.tasks import SCORERS, kind_of, score
from stillroom.records import Question, asked

SIZE = Question(
    scene_id="s",
    question_id="q",
    split="test",
    family="size",
    question="Which is bigger, the red chair or the mug?",
    answer="red chair",
    options=("red chair", "mug"),
)
DIRECTION = replace(
    SIZE,
    family="object_rel_direction_easy",
    options=("A. left", "B. right"),
    answer="B",
)
COUNT = replace(SIZE, family="object_counting", options=(), answer="4", value=4.0)
DESCRIPTION = replace(
    SIZE,
    family="description",
    options=(),
    answer="a red chair beside a mug",
    renderings=("beside a mug stands a red chair",),
    facts=(("object", "red chair"), ("object", "mug")),
)
ALL = (SIZE, DIRECTION, COUNT, DESCRIPTION, replace(SIZE, family="free", options=(), answer="oak"))


@pytest.mark.parametrize(
    ("question", "text", "value"),
    [
        (SIZE, "red chair", 1.0),
        (SIZE, "The red chair.", 1.0),
        (SIZE, "the mug", 0.0),
        (SIZE, "A", 1.0),
        (SIZE, "hard to say", 0.0),
        (DIRECTION, "B", 1.0),
        (DIRECTION, "b.", 1.0),
        (DIRECTION, "(B)", 0.0),
        (DIRECTION, "right", 0.0),
        (DIRECTION, "A", 0.0),
        (replace(DIRECTION, answer="right"), "B", 1.0),
        (COUNT, "4", 1.0),
        (COUNT, "four", 0.0),
        (COUNT, "5", 0.6),
        (DESCRIPTION, "beside a mug stands a red chair", 1.0),
        (DESCRIPTION, "", 0.0),
        (ALL[-1], "Oak!", 1.0),
    ],
)
def test_an_answer_gets_its_score(question, text, value):
    assert score(question, text).score == pytest.approx(value)


def test_what_cannot_be_parsed_is_wrong_and_says_so():
    for question in (SIZE, DIRECTION, COUNT):
        assert score(question, "perhaps").parsed is None
        assert score(question, "perhaps").score == 0.0


def test_every_item_names_its_scorer():
    assert score(DIRECTION, "B").scorer == SCORERS["letter"]
    assert {kind_of(question) for question in ALL} == set(SCORERS) - {"unknown"}


def test_a_persons_question_has_no_score():
    assert score(asked("s", "Where is the cat?"), "there").score is None


@pytest.mark.parametrize("question", ALL, ids=lambda question: question.family)
def test_the_truth_scores_one(question):
    assert score(question, question.answer).score == 1.0


@pytest.mark.parametrize("question", ALL, ids=lambda question: question.family)
@given(text=st.text())
def test_no_answer_makes_a_scorer_raise(question, text):
    value = score(question, text).score
    assert value is not None
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize("question", ALL, ids=lambda question: question.family)
@pytest.mark.parametrize("text", ["", " \n", "🪑", "word " * 20_000])
def test_empty_answers_and_essays_never_score_as_right(question, text):
    assert score(question, text).score < 0.5
