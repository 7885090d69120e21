"""``stillroom probe``: what can be read from a student's slots by layer, and where they look.

The states of every question are kept in ``OUT/states``, a few scenes a file, so that a killed
command goes on; ``PROBE.json``, the page and the pictures are made from them.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float

from stillroom.bench.linear_probe import probe_task
from stillroom.bench.probe_report import write_report
from stillroom.bench.probe_tasks import CONTROLS, Probed, probe_tasks, probed_questions
from stillroom.bench.slot_attention import slot_attention
from stillroom.evaluate.intervals import DRAWS, Resampler
from stillroom.records import BadInputError, Question
from stillroom.scenes.store import SceneStore, open_store, read_json, write_atomically
from stillroom.students.probe import (
    PROBE_NOTE,
    Reading,
    SlotEdit,
    random_slots,
    read_questions,
    require_slots,
)
from stillroom.students.session import StudentAnswerer, StudentSession

Progress = Callable[[int, int], None]

VERSION = 2
RECORD_FILE = "PROBE.json"
#: Scenes whose states are kept in one file: what a kill can cost.
SCENES_PER_FILE = 8
#: Slots side by side are read up to this width; beyond it their mean alone is.
MOST_JOINED = 2048

#: What is read, and what each is.
REPRESENTATIONS: Mapping[str, str] = {
    "slots": "mean state of the slots",
    "slots_joined": "states of all slots side by side: as many times as wide",
    "question": "mean state of the question's own tokens",
    "random_slots": "mean state of the slots when random vectors of equal length are read in",
}


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is probed, on what, and where the figures go."""

    # The checkpoint: its name, and where it lies.
    name: str
    checkpoint: Path | str
    # What tells these weights from others of the same name.
    revision: str
    scenes: Path
    out: Path
    split: str = "test"
    # At most so many scenes to learn from, and as many to score.
    limit: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        if self.limit < 2:
            raise BadInputError(f"--limit must be at least 2 scenes, got {self.limit}")
        if self.split == "train":
            raise BadInputError(
                "probes learn from the split 'train'; score them on another, --split test"
            )


def probe(
    asked: ProbeConfig, *, meta: Mapping[str, Any], progress: Progress | None = None
) -> dict[str, Any]:
    """Read, fit and write; what ``PROBE.json`` holds. ``progress`` gets (scenes read, in all).

    Raises:
        BadInputError: a student without slots, scenes without known things, or ``out`` holds
            something else.
    """
    started = time.monotonic()
    store = open_store(asked.scenes)
    splits = _splits(asked, store)
    settings = {
        "checkpoint": asked.revision,
        "split": asked.split,
        "limit": asked.limit,
        "seed": asked.seed,
        "scenes": splits,
    }
    finished = _finished(asked.out, settings)
    if finished is not None:
        return finished
    answerer = StudentAnswerer.from_folder(asked.checkpoint)
    require_slots(answerer.student, asked.name)
    asked.out.mkdir(parents=True, exist_ok=True)
    _write_json(asked.out / "plan.json", {"version": VERSION, "settings": settings})
    every = [scene_id for ids in splits.values() for scene_id in ids]
    files = _read_states(answerer, store, every, asked, progress)
    questions = [
        one for scene_id in every for one in probed_questions(store.scene(scene_id), store)
    ]
    scores = _scores(files, questions, set(splits["train"]), asked)
    attention, pictures = slot_attention(answerer, store, splits[asked.split], seed=asked.seed)
    record = {
        "kind": "probe",
        "version": VERSION,
        "name": asked.name,
        "note": PROBE_NOTE,
        "representations": dict(REPRESENTATIONS),
        "scores": scores,
        "attention": attention,
        "meta": {
            **meta,
            "seconds": round(time.monotonic() - started, 1),
            "split": asked.split,
            "scenes": {name: len(ids) for name, ids in splits.items()},
            "questions": len(questions),
            "seed": asked.seed,
            "slots": answerer.student.config.slot_count,
            "interval": f"95 %, percentile bootstrap over scenes, {DRAWS} draws",
            "control": f"{CONTROLS} tasks of random targets (Hewitt and Liang), fixed by the kinds "
            "of the things named, of the kind by the thing's full name, of answers by kinds and "
            "options",
        },
        "settings": settings,
    }
    write_report(record, pictures, asked.out)
    _write_json(asked.out / RECORD_FILE, record)
    return record


def _splits(asked: ProbeConfig, store: SceneStore) -> dict[str, list[str]]:
    splits = {name: store.scene_ids(name)[: asked.limit] for name in ("train", asked.split)}
    for name, ids in splits.items():
        if len(ids) < 2:
            raise BadInputError(
                f"{asked.scenes} has {len(ids)} scenes in split {name!r}, probes need at least 2 "
                "to learn from (train) and 2 to be scored on; make more with 'stillroom scenes "
                "make'"
            )
        if not any(probed_questions(store.scene(i), store) for i in ids[:SCENES_PER_FILE]):
            raise BadInputError(
                f"{asked.scenes} knows of no two things that a question of split {name!r} names; "
                "probes need made rooms, whose geometry is known"
            )
    return splits


def _finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of the same command, if it has ended; None where there is something to do."""
    plan = out / "plan.json"
    if not plan.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise BadInputError(f"{out} is not empty and holds no probe. Choose another --out.")
        return None
    held = read_json(plan, remedy="choose another --out")
    there = held.get("settings")
    if held.get("version") != VERSION or not isinstance(there, dict):
        raise BadInputError(
            f"{plan} is of another version of the probe, or damaged. Choose another --out."
        )
    for name, value in settings.items():
        if there.get(name) != value:
            raise BadInputError(
                f"{out} holds a probe with other settings ({name}). Choose another --out."
            )
    record = out / RECORD_FILE
    return read_json(record) if record.is_file() else None


# States. ----------------------------------------------------------------------------------------


def _read_states(
    answerer: StudentAnswerer,
    store: SceneStore,
    scene_ids: Sequence[str],
    asked: ProbeConfig,
    progress: Progress | None,
) -> list[Path]:
    """Files of states, in the order of the scenes; those that are there are not made again."""
    files = []
    for start in range(0, len(scene_ids), SCENES_PER_FILE):
        path = asked.out / "states" / f"{start // SCENES_PER_FILE:05d}.npz"
        chosen = scene_ids[start : start + SCENES_PER_FILE]
        if not path.is_file():
            parts = [_states_of(answerer, store, scene_id, asked.seed) for scene_id in chosen]
            parts = [part for part in parts if part]
            names = parts[0] if parts else ()
            sink = io.BytesIO()
            joined: dict[str, Any] = {n: np.concatenate([p[n] for p in parts]) for n in names}
            np.savez(sink, **joined)
            write_atomically(path, sink.getvalue())
        files.append(path)
        if progress is not None:
            progress(start + len(chosen), len(scene_ids))
    return files


def _states_of(
    answerer: StudentAnswerer, store: SceneStore, scene_id: str, seed: int
) -> dict[str, Float[np.ndarray, "n levels d"]]:
    """States of a scene's questions by representation; empty where it asks none of them."""
    scene = store.scene(scene_id)
    asked = [one.question for one in probed_questions(scene, store)]
    if not asked:
        return {}
    session = answerer.open(scene)
    drawn = SlotEdit(embeddings=random_slots(answerer.student, rng=np.random.default_rng(seed)))
    plain, random = (_readings(session, asked, edit) for edit in (None, drawn))
    found = {
        "slots": _over(plain, lambda level, one: level[one.slots].mean(dim=0)),
        "question": _over(plain, lambda level, one: level[one.question].mean(dim=0)),
        "random_slots": _over(random, lambda level, one: level[one.slots].mean(dim=0)),
    }
    config = answerer.student.config
    if config.slot_count * config.hidden_size <= MOST_JOINED:
        found["slots_joined"] = _over(plain, lambda level, one: level[one.slots].flatten())
    return found


def _readings(
    session: StudentSession, questions: Sequence[Question], edit: SlotEdit | None
) -> list[Reading]:
    return read_questions(
        session.student,
        session.prefix,
        [session.processor.question_ids(question.prompt) for question in questions],
        edits=[edit] * len(questions),
    )


def _over(
    readings: Sequence[Reading], take: Callable[[torch.Tensor, Reading], torch.Tensor]
) -> Float[np.ndarray, "n levels d"]:
    return np.stack(
        [
            torch.stack([take(level, one) for level in one.levels]).float().cpu().numpy()
            for one in readings
        ]
    )


# Scores. ----------------------------------------------------------------------------------------


def _scores(
    files: Sequence[Path], questions: Sequence[Probed], train: set[str], asked: ProbeConfig
) -> dict[str, Any]:
    """{task: {representation: [score of each level]}}."""
    scenes = [one.question.scene_id for one in questions]
    learnt = [scene_id in train for scene_id in scenes]
    resampler = Resampler(
        [s for s, known in zip(scenes, learnt, strict=True) if not known],
        rng=np.random.default_rng(asked.seed),
    )
    tasks = probe_tasks(questions, learnt, asked.seed)
    found: dict[str, Any] = {
        task.name: {"unit": task.unit, "classes": len(task.classes), "levels": {}} for task in tasks
    }
    for name in REPRESENTATIONS:
        states = _joined(files, name)
        if states is None:
            continue
        for task in tasks:
            known = np.array(learnt)[task.where]
            asked_about = [scenes[i] for i in task.where]
            found[task.name]["levels"][name] = [
                asdict(probe_task(states[task.where, level], task, known, asked_about, resampler))
                for level in range(states.shape[1])
            ]
    return found


def _joined(files: Sequence[Path], name: str) -> Float[np.ndarray, "n levels d"] | None:
    parts = []
    for file in files:
        try:
            with np.load(file) as held:
                if name in held:
                    parts.append(held[name])
        except (ValueError, OSError, EOFError, BadZipFile) as error:
            raise BadInputError(
                f"{file} is not readable ({error}); delete it and give the same command again"
            ) from None
    return np.concatenate(parts) if parts else None


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
