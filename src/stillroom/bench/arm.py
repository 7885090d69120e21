"""One arm of an ablation with one seed: trained, asked, measured; resumable at every point.

``HOME/plan.json``, written first, says what the arm is, ``HOME/run`` is the run's folder,
``HOME/evaluation`` what was asked and answered, ``HOME/items.parquet`` has one line per question
and row (the student, then itself under each intervention), and ``HOME/arm.json``, written last,
says what the arm came to.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stillroom.bench.interventions import (
    Intervened,
    IntervenedSession,
    RememberingAnswerer,
    answer_nats,
)
from stillroom.distill.config import DistillConfig
from stillroom.distill.features import cell_depth
from stillroom.distill.run import distill
from stillroom.distill.scene_pack import alone
from stillroom.evaluate.baselines import RecordedAnswers
from stillroom.evaluate.run import evaluate
from stillroom.evaluate.text_overlap import rouge
from stillroom.recipes.ablations import Intervention
from stillroom.records import Answerer, BadInputError
from stillroom.scenes.store import SceneStore, open_store, read_json, write_atomically
from stillroom.students.parameters import count_parameters
from stillroom.students.session import StudentAnswerer, StudentSession
from stillroom.teachers.label_store import LabelStore, open_labels
from stillroom.training.runlog import read_result

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

VERSION = 2
#: The row of the student as it was trained; interventions stand under their own names.
STUDENT = "student"
PLAN_FILE, ARM_FILE = "plan.json", "arm.json"
ITEMS_FILE, DEPTH_FILE = "items.parquet", "depth.parquet"

ITEM_SCHEMA = pa.schema(
    {
        "row": pa.string(),
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "family": pa.string(),
        # 0 to 1 against the truth; null where none is known.
        "score": pa.float64(),
        # ROUGE-1 (F1) of a description against the teacher's; null elsewhere.
        "rouge1": pa.float64(),
        # Cross-entropy of the teacher's answer, summed over its tokens, and their number.
        "nats": pa.float64(),
        "tokens": pa.int64(),
    }
)
#: Squared error of the student's own depth head, summed over measured cells [m^2].
DEPTH_SCHEMA = pa.schema(
    {"scene_id": pa.string(), "squared_error": pa.float64(), "cells": pa.int64()}
)


@dataclass(frozen=True, kw_only=True)
class ArmJob:
    """All that one arm with one seed needs; it travels to other processes whole."""

    suite: str
    arm: str
    seed: int
    # The name of its recipe, for its card.
    recipe: str
    # With the seed, the budget and the shared features in it.
    config: DistillConfig
    scenes: Path
    # What it learns from, and whose answers it is compared with.
    labels: Path
    teacher_labels: Path
    home: Path
    encoder: Path | str
    language_model: Path | str = ""
    # Which scenes are asked about, and at most how many.
    split: str
    limit: int | None = None
    interventions: tuple[Intervention, ...] = ()
    # What makes it this arm and no other: config, weights, labels, questions, as far as this call
    # knows them.
    asked: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The arm and its seed, as messages call them."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it was trained, and asked under every intervention."""
        done = read_arm(self.home)
        return done is not None and set(self.interventions) <= set(done["interventions"])


def asked_scenes(store: SceneStore, split: str, limit: int | None) -> list[str]:
    """The scenes that every arm is asked about."""
    return store.scene_ids(None if split == "all" else split)[:limit]


def run_arm(job: ArmJob, progress: Progress | None = None) -> dict[str, Any]:
    """Train, ask and measure; what is done already is not done again. What ``arm.json`` holds.

    Two processes that want the same arm take turns; the second finds it done.

    Raises:
        BadInputError: as ``distill`` and ``evaluate`` do, or the folder is another arm's.
        TrainingDiverged: a loss stopped being finite.
    """
    job.home.mkdir(parents=True, exist_ok=True)
    with alone(job.home / ".lock"):
        require_same(job)
        done = read_arm(job.home)
        if done is not None and job.finished:
            return done
        if not (job.home / PLAN_FILE).is_file():
            plan = {"version": VERSION, "asked": dict(job.asked), "meta": dict(job.meta)}
            write_atomically(job.home / PLAN_FILE, (json.dumps(plan, indent=1) + "\n").encode())
        if done is None:  # else it was trained for a suite that asks less of it
            distill(
                job.config,
                scenes=job.scenes,
                labels=job.labels,
                out=job.home / "run",
                encoder=job.encoder,
                language_model=job.language_model,
                tokenizer=job.config.tokenizer,
                recipe=job.recipe,
                meta=job.meta,
                progress=progress,
            )
        return _judge(job, progress)


def require_same(job: ArmJob) -> None:
    """Refuse a folder that holds another arm: other config, weights, labels or questions.

    Raises:
        BadInputError: it does; the message says where the two differ.
    """
    path = job.home / PLAN_FILE
    if not path.is_file():
        return
    there = read_json(path, remedy=f"delete {job.home} and give the same command again")
    known = dict(there.get("asked") or {})
    if found := settings_difference({name: known.get(name) for name in job.asked}, job.asked):
        raise BadInputError(
            f"{job.home} holds the arm {job.name} made with other settings ({found}). Choose "
            "another --out, or delete that folder to make the arm again."
        )


def settings_difference(there: Any, here: Any, where: str = "") -> str:
    """Where two nested settings differ first, in words; empty where they do not."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(there.keys() | here.keys()):
            name = f"{where}.{key}" if where else key
            if found := settings_difference(there.get(key), here.get(key), name):
                return found
        return ""
    return "" if there == here else f"{where}: {there} there, {here} now"


def read_arm(home: Path) -> dict[str, Any] | None:
    """What a finished arm came to; None before it is."""
    path = home / ARM_FILE
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    return found if found.get("version") == VERSION else None


def read_items(home: Path) -> pa.Table:
    """All items of a finished arm, as ``ITEM_SCHEMA``."""
    return _read(home / ITEMS_FILE)


def read_depth(home: Path) -> pa.Table:
    """Depth errors of a finished arm, as ``DEPTH_SCHEMA``; no line if nothing trained its head."""
    return _read(home / DEPTH_FILE)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(
            f"{path} is not readable ({str(error).splitlines()[0]}); delete "
            f"{path.with_name(ARM_FILE)} and give the same command again"
        ) from None


def _judge(job: ArmJob, progress: Progress | None) -> dict[str, Any]:
    store, labels = open_store(job.scenes), open_labels(job.teacher_labels)
    scene_ids = asked_scenes(store, job.split, job.limit)
    student = RememberingAnswerer(StudentAnswerer.from_folder(job.home / "run" / "student"))
    changed: dict[str, Intervened] = {
        kind: Intervened(student, kind, store, scene_ids, seed=job.seed)
        for kind in job.interventions
    }
    rows: dict[str, Answerer] = {
        "teacher": RecordedAnswers(labels.answers()),
        STUDENT: student,
        **changed,
    }
    results = evaluate(
        rows,
        store,
        split=job.split,
        out=job.home / "evaluation",
        teacher_row="teacher",
        student_row=STUDENT,
        meta={**job.meta, "seeds": {"distill": job.config.train.seed}},
        progress=progress,
        limit=job.limit,
    )
    nats, depth = _measure(student, changed, store, scene_ids, labels, job, progress)
    items = _items(job.home / "evaluation" / "items.parquet", nats)
    _write(job.home / ITEMS_FILE, items, ITEM_SCHEMA)
    _write(job.home / DEPTH_FILE, depth, DEPTH_SCHEMA)
    result = read_result(job.home / "run")
    trained = sum(p.numel() for p in student.student.parameters() if p.requires_grad)
    begun = read_json(job.home / PLAN_FILE)
    record = {
        "version": VERSION,
        "suite": job.suite,
        "arm": job.arm,
        "seed": job.seed,
        "recipe": job.recipe,
        "steps": result.steps,
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
        "asked_seconds": results["meta"]["seconds"],
        "validation": result.metrics,
        "parameters": {"total": count_parameters(student.student), "trained": trained},
        "interventions": list(job.interventions),
        # How many questions were asked with the slots of a question of another family.
        "other_family_donors": changed["swapped"].without_donor if "swapped" in changed else 0,
        "boxes": results["rows"][STUDENT]["metrics"].get("boxes"),
        # How it was begun, and how it was asked last.
        "meta": begun["meta"],
        "asked_meta": dict(job.meta),
    }
    write_atomically(job.home / ARM_FILE, (json.dumps(record, indent=1) + "\n").encode())
    logger.info("%s: done after %d steps, %.0f s", job.name, result.steps, result.seconds)
    return record


def _measure(
    student: RememberingAnswerer,
    changed: Mapping[str, Intervened],
    store: SceneStore,
    scene_ids: Sequence[str],
    labels: LabelStore,
    job: ArmJob,
    progress: Progress | None,
) -> tuple[dict[tuple[str, str], tuple[float, int]], list[dict[str, Any]]]:
    """How likely the teacher's answers are, by row and question, and the errors of the depth."""
    losses = job.config.losses
    told = job.config.vision and (losses.depth or losses.multi_view)
    nats: dict[tuple[str, str], tuple[float, int]] = {}
    depth = []
    for number, scene_id in enumerate(scene_ids):
        scene, questions = store.scene(scene_id), store.questions(scene_id)
        said = {label.question_id: label.answer for label in labels.labels(scene_id)}
        known = [question for question in questions if question.question_id in said]
        tokenizer = student.processor.tokenizer
        answers = [tokenizer.encode_answer(said[question.question_id]) for question in known]
        session = student.open(scene)
        found = {STUDENT: answer_nats(session, known, answers)}
        for kind, answerer in changed.items():
            other: IntervenedSession = answerer.open(scene)
            found[kind] = other.answer_nats(known, answers)
        for row, errors in found.items():
            for question, error in zip(known, errors, strict=True):
                nats[row, question.question_id] = (float(error.sum()), len(error))
        if told:
            true = cell_depth(scene, student.processor, student.student.config.vision_grid)
            depth.append({"scene_id": scene_id, **_depth_error(session, true)})
        if progress is not None:
            progress(number + 1, len(scene_ids))
    return nats, depth


@torch.no_grad()
def _depth_error(session: StudentSession, true: torch.Tensor) -> dict[str, float | int]:
    """Squared error of the depth that the connector's tokens tell, over measured cells."""
    student = session.student
    said = student.depth_bins.expected(student.depth_bins(student.cells(session.features)))[0].cpu()
    measured = true > 0
    error = (said.double() - true.double())[measured]
    return {"squared_error": float((error**2).sum()), "cells": int(measured.sum())}


def _items(
    evaluated: Path, nats: Mapping[tuple[str, str], tuple[float, int]]
) -> Iterator[dict[str, Any]]:
    """The evaluation's items with what was measured beside them."""
    lines = pq.read_table(
        evaluated,
        columns=["model", "scene_id", "question_id", "family", "scorer", "answer", "score"],
    ).to_pylist()
    taught = {line["question_id"]: line["answer"] for line in lines if line["model"] == "teacher"}
    for line in lines:
        row, key = line["model"], line["question_id"]
        if row == "teacher":
            continue
        described = line["scorer"].startswith("rouge") and key in taught
        error, tokens = nats.get((row, key), (None, 0))
        yield {
            "row": row,
            **{name: line[name] for name in ("scene_id", "question_id", "family", "score")},
            "rouge1": rouge(line["answer"], taught[key])["rouge1"].f1 if described else None,
            "nats": error,
            "tokens": tokens,
        }


def teacher_scores(home: Path) -> dict[str, Any]:
    """The teacher's own scores against the truth in an arm's evaluation."""
    results = json.loads((home / "evaluation" / "results.json").read_text())
    row: dict[str, Any] = results["rows"]["teacher"]
    return {name: row[name] for name in row if name not in ("metrics", "retention")}


def _write(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]], schema: Any) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    write_atomically(path, sink.getvalue())
