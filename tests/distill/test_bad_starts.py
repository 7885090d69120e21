"""What a distillation refuses or bears: foreign checkpoints, poor scenes, silent teachers."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import write_llama_tokenizer, write_qwen, write_world

from stillroom.distill.build import build_student
from stillroom.distill.config import (
    DistillConfig,
    LoraConfig,
    LossConfig,
    SlotConfig,
    StudentSizes,
)
from stillroom.distill.run import distill, save_student
from stillroom.records import (
    FAMILIES,
    Answer,
    BadInputError,
    Question,
    Scene,
    Signal,
    Split,
    TeacherLabel,
)
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher, tiny_questions, tiny_scene
from stillroom.text.tokenizer import load_tokenizer, open_tokenizer
from stillroom.training.config import TrainConfig
from stillroom.training.runlog import read_log, read_result

TINY = DistillConfig(
    train=TrainConfig(steps=2, scenes_per_step=1, evaluate_every=0, save_every=2),
    student=StudentSizes(hidden_size=16, layers=2, heads=2, intermediate_size=32, vision_grid=2),
    slots=SlotConfig(count=2),
    questions_per_scene=4,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    home = write_world(tmp_path_factory.mktemp("world"), signals=("answers",))
    student, processor = build_student(TINY, home / "encoder")
    save_student(student, processor, home / "student")
    write_qwen(home / "qwen")
    write_llama_tokenizer(home / "llama")
    return home


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"slots": SlotConfig(count=4)}, "its slot_count is 2, the recipe's 4"),
        ({"mask": "causal"}, "its visibility is prefix, the recipe's causal"),
        ({"vision": False}, "its blind is False, the recipe's True"),
        (
            {"student": replace(TINY.student, vision_grid=4)},
            "its vision_grid is 2, the recipe's 4",
        ),
        (
            {"student": replace(TINY.student, vision_pool="mean")},
            "its vision_pool is grid, the recipe's mean",
        ),
        (
            {"student": replace(TINY.student, hidden_size=32)},
            "its hidden_size is 16, the recipe's 32",
        ),
    ],
)
def test_a_checkpoint_of_another_recipe_is_no_start(
    world: Path, changes: dict, sentence: str
) -> None:
    config = replace(TINY, start_from=str(world / "student"), **changes)
    with pytest.raises(BadInputError, match=f"a student of another recipe: {sentence}"):
        build_student(config, world / "encoder")


def test_a_checkpoint_of_the_same_recipe_is_a_start(world: Path) -> None:
    config = replace(TINY, start_from=str(world / "student"))
    student, _ = build_student(config, world / "encoder")
    kept = StudentAnswerer.from_folder(world / "student").student.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in student.state_dict().items())


def test_an_encoder_is_no_student_to_start_from(world: Path) -> None:
    with pytest.raises(BadInputError, match="not a student"):
        build_student(replace(TINY, start_from=str(world / "encoder")), world / "encoder")


def test_a_language_model_brings_its_tokenizer_and_its_weights(world: Path) -> None:
    student, processor = build_student(TINY, world / "encoder", world / "qwen")
    words = open_tokenizer(world / "qwen")
    assert processor.tokenizer.encode("the red table") == words.encode("the red table")
    assert student.config.bos_token_id == student.config.eos_token_id == 0
    assert student.language_model.config.model_type == "qwen2"
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    kept = load_file(world / "qwen" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(student.get_input_embeddings().weight, kept.float())


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(world: Path) -> None:
    small = replace(TINY, student=replace(TINY.student, vocab_size=100))
    with pytest.raises(BadInputError, match=r"has \d+ entries, the recipe's vocabulary 100"):
        build_student(small, world / "encoder", "", world / "llama")


def test_a_folder_without_a_tokenizer_is_refused(world: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no tokenizer\.json; write one with"):
        build_student(TINY, world / "encoder", "", world / "encoder")


# LoRA. ------------------------------------------------------------------------------------------

LORA = replace(TINY, language_model="qwen", lora=LoraConfig(rank=2, alpha=4))


def test_lora_trains_the_updates_and_leaves_a_student_without_them(
    world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    whole, _ = build_student(TINY, world / "encoder", world / "qwen")
    student, processor = build_student(LORA, world / "encoder", world / "qwen")
    trained = {n for n, p in student.language_model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    matrices = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert matrices == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    # An update begins at zero.
    ids = torch.tensor([[5, 6, 7]])
    same = whole.language_model(ids).logits
    torch.testing.assert_close(student.language_model(ids).logits, same)
    with torch.no_grad():
        for name, parameter in student.language_model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3)
    student.eval()
    moved = student.language_model(ids).logits
    assert not torch.allclose(moved, same)
    save_student(student, processor, tmp_path / "student")
    kept = StudentAnswerer.from_folder(tmp_path / "student").student
    assert not [name for name in kept.state_dict() if "lora" in name]
    # The folder is in half precision.
    torch.testing.assert_close(kept.language_model(ids).logits, moved, atol=0.05, rtol=0.05)
    # What is trained on stays as it is.
    assert any("lora" in name for name in student.state_dict())


def test_lora_without_peft_is_one_sentence(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[lora\]'"):
        build_student(LORA, world / "encoder", world / "qwen")


def test_lora_needs_something_to_update() -> None:
    with pytest.raises(BadInputError, match="lora needs a pretrained language_model"):
        replace(TINY, lora=LoraConfig(rank=2))
    with pytest.raises(BadInputError, match="rank -1"):
        LoraConfig(rank=-1)


def test_lora_dropout_is_not_drawn_in_several_threads() -> None:
    two = replace(LORA.train, scenes_per_step=2, micro_batches=2, workers=2)
    with pytest.raises(BadInputError, match=r"lora\.dropout 0\.1 .*--train\.workers 1"):
        replace(LORA, lora=LoraConfig(rank=2, dropout=0.1), train=two)
    assert replace(LORA, lora=LoraConfig(rank=2, dropout=0.1)).lora.dropout == 0.1
    assert replace(LORA, train=two).train.workers == 2


# Poor scenes. -----------------------------------------------------------------------------------


class Silent:
    """A teacher that has nothing to say."""

    def answer(self, questions: list[Question]) -> list[Answer]:
        return [Answer(question_id=q.question_id, text="") for q in questions]

    def label(
        self, scene: Scene, questions: list[Question], signals: tuple[Signal, ...]
    ) -> list[TeacherLabel]:
        return [
            TeacherLabel(scene_id=scene.scene_id, question_id=q.question_id, answer="")
            for q in questions
        ]


class Wordless(Silent):
    """A teacher whose answers to scenes with two views have no token, not even an end."""

    def label(
        self, scene: Scene, questions: list[Question], signals: tuple[Signal, ...]
    ) -> list[TeacherLabel]:
        said = super().label(scene, questions, signals)
        if len(scene.views) > 2:
            return [replace(label, answer="yes") for label in said]
        return [replace(label, answer_ids=np.zeros(0, np.int64)) for label in said]


def train_on(
    scenes: list[Scene],
    world: Path,
    home: Path,
    teacher: type,
    config: DistillConfig = TINY,
    *,
    encoder: Path | None = None,
) -> list[dict]:
    """Two steps on these scenes; the rows of the log."""
    asked = [q for scene in scenes for q in tiny_questions(scene)]
    write_shard(home / "scenes", 0, scenes, asked)
    write_manifest(home / "scenes", {"count": len(scenes)})
    label_scenes(
        home / "scenes",
        teacher,
        home / "labels",
        teacher={"name": "x"},
        signals=("answers",),
        # Ids that mean the same to teacher and student are taken as they are.
        vocabulary=load_tokenizer().vocabulary(),
    )
    distill(
        config,
        scenes=home / "scenes",
        labels=home / "labels",
        out=home / "run",
        encoder=world / "encoder" if encoder is None else encoder,
    )
    return read_log(home / "run" / "log.jsonl", kind="step")


def without_depth(scene: Scene) -> Scene:
    """The scene with nothing measured in any view."""
    blank = [np.zeros(view.rgb.shape[:2], np.float32) for view in scene.views]
    views = (replace(view, depth=depth) for view, depth in zip(scene.views, blank, strict=True))
    return replace(scene, views=tuple(views))


def test_one_view_and_no_depth_are_enough_to_learn_from(world: Path, tmp_path: Path) -> None:
    scenes = [tiny_scene(0, views=1, split="train"), tiny_scene(1, views=1, split="val")]
    bare = [without_depth(scene) for scene in scenes]
    rows = train_on(bare, world, tmp_path, FixedTeacher)
    # Without a measured depth its terms are off; the others are not, and nothing is not a number.
    assert not {name for name in rows[0]["terms"] if name.startswith("depth")}
    assert "text" in rows[0]["terms"]
    assert all(np.isfinite(row["loss"]) for row in rows)
    scene = next(open_store(tmp_path / "scenes").iter_scenes("val"))
    session = StudentAnswerer.from_folder(tmp_path / "run" / "student").open(scene)
    assert session.answer(tiny_questions(scene))


def test_an_empty_answer_is_learnt_as_its_end(world: Path, tmp_path: Path) -> None:
    scenes = [tiny_scene(0, split="train"), tiny_scene(1, split="val")]
    rows = train_on(scenes, world, tmp_path, Silent)
    assert np.isfinite(rows[-1]["loss"])
    assert rows[-1]["terms"]["text"] > 0


def with_views(*counts: int, split: Split) -> list[Scene]:
    """Scenes that show their first two views, however many they have."""
    return [tiny_scene(seed, views=count, split=split) for seed, count in enumerate(counts)]


TEXT_ALONE = replace(
    TINY,
    student=replace(TINY.student, max_views=2),
    losses=LossConfig(depth=False, grounding=False),
)


def test_a_step_without_any_label_is_left_out_and_told(world: Path, tmp_path: Path) -> None:
    scenes = [*with_views(2, 3, split="train"), *with_views(2, 3, 2, split="val")]
    rows = train_on(scenes, world, tmp_path, Wordless, TEXT_ALONE)
    # Each scene once in two steps, one of which has nothing to be learnt from.
    assert sorted(row["loss"] is None for row in rows) == [False, True]
    assert sorted(row["labelled"]["text"] > 0 for row in rows) == [False, True]
    assert read_result(tmp_path / "run").skipped == 1
    # What is measured on the one scene that has answers is a number, and no answer without a
    # token counts as a right one.
    (said,) = read_log(tmp_path / "run" / "log.jsonl", kind="eval")
    assert np.isfinite(said["metrics"]["answer_ce"])
    right = {name: share for name, share in said["metrics"].items() if name.startswith("right.")}
    assert set(right) == {f"right.{family}" for family in FAMILIES}
    assert all(share in (0.0, 1.0) for share in right.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_an_answer_is_refused_before_anything_is_trained(
    world: Path, tmp_path: Path, split: Split
) -> None:
    other: Split = "val" if split == "train" else "train"
    scenes = [*with_views(2, 2, split=split), *with_views(3, 3, split=other)]
    with pytest.raises(BadInputError, match=rf"all 8 answers .* the split '{split}' are empty"):
        train_on(scenes, world, tmp_path, Wordless, TEXT_ALONE)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_validation_of_no_scene_is_refused() -> None:
    with pytest.raises(BadInputError, match="validation_scenes must be at least 1, got 0"):
        replace(TINY, validation_scenes=0)


def as_published(encoder: Path, folder: Path) -> Path:
    """The same weights as others lay them out: nothing says that stillroom trained them."""
    folder.mkdir()
    shutil.copy(encoder / "model.safetensors", folder)
    settings = json.loads((encoder / "config.json").read_text())
    del settings["model_type"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("heads", [1, 32])
def test_heads_that_cannot_begin_by_copying_are_one_sentence(world: Path, heads: int) -> None:
    sizes = replace(TINY.student, hidden_size=128, heads=heads, rotary_share=1.0)
    with pytest.raises(BadInputError, match="copying needs at least 2 heads of at least 6"):
        build_student(replace(TINY, student=sizes), world / "encoder")


@pytest.mark.parametrize("measured", [True, False])
def test_a_depth_head_that_learnt_metres_makes_a_student_metric(
    world: Path, tmp_path: Path, measured: bool
) -> None:
    public = as_published(world / "encoder", tmp_path / "public")
    scenes = [tiny_scene(0, split="train"), tiny_scene(1, split="val")]
    if not measured:
        scenes = [without_depth(scene) for scene in scenes]
    config = replace(TINY, losses=LossConfig(depth_head=True))
    train_on(scenes, world, tmp_path, FixedTeacher, config, encoder=public)
    student = StudentAnswerer.from_folder(tmp_path / "run" / "student").student
    assert student.config.depth_unit == ("metre" if measured else "scene")


def test_only_an_encoder_that_learnt_metres_tells_depth_in_metres(
    world: Path, tmp_path: Path
) -> None:
    public = as_published(world / "encoder", tmp_path / "public")
    learnt = replace(TINY, losses=replace(TINY.losses, depth_head=True))
    units = [
        build_student(config, encoder)[0].config.depth_unit
        for config, encoder in (
            (TINY, world / "encoder"),
            (TINY, public),
            (TINY, public / "model.safetensors"),
            # Nothing is learnt yet.
            (learnt, public),
        )
    ]
    assert units == ["metre", "scene", "scene", "scene"]
    # The unit is kept with the student.
    student, processor = build_student(TINY, public)
    save_student(student, processor, tmp_path / "student")
    again = replace(TINY, start_from=str(tmp_path / "student"))
    assert build_student(again, "")[0].config.depth_unit == "scene"


def test_heads_that_do_not_share_the_width_evenly_are_refused() -> None:
    with pytest.raises(BadInputError, match="hidden_size 16 must be a multiple of heads, got 3"):
        replace(TINY.student, heads=3)
    with pytest.raises(BadInputError, match="must be a multiple of heads, got 0"):
        replace(TINY.student, heads=0)


def test_no_scene_a_pass_is_refused() -> None:
    with pytest.raises(BadInputError, match="scenes_per_pass must be at least 1, got 0"):
        replace(TINY, scenes_per_pass=0)
