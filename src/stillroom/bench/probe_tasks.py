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

#: Control tasks of each property; their mean is what it is set against.
CONTROLS = 5


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A question with what its states might tell: see ``probed_questions``."""

    question: Question
    # Metres between the centres of the first two things it names.
    distance: float
    # The right answer as a word of relation, or its place where it names a thing.
    relation: str
    # What the answer is chosen from, in fixed order: "behind or in front", "the place named".
    axis: str
    # Kinds of all things named.
    kinds: tuple[str, ...]
    # The first thing by its full name, colour and all.
    name: str


def probed_questions(scene: Scene, store: SceneStore) -> list[Probed]:
    """The questions of the four families that name two known things, in the store's order."""
    known = {thing.object_id: thing for thing in scene.objects}
    names = {thing.name for thing in scene.objects}
    found = []
    for question in store.questions(scene.scene_id):
        ids = question.object_ids
        right = right_option(question)
        if question.family not in FAMILIES or right is None or len(ids) < 2:
            continue
        if any(object_id not in known for object_id in ids):
            continue
        first, second = known[ids[0]], known[ids[1]]
        of_things = bool(names.intersection(question.options))
        found.append(
            Probed(
                question=question,
                distance=float(np.linalg.norm(first.box.center - second.box.center)),
                relation=f"option {right + 1}" if of_things else question.answer,
                axis="place named" if of_things else " or ".join(sorted(question.options)),
                kinds=tuple(known[object_id].category for object_id in ids),
                name=first.name,
            )
        )
    return found


def probe_tasks(questions: Sequence[Probed], train: Sequence[bool], seed: int) -> list[ProbeTask]:
    """Distance and kind over all questions; the right answer by family and by what it is chosen
    from, for a question's words say whether it asks for left or right or for front or behind.

    Controls are fixed by the kinds of the things named, of the kind by the full name of the thing
    (colour and all) and evenly inside each kind, of answers by the kinds and the options.
    """
    learnt = np.array(train)
    places = np.arange(len(questions))

    def task(
        name: str,
        where: Int[np.ndarray, "m"],
        values: Sequence[Any],
        keys: Sequence[Any],
        within: Sequence[Any] | None = None,
        **more: str,
    ) -> ProbeTask:
        classes: tuple[str, ...] = ()
        if isinstance(values[0], str):
            # What training never saw can only be wrong.
            classes = tuple(sorted(set(values)))
            values = [classes.index(value) for value in values]
        targets = np.array(values, dtype=np.float64)
        draws = [
            control_targets(keys, targets, learnt[where], seed * CONTROLS + n, within=within)
            for n in range(CONTROLS)
        ]
        return ProbeTask(
            name=name,
            classes=classes,
            where=where,
            targets=targets,
            controls=np.stack(draws),
            **more,
        )

    kinds = [one.kinds[0] for one in questions]
    distances, pairs = [one.distance for one in questions], [one.kinds[:2] for one in questions]
    found = [
        task("distance", places, distances, pairs, unit="m"),
        task("kind", places, kinds, [one.name for one in questions], within=kinds),
    ]
    asked = sorted({(FAMILIES.index(one.question.family), one.axis) for one in questions})
    for family, axis in ((FAMILIES[place], axis) for place, axis in asked):
        chosen = [
            i
            for i, one in enumerate(questions)
            if (one.question.family, one.axis) == (family, axis)
        ]
        where = np.array(chosen, dtype=np.int64)
        if learnt[where].any() and not learnt[where].all():
            found.append(
                task(
                    f"answer: {family} ({axis})",
                    where,
                    [questions[i].relation for i in chosen],
                    [(questions[i].kinds, _worded(questions[i])) for i in chosen],
                )
            )
    return found


def _worded(one: Probed) -> tuple[str, ...]:
    """The options as they stand in the question, where they are words of relation."""
    return () if one.axis == "place named" else one.question.options
