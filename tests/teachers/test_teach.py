"""A miniature teacher taught from truth on tiny scenes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillroom import api
from stillroom.records import BadInputError, Split
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


SHORT = replace(TINY, train=replace(TINY.train, steps=4, evaluate_every=2, save_every=1))
KEPT = ("teacher/model.safetensors", "best.safetensors")


def kept(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in KEPT]


@pytest.fixture(scope="module")
def whole(scenes: Path) -> Path:
    """A short run that nothing disturbed, on one thread, as the killed one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    teach(SHORT, scenes=scenes, out=scenes.parent / "whole")
    torch.set_num_threads(threads)
    return scenes.parent / "whole"


def teach_and_die(scenes: str, out: str) -> None:
    """Run in a process of its own: ``kill -9`` behind the third step."""

    def die(step: int, steps: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    teach(SHORT, scenes=Path(scenes), out=Path(out), progress=die)


def test_kill_9_on_the_way_gives_the_undisturbed_teacher(
    scenes: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    script = "import sys, test_teach; test_teach.teach_and_die(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(scenes), str(out)],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_log(out, kind="step")) == 3
    assert not (out / "result.json").exists()
    torch.set_num_threads(1)
    sentence = teach(SHORT, scenes=scenes, out=out)
    assert kept(out) == kept(whole)
    assert [row["step"] for row in read_log(out, kind="step")] == [1, 2, 3, 4]
    # Finished, the same call says the same and changes nothing.
    assert teach(SHORT, scenes=scenes, out=out) == sentence
    assert kept(out) == kept(whole)


def test_two_workers_teach_the_same(scenes: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        train = replace(SHORT.train, steps=2, micro_batches=2, workers=workers)
        teach(replace(SHORT, train=train), scenes=scenes, out=tmp_path / f"{workers}")
    assert kept(tmp_path / "1") == kept(tmp_path / "2")


def test_another_setting_is_refused_and_nothing_touched(scenes: Path, whole: Path) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(BadInputError, match=r"other settings .*other_share"):
        teach(replace(SHORT, other_share=0.5), scenes=scenes, out=whole)
    assert before == {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}


def test_a_level_outside_the_model_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"grounding_level must lie in 0\.\.2"):
        replace(TINY, grounding_level=3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start_from": "nowhere"}, "not found"),
        ({"start_from": "TAUGHT", "sizes": replace(TINY.sizes, hidden_size=32)}, "other sizes"),
        ({"sizes": replace(TINY.sizes, views=3)}, r"--sizes\.views"),
        ({"sizes": replace(TINY.sizes, image_size=56)}, r"2 of 56 x 56"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_taken(
    taught: Path, scenes: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    if changes.get("start_from") == "TAUGHT":
        changes = changes | {"start_from": str(taught / "teacher")}
    out = tmp_path / "run"
    with pytest.raises(BadInputError, match=sentence):
        teach(replace(SHORT, **changes), scenes=scenes, out=out)
    assert not out.exists()
    # So that the corrected command may have it.
    one = replace(SHORT, train=replace(SHORT.train, steps=1))
    teach(one, scenes=scenes, out=out)


@pytest.mark.parametrize("there", ["train", "val"])
def test_a_store_without_one_of_the_splits_is_refused_before_the_folder_is_taken(
    tmp_path: Path, there: Split
) -> None:
    store = tiny_store(tmp_path / "store", scenes=2, splits=(there,))
    missing = "val" if there == "train" else "train"
    with pytest.raises(BadInputError, match=f"no scene of the split '{missing}'"):
        teach(SHORT, scenes=store, out=tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_the_name_of_a_shipped_teacher_is_one_to_start_from(scenes: Path, tmp_path: Path) -> None:
    # It is found, and does not fit the tiny sizes.
    for name in ("teacher_mini", "llava3d:teacher_mini"):
        with pytest.raises(BadInputError, match=r"teacher_mini is a teacher of other sizes"):
            api.teach(replace(SHORT, start_from=name), scenes=scenes, out=tmp_path / "run")
    with pytest.raises(BadInputError, match="'student_mini' is no teacher to start from"):
        api.teach(replace(SHORT, start_from="student_mini"), scenes=scenes, out=tmp_path / "run")
    with pytest.raises(BadInputError, match="model not found: 'nowhere'"):
        api.teach(replace(SHORT, start_from="nowhere"), scenes=scenes, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
