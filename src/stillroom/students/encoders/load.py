"""A student's geometry encoder of whatever kind, by its config or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.students.encoders import depth_anything, depth_anything_load, vggt_load
from stillroom.students.encoders.checkpoint import Checkpoint, locate
from stillroom.students.encoders.depth_anything import DepthAnything, DepthAnythingConfig
from stillroom.students.encoders.vggt import VGGT, VGGTConfig

EncoderConfig = VGGTConfig | DepthAnythingConfig
Encoder = VGGT | DepthAnything


def config_of(values: Mapping[str, Any]) -> EncoderConfig:
    """The config that an encoder's ``to_dict`` wrote; without a ``kind`` it is a VGGT's."""
    if values.get("kind") == depth_anything.KIND:
        return DepthAnythingConfig.from_dict(values)
    return VGGTConfig.from_dict(values)


def make_encoder(config: EncoderConfig) -> Encoder:
    """An encoder of these sizes with fresh weights."""
    return VGGT(config) if isinstance(config, VGGTConfig) else DepthAnything(config)


def trunk_of(config: EncoderConfig) -> str:
    """What the names of the trunk's parts begin with in a student."""
    return "encoder.aggregator." if isinstance(config, VGGTConfig) else "encoder.blocks."


def load_encoder(where: Path | str, *, heads: tuple[str, ...] | None = None) -> Encoder:
    """An encoder from a folder, a weights file or a hub id, in evaluation mode.

    ``heads`` limits what is built of a VGGT; a Depth Anything has none.

    Raises:
        BadInputError: files missing or damaged, or an encoder of neither kind.
    """
    if _is_depth_anything(where):
        return depth_anything_load.load_depth_anything(where)
    return vggt_load.load_vggt(where, heads=heads)


def encoder_config(where: Path | str, *, heads: tuple[str, ...] | None = None) -> EncoderConfig:
    """The config that ``load_encoder`` would give, from headers alone; no weight is read.

    A published hub id is answered without a download.

    Raises:
        BadInputError: as ``load_encoder``, for what its headers tell.
    """
    if _is_depth_anything(where):
        return depth_anything_load.encoder_config(where)
    return vggt_load.encoder_config(where, heads=heads)


def _is_depth_anything(where: Path | str) -> bool:
    if not Path(where).exists():
        if str(where) in depth_anything.PUBLISHED:
            return True
        if str(where) in vggt_load.PUBLISHED:
            return False
    _, weights = locate(where, vggt_load.WEIGHTS)
    return depth_anything_load.is_trunk(Checkpoint.open(weights))
