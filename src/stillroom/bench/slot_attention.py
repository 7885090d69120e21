"""Where the slots of a student look: shares of their attention over photos and things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stillroom.bench.probe_report import AttentionPicture
from stillroom.bench.probe_tasks import probed_questions
from stillroom.distill.features import cell_ids
from stillroom.evaluate.intervals import Resampler
from stillroom.records import Question
from stillroom.scenes.store import SceneStore
from stillroom.students.probe import read_questions
from stillroom.students.session import StudentAnswerer

#: Scenes of the scored split whose attention is measured, and those of them that are drawn.
ATTENTION_SCENES, PICTURES = 24, 3


def slot_attention(
    answerer: StudentAnswerer, store: SceneStore, scene_ids: Sequence[str], *, seed: int
) -> tuple[dict[str, Any] | None, list[AttentionPicture]]:
    """Where slots look, over some scenes drawn by seed; None for a student of one vision token."""
    config = answerer.student.config
    if config.vision_pool == "mean":
        return None, []
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.array(scene_ids)).tolist()[:ATTENTION_SCENES]
    shares: list[Float[np.ndarray, "k cells"]] = []
    looked: list[Float[np.ndarray, "k"]] = []
    scenes: list[str] = []
    pictures: list[AttentionPicture] = []
    views = 0
    for scene_id in drawn:
        scene = store.scene(scene_id)
        questions = [one.question for one in probed_questions(scene, store)]
        if not questions:
            continue
        session = answerer.open(scene)
        # Cells are counted photo by photo: scenes of as many as the first.
        views = views or len(session.views)
        if len(session.views) != views:
            continue
        ids = [session.processor.question_ids(question.prompt) for question in questions]
        readings = read_questions(session.student, session.prefix, ids, attention=True)
        shown = cell_ids(scene, session.processor, config.vision_grid).flatten().numpy()
        for question, reading in zip(questions, readings, strict=True):
            assert reading.attention is not None, "it was asked for"
            seen = reading.attention.float().mean(dim=(0, 1)).cpu().numpy()  # [k cells]
            shares.append(seen)
            looked.append(_lift(seen, shown, question))
            scenes.append(scene_id)
        if len(pictures) < PICTURES:
            first = shares[-len(questions)]
            pictures.append(
                AttentionPicture(
                    scene_id=scene_id,
                    question=questions[0].question,
                    photos=[photo.rgb for photo in session.seen(scene).views],
                    attention=first.reshape(len(first), views, config.vision_grid, -1),
                )
            )
    if not shares:
        return None, []
    return _attention_record(shares, looked, scenes, views), pictures


def _lift(
    seen: Float[np.ndarray, "k cells"], shown: Int[np.ndarray, "cells"], question: Question
) -> Float[np.ndarray, "k"]:
    """Attention on the cells of the things named, as a multiple of what their area would get."""
    named = np.isin(shown, question.object_ids)
    if not named.any():
        return np.full(len(seen), np.nan)
    lift: Float[np.ndarray, "k"] = seen[:, named].sum(axis=1) / seen.sum(axis=1) / named.mean()
    return lift


def _attention_record(
    shares: Sequence[Float[np.ndarray, "k cells"]],
    looked: Sequence[Float[np.ndarray, "k"]],
    scenes: Sequence[str],
    views: int,
) -> dict[str, Any]:
    resampler = Resampler(scenes, rng=np.random.default_rng(0))
    cells = shares[0].shape[1]
    rows = []
    for slot in range(len(shares[0])):
        own = np.stack([seen[slot] for seen in shares])
        mass = own.sum(axis=1)
        spread = own / mass[:, None]
        entropy = -(spread * np.log(np.maximum(spread, 1e-30))).sum(axis=1)
        lift = np.array([one[slot] for one in looked])
        named = np.isfinite(lift)
        rows.append(
            {
                "slot": slot + 1,
                "on_photos": asdict(resampler.mean(mass, scenes)),
                "entropy_nats": float(entropy.mean()),
                "by_photo": spread.reshape(len(own), views, -1).sum(axis=2).mean(axis=0).tolist(),
                "on_things_named": asdict(
                    resampler.mean(lift[named], [s for s, k in zip(scenes, named) if k])
                )
                if named.any()
                else None,
            }
        )
    return {
        "slots": rows,
        "questions": len(shares),
        "scenes": len(set(scenes)),
        "even_entropy_nats": float(np.log(cells)),
    }
