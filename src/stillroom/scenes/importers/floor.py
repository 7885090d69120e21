"""Where the floor of a capture is: the lowest level surface that its depth shows well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from stillroom.geometry.cameras import unproject
from stillroom.geometry.poses import transform
from stillroom.records import View

#: Height bins of the search, and how far from level a surface may lean.
BIN = 0.02
LEVEL = np.cos(np.radians(15.0))
#: Pixels between neighbours of a surface patch: wide enough to rise above the sensor's noise.
STEP = 6


def surface_patches(
    view: View,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Points [m] and unit normals (towards the camera) of a posed view's surfaces, in world."""
    if view.depth is None or view.intrinsics is None or view.c2w is None:
        return np.zeros((0, 3)), np.zeros((0, 3))
    stride = max(1, min(view.depth.shape) // 80)
    # Every so-many-th pixel, each seen where its centre was.
    k = view.intrinsics / np.array([stride, stride, 1.0])[:, None]
    k[:2, 2] += 0.5 - 0.5 / stride
    known = view.depth_valid[::stride, ::stride]
    points = unproject(np.where(known, view.depth[::stride, ::stride], 0.0), k)
    reach = max(1, STEP // stride)
    here, right, down = points[:-reach, :-reach], points[:-reach, reach:], points[reach:, :-reach]
    whole = known[:-reach, :-reach] & known[:-reach, reach:] & known[reach:, :-reach]
    # Across an edge the three points lie on different things.
    z = here[..., 2]
    jump = np.maximum(abs(right[..., 2] - z), abs(down[..., 2] - z))
    whole &= jump < 0.1 * np.maximum(z, 1e-9)
    normal = np.cross(down - here, right - here)[whole]
    place = here[whole]
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    good = length[:, 0] > 0
    normal, place = normal[good] / length[good], place[good]
    normal = normal * -np.sign((normal * place).sum(axis=-1, keepdims=True))
    return transform(view.c2w, place), normal @ view.c2w[:3, :3].T


def floor_height(views: Sequence[View]) -> tuple[float, list[str]]:
    """Height of the floor in metres, and a note on how sure that is.

    The lowest height with a good share of the upward surfaces. Without poses and depth it is 0.
    """
    heights = []
    for view in views:
        points, normals = surface_patches(view)
        heights.append(points[normals[:, 2] > LEVEL, 2])
    level = np.concatenate(heights) if heights else np.zeros(0)
    if level.size < 50:
        posed = any(view.c2w is not None and view.depth is not None for view in views)
        return 0.0, ["no level surface seen: the floor is taken to be at z = 0"] if posed else []
    low = np.floor(level.min() / BIN)
    bins = (np.floor(level / BIN) - low).astype(int)
    counts = np.convolve(np.bincount(bins), [1, 1, 1], mode="same")
    lowest = int(np.flatnonzero(counts >= 0.15 * counts.max())[0])
    peak = lowest + int(counts[lowest : lowest + 5].argmax())
    near = level[abs(bins - peak) <= 1]
    return round(float(np.median(near)), 3), []
