"""A teacher's answers: made once, looked at, joined, written for other trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.api.meta import Progress
from stillroom.records import BadInputError, Signal

if TYPE_CHECKING:
    from stillroom.teachers.options import TeacherOptions


def label(
    scenes: Path | str,
    *,
    teacher: str,
    out: Path | str,
    options: TeacherOptions | None = None,
    signals: Sequence[Signal] = ("answers", "topk_logits"),
    workers: int | None = None,
    ray: str | None = None,
    scenes_per_part: int | None = None,
    geometry: Literal["given", "predicted"] = "given",
    encoder: str = "encoder_mini",
    progress: Progress | None = None,
) -> int:
    """Let a teacher answer every question of a store; the number of scenes labelled now.

    ``ray`` is the address of a Ray cluster whose actors do it; "local" starts one here.
    With ``geometry="predicted"`` scenes without depth and poses get those of ``encoder``.
    ``scenes_per_part`` scenes become durable at once; by default as many as the teacher gains by.

    Raises:
        BadInputError: scenes, teacher, options or folder do not go together, or a run was cut
            short; what is labelled stays.
    """
    if workers is not None and workers < 1:
        raise BadInputError(f"--workers must be at least 1, got {workers}")
    from stillroom import registry
    from stillroom.teachers.label import label_scenes

    registry.teacher_loader(teacher, options)  # refuses what cannot label
    kind, _ = registry.kind_of(teacher)
    if geometry == "predicted" and kind != "llava3d":
        raise BadInputError(
            f"the teacher {teacher!r} reads no depth and poses; leave --geometry predicted out"
        )
    if scenes_per_part is None and kind in registry.ONE_BY_ONE:
        scenes_per_part = 1
    # Weights, words and fingerprint are of one commit.
    teacher = registry.pinned(teacher)
    registry.require_usable(teacher, options)
    loader = registry.teacher_loader(teacher, options)
    description = registry.describe(teacher, options)
    if geometry == "predicted":
        loader = registry.predicting(loader, encoder)
        description["predicted_geometry"] = registry.describe(encoder)["revision"]
    return label_scenes(
        Path(scenes),
        loader,
        Path(out),
        teacher=description,
        signals=tuple(signals),
        vocabulary=registry.vocabulary(teacher),
        workers=workers,
        ray=ray,
        scenes_per_part=scenes_per_part,
        progress=progress,
    )


def label_cost(
    scenes: Path | str,
    *,
    teacher: str,
    options: TeacherOptions | None = None,
    signals: Sequence[Signal] = ("answers", "topk_logits"),
    tflops: float = 100.0,
) -> tuple[dict[str, Any], list[str]]:
    """What labelling would cost, from the teacher's config alone: figures, and lines to print.

    Besides the teachers that exist, "llava3d-7b" is the released one at full size. ``tflops`` are
    sustained TFLOP/s of all devices together.
    """
    from dataclasses import asdict

    from stillroom import registry
    from stillroom.teachers.dry_run import dry_run
    from stillroom.teachers.llava3d_config import LLaVA3DConfig
    from stillroom.teachers.options import TeacherOptions

    folder, options = None, options or TeacherOptions()
    if teacher == "llava3d-7b":
        config = LLaVA3DConfig()
    else:
        kind, where = registry.kind_of(teacher)
        place = registry.locate(where) if kind == "llava3d" else None
        if not isinstance(place, Path):
            raise BadInputError(
                f"--dry-run cannot read the sizes of {teacher!r}; name teacher_mini, llava3d-7b or "
                "llava3d:FOLDER with a config.json in it"
            )
        folder, config = place, LLaVA3DConfig.read(place)
    found, lines = dry_run(
        Path(scenes),
        config,
        folder=folder,
        signals=signals,
        options=options,
        tflops=tflops,
    )
    figures = asdict(found) | {
        "flop": found.flop,
        "bytes": found.bytes,
        "hours": found.hours(tflops),
        "tflops": tflops,
    }
    return figures, lines


def look_at_labels(
    action: Literal["status", "verify"], path: Path | str, *, scenes: Sequence[Path | str] = ()
) -> tuple[bool, list[str]]:
    """What a label store holds (status), or what is wrong with it (verify).

    ``scenes`` are the stores that were labelled; verify then also says what changed in them.
    """
    from stillroom.teachers import label_check

    if action == "status":
        return True, label_check.status_lines(Path(path))
    if found := label_check.problems(Path(path), scenes=[Path(one) for one in scenes]):
        return False, found
    return True, [f"{path}: {label_check.status(Path(path))['rows']} rows, every byte as written"]


def merge_labels(paths: Sequence[Path | str], *, out: Path | str) -> int:
    """Join label stores of one fingerprint in a new folder; its number of rows."""
    from stillroom.teachers.label_merge import merge

    return merge([Path(path) for path in paths], Path(out))


def export_labels(path: Path | str, *, out: Path | str, student: Path | str | None = None) -> int:
    """Write labels as ``target_logprobs``, ``target_token_ids``, ``target_mask``; rows written.

    With a ``student`` its vocabulary must be the teacher's, and rows are tokenised as well.
    """
    from stillroom import registry
    from stillroom.teachers.label_export import export

    place = None if student is None else registry.locate(str(student))
    if place is not None and not isinstance(place, Path):
        raise BadInputError(f"--student must be a folder or a shipped name, got {student!r}")
    return export(Path(path), Path(out), student=place)
