"""VSI-Bench (Yang et al. 2024): the score of an answer and the table of a run, by each rule in use.

Overall is the mean of the task scores, not of the items; the three levels of relative direction
are averaged into one task first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stillroom.evaluate.letters import first_piece, stated_letter, vsi_letter
from stillroom.evaluate.letters_vlmevalkit import spatial_match
from stillroom.evaluate.metrics import (
    VSI_CHOICE_TASKS,
    VSI_NUMBER_TASKS,
    mean_relative_accuracy,
    vsi_overall,
    vsi_task_scores,
)
from stillroom.evaluate.numbers import NUMBER_RULES
from stillroom.text.answers import official_number

Rule = Literal["official-2024", "lmms-eval-0.7.3", "vlmevalkit-2026-08", "stillroom-1"]
#: The headline first; the last is the corrected column.
RULES: tuple[Rule, ...] = ("official-2024", "lmms-eval-0.7.3", "vlmevalkit-2026-08", "stillroom-1")

#: The ten types of question that the released file has.
NUMBER_TYPES = VSI_NUMBER_TASKS
CHOICE_TYPES = (
    "object_rel_direction_easy",
    "object_rel_direction_medium",
    "object_rel_direction_hard",
    "object_rel_distance",
    "route_planning",
    "obj_appearance_order",
)
QUESTION_TYPES = NUMBER_TYPES + CHOICE_TYPES


def answer_score(
    question_type: str, text: str, truth: str, options: Sequence[str], rule: Rule
) -> float:
    """Accuracy of a choice (0 or 1) or MRA of a number (0..1) by one rule.

    ``options`` are the texts without their letters; the published rules do not need them. A truth
    that is no number scores 0 with every answer, as in the published code.
    """
    if question_type in NUMBER_TYPES:
        wanted = official_number(truth)
        said = NUMBER_RULES[f"vsi-mra/{rule}"](text)
        return 0.0 if wanted is None else mean_relative_accuracy(said, wanted)
    if rule in ("stillroom-1", "vlmevalkit-2026-08"):
        letter = understood(question_type, text, options, rule)
        return float(letter == truth.strip().upper())
    return float(first_piece(text).lower() == truth.lower())


def understood(question_type: str, text: str, options: Sequence[str], rule: Rule) -> str | None:
    """The number or the letter that a rule reads in an answer; None where it reads none."""
    if question_type in NUMBER_TYPES:
        number = NUMBER_RULES[f"vsi-mra/{rule}"](text)
        return None if number is None else f"{number:g}"
    if rule == "stillroom-1":
        return stated_letter(text, options)
    if rule == "vlmevalkit-2026-08":
        return spatial_match(text, options)
    return vsi_letter(text, options)


def table(question_types: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Score of each task that was asked, and "overall", as fractions, under the official names."""
    if not scores or len(question_types) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(question_types)} types of question")
    by_type: dict[str, list[float]] = {}
    for question_type, score in zip(question_types, scores, strict=True):
        by_type.setdefault(question_type, []).append(score)
    means = {name: float(np.mean(values)) for name, values in by_type.items()}
    overall = vsi_overall(means)
    if overall is None:
        raise ValueError(f"no type of VSI-Bench among {sorted(by_type)}")
    return {"overall": overall, **official_names(vsi_task_scores(means))}


#: Task -> the name under which the release prints it, in its order.
FIGURE_OF = {
    **{task: f"{task}_MRA:.5:.95:.05" for task in VSI_NUMBER_TASKS},
    **{task: f"{task}_accuracy" for task in VSI_CHOICE_TASKS},
}


def official_names(tasks: Mapping[str, float]) -> dict[str, float]:
    """Task scores under the names and in the order in which the release prints them."""
    return {name: tasks[task] for task, name in FIGURE_OF.items() if task in tasks}


def task_of(question_type: str) -> str:
    """The task that a type of question belongs to: the levels of relative direction are one."""
    direction = "object_rel_direction"
    return direction if question_type.startswith(f"{direction}_") else question_type
