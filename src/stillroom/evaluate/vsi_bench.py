"""VSI-Bench (Yang et al. 2024): the score of an answer and the table of a run, by each rule in use.

Overall is the mean of the task scores, not of the items; the three levels of relative direction
are averaged into one task first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from stillroom.evaluate.letters import first_piece, stated_letter
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
    if rule == "stillroom-1":
        return float(stated_letter(text, options) == truth.strip().upper())
    if rule == "vlmevalkit-2026-08":
        return float((spatial_match(text, options) or "").lower() == truth.strip().lower())
    return float(first_piece(text).lower() == truth.lower())


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


def official_names(tasks: Mapping[str, float]) -> dict[str, float]:
    """Task scores under the names and in the order in which the release prints them."""
    named = {
        **{task: f"{task}_MRA:.5:.95:.05" for task in VSI_NUMBER_TASKS},
        **{task: f"{task}_accuracy" for task in VSI_CHOICE_TASKS},
    }
    return {name: tasks[task] for task, name in named.items() if task in tasks}
