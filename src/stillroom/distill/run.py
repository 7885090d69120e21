"""A whole distillation: labels and scenes in, a student's checkpoint out; resumable."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig

from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig
from stillroom.distill.features import FeatureCache, cache_features
from stillroom.distill.step import count_labelled, distill_step, term_names, tokens_right
from stillroom.distill.weighting import BoundedUncertainty, StaticWeights
from stillroom.records import BadInputError, TeacherLabel, content_hash
from stillroom.scenes.store import SceneStore, open_store
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.label_store import LabelStore, open_labels
from stillroom.teachers.sampling import right_by_family
from stillroom.text.tokenizer import Tokenizer
from stillroom.text.vocabulary import compare
from stillroom.training.handed import count_steps
from stillroom.training.loop import train
from stillroom.training.runlog import open_run

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
    progress: Progress | None = None,
) -> str:
    """Train a student on labelled scenes; ``out/student`` holds it, in bf16.

    ``encoder`` and ``language_model`` are where those of the recipe lie. The frozen encoder sees
    every scene once; its features are kept in ``out/features``.

    Raises:
        BadInputError: missing labels, scenes of several kinds, or ``out`` holds another run.
    """
    store, taught = open_store(scenes), open_labels(labels)
    student, processor = build_student(config, encoder, language_model)
    by_text = must_read_text(processor.tokenizer, student.config.get_text_config(), taught, config)
    revision = _digest(student.encoder)
    ids = {
        "train": _labelled(store, taught, config.train_split),
        "val": _labelled(store, taught, config.validation_split)[: config.validation_scenes],
    }
    every = list(dict.fromkeys(ids["train"] + ids["val"]))
    settings = {
        "verb": "distill",
        "config": asdict(config),
        "encoder": revision,
        "start": _digest(student.language_model),
        "labels": taught.settings,
        "scenes": content_hash(every),
    }
    # Refuse a foreign folder before anything is computed or written.
    open_run(out, config=config.train, settings=settings)
    features = cache_features(student, processor, store, every, out / "features", encoder=revision)
    training, held_out = (
        _batches(config, features, store, taught, ids[name], processor, by_text=by_text)
        for name in ("train", "val")
    )
    names = term_names(config.losses)
    weighting = (
        BoundedUncertainty(names)
        if config.losses.weighting == "uncertainty"
        else StaticWeights(dict.fromkeys(names, 1.0))
    )
    result = train(
        config=config.train,
        model=student,
        weighting=weighting,
        step=lambda batch: distill_step(student, batch, config.losses),
        count=count_labelled,
        batch_at=training.at,
        evaluate=lambda: _evaluate(student, held_out, config),
        best_by="answer_ce",
        out=out,
        settings=settings,
        progress=count_steps(progress),
    )
    save_student(student, processor, out / "student")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
    return f"{out / 'student'} after {result.steps} steps, best at {result.best_step}: {shown}"


def save_student(student: StillroomStudent, processor: StillroomProcessor, folder: Path) -> None:
    """Write a student's checkpoint in bf16 with its processor, as the Auto classes read it."""
    rounded = copy.deepcopy(student).bfloat16()
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


def _batches(
    config: DistillConfig,
    features: FeatureCache,
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
    return Batches(config, features, items, prompts=prompts, tokenizer=tokenizer)


def _evaluate(
    student: StillroomStudent, batches: Batches, config: DistillConfig
) -> dict[str, float]:
    """Mean of every term over the held-out scenes, and the share of answers right by family.

    Right means as the teacher said it, token for token, each token given the ones before it.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    right: dict[str, list[bool]] = {}
    ids = batches.scene_ids
    for start in range(0, len(ids), SCENES_PER_EVALUATION):
        chosen = ids[start : start + SCENES_PER_EVALUATION]
        rows = batches.rows[start : start + SCENES_PER_EVALUATION]
        asked = [batches.items[scene_id] for scene_id in chosen]
        batch = batches.batch(rows, asked)
        answers = [(item.question.family, len(item.answer_ids)) for row in asked for item in row]
        for family, values in right_by_family(tokens_right(student, batch), answers).items():
            right.setdefault(family, []).extend(values)
        losses = distill_step(student, batch, config.losses)
        for name, total in {**losses.terms, **losses.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(total)
        for name, count in count_labelled(batch).items():
            counts[name] = counts.get(name, 0.0) + count
    means = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    shares = {f"right.{name}": sum(values) / len(values) for name, values in right.items()}
    return means | {name: shares[name] for name in sorted(shares)}


def _digest(part: nn.Module) -> str:
    """What names a part of the student as it starts out: its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(part.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
