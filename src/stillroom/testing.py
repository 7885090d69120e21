"""Small things for tests and examples: a scene of two boxes, its questions, a fixed teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.geometry.cameras import pinhole_from_fov
from stillroom.geometry.poses import look_at, rotation_z
from stillroom.records import (
    Answer,
    OrientedBox,
    Part,
    Question,
    Scene,
    SceneFeatures,
    SceneObject,
    Signal,
    Split,
    TeacherLabel,
    TopLogits,
    View,
    content_hash,
)
from stillroom.scenes.store import write_manifest, write_shard
from stillroom.students.encoders.vggt_config import VGGTConfig, mini_config

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


def tiny_encoder_config() -> VGGTConfig:
    """The smallest encoder for pictures of tiny scenes, without point and camera heads."""
    return mini_config(
        width=16,
        heads=2,
        encoder_heads=2,
        camera_heads=2,
        encoder_depth=1,
        image_size=28,
        dpt_features=8,
        dpt_channels=(4, 4, 4, 4),
        point_head=False,
        camera_head=False,
    )


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
    """A teacher whose labels are arithmetic on the question's id: no model, no luck.

    Gives every signal. ``pause_s`` is slept through before every scene, so that a kill finds it
    at work.
    """

    #: Visual tokens of a scene, groups of attention, widths.
    tokens, groups, width = 5, 2, 6

    def __init__(self, *, vocab_size: int = 1024, k: int = 4, pause_s: float = 0.0) -> None:
        self.vocab_size, self.k, self.pause_s = vocab_size, k, pause_s
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
        """The first option, with numbers drawn from the question's id."""
        self.scenes_labelled += 1
        time.sleep(self.pause_s)
        return [self._label(scene, question, signals) for question in questions]

    def scene_features(self, scene: Scene) -> SceneFeatures:
        """Numbers drawn from the scene's id."""
        rng = np.random.default_rng(int(scene.scene_id, 16))
        return SceneFeatures(
            scene_id=scene.scene_id,
            pooled=rng.normal(size=(self.tokens, self.width)).astype(np.float16),
            semantics=rng.normal(size=self.width).astype(np.float32),
            points=rng.normal(size=(self.tokens, 3)).astype(np.float32),
            patch_token=rng.integers(-1, self.tokens, 12),
            views=tuple(range(len(scene.views))),
            cap_seed=7,
        )

    def _label(self, scene: Scene, question: Question, signals: Sequence[Signal]) -> TeacherLabel:
        text = self.answer([question])[0].text
        given: dict[str, Any] = {}
        rng = np.random.default_rng(int(question.question_id, 16))
        ids = np.array([*rng.integers(288, self.vocab_size, 2), 2])
        top = self._top(rng, ids)
        if set(signals) - {"answers"}:
            given |= {"answer_ids": ids, "logprob": float(rng.normal())}
        if "topk_logits" in signals:
            given |= {"topk_ids": top.ids, "topk_logits": top.logits, "logsumexp": top.logsumexp}
        true = np.array([*rng.integers(288, self.vocab_size, 1 + len(question.answer) % 3), 2])
        if "reference_logits" in signals:
            given |= {"reference_ids": true, "reference": self._top(rng, true)}
        if "last_hidden" in signals:
            given["last_hidden"] = rng.normal(size=(len(ids), self.width)).astype(np.float16)
        if "attention" in signals:
            seen = rng.random((self.groups, len(ids), self.tokens)).astype(np.float16)
            given |= {"attention": seen, "attention_mass": seen.sum(axis=2).astype(np.float32)}
        return TeacherLabel(
            scene_id=scene.scene_id, question_id=question.question_id, answer=text, **given
        )

    def _top(self, rng: np.random.Generator, ids: np.ndarray) -> TopLogits:
        top = np.stack([rng.permutation(self.vocab_size)[: self.k] for _ in ids])
        top[:, 0] = ids
        logits = -np.sort(-rng.normal(size=(len(ids), self.k)), axis=1) + 5
        return TopLogits(
            ids=top,
            logits=logits.astype(np.float16),
            logsumexp=np.log(np.exp(logits).sum(axis=1) + 1.0).astype(np.float32),
        )
