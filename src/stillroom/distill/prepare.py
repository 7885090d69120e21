"""What a distillation needs before its first step: the student, its run folder, its batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.distill.features import FeatureCache, cache_features
from stillroom.distill.lacking import scenes_without
from stillroom.distill.own_depth import ScaledDepth
from stillroom.distill.provenance import parent_facts
from stillroom.distill.reach import require_reach, term_reach
from stillroom.distill.targets import (
    SCENES_AT_ONCE,
    SceneTargets,
    Teacher,
    cache_targets,
    find_teacher,
    kinds_to_tell,
)
from stillroom.records import BadInputError, TeacherLabel, content_hash
from stillroom.scenes.rooms import CATEGORIES
from stillroom.scenes.store import SceneStore
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.label_store import LabelStore
from stillroom.text.tokenizer import Tokenizer
from stillroom.text.vocabulary import compare
from stillroom.training.distributed import Processes
from stillroom.training.precision import computing_in, moved
from stillroom.training.runlog import open_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """All that is there before a step."""

    student: StillroomStudent
    processor: StillroomProcessor
    # What names the run.
    settings: dict[str, Any]
    training: Batches
    held_out: Batches
    finished: bool
    # What is recorded of the student that it began from.
    parent: dict[str, Any] | None


def prepare(
    config: DistillConfig,
    store: SceneStore,
    taught: LabelStore,
    out: Path,
    processes: Processes,
    *,
    encoder: Path | str,
    language_model: Path | str,
    tokenizer: Path | str,
) -> Ready:
    ids = {
        "train": _labelled(store, taught, config.train_split),
        "val": _labelled(store, taught, config.validation_split)[: config.validation_scenes],
    }
    every = list(dict.fromkeys(ids["train"] + ids["val"]))
    losses = config.losses
    reads_features = losses.spatial or losses.feature
    teacher = find_teacher(taught, every, settings=taught.settings) if reads_features else None
    width = _feature_width(config, teacher)
    found = store.kinds(every) if losses.detection else {}
    sizes = config.student
    student, processor = build_student(
        config,
        encoder,
        language_model,
        tokenizer,
        feature_width=width,
        kinds=kinds_to_tell(found, most=sizes.detection_kinds, least=sizes.detection_least),
    )
    kinds = student.config.detection_kinds or CATEGORIES
    if processes.main:
        _say_kinds(found, kinds)
    parent = parent_facts(config.start_from)
    by_text = must_read_text(processor.tokenizer, student.config.get_text_config(), taught, config)
    revision = _digest(student.encoder)
    settings = {
        "verb": "distill",
        "config": _fingerprint(config),
        "encoder": revision,
        "start": _digest(student.language_model),
        "labels": taught.settings,
        "scenes": content_hash(every),
    }
    # Refuse a foreign folder before anything is computed or written.
    run = open_run(out, config=config.train, settings=settings)
    student.to(processes.device)  # type: ignore[arg-type]  # transformers wraps it without its types
    cache = Path(config.features) if config.features else out / "features"
    features, targets = _cached(
        config,
        student,
        processor,
        store,
        every,
        cache,
        revision=revision,
        teacher=teacher,
        kinds=kinds,
        own=ScaledDepth(student, processor, encoder) if losses.pairs_from == "own" else None,
    )
    training, held_out = (
        _batches(config, features, targets, store, taught, ids[name], processor, by_text=by_text)
        for name in ("train", "val")
    )
    for split, batches in ((config.train_split, training), (config.validation_split, held_out)):
        _require_answers(batches, split, taught)
    if processes.main and run.finished is None:
        with computing_in(config.train.precision, processes.device):
            _check_terms(student, training, config)
    return Ready(
        student=student,
        processor=processor,
        settings=settings,
        training=training,
        held_out=held_out,
        finished=run.finished is not None,
        parent=parent,
    )


def _cached(
    config: DistillConfig,
    student: StillroomStudent,
    processor: StillroomProcessor,
    store: SceneStore,
    scene_ids: Sequence[str],
    folder: Path,
    *,
    revision: str,
    teacher: Teacher | None,
    kinds: Sequence[str],
    own: ScaledDepth | None,
) -> tuple[FeatureCache, SceneTargets | None]:
    """What is read of scenes instead of their photos, made where it is not there yet."""

    def made(some: Sequence[str]) -> tuple[FeatureCache, SceneTargets | None]:
        features = cache_features(
            student,
            processor,
            store,
            some,
            folder,
            encoder=revision,
            scenes_per_pass=config.scenes_per_pass,
            precision=config.encoder_precision,
            see=None if own is None else own.see,
        )
        targets = cache_targets(
            store,
            some,
            folder,
            processor=processor,
            grid=student.config.vision_grid,
            losses=config.losses,
            teacher=teacher,
            own_depth=None if own is None else (f"{revision} in metres", own),
            kinds=kinds,
        )
        return features, targets

    if own is not None:
        # The depth of a few scenes at a time is held for their targets: one pass gives both.
        for start in range(0, len(scene_ids), SCENES_AT_ONCE):
            made(scene_ids[start : start + SCENES_AT_ONCE])
            own.forget()
    return made(scene_ids)


def _say_kinds(found: Mapping[str, int], kinds: Sequence[str]) -> None:
    """How many things of the scenes are none of the kinds that the student tells apart."""
    others = {kind: count for kind, count in found.items() if kind not in kinds}
    if others:
        some = ", ".join(sorted(others, key=lambda kind: (-others[kind], kind))[:10])
        logger.info(
            "detection tells %d kinds apart; %d of %d things are of %d others, whose boxes alone "
            "are learnt (%s%s)",
            len(kinds),
            sum(others.values()),
            sum(found.values()),
            len(others),
            some,
            ", ..." if len(others) > 10 else "",
        )


def _fingerprint(config: DistillConfig) -> dict[str, Any]:
    """All of a config that shapes a run."""
    # Where the features lie changes nothing of them.
    found = asdict(replace(config, features=""))
    # Nor does how many scenes the encoder reads at a time, nor what is only looked at.
    del found["scenes_per_pass"], found["training_scenes"]
    if not config.shelters_slots:
        # Either word then means what slots did before there was one: begun runs go on.
        del found["slots"]["supervision"]
    # What runs had before there was the choice: begun ones go on.
    before = asdict(StudentSizes())
    for name in ("detection_least", "detection_kinds"):
        if not config.losses.detection or found["student"][name] == before[name]:
            del found["student"][name]
    if not config.student.image_size:
        del found["student"]["image_size"]
    return found


def must_read_text(
    tokenizer: Tokenizer, language: PretrainedConfig, labels: LabelStore, config: DistillConfig
) -> bool:
    """Whether the student must learn from the text of the answers, for its ids mean other things.

    Raises:
        BadInputError: the recipe asks for the teacher's logits, which then mean nothing to it.
    """
    known = labels.vocabulary
    if known is None:
        fits, reason = False, "the store does not say what its teacher's ids mean"
    else:
        rows = getattr(language, "vocab_size", None)
        found = compare(tokenizer.vocabulary(rows=rows), known)
        fits = found.logits_fit
        reason = f"the vocabularies are {found.match.value} ({found.reason})"
    wanted = "topk_logits" in labels.settings["signals"] and config.losses.kl_alpha > 0
    if wanted and not fits:
        raise BadInputError(
            f"the logits of {labels.path} cannot teach this student: {reason}; to train on the "
            "text of the answers alone, say so with --losses.kl-alpha 0"
        )
    return not fits


def text_alone(label: TeacherLabel) -> TeacherLabel:
    """A label without ids and logits of the teacher's vocabulary."""
    return TeacherLabel(scene_id=label.scene_id, question_id=label.question_id, answer=label.answer)


def _labelled(store: SceneStore, labels: LabelStore, split: str) -> list[str]:
    known = set(labels.scene_ids())
    found = [scene_id for scene_id in store.scene_ids(split) if scene_id in known]
    if not found:
        raise BadInputError(
            f"{labels.path} labels no scene of the split {split!r} of {store.path}; label that "
            "store first, or name another split"
        )
    return found


def _feature_width(config: DistillConfig, teacher: Teacher | None) -> int:
    """Width of the teacher's features, 0 where there are none."""
    asked = config.student.feature_width
    if teacher is not None and asked not in (0, teacher.width):
        raise BadInputError(
            f"the labels hold features {teacher.width} wide, the recipe's teacher has {asked}; "
            f"label with that teacher, or set --student.feature-width {teacher.width}"
        )
    return 0 if teacher is None else teacher.width


def _batches(
    config: DistillConfig,
    features: FeatureCache,
    targets: SceneTargets | None,
    store: SceneStore,
    labels: LabelStore,
    scene_ids: Sequence[str],
    processor: StillroomProcessor,
    *,
    by_text: bool,
) -> Batches:
    questions = {scene_id: store.questions(scene_id) for scene_id in scene_ids}
    prompts = {q.question_id: q.prompt for asked in questions.values() for q in asked}
    said = {scene_id: labels.labels(scene_id) for scene_id in scene_ids}
    if by_text:
        said = {key: [text_alone(label) for label in one] for key, one in said.items()}
    tokenizer = processor.tokenizer
    items = items_by_scene(questions, said, prompts, tokenizer)
    return Batches(config, features, items, prompts=prompts, tokenizer=tokenizer, targets=targets)


def _require_answers(batches: Batches, split: str, labels: LabelStore) -> None:
    """Raise BadInputError unless an answer of the split has a token to be learnt or measured."""
    answers = [item.answer_ids for asked in batches.items.values() for item in asked]
    if not any(answers):
        raise BadInputError(
            f"all {len(answers)} answers that {labels.path} holds for the split {split!r} are "
            "empty, without even an end: nothing can be learnt from them or measured by them; "
            "label again, or name another split"
        )


def _check_terms(student: StillroomStudent, training: Batches, config: DistillConfig) -> None:
    """Say once which terms lack labels where; refuse one that cannot reach an answer."""
    without = scenes_without(training)
    say_lacking("scenes", {name: (len(rows), len(training.rows)) for name, rows in without.items()})
    # The first scene that has labels for it, of every term; most often that is one scene.
    rows = set(range(len(training.rows)))
    shown = {min(rows.difference(lack), default=0) for lack in without.values()}
    batch = moved(training.sample(sorted(shown)), student.device)
    require_reach(term_reach(student, batch, config), config.losses)


def say_lacking(what: str, without: Mapping[str, tuple[int, int]]) -> None:
    lacking = [f"{name} {some} of {every}" for name, (some, every) in without.items() if some]
    if lacking:
        logger.info("%s without labels, where the term is off: %s", what, ", ".join(lacking))


def _digest(part: nn.Module) -> str:
    """What names a part of the student as it starts out: its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(part.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
