"""``transforms.json`` of nerfstudio and instant-ngp: camera to world with OpenGL camera axes.

Intrinsics stand at the top or in each frame; the old form has only ``camera_angle_x``. Depth is
16-bit, ``depth_unit_scale_factor`` metres a unit (0.001 unless said), and may be missing. Pixel
centres of the source lie at +0.5 like ours, so cx and cy stay; the axes are turned to OpenCV's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from stillroom.geometry.cameras import pinhole, resize_intrinsics
from stillroom.geometry.poses import OPENGL_TO_OPENCV
from stillroom.records import BadInputError, View
from stillroom.scenes.importers.images import (
    PHOTO_SUFFIXES,
    checked_intrinsics,
    checked_pose,
    evenly,
    read_depth,
    read_rgb,
    undistort,
)

NAME = "transforms.json"
_PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


@dataclass(frozen=True, kw_only=True)
class _Frame:
    file: Path
    # What the frame says, over what the top of the file says.
    record: Mapping[str, Any]
    where: str


def transforms_file(source: Path) -> Path | None:
    """The file of that layout: in the folder, or named itself."""
    file = source if source.suffix == ".json" else source / NAME
    return file if file.is_file() else None


def read_transforms(source: Path) -> tuple[list[View], list[str]]:
    """Views in the order of the file, and notes.

    Raises:
        BadInputError: malformed, a camera that is no pinhole, or pictures that do not fit it.
    """
    file = transforms_file(source)
    if file is None:
        raise BadInputError(f"{source} holds no {NAME}")
    record, frames = _parse(file)
    notes = []
    if "applied_transform" in record or "applied_scale" in record:
        notes.append("made by structure from motion: lengths are not metres unless rescaled")
    kept = [frames[index] for index in evenly(len(frames))]
    if len(kept) < len(frames):
        notes.append(f"took {len(kept)} of {len(frames)} frames, evenly spaced")
    with_depth = sum("depth_file_path" in frame.record for frame in kept)
    if with_depth < len(kept):
        notes.append(f"{len(kept) - with_depth} of {len(kept)} frames have no depth")
    views = [_view(frame, notes) for frame in kept]
    shapes = {view.depth.shape for view in views if view.depth is not None}
    if len(shapes) > 1:
        raise BadInputError(
            f"{file} names depth images of several sizes "
            f"({', '.join(f'{w}x{h}' for h, w in sorted(shapes))}); all must have one size"
        )
    return views, list(dict.fromkeys(notes))


def _parse(file: Path) -> tuple[Mapping[str, Any], list[_Frame]]:
    try:
        record = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file} is not readable JSON ({error})") from None
    listed = record.get("frames") if isinstance(record, dict) else None
    if not isinstance(listed, list) or not listed:
        raise BadInputError(f"{file} must hold a list 'frames' with at least one frame")
    top = {key: value for key, value in record.items() if key != "frames"}
    frames = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise BadInputError(f"{file}, frame {number}: expected an object with 'file_path'")
        where = f"{file}, frame {number} ({entry['file_path']})"
        frames.append(_Frame(file=file, record=top | entry, where=where))
    return record, frames


def _view(frame: _Frame, notes: list[str]) -> View:
    path = _picture(frame.file.parent / frame.record["file_path"])
    rgb = read_rgb(path)
    k = _intrinsics(frame, rgb.shape[:2], notes)
    depth = _depth(frame)
    if depth is not None and depth.shape != rgb.shape[:2]:
        rgb, k = _shrunk_to(depth, rgb, k, frame, notes)
    distortion = tuple(_number(frame, name, 0.0) for name in ("k1", "k2", "p1", "p2", "k3"))
    if any(distortion):
        k1, k2, p1, p2, k3 = distortion
        rgb, depth = undistort(rgb, depth, k, (k1, k2, p1, p2, k3))
        notes.append("pictures and depth straightened (lens distortion removed)")
    return View(
        name=frame.record["file_path"], rgb=rgb, intrinsics=k, c2w=_pose(frame), depth=depth
    )


def _picture(path: Path) -> Path:
    """The file named, or, as old files leave the ending away, the one with an ending."""
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return path
    named = [path.with_name(path.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".webp")]
    return next((candidate for candidate in named if candidate.is_file()), path)


def _pose(frame: _Frame) -> Float[np.ndarray, "4 4"]:
    try:
        matrix = np.array(frame.record.get("transform_matrix"), dtype=np.float64)
    except (ValueError, TypeError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4):
        raise BadInputError(
            f"{frame.where}: transform_matrix must be 4x4 numbers, got shape {matrix.shape}"
        )
    return checked_pose(matrix, frame.where) @ OPENGL_TO_OPENCV


def _number(frame: _Frame, name: str, default: float | None = None) -> float:
    value = frame.record.get(name, default)
    if value is None:
        raise BadInputError(
            f"{frame.where} has no {name}; give fl_x, fl_y, cx, cy (or camera_angle_x) at the top "
            "or in the frame"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{frame.where}: {name} must be a number, got {value!r}")
    return float(value)


def _intrinsics(frame: _Frame, size: tuple[int, int], notes: list[str]) -> Float[np.ndarray, "3 3"]:
    model = frame.record.get("camera_model", "OPENCV")
    if model not in _PINHOLES or any(_number(frame, name, 0.0) for name in ("k4", "k5", "k6")):
        raise BadInputError(
            f"{frame.where} has the camera model {model}; only pinholes with k1 k2 p1 p2 k3 are "
            "read, undistort the pictures first"
        )
    height, width = size
    stated = (
        int(_number(frame, "h", float(height))),
        int(_number(frame, "w", float(width))),
    )
    if stated[0] <= 0 or stated[1] <= 0:
        raise BadInputError(f"{frame.where}: w and h must be above 0, got {stated[::-1]}")
    if "fl_x" in frame.record:
        fx = _number(frame, "fl_x")
        fy = _number(frame, "fl_y", fx)
    else:
        angle = _number(frame, "camera_angle_x")
        if not 0 < angle < np.pi:
            raise BadInputError(f"{frame.where}: camera_angle_x must be in radians, got {angle}")
        fx = fy = stated[1] / (2 * np.tan(angle / 2))
    cx, cy = _number(frame, "cx", stated[1] / 2), _number(frame, "cy", stated[0] / 2)
    k = checked_intrinsics(pinhole(fx, fy, cx, cy), frame.where)
    if stated == size:
        return k
    if abs(stated[1] * height - stated[0] * width) > 0.01 * stated[0] * width:
        raise BadInputError(
            f"{frame.where} has {width}x{height} pixels, the file says {stated[1]}x{stated[0]}; "
            "a cropped picture needs its own intrinsics"
        )
    notes.append(
        f"intrinsics scaled from {stated[1]}x{stated[0]} to the pictures' {width}x{height}"
    )
    return resize_intrinsics(k, stated, size)


def _depth(frame: _Frame) -> Float32[np.ndarray, "h w"] | None:
    named = frame.record.get("depth_file_path")
    if named is None:
        return None
    if not isinstance(named, str):
        raise BadInputError(f"{frame.where}: depth_file_path must be a file name, got {named!r}")
    unit = _number(frame, "depth_unit_scale_factor", 1e-3)
    if unit <= 0:
        raise BadInputError(f"{frame.where}: depth_unit_scale_factor must be above 0, got {unit}")
    return read_depth(frame.file.parent / named, units_per_metre=1.0 / unit)


def _shrunk_to(
    depth: Float32[np.ndarray, "h w"],
    rgb: UInt8[np.ndarray, "hc wc 3"],
    k: Float[np.ndarray, "3 3"],
    frame: _Frame,
    notes: list[str],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "3 3"]]:
    """Colour and intrinsics in the pixels of a coarser depth image of the same shape."""
    height, width = rgb.shape[:2]
    new = depth.shape
    if abs(new[1] * height - new[0] * width) > 0.01 * new[0] * width or new[0] > height:
        raise BadInputError(
            f"{frame.where}: depth has {new[1]}x{new[0]} pixels, colour {width}x{height}; without "
            "intrinsics of its own, depth must be the colour's size or a coarser copy of it"
        )
    notes.append(f"colour {width}x{height} shrunk to the depth's {new[1]}x{new[0]} pixels")
    small = Image.fromarray(rgb).resize((new[1], new[0]), Image.Resampling.BOX)
    return np.array(small), resize_intrinsics(k, (height, width), (new[0], new[1]))
