"""VGGT checkpoints in and out: the public one by key name, and our own folders."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from stillroom.records import BadInputError
from stillroom.students.encoders.checkpoint import Checkpoint as Checkpoint
from stillroom.students.encoders.checkpoint import locate
from stillroom.students.encoders.vggt import VGGT, VGGTConfig
from stillroom.students.encoders.vggt_config import PUBLISHED

#: Prefixes of a checkpoint's keys and the config flag that wants them.
PREFIXES = {
    "aggregator": None,
    "camera_head": "camera_head",
    "depth_head": "depth_head",
    "point_head": "point_head",
}
#: The heads by the names of their config flags, which are their prefixes too.
FLAGS = ("camera_head", "depth_head", "point_head")
#: Known and never loaded: a student has no use for point tracks.
SKIPPED = ("track_head",)
#: What the public config.json calls our settings.
PUBLIC_NAMES = {"img_size": "image_size", "embed_dim": "width"}
#: What a folder's weights may be called, ours and the public ones, best first.
WEIGHTS = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")
LAYOUT = "stillroom-vggt"


def load_vggt(
    where: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[str, ...] | None = None,
) -> VGGT:
    """A VGGT from a folder, a weights file or a hub id, in evaluation mode.

    ``heads`` ("camera_head", "depth_head", "point_head") limits what is built and read; default is
    all the file has. The aggregator is cast to ``dtype``; the heads stay float32, which they need.

    Raises:
        BadInputError: files missing or damaged, sizes that contradict config.json, or keys that
            are missing, unknown or of another shape.
    """
    folder, weights = locate(where, WEIGHTS)
    settings = read_settings(folder / "config.json")
    return load_state(Checkpoint.open(weights), settings, dtype=dtype, heads=heads)


def encoder_config(where: Path | str, *, heads: tuple[str, ...] | None = None) -> VGGTConfig:
    """The config that ``load_vggt`` would give, from headers alone; no weight is read.

    A published hub id is answered without a download.

    Raises:
        BadInputError: as ``load_vggt``, for what its headers tell.
    """
    if str(where) in PUBLISHED and not Path(where).is_dir():
        wanted = FLAGS if heads is None else heads
        return replace(
            PUBLISHED[str(where)],
            camera_head="camera_head" in wanted,
            depth_head="depth_head" in wanted,
            point_head="point_head" in wanted,
        )
    folder, weights = locate(where, WEIGHTS)
    return config_for(Checkpoint.open(weights), read_settings(folder / "config.json"), heads)


def load_state(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    heads: tuple[str, ...] | None = None,
) -> VGGT:
    """A VGGT of the checkpoint's own sizes; ``settings`` gives what shapes do not tell."""
    config = config_for(checkpoint, settings, heads)
    with torch.device("meta"):
        model = VGGT(config)
    wanted = model.state_dict()
    _check_keys(checkpoint, wanted)
    state = {}
    for key in wanted:
        tensor = checkpoint.read(key)
        state[key] = tensor.to(dtype if key.startswith("aggregator.") else torch.float32)
    model.load_state_dict(state, strict=True, assign=True)
    model.aggregator.patch_embed.mask_token.requires_grad_(False)
    return model.eval()


def save_vggt(model: VGGT, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the public key names, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: v.detach().to("cpu", dtype).contiguous() for key, v in model.state_dict().items()}
    partial = folder / ".model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    # safetensors writes for its owner alone; a checkpoint is for whoever may read the folder.
    partial.chmod(0o644)
    record = {"model_type": LAYOUT, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, folder / "model.safetensors")


def made_by_us(where: Path | str) -> bool:
    """Whether stillroom wrote this encoder: then it was trained on measured depth, in metres."""
    path = Path(where)
    config = (path.parent if path.is_file() else path) / "config.json"
    if not config.is_file():
        return False
    try:
        record = json.loads(config.read_text())
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("model_type") == LAYOUT


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a config.json, ours or the public one's; none if there is no file.

    Raises:
        BadInputError: not JSON, not an object, or names that nobody knows.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise BadInputError(f"{path} is no readable JSON ({error})") from None
    if not isinstance(record, dict):
        raise BadInputError(f"{path} must hold one JSON object")
    if record.pop("model_type", None) == LAYOUT:
        return VGGTConfig.from_dict(record).to_dict()
    known = {entry.name for entry in fields(VGGTConfig)}
    renamed = {PUBLIC_NAMES.get(key, key): value for key, value in record.items()}
    # A public config.json may carry more (hub mixins add to it); only sizes concern us.
    return {key: value for key, value in renamed.items() if key in known}


# What shapes tell. -----------------------------------------------------------------------------


def config_for(
    checkpoint: Checkpoint, settings: Mapping[str, Any], heads: tuple[str, ...] | None = None
) -> VGGTConfig:
    """The config of a checkpoint: sizes from its shapes, the rest from ``settings``.

    Raises:
        BadInputError: a size in ``settings`` contradicts the shapes, or a key to tell it is gone.
    """
    try:
        told = _sizes(checkpoint.shapes)
    except (KeyError, IndexError) as missing:
        raise BadInputError(
            f"{checkpoint.path} is no VGGT checkpoint: {missing.args[0]} is missing"
        ) from None
    for name, size in told.items():
        given = settings.get(name, size)
        given = tuple(given) if isinstance(given, list) else given
        if name not in FLAGS and given != size:
            raise BadInputError(
                f"{checkpoint.path} has {name} {size} by its shapes, config.json says {given}; "
                "they belong to different models"
            )
    merged = {**settings, **told}
    for flag in FLAGS:
        wanted = heads is None or flag in heads
        if heads is not None and wanted and not told[flag]:
            raise BadInputError(f"{checkpoint.path} has no {flag}")
        merged[flag] = told[flag] and wanted and settings.get(flag, True)
    return VGGTConfig.from_dict(merged)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    encoder = "aggregator.patch_embed."
    width, _, patch, _ = shapes[encoder + "patch_embed.proj.weight"]
    head_width = shapes["aggregator.frame_blocks.0.attn.q_norm.weight"][0]
    grid = math.isqrt(shapes[encoder + "pos_embed"][1] - 1)
    sizes: dict[str, Any] = {
        "width": width,
        "heads": width // head_width,
        "patch_size": patch,
        "image_size": grid * patch,
        "registers": shapes["aggregator.register_token"][2],
        "encoder_depth": _count(shapes, encoder + "blocks."),
        "rounds": _count(shapes, "aggregator.frame_blocks."),
        "mlp_ratio": shapes["aggregator.frame_blocks.0.mlp.fc1.weight"][0] / width,
    }
    for prefix, flag in PREFIXES.items():
        if flag is not None:
            sizes[flag] = any(key.startswith(prefix + ".") for key in shapes)
    if sizes["camera_head"]:
        sizes["camera_depth"] = _count(shapes, "camera_head.trunk.")
    for head in ("depth_head", "point_head"):
        if sizes[head]:
            sizes["dpt_channels"] = tuple(
                shapes[f"{head}.projects.{level}.weight"][0] for level in range(4)
            )
            sizes["dpt_features"] = shapes[f"{head}.scratch.output_conv1.weight"][1]
    return sizes


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    numbers = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in shapes)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _check_keys(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> None:
    """Strict inside the prefixes this model has; unknown prefixes are refused."""
    known = (*PREFIXES, *SKIPPED)
    strange = sorted({key.split(".")[0] for key in checkpoint.shapes} - set(known))
    if strange:
        raise BadInputError(f"{checkpoint.path} has keys of no VGGT part: {', '.join(strange)}")
    prefixes = {key.split(".")[0] for key in wanted}
    have = {key for key in checkpoint.shapes if key.split(".")[0] in prefixes}
    for keys, fault in ((set(wanted) - have, "lacks"), (have - set(wanted), "has unknown")):
        if keys:
            raise BadInputError(
                f"{checkpoint.path} {fault} {len(keys)} keys, first {min(keys)}; "
                "it is damaged or of another model"
            )
    for key, tensor in wanted.items():
        if checkpoint.shapes[key] != tuple(tensor.shape):
            raise BadInputError(
                f"{checkpoint.path}: {key} must be {list(tensor.shape)}, got "
                f"{list(checkpoint.shapes[key])}"
            )
