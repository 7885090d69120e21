"""What a distilled student's model card says of how it was made."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stillroom import __version__
from stillroom.distill.config import DistillConfig
from stillroom.records import BadInputError
from stillroom.scenes.store import SceneStore
from stillroom.students.card import PROVENANCE_FILE
from stillroom.students.model import StillroomStudent
from stillroom.students.parameters import parameter_table

logger = logging.getLogger(__name__)


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
    parent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Facts about a finished run, JSON-able, as ``students.card`` reads them.

    ``scene_ids`` are those of each split; ``seconds`` is training time over all sittings; ``meta``
    (commit, command, machine) goes in as it is. ``parent`` are the facts about the student that
    the run began from: encoder, language model and tokenizer are its, whatever the recipe names.
    """
    first = [ids[0] for ids in scene_ids.values()]
    return {
        **{name: meta[name] for name in ("commit", "command", "machine") if name in meta},
        "name": f"stillroom student {recipe}".strip(),
        "version": __version__,
        "recipe": recipe,
        "teacher": dict(teacher),
        **_parts(config, parent),
        "start_from": _name(config.start_from),
        "parent": None if parent is None else dict(parent),
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


def parent_facts(start_from: str) -> dict[str, Any] | None:
    """What is recorded of a student to begin from, a folder or a hub id; None where nothing is."""
    if not start_from:
        return None
    file: Path | None = Path(start_from) / PROVENANCE_FILE
    if not Path(start_from).is_dir():
        file = _from_hub(start_from)
    if file is None or not file.is_file():
        logger.info("%s does not say what it was made of: the model card cannot either", start_from)
        return None
    try:
        facts = json.loads(file.read_text())
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise BadInputError(f"{file} is damaged: restore it, or remove it to go on without")
    return facts


def _from_hub(hub_id: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(hub_id, PROVENANCE_FILE))
    except (HFValidationError, HfHubHTTPError, OSError):
        return None


def _parts(config: DistillConfig, parent: Mapping[str, Any] | None) -> dict[str, str]:
    """What the student is put together from; "" where there is none or nobody recorded it."""
    if config.start_from:
        found = {} if parent is None else parent
        return {name: found.get(name, "") for name in ("encoder", "language_model", "tokenizer")}
    return {
        "encoder": _name(config.encoder),
        "language_model": _name(config.language_model),
        "tokenizer": _name(config.tokenizer or config.language_model) or "made worlds' tokenizer",
    }


def _name(where: str) -> str:
    """A shipped name or a hub id as it is; of a folder its last part, not whose disk it is on."""
    return Path(where).resolve().name if where and Path(where).is_dir() else where
