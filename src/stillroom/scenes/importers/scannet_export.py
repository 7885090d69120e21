"""Posed images as ScanNet's own reader exports them, and two common relatives of that layout.

``color/<i>.jpg``, ``depth/<i>.png`` (16-bit, millimetres), ``pose/<i>.txt`` (4x4 camera to world,
OpenCV axes), ``intrinsic/{intrinsic,extrinsic}_{color,depth}.txt``. Also read: the 25k subset
(``intrinsics_color.txt`` beside the folders) and the detection toolboxes' flat folder
(``00000.jpg``, ``.png``, ``.txt`` with ``intrinsic.txt`` and ``depth_intrinsic.txt``).

Where the scan's own ``<scan>.txt`` lies beside them, its ``axisAlignment`` turns the world so that
walls run along the axes and the floor is at 0: the frame in which ScanNet's boxes are given.

Pixel centres of the source are integers, so cx and cy gain half a pixel here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stillroom.records import BadInputError, View
from stillroom.scenes.importers.images import (
    checked_intrinsics,
    checked_pose,
    colour_on_depth_pixels,
    evenly,
    read_depth,
    read_numbers,
    read_rgb,
    size_of,
)

UNITS_PER_METRE = 1000.0

#: Where the layouts keep a camera's intrinsics, in the order looked for.
_INTRINSICS = {
    "color": ("intrinsic/intrinsic_color.txt", "intrinsics_color.txt", "intrinsic.txt"),
    "depth": ("intrinsic/intrinsic_depth.txt", "intrinsics_depth.txt", "depth_intrinsic.txt"),
}


@dataclass(frozen=True, kw_only=True)
class _Frame:
    color: Path
    depth: Path | None
    pose: Path


@dataclass(frozen=True, kw_only=True)
class _Camera:
    intrinsics: Float[np.ndarray, "3 3"]
    # Camera to the frame that the poses speak of; identity unless the export says otherwise.
    extrinsics: Float[np.ndarray, "4 4"]


def is_scannet(folder: Path) -> bool:
    """Whether the folder looks like such an export."""
    return ((folder / "color").is_dir() and (folder / "pose").is_dir()) or (
        (folder / "intrinsic.txt").is_file() and bool(_flat_frames(folder))
    )


def read_scannet(folder: Path) -> tuple[list[View], list[str]]:
    """Views in the order of their numbers, and notes for the user.

    A pose whose 16 entries are all -inf is how ScanNet writes lost tracking: the frame is left out
    and counted. NaN, or infinity among numbers, is a damaged file and an error.

    Raises:
        BadInputError: something is missing, malformed, of contradicting size, or no pose is left.
    """
    frames = _frames(folder)
    poses = [read_numbers(frame.pose, (4, 4), "a camera-to-world pose") for frame in frames]
    tracked = [index for index, pose in enumerate(poses) if not np.isneginf(pose).all()]
    notes = []
    if not tracked:
        raise BadInputError(
            f"{folder} holds {len(frames)} frames and none with a pose (all lost tracking); "
            "choose another scan or import the colour folder as plain photos"
        )
    if len(tracked) < len(frames):
        notes.append(f"left out {len(frames) - len(tracked)} of {len(frames)} frames: no pose")
    alignment = _axis_alignment(folder)
    if alignment is not None:
        notes.append("turned into the axis-aligned frame of the scan's axisAlignment")
    elif re.fullmatch(r"scene\d{4}_\d{2}", folder.name):
        notes.append(
            f"no {folder.name}.txt with axisAlignment: the world is the scan's own, not the one in "
            "which ScanNet's boxes are given"
        )
    for index in tracked:
        pose = checked_pose(poses[index], str(frames[index].pose))
        poses[index] = pose if alignment is None else alignment @ pose
    kept = [tracked[index] for index in evenly(len(tracked))]
    if len(kept) < len(tracked):
        notes.append(f"took {len(kept)} of {len(tracked)} frames, evenly spaced")
    _check_sizes([frames[index] for index in kept])
    color = _camera(folder, "color")
    has_depth = any(frames[index].depth is not None for index in kept)
    depth = _depth_camera(folder, color, [frames[index] for index in kept], notes)
    if not has_depth:
        notes.append("no depth images: poses and colour only")
    return [_view(frames[index], poses[index], color, depth) for index in kept], notes


def _axis_alignment(folder: Path) -> Float[np.ndarray, "4 4"] | None:
    """The scan's world to its axis-aligned one, from ``<scan>.txt``; None if nothing says so."""
    file = folder / f"{folder.name}.txt"
    if not file.is_file():
        return None
    for line in file.read_text(errors="replace").splitlines():
        name, equals, numbers = line.partition("=")
        if equals and name.strip() == "axisAlignment":
            return _alignment(numbers.split(), file)
    return None


def _alignment(words: Sequence[str], file: Path) -> Float[np.ndarray, "4 4"]:
    try:
        matrix = np.array([float(word) for word in words]).reshape(4, 4)
    except ValueError:
        raise BadInputError(
            f"{file} must hold axisAlignment as 16 numbers, it holds {len(words)}"
        ) from None
    return checked_pose(matrix, f"axisAlignment in {file}")


def _frames(folder: Path) -> list[_Frame]:
    if not (folder / "color").is_dir():
        return _flat_frames(folder)
    colors = {path.stem: path for path in _numbered(folder / "color", (".jpg", ".jpeg", ".png"))}
    depths = {path.stem: path for path in _numbered(folder / "depth", (".png",))}
    poses = {path.stem: path for path in _numbered(folder / "pose", (".txt",))}
    if not colors:
        raise BadInputError(f"{folder / 'color'} holds no images; expected color/0.jpg and so on")
    missing = [stem for stem in colors if stem not in poses]
    if missing:
        raise BadInputError(
            f"{folder / 'pose'} has no {missing[0]}.txt for {colors[missing[0]]}; every colour "
            f"image needs a pose ({len(missing)} of {len(colors)} have none)"
        )
    if depths:
        missing = [stem for stem in colors if stem not in depths]
        if missing:
            raise BadInputError(
                f"{folder / 'depth'} has no {missing[0]}.png for {colors[missing[0]]}; give every "
                "colour image its depth, or none"
            )
    return [
        _Frame(color=path, depth=depths.get(stem), pose=poses[stem])
        for stem, path in colors.items()
    ]


def _flat_frames(folder: Path) -> list[_Frame]:
    frames = []
    for color in _numbered(folder, (".jpg",)):
        depth, pose = color.with_suffix(".png"), color.with_suffix(".txt")
        if pose.is_file():
            frames.append(_Frame(color=color, depth=depth if depth.is_file() else None, pose=pose))
    return frames


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files named by a number, sorted by it: exports do not always pad with zeros."""
    if not folder.is_dir():
        return []
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and path.stem.isdecimal()
    ]
    return sorted(files, key=lambda path: int(path.stem))


def _check_sizes(frames: list[_Frame]) -> None:
    """One intrinsics file serves all frames, so all must have the size of the first."""
    for what in ("color", "depth"):
        files = [path for frame in frames if (path := getattr(frame, what)) is not None]
        sizes = [size_of(path) for path in files]
        for path, size in zip(files, sizes, strict=True):
            if size != sizes[0]:
                raise BadInputError(
                    f"{path} has {size[1]}x{size[0]} pixels, {files[0]} has "
                    f"{sizes[0][1]}x{sizes[0][0]}; all {what} images must have one size"
                )


def _camera(folder: Path, which: str) -> _Camera:
    found = [folder / name for name in _INTRINSICS[which] if (folder / name).is_file()]
    if not found:
        raise BadInputError(
            f"{folder} lacks the {which} camera's intrinsics; expected "
            f"{_INTRINSICS[which][0]} with a 4x4 or 3x3 matrix in pixels"
        )
    count = len(found[0].read_text(errors="replace").split())
    side = 3 if count == 9 else 4
    matrix = read_numbers(found[0], (side, side), f"the {which} camera's intrinsics")
    k = checked_intrinsics(matrix[:3, :3].copy(), str(found[0]))
    k[:2, 2] += 0.5
    extrinsics = np.eye(4)
    file = folder / "intrinsic" / f"extrinsic_{which}.txt"
    if file.is_file():
        extrinsics = checked_pose(read_numbers(file, (4, 4), "extrinsics"), str(file))
    return _Camera(intrinsics=k, extrinsics=extrinsics)


def _depth_camera(
    folder: Path, color: _Camera, frames: list[_Frame], notes: list[str]
) -> _Camera | None:
    """The depth images' camera; None where they share pixels with the colour, or there are none."""
    first = frames[0]
    if first.depth is None:
        return None
    stated = any((folder / name).is_file() for name in _INTRINSICS["depth"])
    color_size, depth_size = size_of(first.color), size_of(first.depth)
    sizes = (
        f"{first.depth} has {depth_size[1]}x{depth_size[0]} pixels and {first.color} "
        f"{color_size[1]}x{color_size[0]}"
    )
    if not stated:
        if color_size != depth_size:
            raise BadInputError(
                f"{sizes}, and no depth intrinsics say how they relate; add "
                f"{_INTRINSICS['depth'][0]} or give depth in the colour's pixels"
            )
        return None
    depth = _camera(folder, "depth")
    same = np.allclose(depth.intrinsics, color.intrinsics)
    if same and color_size != depth_size:
        raise BadInputError(
            f"{sizes}, but the intrinsics of both are the same; give each its own, for its own size"
        )
    if not (abs(2 * depth.intrinsics[:2, 2] / depth_size[::-1] - 1) < 0.5).all():
        raise BadInputError(
            f"{first.depth} has {depth_size[1]}x{depth_size[0]} pixels, but its intrinsics centre "
            f"at ({depth.intrinsics[0, 2]:.1f}, {depth.intrinsics[1, 2]:.1f}); give those of the "
            "depth images' own size"
        )
    if same and np.allclose(depth.extrinsics, color.extrinsics):
        return None
    notes.append(
        f"colour {color_size[1]}x{color_size[0]} resampled to the depth's "
        f"{depth_size[1]}x{depth_size[0]} pixels through both cameras' intrinsics"
    )
    return depth


def _view(
    frame: _Frame, pose: Float[np.ndarray, "4 4"], color: _Camera, depth: _Camera | None
) -> View:
    rgb = read_rgb(frame.color)
    metres = None
    if frame.depth is not None:
        metres = read_depth(frame.depth, units_per_metre=UNITS_PER_METRE)
    camera = color
    if depth is not None and metres is not None:
        colour_from_depth = np.linalg.inv(color.extrinsics) @ depth.extrinsics
        rgb = colour_on_depth_pixels(
            rgb, color.intrinsics, metres, depth.intrinsics, colour_from_depth
        )
        camera = depth
    return View(
        name=f"{frame.color.parent.name}/{frame.color.name}",
        rgb=rgb,
        intrinsics=camera.intrinsics,
        c2w=pose @ camera.extrinsics,
        depth=metres,
    )
