"""States of single questions, and edits of slots, beside what the student itself computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.engine.prefix import ScenePrefix
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent
from stillroom.students.probe import (
    SlotEdit,
    decoder_layers,
    edited_answers,
    random_slots,
    read_out,
    read_questions,
    require_slots,
    slot_places,
)

#: Questions and answers as ids; answers end with <eos>.
PAIRS = [([40, 41, 42], [50, 2]), ([43, 44], [51, 52, 2]), ([45] * 5, [53, 2])]
QUESTIONS = [question for question, _ in PAIRS]
ANSWERS = [answer for _, answer in PAIRS]
LAYOUTS = [
    {"visibility": visibility, "slot_position": position}
    for visibility in ("prefix", "full_prefix", "causal")
    for position in ("before", "after")
]


Make = Callable[..., Any]


@pytest.fixture
def opened(make_images: Make) -> Make:
    """The scene of a seed, read by a student."""

    def open_scene(student: StillroomStudent, seed: int = 0) -> ScenePrefix:
        with torch.no_grad():
            return student.open_prefix(student.features(make_images(seed=seed)))

    return open_scene


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: "-".join(one.values()))
def test_states_and_answers_are_those_of_the_student_itself(
    layout: dict[str, str], make_student: Make, make_images: Make, make_rows: Make, opened: Make
) -> None:
    student = make_student(**layout)
    readings = read_questions(student, opened(student), QUESTIONS, answers=ANSWERS)
    with torch.no_grad():
        vision = student.vision_tokens(student.features(make_images()))
    for reading, pair in zip(readings, PAIRS, strict=True):
        packed = make_rows(student, [pair])
        with torch.no_grad():
            states = student.packed_states(vision, packed, levels=(0, 1))
            logprobs = student.labelled_logits(states, packed).log_softmax(-1)
        wanted = logprobs.gather(1, torch.tensor(pair[1])[:, None])[:, 0]
        torch.testing.assert_close(reading.answer_logprobs, wanted, rtol=0, atol=2e-5)
        count = len(pair[0]) + student.config.slot_count + 1
        theirs = (states.levels[0][1], states.levels[1][1], states.text)
        for own, other in zip((*reading.levels[:2], reading.levels[-1]), theirs, strict=True):
            torch.testing.assert_close(own, other[0, :count], rtol=0, atol=2e-5)
        assert torch.equal(reading.levels[0][reading.slots], student.slots())
        words = student.get_input_embeddings()(torch.tensor(pair[0]))
        assert torch.equal(reading.levels[0][reading.question], words)
    same = edited_answers(student, opened(student), QUESTIONS, edits=[None] * 3)
    assert same == student.answer_ids(opened(student), QUESTIONS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: "-".join(one.values()))
def test_putting_back_what_was_there_changes_nothing(
    layout: dict[str, str], make_student: Make, opened: Make
) -> None:
    student = make_student(**layout)
    prefix = opened(student)
    readings = read_questions(student, prefix, QUESTIONS, answers=ANSWERS)
    own = [
        SlotEdit(
            embeddings=student.slots(),
            states=lambda layer, _, kept=reading: kept.levels[layer][kept.slots],
        )
        for reading in readings
    ]
    again = read_questions(student, prefix, QUESTIONS, answers=ANSWERS, edits=own)
    for one, other in zip(readings, again, strict=True):
        torch.testing.assert_close(one.levels, other.levels, rtol=0, atol=2e-5)
        torch.testing.assert_close(one.answer_logprobs, other.answer_logprobs, rtol=0, atol=2e-5)
    said = edited_answers(student, prefix, QUESTIONS, edits=own)
    assert said == student.answer_ids(prefix, QUESTIONS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: "-".join(one.values()))
def test_other_states_at_the_slots_reach_the_answer_of_their_question_alone(
    layout: dict[str, str], make_student: Make, opened: Make
) -> None:
    student = make_student(**layout)
    prefix = opened(student)
    plain = read_questions(student, prefix, QUESTIONS, answers=ANSWERS)
    donors = read_questions(student, opened(student, seed=1), QUESTIONS)
    swap = SlotEdit(states=lambda layer, _: donors[1].levels[layer][donors[1].slots])
    edits = [None, swap, None]
    edited = read_questions(student, prefix, QUESTIONS, answers=ANSWERS, edits=edits)
    moved = [
        bool((one.answer_logprobs - other.answer_logprobs).abs().max() > 1e-4)
        for one, other in zip(plain, edited, strict=True)
    ]
    assert moved == [False, True, False]


def test_what_is_put_at_the_slots_is_what_enters_the_layers(
    make_student: Make, opened: Make
) -> None:
    student = make_student()
    (donor,) = read_questions(student, opened(student, seed=1), QUESTIONS[:1])
    entered = []
    norms = [layer.input_layernorm for layer in decoder_layers(student.language_model)]
    prefix = opened(student)
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, given: entered.append(given[0][0]))
    swap = SlotEdit(states=lambda layer, _: donor.levels[layer][donor.slots])
    edited_answers(student, prefix, QUESTIONS[:1], edits=[swap])
    assert len(entered) >= 2
    for level, states in zip(donor.levels, entered[:2], strict=False):
        torch.testing.assert_close(states[donor.slots], level[donor.slots])


def test_through_emptied_slots_nothing_passes(make_student: Make, opened: Make) -> None:
    student = make_student()
    prefix = opened(student)
    drawn = random_slots(student, rng=np.random.default_rng(0))
    kept = [
        SlotEdit(embeddings=slots, states=lambda layer, states: torch.zeros_like(states))
        for slots in (None, drawn)
    ]
    once, twice, plain = (
        read_questions(student, prefix, QUESTIONS[:1], answers=ANSWERS[:1], edits=[edit])[0]
        for edit in (*kept, SlotEdit(embeddings=drawn))
    )
    assert torch.equal(once.answer_logprobs, twice.answer_logprobs)
    assert not torch.allclose(once.answer_logprobs, plain.answer_logprobs)


def test_an_edit_ends_with_its_question(make_student: Make, opened: Make) -> None:
    student = make_student()
    prefix = opened(student)
    before = student.answer_ids(prefix, QUESTIONS)
    empty = SlotEdit(states=lambda layer, states: torch.zeros_like(states))
    edited_answers(student, prefix, QUESTIONS, edits=[empty] * 3)
    assert student.answer_ids(prefix, QUESTIONS) == before


def test_attention_sums_to_one_with_what_is_not_vision(make_student: Make, opened: Make) -> None:
    student = make_student()
    prefix = opened(student)
    (reading,) = read_questions(student, prefix, QUESTIONS[:1], attention=True)
    assert reading.attention is not None
    assert reading.attention.shape == (2, 4, 3, prefix.length)
    mass = reading.attention.sum(-1)
    assert (mass > 0).all()
    assert (mass < 1).all()
    (plain,) = read_questions(student, prefix, QUESTIONS[:1])
    assert plain.attention is None
    torch.testing.assert_close(reading.levels, plain.levels, rtol=0, atol=2e-5)


def test_a_read_out_has_a_token_its_probability_and_the_entropy_of_all(
    make_student: Make, opened: Make
) -> None:
    student = make_student()
    prefix = opened(student)
    words = read_out(student, prefix, QUESTIONS[0])
    assert len(words) == 3
    (reading,) = read_questions(student, prefix, QUESTIONS[:1])
    logits = student.get_output_embeddings()(reading.levels[-1][reading.slots])
    for word, row in zip(words, logits.detach(), strict=True):
        probs = row.double().softmax(-1)
        assert word.token_id == int(probs.argmax())
        assert word.probability == pytest.approx(float(probs.max()), rel=1e-4)
        assert word.entropy == pytest.approx(float(-(probs * probs.log()).sum()), rel=1e-4)
    other = read_out(student, opened(student, seed=1), QUESTIONS[0])
    assert [word.entropy for word in other] != [word.entropy for word in words]


def test_random_slots_are_as_long_as_the_students_own(make_student: Make) -> None:
    student = make_student()
    drawn = random_slots(student, rng=np.random.default_rng(0))
    torch.testing.assert_close(drawn.norm(dim=1), student.slots().norm(dim=1))
    assert not torch.allclose(drawn, student.slots())
    assert torch.equal(drawn, random_slots(student, rng=np.random.default_rng(0)))


def test_a_student_without_slots_is_refused_with_a_sentence(make_student: Make) -> None:
    with pytest.raises(BadInputError, match="no slots"):
        require_slots(make_student(slot_kind="none"), "here")
    assert slot_places(make_student(slot_position="after"), [1, 2]) == slice(2, 5)
