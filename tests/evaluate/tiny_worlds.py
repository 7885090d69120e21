"""A store of tiny scenes whose pictures carry their answers, and models that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillroom.records import Answer, Question, Scene, SceneGeometry, View, content_hash
from stillroom.scenes.store import SceneStore, open_store, write_manifest, write_shard

THINGS = ("red chair", "blue mug", "green lamp", "oak table", "grey sofa", "pink box")
SPLIT_OF = ("train", "train", "train", "test", "test", "val", "shifted")


def tiny_scene(index: int, split: str) -> Scene:
    """A scene of two 8 x 10 views; the brightness of the first is the scene's number."""
    depth = np.full((8, 10), 1.0 + 0.1 * (index % 7), dtype=np.float32)
    depth[0, 0] = 0.0
    views = tuple(
        View(
            name=f"view{v}",
            rgb=np.full((8, 10, 3), (index * 7 + 40 * v) % 256, dtype=np.uint8),
            intrinsics=np.array([[8.0, 0, 5], [0, 8.0, 4], [0, 0, 1]]),
            c2w=np.eye(4),
            depth=depth,
        )
        for v in range(2)
    )
    return Scene(scene_id=f"scene{index:03d}", source="test", split=split, views=views)


def tiny_questions(scene: Scene, *, rng: np.random.Generator) -> list[Question]:
    """Three of each family and a description; the answers are fair coins."""

    def make(family: str, text: str, answer: str, **more: object) -> Question:
        return Question(
            scene_id=scene.scene_id,
            question_id=content_hash([scene.scene_id, family, text]),
            split=scene.split,
            family=family,
            question=text,
            answer=answer,
            **more,
        )

    made = []
    for _ in range(3):
        a, b, c = rng.choice(np.array(THINGS), size=3, replace=False).tolist()
        coin = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
        number = len(made)
        made += [
            make(
                "proximity",
                f"{number}: Which is closer to the {a}: the {b} or the {c}?",
                coin(b, c),
                options=(b, c),
            ),
            make(
                "contact",
                f"{number}: Are the {a} and the {b} touching?",
                coin("yes", "no"),
                options=("yes", "no"),
            ),
            make(
                "size",
                f"{number}: Which is bigger, the {a} or the {b}?",
                coin(a, b),
                options=(a, b),
            ),
            make(
                "orientation",
                f"{number}: Seen from the first photo, is the {a} left or right of the {b}?",
                coin("left", "right"),
                options=("left", "right"),
            ),
        ]
    made.append(
        make(
            "object_counting",
            "How many chairs are in this room?",
            str(int(rng.integers(1, 5))),
            value=1.0,
        )
    )
    made.append(
        make(
            "description",
            "Describe the room.",
            f"a room with a {a} and a {b}",
            renderings=(f"there is a {b} and a {a} in the room",),
            facts=(("object", a), ("object", b)),
        )
    )
    return made


def write_tiny_store(folder: Path, *, scenes: int) -> SceneStore:
    rng = np.random.default_rng(3)
    made = [tiny_scene(i, SPLIT_OF[i % len(SPLIT_OF)]) for i in range(scenes)]
    write_manifest(folder, {"count": scenes})
    write_shard(folder, 0, made, [q for scene in made for q in tiny_questions(scene, rng=rng)])
    return open_store(folder)


def no_scene() -> Scene:
    """A scene for answerers that look at nothing."""
    return Scene(scene_id="none", source="test", views=())


class Seer:
    """A model that knows the truth of the scene it was shown, and errs at a given rate.

    It looks at the pictures: shown another scene, it answers from that one.
    """

    def __init__(self, store: SceneStore, *, errs: float, seed: int = 0) -> None:
        self.opened: list[str] = []
        self._errs = errs
        self._seed = seed
        self.session = SeerSession
        self._scene_of = {self._look(scene): scene.scene_id for scene in store.iter_scenes()}

    @staticmethod
    def _look(scene: Scene) -> bytes:
        return scene.views[0].rgb[0, 0].tobytes() + scene.scene_id.encode()

    def open(self, scene: Scene) -> SeerSession:
        self.opened.append(scene.scene_id)
        return self.session(self._scene_of[self._look(scene)], scene, self._errs, self._seed)


class SeerSession:
    def __init__(self, seen: str, scene: Scene, errs: float, seed: int) -> None:
        self._seen, self._scene, self._errs, self._seed = seen, scene, errs, seed

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        answers = []
        for question in questions:
            rng = np.random.default_rng([self._seed, int(question.question_id, 16)])
            right = question.scene_id == self._seen and rng.random() >= self._errs
            text = question.answer
            if not right and question.options:
                text = question.options[int(rng.integers(len(question.options)))]
            answers.append(Answer(question_id=question.question_id, text=text))
        return answers

    def geometry(self) -> SceneGeometry:
        # Half the size and 10 % too far, as a small student might be.
        return SceneGeometry(
            depth=np.stack([1.1 * view.depth[1::2, 1::2] for view in self._scene.views])
        )


def margined(
    family: str,
    margin: float | None,
    *,
    number: int,
    unit: str = "m",
    answer: str = "left",
) -> Question:
    """A question of which only family, unit, answer and margin matter."""
    options = ("yes", "no") if family == "contact" else ("left", "right")
    return Question(
        scene_id="scene",
        question_id=f"{number:03d}",
        split="test",
        family=family,
        question="Is it so?",
        answer=answer,
        options=options,
        unit=unit,
        margin=margin,
    )
