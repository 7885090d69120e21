"""The check of made rooms finds every kind of wrong row, and nothing in right ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stillroom.records import Question, Scene
from stillroom.scenes import families, vsi
from stillroom.scenes.balance import Balance
from stillroom.scenes.check_made import check_facts, check_scene
from stillroom.scenes.check_rules import RULES
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.questions import _question, ask_facts
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


# One field at a time. ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_of_each(hand_made_facts: RoomFacts) -> dict[str, Question]:
    """A question of every kind of sentence that the room can be asked."""
    found = {kind: question for kind in RULES for question in made(hand_made_facts, kind)[:1]}
    description = next(q for q in asked(hand_made_facts) if q.family == "description")
    return found | {"description": description}


def made(facts: RoomFacts, kind: str) -> list[Question]:
    """Questions of that kind of sentence that the makers would ask about a room, at most 60."""
    rng = np.random.default_rng(0)
    family = "orientation" if kind in ("left_right", "front_behind") else kind
    candidates = (families.MAKERS | vsi.MAKERS)[family](facts, rng=rng)
    chosen = [candidate for candidate in candidates if candidate.task == kind][:60]
    return [
        replace(_question(facts, candidate, index, rng), question_id=f"{kind}-{index}")
        for index, candidate in enumerate(chosen)
    ]


def test_every_kind_of_sentence_is_there(one_of_each: dict[str, Question]) -> None:
    # Nothing of the room made by hand comes into view after the first photo.
    assert set(one_of_each) == {*RULES, "description"} - {"obj_appearance_order"}


Spoil = Callable[[Question], Question]


def without_sentence(number: int) -> Spoil:
    def spoil(question: Question) -> Question:
        sentences = re.split(r"(?<=\.) (?=[A-Z])", question.rationale)
        del sentences[number]
        return replace(question, rationale=" ".join(sentences))

    return spoil


SPOILS: dict[str, Spoil] = {
    "scene": lambda q: replace(q, scene_id="another"),
    "split": lambda q: replace(q, split="test"),
    "family": lambda q: replace(q, family="size" if q.family != "size" else "contact"),
    "held-out wording": lambda q: replace(q, question=f"{q.question} Really?"),
    "answer": lambda q: replace(q, answer=f"{q.answer}x"),
    "no value": lambda q: replace(q, value=None if q.value is not None else 1.0),
    "value": lambda q: replace(q, value=(q.value or 0.0) + 1e-3),
    "sign": lambda q: replace(q, value=-1.0 - (q.value or 0.0)),
    "unit": lambda q: replace(q, unit="feet"),
    "no margin": lambda q: replace(q, margin=None if q.margin is not None else 1.0),
    "margin": lambda q: replace(q, margin=(q.margin or 0.0) + 1e-3),
    "more ids": lambda q: replace(q, object_ids=(*q.object_ids, 1)),
    "other ids": lambda q: replace(q, object_ids=tuple(i + 1 for i in q.object_ids) or (1,)),
    "options": lambda q: replace(q, options=(*q.options[:-1], "B. a unicorn")),
    "no options": lambda q: replace(q, options=() if q.options else ("yes", "no")),
    "one option twice": lambda q: replace(q, options=(*q.options[1:], *q.options[-1:]) or ("a",)),
    "facts": lambda q: replace(q, facts=q.facts[1:] or (("object", "red table"),)),
    "renderings": lambda q: replace(q, renderings=q.renderings[1:] or ("The room has a box.",)),
    "no rationale": lambda q: replace(q, rationale="" if q.rationale else "So it is."),
    "rationale without its end": lambda q: replace(q, rationale=f"{q.rationale[:-5]}"),
}


@pytest.mark.parametrize("field", sorted(SPOILS))
def test_a_spoilt_field_is_found_in_every_kind_of_question(
    hand_made_facts: RoomFacts, one_of_each: dict[str, Question], field: str
) -> None:
    for kind, question in one_of_each.items():
        spoilt = SPOILS[field](question)
        if spoilt != question:
            (wrong,) = check_facts(hand_made_facts, [spoilt]) or [""]
            assert wrong.startswith(question.question_id), (kind, spoilt)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_sentence_of_a_rationale_is_found(
    hand_made_facts: RoomFacts, one_of_each: dict[str, Question], number: int
) -> None:
    for kind, question in one_of_each.items():
        # A question about the whole room locates nothing.
        if question.rationale and (number < 2 or kind != "room_size_estimation"):
            wrong = check_facts(hand_made_facts, [without_sentence(number)(question)])
            assert "the rationale says" in wrong[0], kind


def test_every_number_of_every_rationale_is_checked(
    hand_made_facts: RoomFacts, one_of_each: dict[str, Question]
) -> None:
    for kind, question in one_of_each.items():
        text = question.rationale
        for number in re.finditer(r"\d+(\.\d+)?", text):
            last = number.end() - 1
            # By two: half a unit may be rounded either way.
            other = f"{text[:last]}{(int(text[last]) + 2) % 10}{text[last + 1 :]}"
            assert check_facts(hand_made_facts, [replace(question, rationale=other)]), (kind, other)


@pytest.mark.parametrize(
    ("kind", "word", "other"),
    [
        ("proximity", "From the", "Behind the"),
        ("contact", "The gap is", "Their surfaces touch at"),
        ("contact", "Their surfaces touch", "The gap is 0.0 m"),
        ("size", "fills", "weighs"),
        ("left_right", "to the right", "to the left"),
        ("front_behind", "ahead", "behind"),
        ("object_rel_direction_easy", "to the left", "to the right"),
        ("object_rel_direction_easy", "to the right", "to the left"),
        ("object_rel_direction_medium", "degrees to the", "metres to the"),
        ("object_rel_direction_hard", "to the left", "to the right"),
        ("route_planning", "to the left", "to the right"),
        ("route_planning", "to the right", "to the left"),
    ],
)
def test_a_turned_word_of_a_rationale_is_found(
    hand_made_facts: RoomFacts, kind: str, word: str, other: str
) -> None:
    with_it = [q for q in made(hand_made_facts, kind) if word in q.rationale][:5]
    assert with_it
    turned = [replace(q, rationale=q.rationale.replace(word, other)) for q in with_it]
    wrong = check_facts(hand_made_facts, turned)
    assert len(wrong) == len(turned)
    assert all("geometry says" in line for line in wrong)


def test_the_order_of_appearance_is_checked_with_its_options(hand_made_room: Scene) -> None:
    facts = appearing(hand_made_room)
    question = made(facts, "obj_appearance_order")[0]
    assert check_facts(facts, [question]) == []
    letters = [option[:3] for option in question.options]
    orders = [option[3:].split(", ") for option in question.options]
    strange = [["red table", *order[1:]] for order in orders]
    assert check_facts(
        facts,
        [
            replace(
                question,
                options=tuple(a + ", ".join(o) for a, o in zip(letters, strange, strict=True)),
            )
        ],
    )
    for field, spoil in SPOILS.items():
        assert check_facts(facts, [spoil(question)]), field
    order = question.rationale.replace("order ", "order red table, ")
    assert check_facts(facts, [replace(question, rationale=order)])


def appearing(scene: Scene) -> RoomFacts:
    """The room as if its things came into view one after another."""
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    count = len(facts.things)
    share = np.full((count + 1, count), 0.01)
    for thing in range(count):
        share[:thing, thing] = 0.0
    return with_facts(facts, pixel_share=share)


def with_facts(facts: RoomFacts, **known: np.ndarray) -> RoomFacts:
    """The same room with some of what is measured replaced."""
    changed = RoomFacts(scene=facts.scene, distance=facts.distance)
    vars(changed).update(known)
    return changed


# What a case must be like to be asked. -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "module", "lax", "complaint"),
    [
        ("proximity", families, {"PROXIMITY_RATIO": 1.0}, "at least 1.3"),
        ("proximity", families, {"PROXIMITY_LEAST_M": -1.0}, "too near"),
        ("size", families, {"SIZE_RATIO": 1.0}, "at least 1.25"),
        ("left_right", families, {"BEARING_DEG": 0.0}, "at least 10"),
        ("front_behind", families, {"AHEAD_M": 0.0}, "at least 0.3"),
        ("object_rel_direction_easy", vsi, {"STANDING_M": 0.0}, "at least 0.5 m"),
        ("object_rel_direction_medium", vsi, {"STANDING_M": 0.0}, "at least 0.5 m"),
        ("object_rel_direction_hard", vsi, {"STANDING_M": 0.0}, "at least 0.5 m"),
        (
            "route_planning",
            vsi,
            {"STANDING_M": 0.0, "free_way": lambda *_: True},
            "at least 0.5 m",
        ),
        ("object_rel_direction_easy", vsi, {"BEARING_DEG": 0.0}, "no clear direction"),
        ("object_rel_direction_medium", vsi, {"BEARING_DEG": 0.0}, "no clear direction"),
        ("object_rel_direction_hard", vsi, {"BEARING_DEG": 0.0}, "no clear direction"),
        ("object_rel_distance", vsi, {"PROXIMITY_RATIO": 1.0}, "at least 1.3"),
        ("object_rel_distance", vsi, {"PROXIMITY_LEAST_M": -1.0}, "too near"),
        ("object_abs_distance", vsi, {"LEAST_DISTANCE_M": -1.0}, "at least 0.3"),
        ("route_planning", vsi, {"free_way": lambda *_: True}, "something stands between"),
        ("route_planning", vsi, {"turn_said": lambda turn: "Turn Left"}, "no clear turn"),
    ],
)
def test_a_case_that_is_not_clear_is_found(
    hand_made_facts: RoomFacts,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    module: ModuleType,
    lax: dict[str, Any],
    complaint: str,
) -> None:
    strict = made(hand_made_facts, kind)
    assert check_facts(hand_made_facts, strict) == []
    for name, value in lax.items():
        monkeypatch.setattr(module, name, value)
    with np.errstate(divide="ignore"):
        wrong = check_facts(hand_made_facts, made(hand_made_facts, kind))
    assert any(complaint in line for line in wrong), wrong


@pytest.mark.parametrize("kind", ["room_size_estimation", "route_planning"])
def test_rooms_that_may_lack_a_corner_have_no_size_and_no_ways(
    hand_made_facts: RoomFacts, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scene = replace(hand_made_facts.scene, split="shifted")
    shifted = RoomFacts(scene=scene, distance=hand_made_facts.distance)
    monkeypatch.setattr(vsi, "rectangular", lambda facts: True)
    questions = made(shifted, kind)
    assert len(check_facts(shifted, questions)) == len(questions) > 0


@pytest.mark.parametrize(
    ("kind", "measured", "complaint"),
    [
        ("size", "bulky", "flat"),
        ("left_right", "bulky", "flat"),
        ("object_rel_direction_hard", "bulky", "flat"),
        ("route_planning", "bulky", "flat"),
        ("proximity", "shown", "not seen well"),
        ("object_counting", "shown", "not seen well"),
        ("object_size_estimation", "shown", "not seen well"),
        ("contact", "together", "no view shows both"),
        ("contact", "gap_seen", "no view shows the gap"),
    ],
)
def test_what_the_photos_do_not_show_is_found(
    hand_made_facts: RoomFacts, kind: str, measured: str, complaint: str
) -> None:
    questions = made(hand_made_facts, kind)
    known = getattr(hand_made_facts, measured)
    none = known[:0] if known.ndim == 1 else np.zeros_like(known)
    wrong = check_facts(with_facts(hand_made_facts, **{measured: none}), questions)
    assert wrong
    assert all(complaint in line for line in wrong)


@pytest.mark.parametrize("kind", ["left_right", "front_behind"])
def test_things_behind_the_first_camera_are_found(
    hand_made_facts: RoomFacts, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(families, "BEFORE_M", -10.0)
    back = with_facts(hand_made_facts, center=hand_made_facts.center - np.array([0.0, 2.6, 0.0]))
    wrong = check_facts(back, made(back, kind))
    assert wrong
    assert all("before the first camera" in line for line in wrong)


def test_things_that_nearly_touch_are_found(
    hand_made_facts: RoomFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "CONTACT_GAP_M", 0.0)
    away = np.minimum(hand_made_facts.distance, 0.06)
    near = RoomFacts(scene=hand_made_facts.scene, distance=away)
    apart = [question for question in made(near, "contact") if question.answer == "no"]
    wrong = check_facts(near, apart)
    assert len(wrong) == len(apart) > 0
    assert all("at least 0.1 is required" in line for line in wrong)


def test_one_of_a_kind_is_not_counted(hand_made_facts: RoomFacts) -> None:
    (question,) = made(hand_made_facts, "object_counting")
    sofa = replace(question, question=question.question.replace("chair", "sofa"), object_ids=(5,))
    assert "two or more" in check_facts(hand_made_facts, [sofa])[0]


def test_two_things_of_one_name_are_found(hand_made_facts: RoomFacts) -> None:
    scene = hand_made_facts.scene
    twin = replace(scene.objects[3], name=scene.objects[2].name)
    objects = (*scene.objects[:3], twin, *scene.objects[4:])
    facts = RoomFacts(scene=replace(scene, objects=objects), distance=hand_made_facts.distance)
    assert "2 things are called 'blue chair'" in check_facts(facts, [])[0]


def shorter(question: Question) -> Question:
    """A description that leaves its last relation out, everywhere."""
    texts = tuple(text[: text[:-1].rindex(". ") + 1] for text in question.renderings)
    return replace(question, answer=texts[0], renderings=texts, facts=question.facts[:-1])


@pytest.mark.parametrize(
    ("family", "spoil", "complaint"),
    [
        ("size", lambda q: replace(q, options=q.options[::-1]), "the options are"),
        ("contact", lambda q: replace(q, question="Is it so?"), "none of this family's"),
        (
            "size",
            lambda q: replace(q, question="Which is bigger, the red table or the pink cow?"),
            "pink cow",
        ),
        (
            "size",
            lambda q: replace(q, question="Which is bigger, the red table or the red table?"),
            "named twice",
        ),
        ("description", lambda q: replace(q, facts=q.facts[1:]), "stored facts"),
        (
            "description",
            lambda q: replace(
                q, answer="The room has a red table.", renderings=("The room has a red table.",)
            ),
            "words",
        ),
        ("description", lambda q: replace(q, answer=q.renderings[1]), "not the first rendering"),
        ("description", lambda q: replace(q, question="Describe."), "none of this family's"),
        ("description", shorter, "not those that a description"),
    ],
)
def test_a_spoilt_row_is_named_with_its_fault(
    hand_made_facts: RoomFacts, family: str, spoil: Spoil, complaint: str
) -> None:
    question = next(q for q in asked(hand_made_facts) if q.family == family)
    (wrong,) = check_facts(hand_made_facts, [spoil(question)])
    assert complaint in wrong
    assert wrong.startswith(question.question_id)


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
