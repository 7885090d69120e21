"""The check of made rooms finds every kind of wrong row, and nothing in right ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from stillroom.records import Question, Scene
from stillroom.scenes.balance import Balance
from stillroom.scenes.check_made import check_facts, check_scene
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.questions import ask_facts
from stillroom.scenes.wording import VSI_WORDING


def asked(facts: RoomFacts, seed: int = 0) -> list[Question]:
    rng = np.random.default_rng(seed)
    questions = ask_facts(facts, count=40, balance=Balance({}), rng=rng)
    assert questions is not None
    return questions


def test_right_questions_pass_in_all_splits(hand_made_facts: RoomFacts) -> None:
    for split in ("train", "shifted"):
        scene = replace(hand_made_facts.scene, split=split)
        facts = RoomFacts(scene=scene, distance=hand_made_facts.distance)
        for seed in range(2):
            assert check_facts(facts, asked(facts, seed)) == []


def test_all_vsi_tasks_of_the_room_are_checked(hand_made_facts: RoomFacts) -> None:
    seen = {q.family for seed in range(5) for q in asked(hand_made_facts, seed)}
    assert len(seen & set(VSI_WORDING)) >= 8


def other_answer(question: Question) -> Question:
    """The same question with another of its options as the answer, its rationale too."""
    letters = question.options[0].startswith("A. ")
    choices = [o[0] for o in question.options] if letters else list(question.options)
    wrong = next(choice for choice in choices if choice != question.answer)
    return replace(
        question,
        answer=wrong,
        rationale=question.rationale.replace(
            f"So the answer is {question.answer}.", f"So the answer is {wrong}."
        ),
    )


def test_every_wrong_choice_is_found(hand_made_facts: RoomFacts) -> None:
    for seed in range(2):
        questions = asked(hand_made_facts, seed)
        choices = [question for question in questions if question.options]
        wrong = check_facts(hand_made_facts, [other_answer(question) for question in choices])
        assert len(wrong) == len(choices)
        assert all("geometry says" in sentence for sentence in wrong)


def test_every_wrong_number_is_found(hand_made_facts: RoomFacts) -> None:
    questions = [q for seed in range(4) for q in asked(hand_made_facts, seed)]
    numbers = {q.question_id: q for q in questions if q.family in VSI_WORDING and not q.options}
    wrong = [replace(q, answer=f"{float(q.answer) + 1:g}") for q in numbers.values()]
    assert wrong
    assert len(check_facts(hand_made_facts, wrong)) == len(wrong)


Spoil = Callable[[Question], Question]


@pytest.mark.parametrize(
    ("family", "spoil", "complaint"),
    [
        ("size", lambda q: replace(q, margin=q.margin + 0.01), "margin"),
        ("size", lambda q: replace(q, options=q.options[::-1]), "the options are"),
        ("contact", lambda q: replace(q, question="Is it so?"), "none of this family's"),
        (
            "size",
            lambda q: replace(q, question="Which is bigger, the red table or the pink cow?"),
            "pink cow",
        ),
        (
            "proximity",
            lambda q: replace(q, rationale="I find it. So the answer is nothing."),
            "concludes something else",
        ),
        (
            "proximity",
            lambda q: replace(q, rationale=q.rationale.replace("at (", "at (9")),
            "off its place",
        ),
        ("description", lambda q: replace(q, facts=q.facts[1:]), "stored facts"),
        ("description", lambda q: replace(q, answer="The room has a red table."), "words"),
    ],
)
def test_a_spoilt_row_is_named_with_its_fault(
    hand_made_facts: RoomFacts, family: str, spoil: Spoil, complaint: str
) -> None:
    question = next(q for q in asked(hand_made_facts) if q.family == family)
    wrong = check_facts(hand_made_facts, [spoil(question)])
    if family == "size" and "pink cow" in complaint:
        assert any("cow" in sentence or "options" in sentence for sentence in wrong)
    else:
        assert any(complaint in sentence for sentence in wrong)
    assert all(question.question_id in sentence for sentence in wrong)


def test_a_moved_object_is_found_by_measuring_anew(hand_made_room: Scene) -> None:
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=hand_made_room, distance=surface_distances(hand_made_room.objects))
    questions = asked(facts)
    assert check_scene(hand_made_room, questions) == []
    box = hand_made_room.objects[1]
    aside = np.array([0.0, 0.0, 0.5])
    parts = tuple(replace(part, center=part.center + aside) for part in box.parts)
    lifted = replace(box, parts=parts, box=replace(box.box, center=box.box.center + aside))
    objects = (hand_made_room.objects[0], lifted, *hand_made_room.objects[2:])
    about_box = [q for q in questions if box.name in q.question]
    assert about_box
    assert check_scene(replace(hand_made_room, objects=objects), about_box)


def test_two_questions_with_one_id_are_found(hand_made_facts: RoomFacts) -> None:
    question = asked(hand_made_facts)[0]
    assert any("2 questions" in line for line in check_facts(hand_made_facts, [question] * 2))
