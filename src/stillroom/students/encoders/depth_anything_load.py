"""Depth Anything 3 checkpoints: the trunk by its keys, whatever stands before and beside them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.records import BadInputError
from stillroom.students.encoders.checkpoint import Checkpoint, locate
from stillroom.students.encoders.depth_anything import (
    PUBLISHED,
    DepthAnything,
    DepthAnythingConfig,
)

WEIGHTS = ("model.safetensors",)
#: The trunk begins where this key does.
_FIRST = "blocks.0.attn.qkv.weight"
#: In DINOv2's checkpoints, and read by nothing here.
_UNREAD = ("mask_token",)


def is_trunk(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has a trunk whose later blocks normalise q and k, and no aggregator."""
    return "aggregator.camera_token" not in checkpoint.shapes and _prefix(checkpoint) is not None


def load_depth_anything(where: Path | str, *, dtype: torch.dtype = torch.float32) -> DepthAnything:
    """The trunk of a folder, a weights file or a hub id, in evaluation mode.

    Heads, and whatever else stands beside the trunk, are left out.

    Raises:
        BadInputError: files missing or damaged, or a trunk with keys missing, unknown or of another
            shape.
    """
    _, weights = locate(where, WEIGHTS)
    checkpoint = Checkpoint.open(weights)
    config = config_for(checkpoint)
    trunk = _trunk(checkpoint)
    with torch.device("meta"):
        model = DepthAnything(config)
    wanted = model.state_dict()
    _check_keys(trunk, wanted)
    state = {key: trunk.read(key).to(dtype) for key in wanted}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def encoder_config(where: Path | str) -> DepthAnythingConfig:
    """The config that ``load_depth_anything`` would give; a published hub id needs no download."""
    if str(where) in PUBLISHED and not Path(where).exists():
        return PUBLISHED[str(where)]
    _, weights = locate(where, WEIGHTS)
    return config_for(Checkpoint.open(weights))


def config_for(checkpoint: Checkpoint) -> DepthAnythingConfig:
    """All sizes of a trunk, from its shapes.

    Raises:
        BadInputError: a key that tells one is missing, or other blocks than the last ones normalise
            q and k.
    """
    shapes = _trunk(checkpoint).shapes
    numbers = (re.match(r"blocks\.(\d+)\.", key) for key in shapes)
    depth = 1 + max(int(found[1]) for found in numbers if found)
    turning = [i for i in range(depth) if f"blocks.{i}.attn.q_norm.weight" in shapes]
    if not turning or turning != list(range(turning[0], depth)):
        raise BadInputError(
            f"{checkpoint.path} is no Depth Anything 3: q and k must be normalised from one block "
            f"on, they are in {turning or 'none'} of {depth}"
        )
    try:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        head_width = shapes[f"blocks.{turning[0]}.attn.q_norm.weight"][0]
        grid = math.isqrt(shapes["pos_embed"][1] - 1)
        inner = shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, IndexError) as missing:
        raise BadInputError(
            f"{checkpoint.path} is no Depth Anything 3 trunk: {missing.args[0]} is missing"
        ) from None
    return DepthAnythingConfig(
        width=width,
        heads=width // head_width,
        depth=depth,
        alternate_from=turning[0],
        patch_size=patch,
        image_size=grid * patch,
        mlp_ratio=inner / width,
    )


def _prefix(checkpoint: Checkpoint) -> str | None:
    ends = [key for key in checkpoint.shapes if f".{key}".endswith(f".{_FIRST}")]
    found = [key.removesuffix(_FIRST) for key in ends]
    normed = [key for key in checkpoint.shapes if key.endswith("attn.q_norm.weight")]
    return found[0] if len(found) == 1 and normed else None


def _trunk(checkpoint: Checkpoint) -> Checkpoint:
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise BadInputError(
            f"{checkpoint.path} holds no Depth Anything 3 trunk: one key must end with {_FIRST}, "
            "and later blocks must normalise q and k"
        )
    # A trunk without a level before it shares the file with its heads: only its own names count.
    own = re.compile(r"(blocks\.|norm\.|patch_embed\.|cls_token|pos_embed|camera_token|mask_token)")
    inside = checkpoint.take(prefix)
    shapes = {key: shape for key, shape in inside.shapes.items() if prefix or own.match(key)}
    return Checkpoint(shapes, inside.read, checkpoint.path)


def _check_keys(trunk: Checkpoint, wanted: dict[str, Tensor]) -> None:
    have = set(trunk.shapes) - set(_UNREAD)
    for keys, fault in ((set(wanted) - have, "lacks"), (have - set(wanted), "has unknown")):
        if keys:
            raise BadInputError(
                f"{trunk.path} {fault} {len(keys)} keys of the trunk, first {min(keys)}; it is "
                "damaged or of another model"
            )
    tensors: Any = wanted
    for key, tensor in tensors.items():
        if trunk.shapes[key] != tuple(tensor.shape):
            raise BadInputError(
                f"{trunk.path}: {key} must be {list(tensor.shape)}, got {list(trunk.shapes[key])}"
            )
