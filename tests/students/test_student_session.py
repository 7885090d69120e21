"""Sessions: a scene is read once, its questions are answered as each alone would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from stillroom.records import Answerer, BadInputError, Question, Scene, Session, View, asked
from stillroom.students.config import StillroomConfig
from stillroom.students.encoders.vggt_config import VGGTConfig, mini_config
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer

Make = Callable[..., Any]


@pytest.fixture
def answerer(make_student: Make, processor: StillroomProcessor) -> StudentAnswerer:
    return StudentAnswerer(make_student(), processor)


def scene_of(photos: list[np.ndarray]) -> Scene:
    views = tuple(View(name=str(i), rgb=photo) for i, photo in enumerate(photos))
    return Scene(scene_id="s", source="photos", views=views)


def questions() -> list[Question]:
    texts = ["Is the lamp on the table?", "Which is bigger, the bed or the box?", "Why?"]
    return [asked("s", text) for text in texts]


def test_it_is_an_answerer_with_sessions(
    answerer: StudentAnswerer, photos: list[np.ndarray]
) -> None:
    assert isinstance(answerer, Answerer)
    assert isinstance(answerer.open(scene_of(photos)), Session)


def test_answers_come_in_order_and_do_not_depend_on_their_neighbours(
    answerer: StudentAnswerer, photos: list[np.ndarray]
) -> None:
    session = answerer.open(scene_of(photos))
    wanted = questions()
    together = session.answer(wanted)
    assert [a.question_id for a in together] == [q.question_id for q in wanted]
    assert [session.answer([q])[0] for q in wanted] == together
    assert session.answer(wanted[::-1]) == together[::-1]
    assert session.ask(wanted[0].question) == together[0].text
    assert session.answer([]) == []


def test_a_session_answers_as_generate_does(
    answerer: StudentAnswerer, photos: list[np.ndarray]
) -> None:
    session = answerer.open(scene_of(photos))
    for question in questions():
        inputs = answerer.processor(images=photos, text=question.question, return_tensors="pt")
        said = answerer.student.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        assert answerer.processor.decode(said.tolist()) == session.ask(question.question)


def test_the_encoder_runs_once_a_scene(answerer: StudentAnswerer, photos: list[np.ndarray]) -> None:
    encoder = answerer.student.encoder
    with mock.patch.object(encoder, "encode", wraps=encoder.encode) as encode:
        session = answerer.open(scene_of(photos))
        session.answer(questions())
        session.geometry()
    assert encode.call_count == 1


def test_geometry_is_a_positive_depth_per_view(
    answerer: StudentAnswerer, photos: list[np.ndarray]
) -> None:
    depth = answerer.open(scene_of(photos)).geometry().depth
    assert depth is not None
    assert depth.shape == (2, 28, 28)
    assert depth.dtype == np.float32
    assert (depth > 0).all()


@pytest.mark.parametrize("count", [1, 3, 6])
def test_any_number_of_photos_will_do(
    answerer: StudentAnswerer, photos: list[np.ndarray], count: int
) -> None:
    session = answerer.open_scene((photos * 3)[:count])
    assert session.views == ((0, 1, 3, 4) if count == 6 else tuple(range(count)))
    assert isinstance(session.ask("Is it warm?"), str)


def test_other_photos_may_give_other_answers(answerer: StudentAnswerer) -> None:
    rng = np.random.default_rng(1)
    answers = set()
    for _ in range(4):
        photo = rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        answers.add(answerer.open_scene([photo, 255 - photo]).ask("What is this?"))
    assert len(answers) > 1


def test_loaded_from_a_folder_it_answers_the_same(
    answerer: StudentAnswerer, photos: list[np.ndarray], tmp_path: Path
) -> None:
    answerer.student.save_pretrained(tmp_path)
    answerer.processor.save_pretrained(tmp_path)
    loaded = StudentAnswerer.from_folder(tmp_path)
    assert loaded.open(scene_of(photos)).answer(questions()) == answerer.open(
        scene_of(photos)
    ).answer(questions())


def test_half_precision_weights_are_computed_in_full(
    make_student: Make, processor: StillroomProcessor, tmp_path: Path
) -> None:
    make_student().to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert StudentAnswerer.from_folder(tmp_path).student.dtype == torch.float32


def test_questions_of_a_scene_without_photos_are_refused(answerer: StudentAnswerer) -> None:
    with pytest.raises(BadInputError, match="no photos given"):
        answerer.open(scene_of([]))


@pytest.mark.parametrize("text", ["", "x" * 10_000])
def test_an_empty_or_endless_question_is_refused(
    answerer: StudentAnswerer, photos: list[np.ndarray], text: str
) -> None:
    with pytest.raises(BadInputError, match="the question"):
        answerer.open(scene_of(photos)).ask(text)


def test_lettered_options_are_read_and_spoken_ones_are_not() -> None:
    base = {"scene_id": "s", "question_id": "q", "split": "test", "answer": "A"}
    lettered = Question(family="x", question="Which?", options=("A. the bed", "B. the box"), **base)
    spoken = Question(family="x", question="Which?", options=("the bed", "the box"), **base)
    assert lettered.prompt == "Which?\nOptions:\nA. the bed\nB. the box"
    assert spoken.prompt == "Which?"


@pytest.mark.parametrize("unit", ["metre", "scene"])
def test_depth_is_told_in_the_unit_of_the_students_config(
    make_student: Make, processor: StillroomProcessor, photos: list[np.ndarray], unit: str
) -> None:
    answerer = StudentAnswerer(make_student(depth_unit=unit), processor)
    assert answerer.open(scene_of(photos)).geometry().depth_unit == unit


def test_a_checkpoint_that_names_no_unit_has_that_of_its_encoders_kind() -> None:
    ours, public = mini_config(), VGGTConfig(camera_head=False, point_head=False)
    assert StillroomConfig(encoder=ours.to_dict()).depth_unit == "metre"
    assert StillroomConfig(encoder=public.to_dict(), image_size=518).depth_unit == "scene"
    trained = StillroomConfig(encoder=public.to_dict(), image_size=518, train_depth_head=True)
    assert trained.depth_unit == "metre"
    with pytest.raises(BadInputError, match="depth_unit must be metre or scene, got 'mile'"):
        StillroomConfig(depth_unit="mile")
