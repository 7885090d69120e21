"""The TUM RGB-D benchmark's layout: colour and depth with their own times, a trajectory beside.

``rgb.txt`` and ``depth.txt`` (``time file``), or ``associations.txt`` with both joined already;
``groundtruth.txt`` (``time tx ty tz qx qy qz qw``, camera to world, OpenCV axes, z up); 16-bit
depth, 5000 to the metre. Intrinsics come from ``camera.json`` where there is one, else they are
the benchmark's own for freiburg1, 2 or 3, known by the folder's name.

Pixel centres of the source are integers, so cx and cy gain half a pixel here. Pictures of the
distorted cameras are straightened, depth with them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp

from stillroom.geometry.cameras import pinhole
from stillroom.records import BadInputError, View, require_file
from stillroom.scenes.importers.images import (
    checked_intrinsics,
    evenly,
    read_depth,
    read_rgb,
    undistort,
)

#: Colour and depth further apart than this in time are not one frame [s].
MAX_JOIN = 0.02
#: The trajectory must have a pose this close on both sides of a picture [s].
MAX_GAP = 0.1


@dataclass(frozen=True, kw_only=True)
class _Camera:
    intrinsics: Float[np.ndarray, "3 3"]
    # k1, k2, p1, p2, k3.
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    units_per_metre: float = 5000.0
    size: tuple[int, int] | None = None


_BENCHMARK = {
    "1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": ((535.4, 539.2, 320.1, 247.6), (0.0, 0.0, 0.0, 0.0, 0.0)),
}


@dataclass(frozen=True, kw_only=True)
class _Frame:
    time: float
    color: Path
    depth: Path


def is_tum(folder: Path) -> bool:
    """Whether the folder looks like a sequence of the benchmark."""
    return (folder / "groundtruth.txt").is_file() and any(
        (folder / name).is_file() for name in ("associations.txt", "rgb.txt")
    )


def read_tum(folder: Path) -> tuple[list[View], list[str]]:
    """Views in the order of time, each posed at its colour picture's time, and notes.

    Raises:
        BadInputError: something is missing or malformed, or no frame has depth and pose.
    """
    notes: list[str] = []
    camera = _camera(folder, notes)
    frames = _frames(folder, notes)
    times, poses = _trajectory(require_file(folder / "groundtruth.txt", "the trajectory"))
    posed = [frame for frame in frames if _near(frame.time, times)]
    if len(posed) < len(frames):
        notes.append(
            f"left out {len(frames) - len(posed)} of {len(frames)} frames: the trajectory has no "
            f"pose within {MAX_GAP} s on both sides"
        )
    if not posed:
        raise BadInputError(
            f"{folder / 'groundtruth.txt'} has no pose near the time of any picture; "
            "are both in seconds of the same clock?"
        )
    kept = [posed[index] for index in evenly(len(posed))]
    if len(kept) < len(posed):
        notes.append(f"took {len(kept)} of {len(posed)} frames, evenly spaced")
    if any(camera.distortion):
        notes.append("pictures and depth straightened (lens distortion removed)")
    at = _poses_at([frame.time for frame in kept], times, poses)
    return [_view(frame, pose, camera) for frame, pose in zip(kept, at, strict=True)], notes


def _camera(folder: Path, notes: list[str]) -> _Camera:
    file = folder / "camera.json"
    if file.is_file():
        return _camera_from(file)
    known = re.search(r"(?:freiburg|fr)([123])(?![0-9])", folder.resolve().name.lower())
    if known is None:
        raise BadInputError(
            f"{folder} has no camera.json and its name does not say which camera took it "
            "(freiburg1, 2 or 3); add camera.json with fx, fy, cx, cy"
        )
    numbers, distortion = _BENCHMARK[known[1]]
    notes.append(f"intrinsics: the benchmark's own for freiburg{known[1]}, by the folder's name")
    return _Camera(intrinsics=_centred(*numbers), distortion=distortion)


def _camera_from(file: Path) -> _Camera:
    try:
        record = json.loads(file.read_text())
        numbers = [float(record[name]) for name in ("fx", "fy", "cx", "cy")]
        distortion = tuple(float(record.get(name, 0)) for name in ("k1", "k2", "p1", "p2", "k3"))
        units = float(record.get("depth_scale", 5000.0))
        size = (int(record["height"]), int(record["width"])) if "width" in record else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{file} must be JSON with the numbers fx, fy, cx, cy in pixels "
            f"({type(error).__name__}: {error})"
        ) from None
    if not units > 0:
        raise BadInputError(f"{file}: depth_scale must be units per metre, above 0, got {units}")
    k = checked_intrinsics(_centred(*numbers), str(file))
    k1, k2, p1, p2, k3 = distortion
    return _Camera(intrinsics=k, distortion=(k1, k2, p1, p2, k3), units_per_metre=units, size=size)


def _centred(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return pinhole(fx, fy, cx + 0.5, cy + 0.5)


def _rows(file: Path, columns: int, expected: str) -> list[list[str]]:
    """The lines of a benchmark's table, comments left out."""
    text = require_file(file, expected).read_text(errors="replace")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < columns:
            raise BadInputError(f"{file}, line {number}: expected '{expected}', got {line!r}")
        rows.append(words[:columns])
    if not rows:
        raise BadInputError(f"{file} is empty; expected lines '{expected}'")
    return rows


def _seconds(word: str, file: Path) -> float:
    try:
        return float(word)
    except ValueError:
        raise BadInputError(f"{file}: {word!r} is not a time in seconds") from None


def _frames(folder: Path, notes: list[str]) -> list[_Frame]:
    joined = folder / "associations.txt"
    if joined.is_file():
        rows = _rows(joined, 4, "rgb_time rgb_file depth_time depth_file")
        frames = [
            _Frame(time=_seconds(row[0], joined), color=folder / row[1], depth=folder / row[3])
            for row in rows
        ]
        return sorted(frames, key=lambda frame: frame.time)
    listed: dict[str, list[tuple[float, Path]]] = {}
    for name in ("rgb", "depth"):
        file = folder / f"{name}.txt"
        rows = _rows(file, 2, "time file")
        listed[name] = sorted((_seconds(row[0], file), folder / row[1]) for row in rows)
    depth_times = np.array([time for time, _ in listed["depth"]])
    frames = []
    for time, color in listed["rgb"]:
        nearest = int(np.abs(depth_times - time).argmin())
        if abs(depth_times[nearest] - time) <= MAX_JOIN:
            frames.append(_Frame(time=time, color=color, depth=listed["depth"][nearest][1]))
    if not frames:
        raise BadInputError(
            f"{folder}: no colour and depth picture lie within {MAX_JOIN} s; are both lists in "
            "seconds of the same clock?"
        )
    if len(frames) < len(listed["rgb"]):
        left = len(listed["rgb"]) - len(frames)
        notes.append(f"left out {left} of {len(listed['rgb'])} pictures: no depth at their time")
    return frames


def _trajectory(file: Path) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n 7"]]:
    expected = "time tx ty tz qx qy qz qw"
    rows = _rows(file, 8, expected)
    try:
        table = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise BadInputError(f"{file}: expected numbers '{expected}' ({error})") from None
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1) | ~table[:, 4:].any(axis=1))
    if bad.size:
        raise BadInputError(
            f"{file} holds a pose with NaN, infinite or no rotation at time {rows[bad[0]][0]}; "
            "remove that line"
        )
    table = table[np.unique(table[:, 0], return_index=True)[1]]
    return table[:, 0], table[:, 1:]


def _near(time: float, times: Float[np.ndarray, "n"]) -> bool:
    after = int(np.searchsorted(times, time))
    if after < len(times) and times[after] == time:
        return True
    if after in (0, len(times)):
        return False
    return bool(time - times[after - 1] <= MAX_GAP and times[after] - time <= MAX_GAP)


def _poses_at(
    wanted: list[float], times: Float[np.ndarray, "n"], poses: Float[np.ndarray, "n 7"]
) -> list[Float[np.ndarray, "4 4"]]:
    """Camera to world at the wanted times: shifts linear, rotations along the great circle."""
    rotations = Rotation.from_quat(poses[:, 3:])
    if len(times) > 1:
        turned = Slerp(times, rotations)(wanted).as_matrix()
    else:
        turned = np.repeat(rotations.as_matrix(), len(wanted), axis=0)
    out = np.tile(np.eye(4), (len(wanted), 1, 1))
    out[:, :3, :3] = turned
    for axis in range(3):
        out[:, axis, 3] = np.interp(wanted, times, poses[:, axis])
    return list(out)


def _view(frame: _Frame, pose: Float[np.ndarray, "4 4"], camera: _Camera) -> View:
    rgb = read_rgb(frame.color)
    depth = read_depth(frame.depth, units_per_metre=camera.units_per_metre)
    for path, shape, size in (
        (frame.color, rgb.shape[:2], camera.size or rgb.shape[:2]),
        (frame.depth, depth.shape, rgb.shape[:2]),
    ):
        if shape != size:
            other = "camera.json says" if path == frame.color else "its colour picture has"
            raise BadInputError(
                f"{path} has {shape[1]}x{shape[0]} pixels, {other} {size[1]}x{size[0]}; "
                "depth must be registered to the colour, pixel by pixel"
            )
    if any(camera.distortion):
        straight, straight_depth = undistort(rgb, depth, camera.intrinsics, camera.distortion)
        assert straight_depth is not None
        rgb, depth = straight, straight_depth
    return View(
        name=f"{frame.color.parent.name}/{frame.color.name}",
        rgb=rgb,
        intrinsics=camera.intrinsics,
        c2w=pose,
        depth=depth,
    )
