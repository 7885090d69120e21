"""What a distilled student's model card says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.distill.config import DistillConfig
from stillroom.scenes.store import SceneStore
from stillroom.students.model import StillroomStudent
from stillroom.students.parameters import parameter_table


def provenance(
    config: DistillConfig,
    student: StillroomStudent,
    *,
    recipe: str,
    teacher: Mapping[str, Any],
    store: SceneStore,
    scene_ids: Mapping[str, Sequence[str]],
    steps: int,
    seconds: float,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Facts about a finished run, JSON-able, as ``students.card`` reads them.

    ``scene_ids`` are those of each split; ``seconds`` is training time over all sittings; ``meta``
    (commit, command, machine) goes in as it is.
    """
    first = [ids[0] for ids in scene_ids.values()]
    return {
        **{name: meta[name] for name in ("commit", "command", "machine") if name in meta},
        "name": f"stillroom student {recipe}".strip(),
        "version": __version__,
        "recipe": recipe,
        "teacher": dict(teacher),
        "encoder": _name(config.encoder),
        "language_model": _name(config.language_model),
        "start_from": _name(config.start_from),
        "tokenizer": _name(config.tokenizer or config.language_model) or "made worlds' tokenizer",
        "parameters": parameter_table(student.config),
        "scenes": {
            "counts": {split: len(ids) for split, ids in scene_ids.items()},
            # One scene of each split is looked at: a store is of one kind.
            "sources": sorted({store.scene(scene_id).source for scene_id in first}),
        },
        "seed": config.train.seed,
        "steps": steps,
        "scenes_per_step": config.train.scenes_per_step,
        "seconds": round(seconds, 1),
        "config": asdict(
            replace(
                config,
                encoder=_name(config.encoder),
                language_model=_name(config.language_model),
                start_from=_name(config.start_from),
                tokenizer=_name(config.tokenizer),
                features="",
            )
        ),
    }


def _name(where: str) -> str:
    """A shipped name or a hub id as it is; of a folder its last part, not whose disk it is on."""
    return Path(where).resolve().name if where and Path(where).is_dir() else where
