"""What stands at the slots under each intervention, on a tiny student with large slots."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_ablation import TINY

from stillroom.bench.interventions import Intervened, RememberingAnswerer, answer_nats
from stillroom.distill.build import build_student
from stillroom.distill.config import SlotConfig
from stillroom.records import BadInputError, Question
from stillroom.scenes.store import SceneStore, open_store
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.probe import SlotEdit, read_questions
from stillroom.students.session import StudentAnswerer


def built(world: Path, *, slots: int = 3) -> RememberingAnswerer:
    config = replace(TINY, slots=SlotConfig(count=slots), encoder=str(world / "encoder"))
    student, processor = build_student(config, world / "encoder")
    with torch.no_grad():  # so large that what stands there matters
        for parameter in student.slots.parameters():
            parameter.mul_(50)
    return RememberingAnswerer(StudentAnswerer(student, processor))


@pytest.fixture(scope="module")
def student(world: Path) -> RememberingAnswerer:
    return built(world)


@pytest.fixture(scope="module")
def store(world: Path) -> SceneStore:
    return open_store(world / "scenes")


def asked(store: SceneStore) -> tuple[list[str], list[Question]]:
    ids = store.scene_ids("test")
    return ids, store.questions(ids[0])


def nats_of(answerer: RememberingAnswerer, store: SceneStore, kind: str) -> list[np.ndarray]:
    ids, questions = asked(store)
    answers = [answerer.processor.tokenizer.encode_answer(q.answer) for q in questions]
    by = Intervened(answerer, kind, store, ids, seed=0)  # type: ignore[arg-type]
    return by.open(store.scene(ids[0])).answer_nats(questions, answers)


def test_zeroed_slots_are_those_of_a_student_whose_slots_are_zero(
    student: RememberingAnswerer, store: SceneStore
) -> None:
    ids, questions = asked(store)
    empty = copy.deepcopy(student.student)
    with torch.no_grad():
        empty.slots.embeddings.zero_()
    session = StudentAnswerer(empty, student.processor).open(store.scene(ids[0]))
    answers = [student.processor.tokenizer.encode_answer(q.answer) for q in questions]
    wanted = answer_nats(session, questions, answers)
    found = nats_of(student, store, "zeroed")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    plain = answer_nats(student.open(store.scene(ids[0])), questions, answers)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(found, plain, strict=True))


def test_swapped_slots_hold_what_another_scene_made_of_the_same_family(
    student: RememberingAnswerer, store: SceneStore
) -> None:
    ids, questions = asked(store)
    by = Intervened(student, "swapped", store, ids, seed=0)
    donors = [by._donor(question) for question in questions]
    assert [d.family for d in donors] == [q.family for q in questions]
    assert {d.scene_id for d in donors} == {ids[1]}
    assert donors == [by._donor(question) for question in questions]
    # The same by hand, one question at a time.
    own, other = (student.open(store.scene(scene_id)) for scene_id in ids[:2])
    encode = student.processor.question_ids
    for question, donor, found in zip(
        questions, donors, nats_of(student, store, "swapped"), strict=True
    ):
        (given,) = read_questions(student.student, other.prefix, [encode(donor.prompt)])
        edit = SlotEdit(states=lambda layer, _, g=given: g.levels[layer][g.slots])
        answer = student.processor.tokenizer.encode_answer(question.answer)
        (wanted,) = answer_nats(own, [question], [answer], [edit])
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_last_scene_gets_its_states_from_the_first(
    student: RememberingAnswerer, store: SceneStore
) -> None:
    ids, _ = asked(store)
    by = Intervened(student, "swapped", store, ids, seed=0)
    question = store.questions(ids[-1])[0]
    assert by._donor(question).scene_id == ids[0]
    strange = replace(question, family="never asked")
    assert by._donor(strange).scene_id == ids[0]


def test_shuffled_slots_are_never_in_their_own_order(
    student: RememberingAnswerer, store: SceneStore
) -> None:
    ids, questions = asked(store)
    by = Intervened(student, "shuffled", store, ids, seed=0)
    own = student.student.slots().detach()
    session = student.open(store.scene(ids[0]))
    for edit in by.edits(session, questions):
        assert edit.embeddings is not None
        assert not torch.equal(edit.embeddings, own)
        assert torch.equal(edit.embeddings.sort(dim=0).values, own.sort(dim=0).values)
    again = by.edits(session, questions)
    assert all(
        torch.equal(one.embeddings, other.embeddings)  # type: ignore[arg-type]
        for one, other in zip(by.edits(session, questions), again, strict=True)
    )


def test_an_intervened_student_answers_with_options(
    student: RememberingAnswerer, store: SceneStore
) -> None:
    ids, questions = asked(store)
    for kind in ("zeroed", "emptied", "swapped", "shuffled"):
        session = Intervened(student, kind, store, ids, seed=0).open(store.scene(ids[0]))
        said = session.answer(questions)
        assert [a.question_id for a in said] == [q.question_id for q in questions]
        assert all(a.text in q.options for a, q in zip(said, questions, strict=True))


def test_the_encoder_sees_a_scene_once_whoever_asks(
    world: Path, store: SceneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = built(world)
    seen: list[int] = []
    encode = VGGT.encode

    def counted(self: VGGT, images: torch.Tensor, *rest: object, **more: object) -> object:
        seen.append(len(images))
        return encode(self, images, *rest, **more)

    monkeypatch.setattr(VGGT, "encode", counted)
    ids, _ = asked(store)
    for kind in ("zeroed", "swapped"):
        by = Intervened(answerer, kind, store, ids, seed=0)  # type: ignore[arg-type]
        for scene_id in ids:
            by.open(store.scene(scene_id)).answer(store.questions(scene_id))
    assert len(seen) == len(ids)


def test_what_cannot_be_exchanged_is_refused(world: Path, store: SceneStore) -> None:
    ids, _ = asked(store)
    single = built(world, slots=1)
    with pytest.raises(BadInputError, match="1 slots cannot have them shuffled"):
        Intervened(single, "shuffled", store, ids, seed=0)
    with pytest.raises(BadInputError, match="come from another scene"):
        Intervened(single, "swapped", store, ids[:1], seed=0)


def test_questions_whose_family_no_other_scene_asks_are_counted(
    student: RememberingAnswerer, store: SceneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, questions = asked(store)
    by = Intervened(student, "swapped", store, ids, seed=0)
    assert by.without_donor == 0
    # One scene alone asks of size.
    every = {scene_id: store.questions(scene_id) for scene_id in ids}
    for scene_id in ids[1:]:
        every[scene_id] = [q for q in every[scene_id] if q.family != "size"]
    monkeypatch.setattr(SceneStore, "questions", lambda _, scene_id: every[scene_id])
    of_size = [q for q in questions if q.family == "size"]
    assert of_size
    assert by.without_donor == len(of_size)
