"""Scenes to what LLaVA-3D reads: square crops, metric depth, intrinsics and poses; numpy, Pillow.

Our pixel centres lie at +0.5, the release's on whole numbers: the half is dropped here, from the
intrinsics of the finished crop, because it is the crop's pixels that the model counts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from stillroom.geometry.poses import view0_from_world
from stillroom.records import BadInputError, Scene, View
from stillroom.teachers.llava3d_config import LLaVA3DConfig

logger = logging.getLogger(__name__)

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class TeacherInputs:
    """The views of one scene as the model takes them; lengths in metres."""

    images: Float32[np.ndarray, "v 3 s s"]
    # Along z, 0 where there is none.
    depths: Float32[np.ndarray, "v s s"]
    # Camera to the frame that the model reads.
    poses: Float32[np.ndarray, "v 4 4"]
    # For the crop, pixel centres on whole numbers.
    intrinsics: Float32[np.ndarray, "v 4 4"]
    # Which views of the scene they are.
    views: tuple[int, ...]


def scene_inputs(scene: Scene, config: LLaVA3DConfig) -> TeacherInputs:
    """The scene's views, chosen, cut and moved into the frame that the config names.

    Raises:
        BadInputError: no view has depth, pose and intrinsics.
    """
    usable = [number for number, view in enumerate(scene.views) if _complete(view)]
    if not usable:
        raise BadInputError(
            f"scene {scene.scene_id} cannot be read by a LLaVA-3D teacher: it needs views with "
            f"depth, camera pose and intrinsics, and {_lacking(scene)} (its first view alone can "
            "be read as a photo, with the teacher option vision 2d)"
        )
    if len(usable) < len(scene.views):
        logger.warning(
            "scene %s: %d of %d views lack depth, pose or intrinsics and are left out",
            scene.scene_id,
            len(scene.views) - len(usable),
            len(scene.views),
        )
    chosen = tuple(usable[i] for i in frame_indices(len(usable), config.num_frames))
    to_frame = _to_frame(scene, config)
    # Repeated views are read once.
    read = {number: _read_view(scene.views[number], to_frame, config) for number in set(chosen)}
    images, depths, poses, intrinsics = zip(*(read[number] for number in chosen), strict=True)
    return TeacherInputs(
        images=np.stack(images),
        depths=np.stack(depths),
        poses=np.stack(poses),
        intrinsics=np.stack(intrinsics),
        views=chosen,
    )


def photo_inputs(
    scene: Scene, config: LLaVA3DConfig
) -> tuple[Float32[np.ndarray, "1 3 s s"], tuple[int, ...]]:
    """The scene's first view as a single photo, and its number; no depth or pose is looked at."""
    if len(scene.views) > 1:
        logger.warning(
            "scene %s: a single photo is read, the first of %d", scene.scene_id, len(scene.views)
        )
    rgb = scene.views[0].rgb
    if config.image_aspect_ratio == "pad":
        rgb = _padded_square(rgb)
    return pixel_values(rgb, config.clip.image_size)[None], (0,)


def object_points(
    scene: Scene, object_ids: Sequence[int], config: LLaVA3DConfig
) -> list[tuple[float, float, float]]:
    """Box centres of objects in the frame that the config names [m], three decimals as the release.

    Raises:
        BadInputError: the scene does not know such an object.
    """
    known = {thing.object_id: thing.box.center for thing in scene.objects}
    missing = [number for number in object_ids if number not in known]
    if missing:
        raise BadInputError(
            f"scene {scene.scene_id} has no box of object {missing[0]}, which a question points at"
        )
    to_frame = _to_frame(scene, config)
    points = (to_frame @ np.array([*known[number], 1.0]) for number in object_ids)
    return [(round(float(x), 3), round(float(y), 3), round(float(z), 3)) for x, y, z, _ in points]


def frame_indices(available: int, wanted: int) -> list[int]:
    """The release's choice of views: every k-th, or all of them cyclically if there are too few."""
    if available > wanted:
        return [i * (available // wanted) for i in range(wanted)]
    return [i % available for i in range(wanted)]


def pixel_values(rgb: UInt8[np.ndarray, "h w 3"], size: int) -> Float32[np.ndarray, "3 s s"]:
    """The normalised centre crop of edge ``size``, after a bicubic resize of the shorter side."""
    height, width = rgb.shape[:2]
    new_w, new_h = resized_wh(width, height, size)
    if (new_w, new_h) != (width, height):
        rgb = np.asarray(Image.fromarray(rgb).resize((new_w, new_h), Image.Resampling.BICUBIC))
    top, left = (new_h - size) // 2, (new_w - size) // 2
    crop = rgb[top : top + size, left : left + size]
    return normalise(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def normalise(rgb: UInt8[np.ndarray, "*n 3 h w"]) -> Float32[np.ndarray, "*n 3 h w"]:
    """Pixels 0..255 as CLIP reads them."""
    scaled = rgb.astype(np.float32) / 255
    return (scaled - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None]


def metric_depth(depth: Float[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "s s"]:
    """The centre crop of a depth map [m] after a nearest-neighbour resize of the shorter side."""
    height, width = depth.shape
    new_w, new_h = resized_wh(width, height, size)
    # Half to even, as the release crops depth; its RGB crop rounds down.
    top, left = round((new_h - size) / 2), round((new_w - size) / 2)
    # The source pixel that a resized pixel's centre falls into, in whole numbers.
    rows = (2 * np.arange(top, top + size) + 1) * height // (2 * new_h)
    columns = (2 * np.arange(left, left + size) + 1) * width // (2 * new_w)
    return depth[rows[:, None], columns[None, :]].astype(np.float32)


def crop_intrinsics(
    intrinsics: Float[np.ndarray, "n n"],
    *,
    image_wh: tuple[int, int],
    resized_depth_wh: tuple[int, int],
) -> Float32[np.ndarray, "n n"]:
    """Intrinsics (3x3 or 4x4) of an image of ``image_wh``, for the square crop.

    ``resized_depth_wh`` is the depth map's size between resize and crop. The release moves cx even
    where a portrait image loses rows; here cy moves then.
    """
    new_w, new_h = resized_depth_wh
    scaled = intrinsics.astype(np.float64)
    scaled[0] *= new_w / image_wh[0]
    scaled[1] *= new_h / image_wh[1]
    scaled[0, 2] -= max(new_w - new_h, 0) / 2
    scaled[1, 2] -= max(new_h - new_w, 0) / 2
    return scaled.astype(np.float32)


def whole_pixel_intrinsics(
    intrinsics: Float[np.ndarray, "*n 3 3"],
) -> Float[np.ndarray, "*n 4 4"]:
    """Our intrinsics (pixel centres at +0.5) as the release writes them."""
    square = np.zeros((*intrinsics.shape[:-2], 4, 4), dtype=intrinsics.dtype)
    square[..., :3, :3] = intrinsics
    square[..., :2, 2] -= 0.5
    square[..., 3, 3] = 1.0
    return square


def resized_wh(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shorter side is ``size``; the longer is truncated."""
    short = min(width, height)
    return max(size, size * width // short), max(size, size * height // short)


def _padded_square(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """The picture in the middle of a square of CLIP's mean colour, as LLaVA-1.5 pads it."""
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = (CLIP_MEAN * 255).astype(np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    return square


def _complete(view: View) -> bool:
    return (
        view.depth is not None
        and view.c2w is not None
        and view.intrinsics is not None
        and bool(np.isfinite(view.c2w).all())
        and bool(np.isfinite(view.intrinsics).all())
    )


def _lacking(scene: Scene) -> str:
    if all(view.depth is None for view in scene.views):
        return "none of its views has depth"
    if all(view.c2w is None for view in scene.views):
        return "none of its views has a pose"
    if all(view.intrinsics is None for view in scene.views):
        return "none of its views has intrinsics"
    return "no view has all three with finite numbers"


def _to_frame(scene: Scene, config: LLaVA3DConfig) -> Float[np.ndarray, "4 4"]:
    if config.frame == "source":
        return np.eye(4)
    first = scene.views[0].c2w
    if first is None or not np.isfinite(first).all():
        raise BadInputError(
            f"scene {scene.scene_id} cannot be read by this teacher: it speaks of what the first "
            "view sees, and the first view has no pose"
        )
    return view0_from_world(first, scene.floor_z)


def _read_view(
    view: View, to_frame: Float[np.ndarray, "4 4"], config: LLaVA3DConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, depth, pose and intrinsics of one complete view."""
    assert view.depth is not None
    assert view.c2w is not None
    assert view.intrinsics is not None
    size = config.clip.image_size
    intrinsics = crop_intrinsics(
        view.intrinsics,
        image_wh=(view.rgb.shape[1], view.rgb.shape[0]),
        resized_depth_wh=resized_wh(view.depth.shape[1], view.depth.shape[0], size),
    )
    depth = metric_depth(np.where(view.depth_valid, view.depth, 0.0), size)
    pose = (to_frame @ view.c2w).astype(np.float32)
    return pixel_values(view.rgb, size), depth, pose, whole_pixel_intrinsics(intrinsics)
