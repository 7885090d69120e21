"""The engine of a session against the plain computation, and open scenes within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom import api, registry
from stillroom.cpu import can_pack
from stillroom.engine.packed import PackedLinear
from stillroom.engine.scene_cache import SceneCache
from stillroom.records import BadInputError, Question, Scene, asked
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer
from stillroom.testing import tiny_questions, tiny_scene

Make = Callable[..., Any]

CAPTURE = Path(__file__).parents[1] / "fixtures" / "captures" / "tum_fr3_cabinet"
THINGS = ("cabinet", "lamp", "red chair", "table", "blue box")
OWN_WORDS = (
    "Describe the room.",
    "How many chairs are in this room?",
    "What is the distance between the lamp and the table in meters?",
    "Is the floor dark?",
)


def shipped() -> StudentAnswerer:
    return StudentAnswerer.from_folder(registry.locate("student_mini"))


def capture_questions(scene: Scene) -> list[Question]:
    """Free questions and such with two options, in turn."""
    found = [asked(scene.scene_id, text) for text in OWN_WORDS]
    for one in THINGS:
        for other in THINGS:
            if one != other:
                text = f"Which is bigger, the {one} or the {other}?"
                found.append(
                    Question(
                        scene_id=scene.scene_id,
                        question_id=text,
                        split="test",
                        family="size",
                        question=text,
                        answer=one,
                        options=(one, other),
                    )
                )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_student_says_in_a_session_what_its_own_forward_says(
    dtype: torch.dtype,
) -> None:
    scene = api.open_photos(CAPTURE)
    answerer = StudentAnswerer.from_folder(registry.locate("student_mini"), dtype=dtype)
    assert not can_pack() or any(isinstance(m, PackedLinear) for m in answerer.student.modules())
    student, processor = answerer.student, answerer.processor
    session = answerer.open(scene)
    features = session.features
    questions = capture_questions(scene)
    prompts = [processor.question_ids(question.prompt) for question in questions]
    choices = [processor.tokenizer.encode_choices(question.options) for question in questions]
    plain = student.open_prefix(features, plain=True)
    expected = [
        student.answer_ids(plain, [prompt], choices=[allowed], plain=True)[0]
        for prompt, allowed in zip(prompts, choices, strict=True)
    ]
    assert student.answer_ids(session.prefix, prompts, choices=choices) == expected
    answers = session.answer(questions)
    assert [answer.text for answer in answers] == [processor.decode(ids) for ids in expected]
    assert len({answer.text for answer in answers}) > len(THINGS)


def test_the_shipped_student_says_in_a_session_what_generate_says() -> None:
    scene = api.open_photos(CAPTURE)
    answerer = shipped()
    session = answerer.open(scene)
    photos = [view.rgb for view in scene.views]
    for text in OWN_WORDS:
        inputs = answerer.processor(images=photos, text=text, return_tensors="pt")
        said = answerer.student.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        assert answerer.processor.decode(said.tolist()) == session.ask(text)


@torch.no_grad()
def test_the_packed_session_says_what_a_loop_without_any_of_it_says() -> None:
    # Nothing here is the engine's: no cache, no packing, the mask drawn by hand.
    folder = registry.locate("student_mini")
    student = StillroomStudent.from_pretrained(folder, dtype=torch.float32).eval()
    processor = StillroomProcessor.from_pretrained(folder)
    photos = [view.rgb for view in api.open_photos(CAPTURE).views]
    images = torch.from_numpy(processor.images(photos))[None]
    seen = student.vision_tokens(student.features(images))[0]
    table, n = student.get_input_embeddings(), len(seen)
    packed = shipped()
    session = packed.open_scene(photos)
    for text in OWN_WORDS[:3]:
        ids = [*processor.question_ids(text), student.config.bos_token_id]
        row = torch.cat([seen, student.slots(), table(torch.tensor(ids))])
        asked_until, said = len(row), list[int]()
        while len(said) < 12 and student.eos_id not in said:
            sees = torch.ones(len(row), len(row)).tril()
            sees[:asked_until, :asked_until] = 1
            sees[:n, n:] = 0
            logits = student.language_model(
                inputs_embeds=row[None],
                attention_mask=torch.where(sees.bool(), 0.0, -torch.inf)[None, None],
                position_ids=torch.arange(len(row))[None],
            ).logits[0, -1]
            said.append(int(logits.argmax()))
            row = torch.cat([row, table(torch.tensor(said[-1:]))])
        (ours,) = packed.student.answer_ids(session.prefix, [ids[:-1]], max_new_tokens=12)
        assert ours == said


def test_many_questions_over_many_scenes_stay_within_a_budget_and_change_no_answer(
    make_student: Make, processor: StillroomProcessor
) -> None:
    answerer = StudentAnswerer(make_student(), processor)
    scenes = [tiny_scene(seed) for seed in range(10)]
    asked_of = {scene.scene_id: tiny_questions(scene, count=4) for scene in scenes}
    expected = {}
    largest = 0
    for scene in scenes:
        session = answerer.open(scene)
        expected[scene.scene_id] = session.answer(asked_of[scene.scene_id])
        largest = max(largest, session.nbytes)
    assert len({answer.text for said in expected.values() for answer in said}) > 1
    # Room for three scenes, and some: two open and one being opened.
    cache = SceneCache(answerer, budget_bytes=3 * largest + largest // 2)
    rng = np.random.default_rng(0)
    opened = 0
    recent: list[str] = []
    for _ in range(150):
        scene = scenes[rng.integers(len(scenes))]
        name = scene.scene_id
        which = rng.integers(4)
        opened += name not in recent
        recent = [*(one for one in recent if one != name), name][-3:]
        (said,) = cache.open(scene).answer([asked_of[name][which]])
        assert said == expected[name][which]
        assert cache.nbytes <= cache.budget_bytes
        assert len(cache) <= 3
    assert cache.opened == opened
    assert cache.evicted == opened - len(cache)
    assert cache.opened + cache.found == 150


def test_a_session_tells_what_it_holds_and_questions_take_no_more(
    make_student: Make, processor: StillroomProcessor, photos: list[np.ndarray]
) -> None:
    answerer = StudentAnswerer(make_student(), processor)
    session = answerer.open_scene(photos)
    session.answer([asked(session.scene_id, text) for text in OWN_WORDS])
    held = session.nbytes
    config = answerer.student.config
    tokens = answerer.student.vision_length(2)
    keys = 2 * config.language_model.num_hidden_layers * 4 * config.hidden_size
    assert held > tokens * keys
    for _ in range(20):
        session.answer([asked(session.scene_id, text) for text in OWN_WORDS])
    assert session.nbytes == held
    # Nor do many at once, which need more room than a scene has for its next question.
    session.answer([asked(session.scene_id, text) for text in OWN_WORDS * 20])
    assert session.nbytes == held


def test_a_model_keeps_scenes_open_within_its_budget() -> None:
    scene = api.open_photos(CAPTURE)
    model = api.open_model("student_mini", budget_bytes=1 << 20)
    session = model.open(scene)
    assert model.open(scene) is session
    many = [asked(scene.scene_id, text) for text in OWN_WORDS * 30]
    expected = shipped().open(scene).answer(many)
    other = replace(scene, scene_id="other", views=scene.views[:1])
    budget = model.nbytes + 1000
    model = api.open_model("student_mini", budget_bytes=budget)
    assert model.open(scene).answer(many) == expected
    assert model.nbytes <= budget
    model.open(other)
    assert (len(model), model.evicted) == (1, 1)
    with pytest.raises(BadInputError, match="'blind' looks at no scene"):
        api.open_model("blind")


def test_photos_are_told_apart_by_their_pixels_and_their_files(
    make_student: Make, processor: StillroomProcessor, tmp_path: Path
) -> None:
    from PIL import Image

    answerer = StudentAnswerer(make_student(), processor)
    dark = np.zeros((28, 28, 3), np.uint8)
    spot = dark.copy()
    spot[14, 14] = 255  # in the middle, where numpy prints dots
    file = tmp_path / "photo.png"
    Image.fromarray(dark).save(file)
    ids = {
        answerer.open_scene([photo]).scene_id
        for photo in (dark, spot, Image.fromarray(spot), file, str(file))
    }
    assert len(ids) == 4  # a path and its text are one
    assert answerer.open_scene([spot]).scene_id == answerer.open_scene([spot.copy()]).scene_id
