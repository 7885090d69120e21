"""Where terms have no labels: such a term is off there, and how often is said once."""

from __future__ import annotations

from pathlib import Path

from stillroom.distill.batches import Batches
from stillroom.distill.config import LossConfig
from stillroom.distill.scene_labels import label_counts
from stillroom.distill.step import DEPTH_TERMS
from stillroom.teachers.measures import measured
from stillroom.training.runlog import read_log


def scenes_without(batches: Batches) -> dict[str, list[int]]:
    """By term that is on: the scenes, by number in ``scene_ids``, that have no label for it.

    Of a term of several parts, those that have none for any. Whether a question has an answer
    (``text``) or names a known thing (``grounding``) is asked of all questions of the scene.
    """
    losses = batches.config.losses
    found: dict[str, list[int]] = {name: [] for name in losses.terms}
    for number in range(len(batches.rows)):
        counts = _counts(batches, number)
        for term in losses.terms:
            if not any(counts.get(part, 0) for part in losses.parts.get(term, {term: 1.0})):
                found[term].append(number)
    return found


def steps_without(out: Path, losses: LossConfig) -> dict[str, tuple[int, int]]:
    """By term that is on: steps of the run in ``out`` that had no label for it, of how many."""
    log = out / "log.jsonl"
    steps = read_log(log, kind="step") if log.is_file() else []
    found = {}
    for term in losses.terms:
        parts = losses.parts.get(term, {term: 1.0})
        lacking = sum(not any(part in row["terms"] for part in parts) for row in steps)
        found[term] = (lacking, len(steps))
    return found


def _counts(batches: Batches, number: int) -> dict[str, float]:
    row, sees = batches.rows[number], batches.config.vision
    features = batches.features
    scene = batches.scene([row])
    asked = batches.items[batches.scene_ids[number]]
    named = any(batches.mentions[item.question.question_id] for item in asked)
    return {
        "text": float(any(item.answer_ids for item in asked)),
        **dict.fromkeys(
            (*DEPTH_TERMS, "depth_map"), float(sees and (features.true_depth[row] > 0).any())
        ),
        "naming": float(sees and features.objects[row][:, 0].any()),
        "grounding": float(sees and named),
        "apart": float(sees and named),
        "measure": float(sees and any(measured(item.question) for item in asked)),
        **({} if scene is None else label_counts(scene)),
    }
