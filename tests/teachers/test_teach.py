"""A miniature teacher taught from truth on tiny scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.records import BadInputError
from stillroom.scenes.store import open_store
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.teach import teach
from stillroom.teachers.teach_config import TeachConfig, TeacherSizes
from stillroom.testing import tiny_store
from stillroom.training.config import TrainConfig
from stillroom.training.runlog import read_log

TINY = TeachConfig(
    train=TrainConfig(
        steps=30, scenes_per_step=2, learning_rate=1e-2, evaluate_every=10, save_every=5
    ),
    sizes=TeacherSizes(
        clip_width=16,
        clip_layers=1,
        clip_heads=2,
        image_size=28,
        hidden_size=16,
        layers=2,
        heads=2,
        intermediate_size=32,
        views=2,
    ),
    object_level=1,
    grounding_level=1,
    apart_level=2,
    measure_level=2,
)
TERMS = {"text", "object_name", "object_box", "naming", "grounding", "apart", "measure"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teach") / "scenes"
    return tiny_store(folder, scenes=8, splits=("train", "train", "train", "val"))


@pytest.fixture(scope="module")
def taught(scenes: Path) -> Path:
    teach(TINY, scenes=scenes, out=scenes.parent / "run")
    return scenes.parent / "run"


def test_it_learns_to_answer_to_name_and_to_place(taught: Path) -> None:
    rows = read_log(taught / "log.jsonl", kind="step")
    assert set(rows[0]["terms"]) == TERMS
    for term in TERMS:
        assert rows[-1]["terms"][term] < rows[0]["terms"][term], term
    evaluations = read_log(taught / "log.jsonl", kind="eval")
    # The answers of the tiny scenes never change, so that they can be known by heart.
    assert evaluations[-1]["metrics"]["contact"] == 1.0
    assert evaluations[-1]["metrics"]["grounding"] < evaluations[0]["metrics"]["grounding"]


def test_the_folder_is_a_teacher(taught: Path, scenes: Path) -> None:
    store = open_store(scenes)
    scene = next(store.iter_scenes("val"))
    questions = store.questions(scene.scene_id)
    said = LLaVA3DTeacher.from_folder(taught / "teacher").open(scene).answer(questions)
    assert [answer.text for answer in said] == [question.answer for question in questions]


def test_the_heads_of_the_training_are_not_kept(taught: Path) -> None:
    kept = load_file(taught / "teacher" / "model.safetensors")
    trained = load_file(taught / "best.safetensors")
    assert any(name.startswith(("object_head", "grounding_head")) for name in trained)
    assert not any(name.startswith(("object_head", "grounding_head")) for name in kept)


def test_terms_of_weight_0_are_left_out(scenes: Path, tmp_path: Path) -> None:
    short = replace(TINY.train, steps=1)
    bare = replace(TINY, train=short, object_weight=0.0, grounding_weight=0.0, measure_weight=0.0)
    teach(bare, scenes=scenes, out=tmp_path / "run")
    assert set(read_log(tmp_path / "run" / "log.jsonl", kind="step")[0]["terms"]) == {"text"}


def test_it_goes_on_from_another_teacher(taught: Path, scenes: Path, tmp_path: Path) -> None:
    still = replace(TINY.train, steps=1, learning_rate=1e-12)
    onward = replace(TINY, train=still, start_from=str(taught / "teacher"))
    teach(onward, scenes=scenes, out=tmp_path / "run")
    one = LLaVA3DTeacher.from_folder(taught / "teacher").model.state_dict()
    other = LLaVA3DTeacher.from_folder(tmp_path / "run" / "teacher").model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_does_not_fit_is_refused(taught: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"grounding_level must lie in 0\.\.2"):
        replace(TINY, grounding_level=3)
    wide = replace(TINY.sizes, hidden_size=32)
    other = replace(TINY, sizes=wide, start_from=str(taught / "teacher"))
    with pytest.raises(BadInputError, match="other sizes"):
        teach(other, scenes=scenes, out=tmp_path / "wide")
    larger = replace(TINY, sizes=replace(TINY.sizes, views=3))
    with pytest.raises(BadInputError, match=r"--sizes\.views"):
        teach(larger, scenes=scenes, out=tmp_path / "views")
