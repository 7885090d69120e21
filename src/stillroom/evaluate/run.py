"""Asks every row every question of a split, keeps each answer, and writes ``results.json``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.evaluate.baselines import looked_at
from stillroom.evaluate.box_precision import box_rows
from stillroom.evaluate.depth_metrics import (
    DEPTH_ERRORS,
    alignments_of,
    depth_errors,
    median_scaled,
    resized,
)
from stillroom.evaluate.intervals import DRAWS, Resampler
from stillroom.evaluate.items import ITEM_SCHEMA, ItemStore, write_items
from stillroom.evaluate.tables import RowItems, metric_table, retention_table, score_table
from stillroom.evaluate.tasks import SCORERS, Scored, kind_of, score
from stillroom.records import (
    Answerer,
    BadInputError,
    Question,
    Scene,
    SceneGeometry,
    Session,
    content_hash,
)
from stillroom.scenes.descriptions import facts_of
from stillroom.scenes.store import SceneStore, write_atomically

logger = logging.getLogger(__name__)

#: Scenes whose answers are kept together: what a kill can cost.
SCENES_PER_CHUNK = 8
#: Scenes whose depth is kept for the report, drawn by seed before anything is answered.
SHOWN_SCENES = 3

Row = Callable[[], Answerer] | Answerer
#: Id of the wording in which a question is asked: question and lettered options, nothing else.
PLAIN_PROMPT = "stillroom/plain-1"
#: Rows that see nothing: a guesser of words, and a student that was trained without pictures. What
#: is above blind is above the stronger.
BLIND_ROWS = ("blind", "blind_student")
#: How one answer is scored.
Scorer = Callable[[Question, str], Scored]


def evaluate(
    answerers: Mapping[str, Row],
    store: SceneStore,
    *,
    split: str | None,
    out: Path,
    teacher_row: str | None,
    student_row: str | None,
    meta: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    blind_rows: Sequence[str] = BLIND_ROWS,
    identities: Mapping[str, str] | None = None,
    seed: int = 0,
    scorer: Scorer = score,
    scorer_ids: Sequence[str] = tuple(SCORERS.values()),
    prompt_id: str = PLAIN_PROMPT,
    meteor_rows: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores of every row on a split (None and "all": every scene), as written to ``results.json``.

    Rows are objects that answer, or functions that load one when it is needed. Answers already in
    ``out`` are not asked for again, so the same call goes on after a kill; a finished one reads
    its results back. ``limit`` takes the first scenes only; ``progress`` gets (done, total) scenes
    over all rows; ``identities`` tell one row's weights from another's of the same name, and
    ``scorer_ids`` name every rule of ``scorer`` with its version: kept scores of other rules are
    refused. METEOR is computed for ``meteor_rows`` alone, where java is there.

    Raises:
        BadInputError: nothing to ask, or ``out`` holds an evaluation with other settings.
    """
    if limit is not None and limit < 1:
        raise BadInputError(f"limit must be at least 1, got {limit}")
    chosen = store.scene_ids(None if split == "all" else split)[:limit]
    questions = {q.question_id: q for scene_id in chosen for q in store.questions(scene_id)}
    _require_questions(store, questions.values(), answerers, split)
    for name in (teacher_row, student_row):
        if name is not None and name not in answerers:
            raise ValueError(f"no row is named {name!r}; rows are {', '.join(answerers)}")
    kept = ItemStore(out)
    settings = _settings(split, limit, chosen, questions, seed, prompt_id, scorer_ids)
    kept.begin(settings, identities or {})
    chunks = [
        chosen[start : start + SCENES_PER_CHUNK]
        for start in range(0, len(chosen), SCENES_PER_CHUNK)
    ]
    finished = _finished_results(kept, answerers, len(chunks), teacher_row, student_row)
    if finished is not None:
        return finished
    shown = set(shown_scenes(chosen, seed=seed))
    total, done = len(chosen) * len(answerers), 0
    for row, source in answerers.items():
        answerer: Answerer | None = None
        for number, scene_ids in enumerate(chunks):
            if not kept.has(row, number):
                answerer = answerer or _loaded(source)
                _answer_chunk(
                    kept, row, number, answerer, store, scene_ids, shown, scorer, prompt_id
                )
            done += len(scene_ids)
            if progress is not None:
                progress(done, total)
    results = _results(
        kept,
        list(answerers),
        len(chunks),
        questions,
        teacher_row,
        blind_rows,
        seed=seed,
        scorer=scorer,
        meteor_rows=meteor_rows,
    )
    results["meta"] = _full_meta(
        meta, kept, list(answerers), len(chunks), split, chosen, questions, seed
    ) | {"teacher": teacher_row, "student": student_row, "blind": blind_rows[0]}
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def shown_scenes(scene_ids: Sequence[str], *, seed: int) -> list[str]:
    """The few scenes whose pictures a report shows: drawn by seed, not by how they turned out."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.array(scene_ids)).tolist()[:SHOWN_SCENES]


def _require_questions(
    store: SceneStore,
    questions: Iterable[Question],
    answerers: Mapping[str, Row],
    split: str | None,
) -> None:
    if not answerers:
        raise ValueError("evaluate needs at least one row")
    if not any(kind_of(question) != "unknown" for question in questions):
        named = "no split" if split in (None, "all") else f"split {split!r}"
        raise BadInputError(
            f"{store.path} has no question with a known answer in {named}; made rooms have them "
            "('stillroom scenes make'), and --split names which scenes are asked"
        )


def _settings(
    split: str | None,
    limit: int | None,
    scene_ids: Sequence[str],
    questions: Mapping[str, Question],
    seed: int,
    prompt_id: str,
    scorer_ids: Sequence[str],
) -> dict[str, Any]:
    """What must be equal for answers in a folder to be gone on with."""
    return {
        "split": split or "all",
        "limit": limit,
        "seed": seed,
        "scenes_per_chunk": SCENES_PER_CHUNK,
        "questions": content_hash(
            [*scene_ids, *(part for q in questions.values() for part in _truth(q))]
        ),
        "prompt": prompt_id,
        "scorers": sorted(set(scorer_ids)),
        "columns": len(ITEM_SCHEMA),
    }


def _truth(question: Question) -> list[str]:
    """A question by its id, with all that an answer to it is scored by."""
    known = [question.answer, *question.options, *question.renderings, *map(str, question.facts)]
    return [question.question_id, json.dumps(known)]


def _loaded(source: Row) -> Answerer:
    # A student is both: a module that can be called, and something that opens scenes.
    if isinstance(source, Answerer):
        return source
    return source()


def _answer_chunk(
    kept: ItemStore,
    row: str,
    number: int,
    answerer: Answerer,
    store: SceneStore,
    scene_ids: Sequence[str],
    shown: set[str],
    scorer: Scorer,
    prompt_id: str,
) -> None:
    """Ask one row about a few scenes and keep what it said."""
    items: list[dict[str, Any]] = []
    depth: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    started = time.monotonic()
    for scene_id in scene_ids:
        scene, questions = store.scene(scene_id), store.questions(scene_id)
        session = answerer.open(scene)
        frames = frames_of(session, scene)
        items += [
            line | {"prompt_id": prompt_id, "frames": frames}
            for line in _ask(row, session, questions, scorer)
        ]
        predicted = _geometry(session)
        if predicted is not None and predicted.depth is not None:
            seen = seen_by(session, scene)
            depth += _depth_rows(row, seen, predicted)
            if scene_id in shown:
                kept.write_depth_map(row, scene_id, shown_depth(seen, predicted))
        boxes += box_rows(row, scene, _guesses(session, predicted))
    kept.write(row, number, items, depth, boxes, seconds=time.monotonic() - started)


def _ask(
    row: str, session: Session, questions: Sequence[Question], scorer: Scorer
) -> list[dict[str, Any]]:
    if not questions:
        return []
    answers = session.answer(questions)
    if [answer.question_id for answer in answers] != [q.question_id for q in questions]:
        raise ValueError(
            f"{row} must give one answer per question, in order: {len(questions)} were asked and "
            f"{len(answers)} came back"
        )
    return [_item(row, q, a.text, scorer) for q, a in zip(questions, answers, strict=True)]


def _item(row: str, question: Question, text: str, scorer: Scorer) -> dict[str, Any]:
    scored = scorer(question, text)
    return {
        "model": row,
        "scene_id": question.scene_id,
        "question_id": question.question_id,
        "split": question.split,
        "family": question.family,
        "question": question.question,
        "options": list(question.options),
        "prompt": question.prompt,
        "truth": question.answer,
        "answer": text,
        "parsed": scored.parsed,
        "score": scored.score,
        "scorer": scored.scorer,
        "corrected_parsed": scored.corrected_parsed,
        "corrected_score": scored.corrected_score,
        "margin": question.margin,
    }


def _geometry(session: Session) -> SceneGeometry | None:
    """What the session believes of the scene's shape; not every answerer believes anything."""
    ask = getattr(session, "geometry", None)
    return ask() if callable(ask) else None


def _guesses(session: Session, geometry: SceneGeometry | None) -> SceneGeometry | None:
    """Every box that the session can tell, unsure ones too; else those of its geometry."""
    ask = getattr(session, "guesses", None)
    return ask() if callable(ask) else geometry


def frames_of(session: Session, scene: Scene) -> list[str] | None:
    """Names of the views that a session looks at; None where it does not know.

    A session says so by ``frames()``, or by ``views``, the places of those it chose; one that says
    nothing looks at all of them.
    """
    say = getattr(session, "frames", None)
    if callable(say):
        named: list[str] | None = say()
        return named
    return looked_at(session, scene)


def seen_by(session: Session, scene: Scene) -> Scene:
    """The views that the session's depth maps belong to; all of them, unless it says otherwise."""
    say = getattr(session, "seen", None)
    return say(scene) if callable(say) else scene


def shown_depth(scene: Scene, found: SceneGeometry) -> np.ndarray:
    """Depth maps to be looked at beside measured ones: what has no scale is brought to theirs."""
    assert found.depth is not None
    if found.depth_unit == "metre":
        return found.depth
    return np.stack(
        [
            one if view.depth is None else median_scaled(one, view.depth)
            for view, one in zip(scene.views, found.depth, strict=True)
        ]
    )


def _depth_rows(row: str, scene: Scene, found: SceneGeometry) -> list[dict[str, Any]]:
    """One line per measured view and alignment; depth without a scale is never taken as metres."""
    depth = found.depth
    assert depth is not None
    if len(depth) != len(scene.views):
        raise ValueError(f"{row} gave {len(depth)} depth maps for {len(scene.views)} views")
    rows: list[dict[str, Any]] = []
    for view, predicted in zip(scene.views, depth, strict=True):
        if view.depth is None:
            continue
        same_size = resized(predicted, *view.depth.shape)
        for alignment in alignments_of(found.depth_unit):
            errors = depth_errors(same_size, view.depth, alignment=alignment)
            if errors is not None:
                rows.append(
                    {
                        "model": row,
                        "scene_id": scene.scene_id,
                        "view": view.name,
                        "alignment": alignment,
                        **{name: errors[name] for name in DEPTH_ERRORS},
                    }
                )
    return rows


def _results(
    kept: ItemStore,
    rows: Sequence[str],
    chunks: int,
    questions: Mapping[str, Question],
    teacher_row: str | None,
    blind_rows: Sequence[str],
    *,
    seed: int,
    scorer: Scorer,
    meteor_rows: Sequence[str],
) -> dict[str, Any]:
    """The tables of all rows; ``items.parquet`` is written on the way."""
    tables = {row: kept.items(row, chunks) for row in rows}
    write_items(kept.out / "items.parquet", pa.concat_tables(list(tables.values())))
    items = {row: RowItems.of(table) for row, table in tables.items()}
    resampler = Resampler(next(iter(items.values())).scene_ids, rng=np.random.default_rng(seed))
    teacher = items[teacher_row] if teacher_row is not None else None
    blind = {row: items[row] for row in blind_rows if row in items}
    written: dict[str, Any] = {}
    for row in rows:
        # Truth and the teacher itself have nothing to retain.
        student = None if row in (teacher_row, "truth") else teacher
        written[row] = {
            **score_table(items[row], resampler),
            "metrics": {
                "scored_by": _rules(items[row], tables[row]),
                **metric_table(
                    items[row],
                    questions,
                    kept.depth(row, chunks),
                    kept.boxes(row, chunks),
                    resampler,
                    facts_of=facts_of,
                    teacher=student,
                    # Another scorer's answers are set against the teacher's by its own rules.
                    relative=scorer is score,
                    with_meteor=row in meteor_rows,
                ),
            },
            "retention": {}
            if student is None
            else retention_table(items[row], student, blind, resampler),
        }
    return {"rows": written}


def _rules(items: RowItems, lines: pa.Table) -> dict[str, dict[str, str]]:
    """By which rules each score of a row was made, and in whose wording was asked."""
    keys = lines["question_id"].to_pylist()
    by_id = {
        part: dict(zip(keys, lines[column].to_pylist(), strict=True))
        for part, column in (("scorer", "scorer"), ("prompt", "prompt_id"))
    }
    return {
        name: {
            part: ", ".join(sorted({of[items.question_ids[i]] for i in where}))
            for part, of in by_id.items()
        }
        for name, where in items.groups().items()
    }


def _full_meta(
    meta: Mapping[str, Any],
    kept: ItemStore,
    rows: Sequence[str],
    chunks: int,
    split: str | None,
    scene_ids: Sequence[str],
    questions: Mapping[str, Question],
    seed: int,
) -> dict[str, Any]:
    seconds = {row: round(kept.seconds(row, chunks), 3) for row in rows}
    return {
        **meta,
        "parameters": dict(meta.get("parameters") or {}),
        "seeds": {**dict(meta.get("seeds") or {}), "evaluation": seed},
        "seconds": round(sum(seconds.values()), 3),
        "seconds_by_row": seconds,
        "split": split or "all",
        "scenes": len(scene_ids),
        "questions": len(questions),
        "interval": f"95 %, percentile bootstrap over scenes, {DRAWS} draws",
    }


def _finished_results(
    kept: ItemStore,
    rows: Iterable[str],
    chunks: int,
    teacher_row: str | None,
    student_row: str | None,
) -> dict[str, Any] | None:
    """The results of the same call, if it has finished before."""
    path = kept.out / "results.json"
    names = list(rows)
    if not path.is_file() or not all(
        kept.has(row, number) for row in names for number in range(chunks)
    ):
        return None
    results = json.loads(path.read_text())
    same = list(results["rows"]) == names and (
        results["meta"]["teacher"],
        results["meta"]["student"],
    ) == (teacher_row, student_row)
    if not same:
        return None
    logger.info("%s holds these results already; nothing was asked again", kept.out)
    return results
