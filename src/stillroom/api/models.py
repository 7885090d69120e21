"""Training and writing of encoders, teachers and students."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.api.meta import Progress, run_meta
from stillroom.records import BadInputError

if TYPE_CHECKING:
    from stillroom.distill.config import DistillConfig
    from stillroom.distill.pretrain_config import PretrainConfig
    from stillroom.teachers.teach_config import TeachConfig


def pretrain_encoder(
    config: PretrainConfig, *, scenes: Path | str, out: Path | str, progress: Progress | None = None
) -> str:
    """Pretrain a miniature encoder; a sentence on how it went."""
    from stillroom import registry
    from stillroom.distill import pretrain

    return pretrain.pretrain_encoder(
        config,
        scenes=Path(scenes),
        out=Path(out),
        start_from=registry.locate(config.start_from) if config.start_from else "",
        progress=progress,
    )


def teach(
    config: TeachConfig, *, scenes: Path | str, out: Path | str, progress: Progress | None = None
) -> str:
    """Train a miniature teacher from truth; a sentence on how it went."""
    from stillroom import registry
    from stillroom.teachers import teach as teaching

    start_from: Path | str = ""
    if config.start_from:
        kind, where = registry.kind_of(config.start_from)
        if kind != "llava3d":
            raise BadInputError(
                f"{config.start_from!r} is no teacher to start from: name teacher_mini or "
                "llava3d:WHERE"
            )
        start_from = registry.locate(where)
    return teaching.teach(
        config, scenes=Path(scenes), out=Path(out), start_from=start_from, progress=progress
    )


def distill(
    config: DistillConfig,
    *,
    scenes: Path | str,
    labels: Path | str,
    out: Path | str,
    recipe: str = "",
    progress: Progress | None = None,
) -> str:
    """Train a student on a teacher's labels; a sentence on how it went.

    ``recipe`` is the config's name, for the student's model card.
    """
    from stillroom import registry
    from stillroom.distill import run

    return run.distill(
        config,
        scenes=Path(scenes),
        labels=Path(labels),
        out=Path(out),
        encoder=registry.locate(config.encoder),
        language_model=language_model_of(config),
        tokenizer=config.tokenizer,
        recipe=recipe,
        meta=run_meta(time.monotonic()),
        progress=progress,
    )


def params(recipe: str, *, quant: Literal["int8", "int4"] | None = None) -> dict[str, int]:
    """Parameters of a recipe's student by part, and their total.

    With ``quant`` also the bytes of each part (``PART_bytes``) once its weights have so many bits.
    Nothing is allocated, and nothing fetched where the parts are published ones.
    """
    from stillroom import recipes, registry
    from stillroom.distill.build import described_student
    from stillroom.students.parameters import parameter_table, weight_bytes

    config = recipes.table("distill")[recipe]()
    encoder = registry.locate(config.encoder)
    student = described_student(config, encoder, language_model_of(config))
    table = parameter_table(student)
    if quant is not None:
        student.weights = quant
        sizes = parameter_table(student, size_of=weight_bytes)
        table |= {f"{part}_bytes": size for part, size in sizes.items()}
    return table


def export(
    model: str, *, to: Literal["int8", "int4", "onnx", "executorch"], out: Path | str
) -> dict[str, Any]:
    """Write a student in another form: weights of 8 or 4 bits, ONNX graphs or ExecuTorch programs.

    Returns what was written, with sizes on disk in bytes.
    """
    from stillroom import registry

    kind, where = registry.kind_of(model)
    if kind != "student":
        raise BadInputError(f"{model!r} is no student; name student_mini, a folder or a hub id")
    place = registry.locate(where)
    if to == "onnx":
        from stillroom.export.onnx import export_onnx

        return export_onnx(place, Path(out))
    if to == "executorch":
        from stillroom.export.executorch import export_executorch

        return export_executorch(place, Path(out))
    from stillroom.export.quantise import quantise

    return quantise(place, Path(out), weights=to)


def language_model_of(config: DistillConfig) -> Path | str:
    from stillroom import registry

    # A student that goes on from its own checkpoint brings its language model.
    used = config.language_model and not config.start_from
    return registry.locate(config.language_model) if used else ""
