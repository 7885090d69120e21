"""A whole distillation: labels and scenes in, a student's checkpoint out; resumable."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, LossConfig
from stillroom.distill.features import FeatureCache, cache_features
from stillroom.distill.lacking import scenes_without, steps_without
from stillroom.distill.lora import merged_state
from stillroom.distill.own_depth import ScaledDepth
from stillroom.distill.provenance import provenance
from stillroom.distill.reach import require_reach, sheltered_slots, term_reach
from stillroom.distill.step import count_labelled, distill_step, tokens_right
from stillroom.distill.targets import (
    SceneTargets,
    Teacher,
    cache_targets,
    find_teacher,
)
from stillroom.distill.weighting import make_weighting
from stillroom.records import BadInputError, TeacherLabel, content_hash
from stillroom.scenes.store import SceneStore, open_store
from stillroom.students.card import PROVENANCE_FILE, write_card
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.label_store import LabelStore, open_labels
from stillroom.teachers.sampling import AnswerScores
from stillroom.text.tokenizer import Tokenizer
from stillroom.text.vocabulary import compare
from stillroom.training.distributed import Processes, join
from stillroom.training.handed import count_steps
from stillroom.training.loop import train
from stillroom.training.precision import computing_in, moved
from stillroom.training.runlog import open_run

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

#: Scenes of one validation batch.
SCENES_PER_EVALUATION = 8


def distill(
    config: DistillConfig,
    *,
    scenes: Path,
    labels: Path,
    out: Path,
    encoder: Path | str,
    language_model: Path | str = "",
    tokenizer: Path | str = "",
    recipe: str = "",
    meta: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> str:
    """Train a student on labelled scenes; ``out/student`` holds it, in bf16, with its model card.

    ``encoder``, ``language_model`` and ``tokenizer`` are where those of the recipe lie; ``recipe``
    is its name and ``meta`` says how it was run (commit, command, machine), for the card. The
    frozen encoder sees every scene once; its features are kept in ``out/features``. Every process
    of ``torchrun`` calls this, and the first writes.

    Raises:
        BadInputError: missing labels, scenes of several kinds, a term that no answer learns from,
            or ``out`` holds another run.
    """
    processes = join(config.train)
    places = {"encoder": encoder, "language_model": language_model, "tokenizer": tokenizer}
    with processes.main_first():
        ready = _prepare(config, open_store(scenes), open_labels(labels), out, processes, **places)
    student, losses = ready.student, config.losses
    result = train(
        config=config.train,
        model=student,
        weighting=make_weighting(losses),
        sheltered=sheltered_slots(student, config),
        step=lambda batch: distill_step(student, batch, losses),
        count=count_labelled,
        batch_at=ready.training.at,
        evaluate=lambda: _evaluate(student, ready.held_out, losses),
        best_by="answer_ce",
        out=out,
        settings=ready.settings,
        progress=count_steps(progress),
    )
    home = out / "student"
    if processes.main and not (ready.finished and (home / PROVENANCE_FILE).is_file()):
        _say("steps", steps_without(out, losses))
        save_student(student, ready.processor, home)
        facts = provenance(
            config,
            student,
            recipe=recipe,
            teacher=ready.settings["labels"]["teacher"],
            store=open_store(scenes),
            scene_ids={"train": ready.training.scene_ids, "val": ready.held_out.scene_ids},
            steps=result.steps,
            seconds=result.seconds,
            meta=meta or {},
        )
        write_card(home, facts)
    processes.wait()
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
    return f"{home} after {result.steps} steps, best at {result.best_step}: {shown}"


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """All that is there before a step."""

    student: StillroomStudent
    processor: StillroomProcessor
    # What names the run.
    settings: dict[str, Any]
    training: Batches
    held_out: Batches
    finished: bool


def _prepare(
    config: DistillConfig,
    store: SceneStore,
    taught: LabelStore,
    out: Path,
    processes: Processes,
    *,
    encoder: Path | str,
    language_model: Path | str,
    tokenizer: Path | str,
) -> _Ready:
    ids = {
        "train": _labelled(store, taught, config.train_split),
        "val": _labelled(store, taught, config.validation_split)[: config.validation_scenes],
    }
    every = list(dict.fromkeys(ids["train"] + ids["val"]))
    losses = config.losses
    reads_features = losses.spatial or losses.feature
    teacher = find_teacher(taught, every, settings=taught.settings) if reads_features else None
    width = _feature_width(config, teacher)
    student, processor = build_student(
        config, encoder, language_model, tokenizer, feature_width=width
    )
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
    features = cache_features(
        student,
        processor,
        store,
        every,
        cache,
        encoder=revision,
        precision=config.encoder_precision,
    )
    own_depth = None
    if losses.pairs_from == "own":
        own_depth = (f"{revision} in metres", ScaledDepth(student, processor, encoder))
    targets = cache_targets(
        store,
        every,
        cache,
        processor=processor,
        grid=student.config.vision_grid,
        losses=losses,
        teacher=teacher,
        own_depth=own_depth,
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
    return _Ready(
        student=student,
        processor=processor,
        settings=settings,
        training=training,
        held_out=held_out,
        finished=run.finished is not None,
    )


def _fingerprint(config: DistillConfig) -> dict[str, Any]:
    """All of a config that shapes a run."""
    # Where the features lie changes nothing of them.
    found = asdict(replace(config, features=""))
    if not config.shelters_slots:
        # Either word then means what slots did before there was one: begun runs go on.
        del found["slots"]["supervision"]
    return found


def save_student(student: StillroomStudent, processor: StillroomProcessor, folder: Path) -> None:
    """Write a student's checkpoint in bf16 with its processor, as the Auto classes read it."""
    # Built without memory and given the rounded weights: no second student in single precision.
    with torch.device("meta"):
        rounded = StillroomStudent(copy.deepcopy(student.config))
    state = merged_state(student)
    for name in list(state):
        kept = torch.bfloat16 if state[name].is_floating_point() else state[name].dtype
        state[name] = state[name].to("cpu", kept)
    rounded.load_state_dict(state, assign=True)
    rounded.tie_weights()
    rounded.save_pretrained(folder)
    processor.save_pretrained(folder)


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
    _say("scenes", {name: (len(rows), len(training.rows)) for name, rows in without.items()})
    # The first scene that has labels for it, of every term; most often that is one scene.
    rows = set(range(len(training.rows)))
    shown = {min(rows.difference(lack), default=0) for lack in without.values()}
    batch = moved(training.sample(sorted(shown)), student.device)
    require_reach(term_reach(student, batch, config), config.losses)


def _say(what: str, without: Mapping[str, tuple[int, int]]) -> None:
    lacking = [f"{name} {some} of {every}" for name, (some, every) in without.items() if some]
    if lacking:
        logger.info("%s without labels, where the term is off: %s", what, ", ".join(lacking))


def _evaluate(student: StillroomStudent, batches: Batches, losses: LossConfig) -> dict[str, float]:
    """Mean of every term over the held-out scenes, and the share of answers right by family.

    Right means as the teacher said it, token for token, each token given the ones before it.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    scores = AnswerScores()
    ids = batches.scene_ids
    for start in range(0, len(ids), SCENES_PER_EVALUATION):
        chosen = ids[start : start + SCENES_PER_EVALUATION]
        rows = batches.rows[start : start + SCENES_PER_EVALUATION]
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


def _digest(part: nn.Module) -> str:
    """What names a part of the student as it starts out: its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(part.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
