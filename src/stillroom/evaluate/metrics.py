"""Scores of numbers and facts: mean relative accuracy, VSI-Bench's overall, fact F1."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

#: VSI-Bench's eight tasks, as results name them; the levels of relative direction count as one.
VSI_NUMBER_TASKS = (
    "object_counting",
    "object_abs_distance",
    "object_size_estimation",
    "room_size_estimation",
)
VSI_CHOICE_TASKS = (
    "object_rel_distance",
    "object_rel_direction",
    "route_planning",
    "obj_appearance_order",
)
VSI_TASKS = VSI_NUMBER_TASKS + VSI_CHOICE_TASKS
_DIRECTION = "object_rel_direction"

# 0.50, 0.55 ... 0.95: ten, as the published code has them (specs/benchmarks.md section 1).
_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def mean_relative_accuracy(predicted: float | None, truth: float, *, strict: bool = False) -> float:
    """Share of the ten thresholds within which the relative error stays (VSI-Bench's MRA, 0..1).

    ``<=`` as in the published code, ``<`` where ``strict``, as the paper and SpatialBench have it.
    No number scores 0. A truth of 0, which VSI-Bench does not have, asks for exactly 0.
    """
    if predicted is None:
        return 0.0
    if truth == 0:
        return float(predicted == 0)
    error = abs(predicted - truth) / abs(truth)
    within = error < 1 - _THRESHOLDS if strict else error <= 1 - _THRESHOLDS
    return float(np.mean(within))


def is_vsi(family: str) -> bool:
    """Whether a family is one of VSI-Bench's, the three direction levels included."""
    return family in VSI_TASKS or family.startswith(_DIRECTION)


def vsi_task_scores(family_scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by task from scores by question type: the direction levels are averaged into one."""
    tasks = {name: score for name, score in family_scores.items() if name in VSI_TASKS}
    levels = [score for name, score in family_scores.items() if name.startswith(_DIRECTION + "_")]
    if levels:
        tasks[_DIRECTION] = float(np.mean(levels))
    return tasks


def vsi_overall(family_scores: Mapping[str, float]) -> float | None:
    """Mean of the task scores, not of the items; None where no VSI task was asked."""
    tasks = vsi_task_scores(family_scores)
    return float(np.mean(list(tasks.values()))) if tasks else None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How two texts, or two sets of facts, agree: all three are fractions."""

    precision: float
    recall: float
    f1: float


def fact_overlap(said: Collection[tuple[str, ...]], known: Collection[tuple[str, ...]]) -> Overlap:
    """Overlap of two sets of facts; a fact counts once however often it is said.

    Nothing said has precision 0, so an empty description cannot score.
    """
    said_set, known_set = set(said), set(known)
    hits = len(said_set & known_set)
    precision = hits / len(said_set) if said_set else 0.0
    recall = hits / len(known_set) if known_set else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return Overlap(precision=precision, recall=recall, f1=f1)
