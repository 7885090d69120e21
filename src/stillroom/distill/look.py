"""How a student does as it stands, while it is trained: on held-out scenes and on some it learns.

Both sides are looked at in the same way, so that their difference is not one of dropout, of the
questions asked, or of weights that changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillroom.distill.batches import Batches
from stillroom.distill.config import DistillConfig, LossConfig
from stillroom.distill.step import count_labelled, distill_step, tokens_right
from stillroom.students.model import StillroomStudent
from stillroom.teachers.sampling import AnswerScores
from stillroom.training.precision import moved

#: Before the names of metrics on scenes that are trained on.
SEEN = "train."
#: Scenes of one batch.
SCENES_PER_EVALUATION = 8


def look(
    student: StillroomStudent, held_out: Batches, training: Batches, config: DistillConfig
) -> dict[str, float]:
    """``_means`` over the held-out scenes, and under ``train.`` those over some of the scenes
    trained on: terms in eval mode, of the weights as they stand, on both sides."""
    rng = np.random.default_rng(config.train.seed)
    ids = training.scene_ids
    some = rng.permutation(len(ids))[: config.training_scenes]
    seen = [ids[number] for number in sorted(some.tolist())]
    means = _means(student, held_out, held_out.scene_ids, config.losses)
    trained = _means(student, training, seen, config.losses) if seen else {}
    return means | {f"{SEEN}{name}": value for name, value in trained.items()}


def _means(
    student: StillroomStudent, batches: Batches, ids: Sequence[str], losses: LossConfig
) -> dict[str, float]:
    """Mean of every term over some scenes, and the share of answers right by family.

    Right means as the teacher said it, token for token, each token given the ones before it.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    scores = AnswerScores()
    together = SCENES_PER_EVALUATION
    place = dict(zip(batches.scene_ids, batches.rows, strict=True))
    if batches.features.photos is not None:
        # The encoder sees them again.
        together = batches.config.scenes_per_pass
    for start in range(0, len(ids), together):
        chosen = ids[start : start + together]
        rows = [place[scene_id] for scene_id in chosen]
        asked = [batches.items[scene_id] for scene_id in chosen]
        batch = moved(batches.batch(rows, asked), student.device)
        said = [item for row in asked for item in row if item.answer_ids]
        answers = [(item.question.family, len(item.answer_ids)) for item in said]
        scores.add_right(tokens_right(student, batch), answers)
        found = distill_step(student, batch, losses)
        for name, total in {**found.terms, **found.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(total)
        for name, count in count_labelled(batch).items():
            counts[name] = counts.get(name, 0.0) + count
    means = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    return means | {f"right.{name}": share for name, share in scores.shares().items()}
