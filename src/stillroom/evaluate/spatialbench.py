"""SpatialBench (2511.21471): how its release reads an answer, scores it, and weighs the groups.

Two traps of the release are kept here and mended in the corrected column: a final letter counts
even inside a word ("red" is D), and rows with an empty answer are dropped before anything is
scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.evaluate.letters import stated_letter
from stillroom.evaluate.metrics import mean_relative_accuracy
from stillroom.evaluate.numbers import stated_number

#: Group -> (weight, its types of question), as published.
GROUPS: dict[str, tuple[float, tuple[str, ...]]] = {
    "observation_and_measurement": (
        0.0944,
        ("object_counting", "object_size", "room_size", "absolute_distance"),
    ),
    "topology_and_composition": (
        0.1564,
        (
            "appearance_order",
            "appearance_order_on_self-defined_route",
            "relative_distance",
            "relative_direction",
            "relative_counting",
        ),
    ),
    "symbolic_visual_reasoning": (
        0.1759,
        (
            "multi-hop_spatial_reasoning",
            "affordance",
            "landmark-constrained_pose_localization",
        ),
    ),
    "spatial_causality": (0.2592, ("spatial_causal_reasoning",)),
    "spatial_planning": (0.3141, ("visual_based_commands", "route_plan")),
}
_ALNUM = re.compile(r"[A-Za-z0-9]")
_NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)\b")
_BOX_START, _BOX_END = "<|begin_of_box|>", "<|end_of_box|>"
_OPTION = re.compile(r"\s*([A-D])\.\s*(.*?)\s*$")
_SOLUTION = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)

# An answer to a regression within 5 % counts as correct (not in the score, which is MRA).
_SAME = 0.05


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scored answer and what it is grouped by."""

    problem_type: str
    question_type: str
    scene_type: str
    score: float


def is_number(problem_type: str) -> bool:
    """Whether a problem asks for a number; the released files write the types in two ways."""
    kind = problem_type.replace("_", " ")
    return "regression" in kind or "object counting" in kind


def released_truth(solution: str) -> str:
    """The truth without the answer tag that some rows have."""
    tagged = _SOLUTION.search(solution)
    return tagged[1].strip() if tagged else solution.strip()


def clean_answer(text: str, problem_type: str, options: Sequence[str]) -> str:
    """The release's concise answer: a letter, a number as written, or the text.

    ``options`` as published ("A. A Citroen."). A choice: the last letter or digit of the text if
    it is one of A to D, else the first, else the first option whose text the last line holds. A
    number: the last without its sign.
    """
    said = text.strip()
    start = said.find(_BOX_START)
    end = said.find(_BOX_END, start + len(_BOX_START)) if start >= 0 else -1
    if end >= 0:
        return said[start + len(_BOX_START) : end].strip()
    if is_number(problem_type):
        numbers = _NUMBER.findall(said)
        if numbers:
            return str(numbers[-1])
    else:
        letter = _outer_letter(said) or _held_option(said, options)
        if letter:
            return letter
    return said.rstrip(".").strip()


def _outer_letter(said: str) -> str | None:
    signs = _ALNUM.findall(said)
    outer = [signs[-1], signs[0]] if signs else []
    return next((sign.upper() for sign in outer if sign.upper() in "ABCD"), None)


def _held_option(said: str, options: Sequence[str]) -> str | None:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for option in options:
        found = _OPTION.match(option)
        text = found[2].strip(". ") if found else ""
        if found and lines and re.search(rf"\b{re.escape(text)}\b", lines[-1], re.IGNORECASE):
            return found[1]
    return None


def is_correct(answer: str, truth: str, problem_type: str) -> bool:
    """Whether a cleaned answer equals the truth; numbers may be 5 % apart."""
    if is_number(problem_type):
        said, wanted = _float(answer), _float(truth)
        if said is not None and wanted is not None:
            return math.isclose(said, wanted, rel_tol=_SAME)
    return answer.lower() == truth.lower()


def released_score(answer: str, truth: str, problem_type: str) -> float:
    """0 or 1 for a choice; for a number MRA with a *strict* ``<``, and for a truth of 0 only 0."""
    said, wanted = _float(answer), _float(truth)
    if not is_number(problem_type) or said is None or wanted is None:
        return float(is_correct(answer, truth, problem_type))
    if wanted == 0:
        return float(said == 0)
    error = abs(said - wanted) / abs(wanted)
    return float(np.mean([error < 1 - step / 100 for step in range(50, 100, 5)]))


def corrected_score(text: str, truth: str, problem_type: str, options: Sequence[str]) -> float:
    """The same, reading only what the answer states (``stated_letter``, ``stated_number``).

    ``options`` are the texts without letters.
    """
    if not is_number(problem_type):
        return float(stated_answer(text, problem_type, options) == truth.strip().upper())
    wanted, said = _float(truth), stated_number(text)
    return 0.0 if wanted is None else mean_relative_accuracy(said, wanted, strict=True)


def stated_answer(text: str, problem_type: str, options: Sequence[str]) -> str | None:
    """The letter or the number that an answer states, or None."""
    if not is_number(problem_type):
        return stated_letter(text, options)
    number = stated_number(text)
    return None if number is None else f"{number:g}"


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """The tables that the release prints, in percent, rounded to two places as there.

    Weighted overall: sum(weight * group score) over all five groups; one never asked counts 0.
    """
    major = {
        name: _percent([row.score for row in rows if row.question_type in types])
        for name, (_, types) in GROUPS.items()
    }
    minor = {
        kind: _percent([row.score for row in rows if row.question_type == kind])
        for _, types in GROUPS.values()
        for kind in types
    }
    return {
        "overall_score": _percent([row.score for row in rows]),
        "weighted_overall_score": round(_weighted(major), 2),
        "major_category_score": major,
        "sub_category_score": minor,
        "problem_type_score": {
            "multiple_choice": _percent([r.score for r in rows if not is_number(r.problem_type)]),
            "regression": _percent([r.score for r in rows if is_number(r.problem_type)]),
        },
        "scene_type_score": {
            where: _percent([row.score for row in rows if row.scene_type == where])
            for where in ("indoor", "outdoor")
        },
    }


def _weighted(major: Mapping[str, float]) -> float:
    weights = {name: weight for name, (weight, _) in GROUPS.items()}
    return sum(weights[name] * score for name, score in major.items()) / sum(weights.values())


def _percent(scores: Sequence[float]) -> float:
    return round(100.0 * sum(scores) / len(scores), 2) if scores else 0.0
