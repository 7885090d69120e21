"""Small things for tests and examples: a scene of two boxes, its questions, a fixed teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillroom.geometry.cameras import pinhole_from_fov
from stillroom.geometry.poses import look_at, rotation_z
from stillroom.records import (
    Answer,
    OrientedBox,
    Part,
    Question,
    Scene,
    SceneObject,
    Signal,
    Split,
    TeacherLabel,
    View,
    content_hash,
)
from stillroom.scenes.store import write_manifest, write_shard

#: Unit quaternion of no rotation.
_UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


def tiny_scene(seed: int, *, views: int = 2, size: int = 28, split: Split = "test") -> Scene:
    """A scene of two boxes with random pixels and a flat depth, valid everywhere."""
    rng = np.random.default_rng(seed)
    intrinsics = pinhole_from_fov(1.0, size, size)
    target = np.array([0.0, 2.0, 0.4])
    made = []
    for index in range(views):
        eye = np.array([0.3 * index, 0.0, 1.4])
        instances = np.zeros((size, size), np.uint16)
        instances[: size // 2, : size // 2] = 1
        instances[size // 2 :, size // 2 :] = 2
        made.append(
            View(
                name=str(index),
                rgb=rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
                intrinsics=intrinsics,
                c2w=look_at(eye, target),
                # A multiple of the store's unit, so that it comes back bit for bit.
                depth=np.full((size, size), 2.0 + 0.25 * (seed % 4), np.float32),
                instances=instances,
            )
        )
    return Scene(
        scene_id=content_hash(["tiny", str(seed), str(views), str(size), split]),
        source="made:tiny",
        views=tuple(made),
        split=split,
        objects=(
            _box(1, "table", "red", (-0.5, 2.0, 0.4)),
            _box(2, "chair", "blue", (0.5, 2.0, 0.3)),
        ),
        room_size=np.array([4.0, 3.0, 2.5]),
    )


def _box(
    object_id: int, category: str, colour: str, center: tuple[float, float, float]
) -> SceneObject:
    size = np.array([0.5, 0.5, 2 * center[2]])
    where = np.array(center, dtype=np.float64)
    return SceneObject(
        object_id=object_id,
        category=category,
        name=f"{colour} {category}",
        colour=colour,
        box=OrientedBox(center=where, size=size, rotation=rotation_z(0.0)),
        parts=(Part(kind="box", center=where, size=size, wxyz=_UPRIGHT),),
        supported_by=0,
    )


def tiny_questions(scene: Scene, *, count: int = 4) -> list[Question]:
    """Questions of the paper's four families with fixed answers, in turn."""
    kinds = (
        ("proximity", "Which is closer to the lamp: the red table or the blue chair?", "red table"),
        ("contact", "Are the red table and the blue chair touching?", "no"),
        ("size", "Which is bigger, the red table or the blue chair?", "red table"),
        (
            "orientation",
            "Seen from the first photo, is the red table left or right of the blue chair?",
            "left",
        ),
    )
    options = {
        "proximity": ("red table", "blue chair"),
        "contact": ("yes", "no"),
        "size": ("red table", "blue chair"),
        "orientation": ("left", "right"),
    }
    values = {"proximity": 2.0, "contact": 0.6, "size": 2.0, "orientation": 20.0}
    units = {"proximity": "ratio", "contact": "m", "size": "ratio", "orientation": "deg"}
    made = []
    for index in range(count):
        family, text, answer = kinds[index % len(kinds)]
        made.append(
            Question(
                scene_id=scene.scene_id,
                question_id=content_hash([scene.scene_id, family, text, str(index)]),
                split=scene.split,
                family=family,
                question=text,
                answer=answer,
                options=options[family],
                value=values[family],
                unit=units[family],
                margin=2.0,
                object_ids=(1, 2),
            )
        )
    return made


def tiny_store(
    folder: Path, *, scenes: int = 4, questions: int = 4, splits: Sequence[Split] = ("test",)
) -> Path:
    """A store of tiny scenes, one shard of each two; splits in turn."""
    made = [tiny_scene(seed, split=splits[seed % len(splits)]) for seed in range(scenes)]
    for index in range(0, scenes, 2):
        shard = made[index : index + 2]
        asked = [q for scene in shard for q in tiny_questions(scene, count=questions)]
        write_shard(folder, index // 2, shard, asked)
    write_manifest(folder, {"count": scenes})
    return folder


class FixedTeacher:
    """A teacher whose answers and logits are arithmetic on the question's id: no model, no luck."""

    def __init__(self, *, vocab_size: int = 1024, k: int = 4) -> None:
        self.vocab_size, self.k = vocab_size, k
        self.scenes_labelled = 0

    def open(self, scene: Scene) -> FixedTeacher:
        """Nothing to prepare."""
        return self

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The first option."""
        return [Answer(question_id=q.question_id, text=(*q.options, "yes")[0]) for q in questions]

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """The first option, with logits drawn from the question's id."""
        self.scenes_labelled += 1
        return [self._label(scene, question, signals) for question in questions]

    def _label(self, scene: Scene, question: Question, signals: Sequence[Signal]) -> TeacherLabel:
        text = self.answer([question])[0].text
        if "topk_logits" not in signals:
            return TeacherLabel(
                scene_id=scene.scene_id, question_id=question.question_id, answer=text
            )
        rng = np.random.default_rng(int(question.question_id, 16))
        ids = np.array([*rng.integers(288, self.vocab_size, 2), 2])
        topk = np.stack([rng.permutation(self.vocab_size)[: self.k] for _ in ids])
        topk[:, 0] = ids
        logits = -np.sort(-rng.normal(size=(len(ids), self.k)), axis=1) + 5
        return TeacherLabel(
            scene_id=scene.scene_id,
            question_id=question.question_id,
            answer=text,
            answer_ids=ids,
            topk_ids=topk,
            topk_logits=logits.astype(np.float16),
            logsumexp=np.log(np.exp(logits).sum(axis=1) + 1.0).astype(np.float32),
        )
