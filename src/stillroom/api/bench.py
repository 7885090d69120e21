"""Arms, probes and times."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.api.meta import Progress, run_meta
from stillroom.api.models import language_model_of
from stillroom.records import BadInputError

if TYPE_CHECKING:
    from stillroom.bench.options import LatencyOptions
    from stillroom.distill.config import DistillConfig


def ablate(
    suite: Literal["table2", "table3", "slots"],
    *,
    scenes: Path | str,
    labels: Path | str,
    out: Path | str,
    recipe: str = "mini_cpu_paper",
    base: DistillConfig | None = None,
    steps: int | None = None,
    no_objects_encoder: str | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Train and compare the arms of a suite; what ``OUT/ABLATION.json`` holds.

    ``base`` takes the place of the recipe's config; ``processes`` are two where there are as many
    cores; ``how`` are further fields of ``bench.ablation.Ablation`` (seeds, arms, split, limit,
    plateau, null_size, arms_folder).
    """
    from stillroom import recipes, registry
    from stillroom.bench import ablation

    config = ablation.with_steps(base or recipes.table("distill")[recipe](), steps)
    asked = ablation.Ablation(
        suite=suite,
        recipe=recipe,
        base=config,
        scenes=Path(scenes),
        labels=Path(labels),
        out=Path(out),
        encoder=registry.locate(config.encoder),
        language_model=language_model_of(config),
        no_objects_encoder=None
        if no_objects_encoder is None
        else registry.locate(no_objects_encoder),
        processes=min(2, len(os.sched_getaffinity(0))) if processes is None else processes,
        **how,
    )
    return ablation.ablate(asked, meta=run_meta(time.monotonic()), progress=progress)


def probe(
    checkpoint: str,
    scenes: Path | str,
    *,
    out: Path | str,
    split: str = "test",
    limit: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit linear probes to a student's slot states; what ``OUT/PROBE.json`` holds."""
    from stillroom import registry
    from stillroom.bench import probe as probing

    kind, where = registry.kind_of(checkpoint)
    if kind != "student":
        raise BadInputError(f"{checkpoint!r} has no slots; name a student")
    asked = probing.ProbeConfig(
        name=checkpoint,
        checkpoint=registry.locate(where),
        revision=str(registry.describe(checkpoint)["revision"]),
        scenes=Path(scenes),
        out=Path(out),
        split=split,
        limit=limit,
        seed=seed,
    )
    return probing.probe(asked, meta=run_meta(time.monotonic()), progress=progress)


def bench_latency(
    options: LatencyOptions,
    *,
    student: str = "student_mini",
    teacher: str = "teacher_mini",
    scenes: Path | str | None = None,
    scene_count: int = 8,
    random_weights: bool = False,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time teacher and student side by side; the record, with figures in ``out`` if that is named.

    Without ``scenes`` rooms are made. With ``random_weights`` the student is a recipe's name and
    the teacher "llava3d-7b" or a folder, of which only the sizes count. A record that ``out`` holds
    of the same models and settings is given back, and nothing measured.
    """
    from stillroom import bench_models
    from stillroom.bench.run import finished, write

    started = time.monotonic()
    # Scenes are named by where they lie, models by their weights.
    asked = {
        "student": student if random_weights else bench_models.identity(student),
        "teacher": teacher if random_weights else bench_models.identity(teacher),
        "scenes": None if scenes is None else str(Path(scenes).resolve()),
        "scene_count": scene_count,
        "random_weights": random_weights,
    }
    found = None if out is None else finished(Path(out), asked, options)
    if found is not None:
        return found
    run = bench_models.run_random if random_weights else bench_models.run_loaded
    record = run(
        options,
        student=student,
        teacher=teacher,
        scenes=None if scenes is None else Path(scenes),
        scene_count=scene_count,
        progress=progress,
    )
    today = datetime.date.today().isoformat()
    record |= {"asked": asked, "meta": run_meta(started, date=today)}
    if out is not None:
        write(record, Path(out))
    return record
