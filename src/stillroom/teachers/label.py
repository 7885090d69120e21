"""Labelling: a teacher answers every question of every scene, once, resumably.

Workers need nobody to deal out the work: each takes the lease of a shard that is not finished,
labels it part by part and goes to the next (``label_run`` starts them, here or elsewhere).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stillroom.records import (
    BadInputError,
    FeatureTeacher,
    Question,
    Scene,
    SceneBatchTeacher,
    SceneFeatures,
    Signal,
    Teacher,
    content_hash,
)
from stillroom.scenes.store import SceneStore, open_store
from stillroom.teachers.label_ledger import (
    Layout,
    Ledger,
    Sealed,
    ShardWriter,
    begin,
    changing_manifest,
    is_whole,
    lease_path,
    parts_folder,
    read_ledger,
    require_settings,
    shards_begun,
    writing,
)
from stillroom.teachers.label_rows import encode, encode_features
from stillroom.teachers.label_store import VOCABULARY_FILE
from stillroom.teachers.leases import lease
from stillroom.teachers.predicted_geometry import Geometry, PredictedGeometry, geometry_of
from stillroom.teachers.signals import TAIL_RULE, SignalConfig
from stillroom.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

#: Scenes whose rows become durable at once: what a kill costs at most.
SCENES_PER_PART = 5
#: Scenes of a shard in a large store; small stores have smaller ones, so that workers can share.
SCENES_PER_SHARD = 200
#: Shards that a store is cut into at least, as long as each has a part.
SHARDS = 32
#: How often a worker that waits for others looks at what they have done [s].
POLL_S = 0.5

#: Finished scenes whose content is compared when a store is gone on with.
SCENES_COMPARED = 16

Progress = Callable[[int, int], None]
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker needs to know; it travels to other processes and machines whole."""

    scenes: Path
    out: Path
    load_teacher: Callable[[], Teacher]
    # How the teacher is called in messages.
    teacher: str
    signals: SignalConfig
    # What the command was given, never read back from disk: a worker that finds other settings in
    # the manifest does not write.
    settings: Mapping[str, Any]
    layout: Layout
    # Entries of the teacher's vocabulary, where it is known.
    vocabulary: int | None


def label_settings(
    store: SceneStore,
    *,
    teacher: Mapping[str, Any],
    signals: SignalConfig,
    vocabulary: Vocabulary | None,
) -> dict[str, Any]:
    """The fingerprint of a labelling: another teacher, prompt, frame or question, another store."""
    ids = store.scene_ids()
    counted = _Counted(store.asked())
    return {
        "teacher": dict(teacher),
        "signals": list(signals.signals),
        "tail": TAIL_RULE if "topk_logits" in signals.signals else None,
        "vocabulary": None
        if vocabulary is None
        else {"hash": vocabulary.hash, "rows": vocabulary.rows},
        "scenes": content_hash(ids),
        "scene_count": len(ids),
        # With prompts and answers: other words under the same ids are other questions.
        "questions": content_hash(part for asked in counted for part in asked),
        "question_count": counted.count,
    }


class _Counted:
    """An iterator that knows how much has gone through it."""

    def __init__(self, items: Iterator[tuple[str, ...]]) -> None:
        self._items, self.count = items, 0

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for item in self._items:
            self.count += 1
            yield item


def layout_for(scenes: int, *, scenes_per_part: int | None = None) -> Layout:
    """Shards of whole parts: at least ``SHARDS`` where there are parts enough, never too large."""
    part = SCENES_PER_PART if scenes_per_part is None else scenes_per_part
    if part < 1:
        raise BadInputError(f"scenes_per_part must be at least 1, got {part}")
    parts = max(1, min(SCENES_PER_SHARD // part, scenes // (SHARDS * part)))
    return Layout(scenes_per_shard=parts * part, scenes_per_part=part)


def label_scenes(
    scenes: Path,
    load_teacher: Callable[[], Teacher],
    out: Path,
    *,
    teacher: Mapping[str, Any],
    signals: Sequence[Signal],
    vocabulary: Vocabulary | None = None,
    workers: int | None = None,
    ray: str | None = None,
    scenes_per_part: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Label every scene of a store that has no labels yet; how many more are labelled now.

    ``teacher`` describes the teacher (name, revision, prompt, decoding) for the fingerprint, and
    ``vocabulary`` its tokens. ``load_teacher`` is called once per worker and must be picklable
    when there are several. ``ray`` is the address of a cluster ("local" starts one here).
    ``workers`` is 1 by default, with ``ray`` one per GPU, or per 8 CPUs of a machine where there is
    none. Commands that label the same store at once share the work.

    Raises:
        BadInputError: ``out`` holds something else, the scenes have no questions, the teacher
            cannot give a signal, or the disk is full.
    """
    from stillroom.teachers.label_run import executor

    config = SignalConfig.of(signals)
    run = executor(workers=workers, ray=ray)
    store = open_store(scenes)
    settings = label_settings(store, teacher=teacher, signals=config, vocabulary=vocabulary)
    if not settings["question_count"]:
        raise BadInputError(f"{scenes} holds no questions to label; make rooms with --questions")
    ids = store.scene_ids()
    layout = begin(
        out,
        settings,
        layout_for(len(ids), scenes_per_part=scenes_per_part),
        {} if vocabulary is None else {VOCABULARY_FILE: vocabulary.write()},
    )
    board = Board(out, layout, ids)
    before = board.look()
    _require_unchanged(out, store, _spread(_sealed(out), SCENES_COMPARED))
    job = Job(
        scenes=scenes.resolve(),
        out=out.resolve(),
        load_teacher=load_teacher,
        teacher=str(teacher.get("name", "?")),
        signals=config,
        settings=settings,
        layout=layout,
        vocabulary=None if vocabulary is None else vocabulary.rows,
    )

    def watch() -> None:
        if progress is not None:
            progress(board.look(), len(ids))

    watch()
    if board.open_shards:
        run(job, len(board.open_shards), watch)
        # Somebody else may have taken the folder before our first lease, and finished it.
        require_settings(out, settings, layout)
    watch()
    _sweep(out)
    return board.look() - before


def _sealed(out: Path) -> list[Sealed]:
    """Scenes of some finished shards, from the first to the last."""
    shards = _spread(shards_begun(out), SCENES_COMPARED)
    wholes = [whole for s in shards if (whole := read_ledger(out, s).whole) is not None]
    return [scene for whole in wholes for scene in whole.scenes]


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many of the items at most, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def _require_unchanged(out: Path, store: SceneStore, labelled: Sequence[Sealed]) -> None:
    """Are scenes still what the teacher saw? Their ids are the same, or settings would differ.

    Raises:
        BadInputError: other pictures, depth, cameras or questions under the same id.
    """
    for sealed in labelled:
        scene, asked = store.scene(sealed.scene_id), store.questions(sealed.scene_id)
        if scene_content(scene, asked) != sealed.content:
            raise BadInputError(
                f"scene {sealed.scene_id} of {store.path} has changed since it was labelled in "
                f"{out}; choose another --out ('stillroom labels verify {out} --scenes "
                f"{store.path}' counts all that changed)"
            )


def _sweep(out: Path) -> None:
    """Remove what dead workers left; what others hold stays."""
    if strays := [*out.glob(".*.json.*"), *out.glob(".manifest.lock")]:
        with changing_manifest(out):
            for stray in strays:
                if stray.name != ".manifest.lock":
                    stray.unlink(missing_ok=True)
    for lock in (out / "leases").glob("*.lock"):
        with lease(lock):
            pass
    for folder in (out / "parts", out / "leases"):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty


class Board:
    """How many scenes of a store are labelled; looks only at shards that were not finished yet."""

    def __init__(self, out: Path, layout: Layout, ids: Sequence[str]) -> None:
        self._out, self._done = out, 0
        self.open_shards: list[int] = []
        for shard in range(layout.shards(len(ids))):
            if not is_whole(out, shard):
                self.open_shards.append(shard)
                continue
            self._done += len(layout.scenes_of(shard, ids))
            if parts_folder(out, shard).exists():  # killed between its last line and the broom
                shutil.rmtree(parts_folder(out, shard), ignore_errors=True)

    def look(self) -> int:
        """Scenes whose rows are durable now."""
        still, growing, begun = [], 0, set(shards_begun(self._out))
        for shard in self.open_shards:
            ledger = read_ledger(self._out, shard) if shard in begun else Ledger(parts={})
            if ledger.whole is not None and is_whole(self._out, shard):
                self._done += ledger.scenes
            else:
                still.append(shard)
                growing += sum(len(entry.scenes) for entry in ledger.parts.values())
        self.open_shards = still
        return self._done + growing


# One worker. ------------------------------------------------------------------------------------


def work(job: Job, report: Callable[[], None]) -> None:
    """Label shards until every one is finished, by this worker or by others.

    ``report`` is called after every part; what it raises ends the work, with nothing half done.

    Raises:
        BadInputError: the store or the teacher cannot be used, or the disk is full.
    """
    layout, store = job.layout, open_store(job.scenes)
    ids = store.scene_ids()
    worker = _Worker(job, store, report)
    left = list(range(layout.shards(len(ids))))
    waiting = False
    while left := [shard for shard in left if not is_whole(job.out, shard)]:
        busy = 0
        for shard in left:
            with lease(lease_path(job.out, shard)) as mine:
                if not mine:
                    busy += 1
                elif not is_whole(job.out, shard):
                    worker.label_shard(shard, layout.scenes_of(shard, ids))
        if busy == len(left):
            if not waiting:
                logger.info("all %d shards left are in other hands: waiting", busy)
                waiting = True
            time.sleep(POLL_S)
            report()


class _Worker:
    """A teacher at its desk: loaded with the first scene, kept to the last."""

    def __init__(self, job: Job, store: SceneStore, report: Callable[[], None]) -> None:
        self.job, self.store, self.report = job, store, report
        self._teacher: Teacher | None = None

    @property
    def teacher(self) -> Teacher:
        if self._teacher is None:
            self._teacher = self.job.load_teacher()
            self.job.signals.require_of(self._teacher, self.job.teacher)
        return self._teacher

    def label_shard(self, shard: int, ids: Sequence[str]) -> None:
        require_settings(self.job.out, self.job.settings, self.job.layout)
        # Before the first file: a teacher that cannot be used leaves the store as it was.
        teacher = self.teacher
        with writing(self.job.out):
            writer = ShardWriter(self.job.out, shard, self.job.settings)
        _require_unchanged(self.job.out, self.store, writer.scenes)
        for part, scene_ids in enumerate(self.job.layout.parts_of(ids)):
            if part not in writer.parts:
                self._label_part(writer, part, scene_ids, teacher)
                self.report()
        with writing(self.job.out):
            writer.finish()

    def _label_part(
        self, writer: ShardWriter, part: int, scene_ids: Sequence[str], teacher: Teacher
    ) -> None:
        config = self.job.signals
        asking = _Asking(self.store, scene_ids, teacher, features=config.scene_features)
        if isinstance(teacher, SceneBatchTeacher):
            labels = teacher.label_scenes(iter(asking), config.signals)
        else:
            labels = [label for one in asking for label in teacher.label(*one, config.signals)]
        pairs = list(zip(asking.questions, labels, strict=True))
        for question, label in pairs:
            if question.question_id != label.question_id:
                raise ValueError(f"the teacher {self.job.teacher} labels questions out of order")
            config.require_in(label, self.job.teacher)
        marks = [asking.geometry[question.scene_id] for question, _ in pairs]
        table, tensors = encode(pairs, config, geometry=marks, vocabulary=self.job.vocabulary)
        features = encode_features(asking.features) if config.scene_features else None
        with writing(self.job.out):
            writer.write_part(part, asking.sealed, table, tensors, features)


class _Asking:
    """Scenes with their questions, read as a teacher comes to them; notes what is needed later.

    Features are asked for when the teacher has turned to the next scene, so that it may still
    hold what it made of this one.
    """

    def __init__(
        self, store: SceneStore, scene_ids: Sequence[str], teacher: Teacher, *, features: bool
    ) -> None:
        self._store, self._scene_ids = store, scene_ids
        self._features_of = teacher if features else None
        # A teacher whose scenes are completed knows best whose geometry it sees.
        self._mark = teacher.geometry_of if isinstance(teacher, PredictedGeometry) else geometry_of
        self.questions: list[Question] = []
        self.sealed: list[Sealed] = []
        self.features: list[SceneFeatures] = []
        #: By scene: whose its cameras and depth are.
        self.geometry: dict[str, Geometry] = {}

    def __iter__(self) -> Iterator[tuple[Scene, list[Question]]]:
        for scene_id in self._scene_ids:
            scene, asked = self._store.scene(scene_id), self._store.questions(scene_id)
            self.questions += asked
            content = scene_content(scene, asked)
            self.sealed.append(Sealed(scene_id=scene_id, rows=len(asked), content=content))
            self.geometry[scene_id] = self._mark(scene)
            yield scene, asked
            if isinstance(self._features_of, FeatureTeacher):
                self.features.append(self._features_of.scene_features(scene))


def scene_content(scene: Scene, questions: Sequence[Question]) -> str:
    """What names all that a teacher could see of a scene: pictures, cameras, depth, questions."""

    def parts() -> Iterator[bytes | str]:
        yield scene.scene_id
        for view in scene.views:
            for array in (view.rgb, view.depth, view.intrinsics, view.c2w):
                yield "-" if array is None else str(array.shape)
                yield b"" if array is None else array.tobytes()
        for question in questions:
            yield from (question.question_id, question.prompt, question.answer)

    return content_hash(parts())
