"""Labelling: a teacher answers every question of every scene, once, resumably."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.records import BadInputError, SceneBatchTeacher, Signal, Teacher, content_hash
from stillroom.scenes.store import SceneStore, open_store
from stillroom.teachers import label_store

#: What is computed before it is written: a kill costs at most this many scenes.
SCENES_PER_SHARD = 20

Progress = Callable[[int, int], None]


def label_settings(
    store: SceneStore, *, teacher: Mapping[str, Any], signals: Sequence[Signal]
) -> dict[str, Any]:
    """The fingerprint of a labelling: another teacher, prompt, frame or question, another store."""
    questions = (q.question_id for q in store.questions())
    return {
        "teacher": dict(teacher),
        "signals": sorted(signals),
        "scenes": content_hash(store.scene_ids()),
        "questions": content_hash(questions),
        "scenes_per_shard": SCENES_PER_SHARD,
    }


def label_scenes(
    scenes: Path,
    load_teacher: Callable[[], Teacher],
    out: Path,
    *,
    teacher: Mapping[str, Any],
    signals: Sequence[Signal],
    workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Label every scene of a store that has no labels yet; the number of scenes done now.

    ``teacher`` describes the teacher (name, revision, prompt, decoding) for the fingerprint.
    ``load_teacher`` is called once per process and must be picklable when ``workers`` > 1.

    Raises:
        BadInputError: ``out`` holds something else, or the scenes have no questions.
    """
    store = open_store(scenes)
    if not store.questions():
        raise BadInputError(f"{scenes} holds no questions to label; make rooms with --questions")
    label_store.begin(out, label_settings(store, teacher=teacher, signals=signals))
    ids = store.scene_ids()
    done = label_store.finished_shards(out)
    count = -(-len(ids) // SCENES_PER_SHARD)
    missing = [index for index in range(count) if index not in done]
    report = _counter(progress, len(ids), len(ids) - sum(len(_shard(ids, i)) for i in missing))
    job = _Job(scenes=scenes, out=out, load_teacher=load_teacher, signals=tuple(signals))
    if workers <= 1 or len(missing) <= 1:
        for index in missing:
            report(job(index))
    else:
        _run_parallel(job, missing, workers, report)
    return sum(len(_shard(ids, index)) for index in missing)


def _shard(ids: Sequence[str], index: int) -> Sequence[str]:
    return ids[index * SCENES_PER_SHARD : (index + 1) * SCENES_PER_SHARD]


def _counter(progress: Progress | None, total: int, before: int) -> Callable[[int], None]:
    done = before

    def advance(scenes: int) -> None:
        nonlocal done
        done += scenes
        if progress is not None:
            progress(done, total)

    advance(0)
    return advance


class _Job:
    """Labels shards of one store with one teacher; travels to worker processes whole."""

    def __init__(
        self,
        *,
        scenes: Path,
        out: Path,
        load_teacher: Callable[[], Teacher],
        signals: tuple[Signal, ...],
    ) -> None:
        self.scenes, self.out = scenes, out
        self.load_teacher, self.signals = load_teacher, signals
        self._opened: tuple[SceneStore, Teacher] | None = None

    def __call__(self, shard: int) -> int:
        """Label one shard; the number of scenes in it. The teacher is loaded with the first."""
        if self._opened is None:
            self._opened = open_store(self.scenes), self.load_teacher()
        store, teacher = self._opened
        ids = _shard(store.scene_ids(), shard)
        asked = ((store.scene(scene_id), store.questions(scene_id)) for scene_id in ids)
        if isinstance(teacher, SceneBatchTeacher):
            labels = teacher.label_scenes(asked, self.signals)
        else:
            labels = [label for one in asked for label in teacher.label(*one, self.signals)]
        label_store.write_shard(self.out, shard, labels)
        return len(ids)


def _run_parallel(
    job: _Job, shards: Sequence[int], workers: int, report: Callable[[int], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(shards))
    with context.Pool(workers, initializer=_begin_worker, initargs=(job,)) as pool:
        for scenes in pool.imap_unordered(_work, shards):
            report(scenes)


#: The job of a worker process: it keeps its teacher between shards.
_job: _Job | None = None


def _begin_worker(job: _Job) -> None:
    global _job
    _one_thread()
    _job = job


def _work(shard: int) -> int:
    assert _job is not None, "a worker begins with _begin_worker"
    return _job(shard)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
