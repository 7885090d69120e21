"""What is asked of a student's states: distances, kinds and answers that geometry knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from stillroom.bench.linear_probe import ProbeTask, control_targets
from stillroom.evaluate.baselines import right_option
from stillroom.records import FAMILIES, Question, Scene
from stillroom.scenes.store import SceneStore


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A question with what its states might tell: see ``probed_questions``."""

    question: Question
    # Metres between the centres of the first two things it names.
    distance: float
    # The right answer as a word of relation, or its place where it names a thing.
    relation: str
    # Kinds of the first two things.
    kinds: tuple[str, str]


def probed_questions(scene: Scene, store: SceneStore) -> list[Probed]:
    """The questions of the four families that name two known things, in the store's order."""
    known = {thing.object_id: thing for thing in scene.objects}
    found = []
    for question in store.questions(scene.scene_id):
        ids = question.object_ids
        right = right_option(question)
        if question.family not in FAMILIES or right is None or len(ids) < 2:
            continue
        if ids[0] not in known or ids[1] not in known:
            continue
        first, second = known[ids[0]], known[ids[1]]
        names = {thing.name for thing in scene.objects}
        found.append(
            Probed(
                question=question,
                distance=float(np.linalg.norm(first.box.center - second.box.center)),
                relation=f"option {right + 1}"
                if names.intersection(question.options)
                else question.answer,
                kinds=(first.category, second.category),
            )
        )
    return found


def probe_tasks(questions: Sequence[Probed], train: Sequence[bool], seed: int) -> list[ProbeTask]:
    """Distance and kind over all questions, the right answer family by family."""
    learnt = np.array(train)
    places = np.arange(len(questions))
    kinds = [one.kinds for one in questions]

    def task(
        name: str,
        where: Int[np.ndarray, "m"],
        values: Sequence[Any],
        keys: Sequence[Any],
        **more: str,
    ) -> ProbeTask:
        classes: tuple[str, ...] = ()
        if isinstance(values[0], str):
            # What training never saw can only be wrong.
            classes = tuple(sorted(set(values)))
            values = [classes.index(value) for value in values]
        targets = np.array(values, dtype=np.float64)
        return ProbeTask(
            name=name,
            classes=classes,
            where=where,
            targets=targets,
            control=control_targets(keys, targets, learnt[where], seed),
            **more,
        )

    found = [
        task("distance", places, [one.distance for one in questions], kinds, unit="m"),
        task("kind", places, [pair[0] for pair in kinds], [pair[0] for pair in kinds]),
    ]
    for family in FAMILIES:
        chosen = [i for i, one in enumerate(questions) if one.question.family == family]
        where = np.array(chosen, dtype=np.int64)
        if len(where) and learnt[where].any() and not learnt[where].all():
            found.append(
                task(
                    f"answer: {family}",
                    where,
                    [questions[i].relation for i in chosen],
                    [kinds[i] for i in chosen],
                )
            )
    return found
