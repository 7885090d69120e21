"""Our VGGT against what the public release computed: every recorded output, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.records import BadInputError
from stillroom.students.encoders import vggt_camera
from stillroom.students.encoders.preprocess import prepare, prepare_square
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_heads import (
    DenseHead,
    activate_depth,
    activate_points,
    activate_pose,
)
from stillroom.students.encoders.vggt_layers import token_positions
from stillroom.students.encoders.vggt_load import Checkpoint, load_state
from stillroom.verify import Compared

#: What a recording's JSON calls our settings.
RECORDED_NAMES = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "mlp_ratio": "mlp_ratio",
    "num_register_tokens": "registers",
    "rope_freq": "rope_base",
    "dino_depth": "encoder_depth",
    "dino_heads": "encoder_heads",
    "aa_depth": "rounds",
    "aa_heads": "heads",
    "camera_trunk_depth": "camera_depth",
    "camera_heads": "camera_heads",
    "camera_iterations": "camera_iterations",
    "dpt_features": "dpt_features",
    "dpt_out_channels": "dpt_channels",
    "intermediate_layer_idx": "levels",
}


def verify_vggt(stem: Path) -> list[Compared]:
    """One row per recorded output; ``stem`` names a ``.safetensors`` with its ``.json``.

    Raises:
        BadInputError: a file is missing or damaged, or records something we do not compute.
    """
    path = stem.with_name(stem.name.removesuffix(".safetensors").removesuffix(".json"))
    recording = path.with_name(path.name + ".safetensors")
    recorded = Checkpoint.open(recording)
    meta = _read_json(path.with_name(path.name + ".json"))
    if any(name.startswith("state.") for name in recorded.shapes):
        return _verify_model(recorded, meta)
    if "cases" in meta:
        return _verify_preprocess(recorded, meta)
    return _verify_geometry(recorded, meta)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInputError(f"{path} is missing; it says how the recording was made")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInputError(f"{path} is no readable JSON ({error})") from None


def compare(
    name: str, got: Tensor, want: Tensor, tolerance: Mapping[str, Any], atol: float | None = None
) -> Compared:
    """Element by element: abs(got - want) <= atol + rtol * abs(want); equal infinities agree."""
    if got.shape != want.shape:
        raise BadInputError(f"{name} was recorded as {list(want.shape)}, ours is {list(got.shape)}")
    got, want = got.double(), want.double()
    difference = torch.where(got == want, 0.0, (got - want).abs())
    allowed = (tolerance["atol"] if atol is None else atol) + tolerance["rtol"] * want.abs()
    ok = bool((difference <= allowed).all())
    return Compared(name=name, worst=float(difference.nan_to_num(nan=torch.inf).max()), ok=ok)


def _unknown(names: set[str]) -> BadInputError:
    return BadInputError(
        f"the recording holds {', '.join(sorted(names))}, which this stillroom does not compute"
    )


# Models. -------------------------------------------------------------------------------------


def _verify_model(recorded: Checkpoint, meta: Mapping[str, Any]) -> list[Compared]:
    names = meta["config"]
    settings = {ours: names[theirs] for theirs, ours in RECORDED_NAMES.items() if theirs in names}
    model = load_state(recorded.take("state."), settings)
    with torch.inference_mode():
        ours = model_stages(model, recorded.read("input.images"))
    outputs = sorted(name for name in recorded.shapes if name.startswith("out."))
    unknown = {name for name in outputs if name.removeprefix("out.") not in ours}
    if unknown:
        raise _unknown(unknown)
    tolerance = meta["tolerance"]
    return [
        compare(
            name,
            ours[name.removeprefix("out.")],
            recorded.read(name),
            tolerance,
            tolerance["aggregated_tokens_atol"] if "aggregated_tokens" in name else None,
        )
        for name in outputs
    ]


def model_stages(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    """Every stage the release records, under its names; ``images`` are [b v 3 h w] in 0..1."""
    config = model.config
    height, width = images.shape[-2:]
    grid = (height // config.patch_size, width // config.patch_size)
    output = model.encode(images, range(config.rounds), heads=config.heads_present, tokens="all")
    patches = model.aggregator.patch_tokens(images)
    positions = token_positions(*grid, config.special_tokens)
    stages = {
        "dino_patch_tokens": patches,
        "tokens_in": model.aggregator.with_special(patches, images.shape[1]),
        "positions": positions.expand(len(patches), -1, -1),
        **{f"aggregated_tokens.{r}": tokens for r, tokens in output.tokens.items()},
    }
    levels = [
        output.tokens[level][:, :, config.special_tokens :].flatten(0, 1)
        for level in config.levels
        if level in output.tokens
    ]
    size = (height, width)
    if output.pose_enc is not None:
        stages |= {f"pose_enc_list.{k}": pose for k, pose in enumerate(output.pose_steps)}
        stages["pose_enc"] = output.pose_enc
        decoded = vggt_camera.decode_pose(output.pose_enc, size)
        stages["extrinsic"], stages["intrinsic"] = decoded
    if output.depth is not None and output.depth_conf is not None:
        stages |= _dense_stages("depth_head", model.depth_head, levels, size)
        stages |= {"depth": output.depth[..., None], "depth_conf": output.depth_conf}
    if output.points is not None and output.points_conf is not None:
        stages |= _dense_stages("point_head", model.point_head, levels, size)
        stages |= {"world_points": output.points, "world_points_conf": output.points_conf}
    return stages


def _dense_stages(
    name: str, head: DenseHead, levels: list[Tensor], size: tuple[int, int]
) -> dict[str, Tensor]:
    return {
        f"{name}.fused": head.fused(levels, size),
        f"{name}.logits": head.logits(levels, size),
    }


# Parts without a network. --------------------------------------------------------------------


def _verify_preprocess(recorded: Checkpoint, meta: Mapping[str, Any]) -> list[Compared]:
    offset, stride = meta["sample_offset"], meta["sample_stride"]
    tolerance = meta["tolerance"]
    rows, known = [], set()
    for case in meta["cases"]:
        name = case["name"]
        photos = [recorded.read(f"{name}.input.{i}").numpy() for i in range(case["images"])]
        known |= {f"{name}.input.{i}" for i in range(case["images"])}
        ours: dict[str, tuple[np.ndarray, float]] = {}
        if case["mode"] == "square":
            images, places = prepare_square(photos, target=meta["target"])
            ours["coords"] = (places, tolerance["mean_atol"])
        else:
            images = prepare(
                photos, mode=case["mode"], target=meta["target"], multiple=meta["multiple"]
            )
        ours["shape"] = (np.array(images.shape), 0.0)
        samples = images[..., offset::stride, offset::stride]
        ours["samples"] = (samples, tolerance["samples_atol"])
        ours["mean"] = (images.mean(axis=(2, 3), dtype=np.float64), tolerance["mean_atol"])
        for key, (value, atol) in ours.items():
            known.add(f"{name}.{key}")
            want = recorded.read(f"{name}.{key}")
            got = torch.from_numpy(np.ascontiguousarray(value))
            rows.append(compare(f"{name}.{key}", got, want, {"atol": atol, "rtol": 0.0}))
    if set(recorded.shapes) - known:
        raise _unknown(set(recorded.shapes) - known)
    return rows


def _verify_geometry(recorded: Checkpoint, meta: Mapping[str, Any]) -> list[Compared]:
    given = {name: recorded.read(name) for name in recorded.shapes}
    inputs = {
        "quat", "extrinsic", "intrinsic", "image_hw", "depth", "pose_raw",
        "depth_logits", "point_logits",
    }  # fmt: skip
    ours = {name: stage(given) for name, stage in GEOMETRY_STAGES.items() if name in given}
    unknown = set(given) - inputs - set(GEOMETRY_STAGES)
    if unknown:
        raise _unknown(unknown)
    return [compare(name, got, given[name], meta["tolerance"]) for name, got in ours.items()]


def _image_hw(given: Mapping[str, Tensor]) -> tuple[int, int]:
    height, width = given["image_hw"].tolist()
    return height, width


#: Recorded name -> our value from the recorded inputs.
GEOMETRY_STAGES: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
    "rotation": lambda g: vggt_camera.rotation_from_xyzw(g["quat"]),
    "quat_back": lambda g: vggt_camera.xyzw_from_rotation(g["rotation"]),
    "pose_enc": lambda g: vggt_camera.encode_pose(g["extrinsic"], g["intrinsic"], _image_hw(g)),
    "extrinsic_back": lambda g: vggt_camera.decode_pose(g["pose_enc"], _image_hw(g))[0],
    "intrinsic_back": lambda g: vggt_camera.decode_pose(g["pose_enc"], _image_hw(g))[1],
    "extrinsic_inverse": lambda g: vggt_camera.invert_w2c(g["extrinsic"][0]),
    "points_from_depth": lambda g: vggt_camera.points_from_depth(
        g["depth"][..., 0], g["extrinsic"][0], g["intrinsic"][0]
    ),
    "pose_activated": lambda g: activate_pose(g["pose_raw"]),
    "depth_act": lambda g: activate_depth(g["depth_logits"])[0][..., None],
    "depth_conf_act": lambda g: activate_depth(g["depth_logits"])[1],
    "point_act": lambda g: activate_points(g["point_logits"])[0],
    "point_conf_act": lambda g: activate_points(g["point_logits"])[1],
}
