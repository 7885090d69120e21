"""A whole distillation: labels and scenes in, a student's checkpoint out; resumable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.distill.config import DistillConfig
from stillroom.distill.lacking import steps_without
from stillroom.distill.look import SEEN, look
from stillroom.distill.lora import merged_state
from stillroom.distill.prepare import prepare, say_lacking
from stillroom.distill.provenance import provenance
from stillroom.distill.reach import sheltered_slots
from stillroom.distill.step import count_labelled, distill_step
from stillroom.distill.weighting import make_weighting
from stillroom.scenes.store import open_store
from stillroom.students.card import PROVENANCE_FILE, write_card
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers.label_store import open_labels
from stillroom.training.distributed import join
from stillroom.training.handed import count_steps
from stillroom.training.loop import train

Progress = Callable[[int, int], None]


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
        ready = prepare(config, open_store(scenes), open_labels(labels), out, processes, **places)
    student, losses = ready.student, config.losses
    with _encoder_aside(student):
        result = train(
            config=config.train,
            model=student,
            weighting=make_weighting(losses),
            sheltered=sheltered_slots(student, config),
            step=lambda batch: distill_step(student, batch, losses),
            count=count_labelled,
            batch_at=ready.training.at,
            rows=len(ready.training.scene_ids),
            evaluate=lambda: look(student, ready.held_out, ready.training, config),
            best_by="answer_ce",
            out=out,
            settings=ready.settings,
            progress=count_steps(progress),
        )
    home = out / "student"
    if processes.main and not (ready.finished and (home / PROVENANCE_FILE).is_file()):
        without = steps_without(out, losses)
        say_lacking("steps", without)
        lacking, steps = without.get("depth_map", (0, 0))
        if lacking < steps:
            # Its depth head learnt from measured depth.
            student.config.depth_unit = "metre"
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
            parent=ready.parent,
        )
        write_card(home, facts)
    processes.wait()
    held_out = {k: value for k, value in result.metrics.items() if not k.startswith(SEEN)}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(held_out.items()))
    return f"{home} after {result.steps} steps, best at {result.best_step}: {shown}"


@contextmanager
def _encoder_aside(student: StillroomStudent) -> Iterator[None]:
    """A student without its encoder, if all that is read of it is kept: it waits on the CPU, and
    the memory it had on the device is the training's."""
    encoder = student.encoder
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        yield
        return
    student.encoder = nn.Identity()  # type: ignore[assignment]
    encoder.to("cpu")
    try:
        yield
    finally:
        student.encoder = encoder


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
