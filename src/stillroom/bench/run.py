"""``stillroom bench latency``: which models, which scenes, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stillroom.bench import contestants
from stillroom.bench.asked import Asked, ask_in_turns, count_equal
from stillroom.bench.figures import draw
from stillroom.bench.latency import Maker, measure
from stillroom.bench.options import LatencyOptions
from stillroom.records import Answerer, BadInputError, Scene, require_folder
from stillroom.students.config import StillroomConfig
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_config import LLaVA3DConfig

Progress = Callable[[int, int], None]
#: Photos of a full-size teacher and student where nobody says how many.
FULL_VIEWS = {"teacher": 20, "student": 8}
RECORD_FILE = "latency.json"


def bench_models(
    student: StudentAnswerer,
    teacher: LLaVA3DTeacher,
    asked: Asked,
    options: LatencyOptions,
    *,
    names: Mapping[str, str],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Loaded models on scenes with questions: stages, questions as they are, equal answers."""
    device = student.student.device
    scenes = [scene for scene, _ in asked]
    views = {"teacher": teacher.model.settings.num_frames, "student": student.processor.max_views}
    words = {"question_tokens": options.question_tokens}
    makers: dict[str, Maker] = {
        "teacher": lambda: contestants.teacher(
            teacher.model, views=views["teacher"], name=names["teacher"], **words
        ),
        "student": lambda: contestants.student(
            student.student, views=views["student"], name=names["student"], **words
        ),
    }
    record = measure(makers, scenes, options, device, progress=progress)
    answerers: dict[str, Answerer] = {"teacher": teacher, "student": student}
    times = ask_in_turns(answerers, asked, device)
    equal = {name: count_equal(one, asked) for name, one in answerers.items()}
    record["as_asked"] = times
    record["ratio_as_asked"] = {
        kind: round(times["teacher"][f"{kind}_ms"] / times["student"][f"{kind}_ms"], 3)
        for kind in ("cold", "warm")
    }
    record["answers_equal"] = all(same == count for same, count in equal.values())
    record["answers_compared"] = {
        name: {"equal": same, "of": count} for name, (same, count) in equal.items()
    }
    return record


def require_photos(scene: Scene, options: LatencyOptions) -> None:
    """Nothing may be asked about photos that a scene does not have.

    Raises:
        BadInputError: an option asks for more, by name.
    """
    asked = {
        "sweep_views": max(options.sweep_views, default=0),
        "at_teacher_views": options.at_teacher_views or 0,
        "at_student_views": options.at_student_views or 0,
    }
    for name, most in asked.items():
        if most > len(scene.views):
            raise BadInputError(
                f"{name} asks for {most} photos, the first scene has {len(scene.views)}; name fewer"
            )


def bench_random(
    student: StillroomConfig,
    teacher: LLaVA3DConfig,
    options: LatencyOptions,
    device: torch.device,
    *,
    names: Mapping[str, str],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Models of these sizes with noise for weights, on photos of noise in a bare room."""
    dtype = getattr(torch, options.dtype)
    views = {
        "teacher": options.teacher_views or FULL_VIEWS["teacher"],
        "student": options.student_views or FULL_VIEWS["student"],
    }
    far = [options.at_teacher_views or 0, options.at_student_views or 0]
    scene = contestants.empty_room(max(*views.values(), *far, *options.sweep_views))
    words = {"question_tokens": options.question_tokens}
    makers: dict[str, Maker] = {
        "teacher": lambda: contestants.teacher(
            contestants.random_teacher(teacher, dtype=dtype, device=device),
            views=views["teacher"],
            name=names["teacher"],
            **words,
        ),
        "student": lambda: contestants.student(
            contestants.random_student(student, dtype=dtype, device=device),
            views=views["student"],
            name=names["student"],
            **words,
        ),
    }
    record = measure(makers, [scene], options, device, progress=progress)
    return record | {"random_weights": True}


def finished(out: Path, asked: Mapping[str, Any], options: LatencyOptions) -> dict[str, Any] | None:
    """The record that a folder holds of just this measurement; None where it holds none.

    Raises:
        BadInputError: ``out`` is or lies under a file, or holds a record of something else.
    """
    require_folder(out)
    file = out / RECORD_FILE
    if not file.is_file():
        return None
    settings = json.loads(json.dumps({"asked": asked, "options": asdict(options)}))
    try:
        record = json.loads(file.read_text())
        same = all(record[name] == settings[name] for name in settings)
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise BadInputError(
            f"{out} holds a record of other models or settings. Choose another --out."
        )
    found: dict[str, Any] = record
    return found


def write(record: Mapping[str, Any], out: Path) -> Sequence[Path]:
    """``latency.json`` and the figures in a folder; what was written."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / RECORD_FILE
    file.write_text(json.dumps(record, indent=1) + "\n")
    return [file, *draw(record, out)]
