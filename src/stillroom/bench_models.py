"""Which models and scenes ``stillroom bench latency`` measures, by their names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.records import BadInputError, Question, Scene

if TYPE_CHECKING:
    from stillroom.bench.options import LatencyOptions

#: Scenes that real questions are asked about: the first of them only warms up.
LEAST_SCENES = 2
Progress = Callable[[int, int], None]
#: Rooms that are made where none are named; questions that are asked about each.
SEED, QUESTIONS = 41, 12


def identity(name: str) -> str:
    """A model's name with what its weights are, for a record to be told from another's.

    Raises:
        BadInputError: no such model.
    """
    from stillroom import registry

    return f"{name} {registry.describe(name).get('revision', '')}".strip()


def run_loaded(
    options: LatencyOptions,
    *,
    student: str,
    teacher: str,
    scenes: Path | None,
    scene_count: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """Models of these names on a store's first scenes, or on rooms made for it.

    Raises:
        BadInputError: no such model, a teacher that is no LLaVA-3D, too few scenes or photos, or
            weights of 8 or 4 bits in float32.
    """
    import torch
    from transformers import AutoConfig

    from stillroom import registry
    from stillroom.bench.run import bench_models, require_photos
    from stillroom.students.session import StudentAnswerer
    from stillroom.teachers.device import chosen_device
    from stillroom.teachers.llava3d import LLaVA3DTeacher
    from stillroom.teachers.options import TeacherOptions

    kind, where = registry.kind_of(teacher)
    if kind != "llava3d":
        raise BadInputError(
            f"bench latency compares with a LLaVA-3D, got {teacher!r}; name teacher_mini or "
            "llava3d:WHERE"
        )
    if registry.kind_of(student)[0] != "student":
        raise BadInputError(f"{student!r} is no student; name student_mini, a folder or a hub id")
    if options.resident == "in_turn":
        raise BadInputError("models are loaded in_turn with random weights only; leave it out")
    if scene_count < LEAST_SCENES:
        raise BadInputError(
            f"scene_count must be at least {LEAST_SCENES}, since the first scene only warms up, "
            f"got {scene_count}"
        )
    asked = _asked(scenes, scene_count)
    if len(asked) < LEAST_SCENES:
        raise BadInputError(
            f"{scenes} holds {len(asked)} scenes, at least {LEAST_SCENES} are needed; name a "
            "larger store, or leave --scenes out"
        )
    require_photos(asked[0][0], options)
    place = registry.locate(student)
    weights = AutoConfig.from_pretrained(place).weights
    if weights != "full" and options.dtype == "float32":
        raise BadInputError(
            f"{student} has {weights} weights, which are computed with in bfloat16; add --dtype "
            "bfloat16, for both models"
        )
    device = chosen_device(options.device)
    asks = TeacherOptions(dtype=options.dtype, frames=options.teacher_views, device=options.device)
    loaded = LLaVA3DTeacher.from_folder(registry.locate(where), asks)
    answerer = StudentAnswerer.from_folder(
        place, device=device, dtype=getattr(torch, options.dtype)
    )
    if options.student_views is not None:
        answerer.processor.max_views = options.student_views
    return bench_models(
        answerer,
        loaded,
        asked,
        options,
        names={"teacher": teacher, "student": student},
        progress=progress,
    )


def run_random(
    options: LatencyOptions,
    *,
    student: str,
    teacher: str,
    scenes: Path | None,
    scene_count: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """A recipe's student and a LLaVA-3D of these sizes, with noise for weights.

    Raises:
        BadInputError: no such recipe or teacher, or scenes, which noise has no use for.
    """
    from stillroom import recipes, registry
    from stillroom.bench.run import bench_random
    from stillroom.distill.build import described_student
    from stillroom.teachers.device import chosen_device
    from stillroom.teachers.llava3d_config import LLaVA3DConfig

    if scenes is not None:
        raise BadInputError("random weights look at photos of noise; leave --scenes out")
    known = recipes.table("distill")
    if student not in known:
        raise BadInputError(
            f"with --random-weights --student is a recipe, got {student!r}; known: "
            f"{', '.join(known)}"
        )
    config = known[student]()
    language_model = registry.locate(config.language_model) if config.language_model else ""
    described = described_student(config, registry.locate(config.encoder), language_model)
    sizes = LLaVA3DConfig()
    if teacher != "llava3d-7b":
        place = registry.locate(registry.kind_of(teacher)[1])
        if not isinstance(place, Path):
            raise BadInputError(
                f"with --random-weights --teacher is llava3d-7b, teacher_mini or a folder, got "
                f"{teacher!r}"
            )
        sizes = LLaVA3DConfig.read(place)
    return bench_random(
        described,
        sizes,
        options,
        chosen_device(options.device),
        names={"teacher": teacher, "student": student},
        progress=progress,
    )


def _asked(scenes: Path | None, count: int) -> list[tuple[Scene, Sequence[Question]]]:
    """Scenes with questions of the four families first, as they are stored."""
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store

    with tempfile.TemporaryDirectory() as made:
        if scenes is None:
            scenes = Path(made) / "rooms"
            make_scenes(scenes, count=count, seed=SEED, split="test")
        store = open_store(scenes)
        ids = store.scene_ids()[:count]
        return [(store.scene(name), store.questions(name)[:QUESTIONS]) for name in ids]
