"""A teacher's features of a scene on the student's grid of cells, whatever grid they came on.

By the patch map where the teacher kept one (which token each of its patches ended in), else by
place: a cell gets the voxel that its point lies in. Both look at the middle square of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from stillroom.records import BadInputError, SceneFeatures

#: Share of a cell that the teacher must have seen.
LEAST_SEEN = 0.5
#: How far from a voxel's centre a point may lie and still be its own [m]: half the diagonal of the
#: 0.2 m voxels of LLaVA-3D (specs: voxel size is hard-coded).
VOXEL_REACH = 0.5 * 0.2 * 3**0.5


def by_patches(
    features: SceneFeatures, views: Sequence[int], *, grid: int
) -> tuple[Float[np.ndarray, "v c f"], Bool[np.ndarray, "v c"]]:
    """Features of the cells of ``views`` (numbers of the scene's views), and where there are any.

    A cell is the mean of the tokens its patches ended in, by the area that they share with it.

    Raises:
        BadInputError: the patch map is no square grid per view.
    """
    assert features.patch_token is not None
    looked_at = features.views or tuple(range(max(views) + 1))
    side = round((len(features.patch_token) / len(looked_at)) ** 0.5)
    if side * side * len(looked_at) != len(features.patch_token):
        raise BadInputError(
            f"the teacher's features of scene {features.scene_id} have a patch map of "
            f"{len(features.patch_token)} patches, which is no square grid in each of "
            f"{len(looked_at)} views; label again"
        )
    token = features.patch_token.reshape(len(looked_at), side * side)
    shares = _overlap(grid, side)
    area = np.einsum("ir,jc->ijrc", shares, shares).reshape(grid * grid, side * side)
    cells = np.zeros((len(views), grid * grid, features.pooled.shape[1]))
    seen = np.zeros((len(views), grid * grid))
    for place, view in enumerate(views):
        # A teacher that wants more views than there are looks at some of them again.
        for number in (k for k, other in enumerate(looked_at) if other == view):
            kept = token[number] >= 0
            weight = area[:, kept]
            cells[place] += weight @ features.pooled[token[number][kept]].astype(np.float64)
            seen[place] += weight.sum(axis=1)
    times = np.array([[max(looked_at.count(view), 1)] for view in views])
    known = seen >= LEAST_SEEN * times
    return _normalised(cells / np.maximum(seen, 1e-9)[..., None], known), known


def by_points(
    features: SceneFeatures,
    points: Float[np.ndarray, "v c 3"],
    measured: Bool[np.ndarray, "v c"],
    *,
    reach: float = VOXEL_REACH,
) -> tuple[Float[np.ndarray, "v c f"], Bool[np.ndarray, "v c"]]:
    """Features of cells whose ``points`` [m] are in the teacher's frame; ``measured`` says which
    have one. A point farther than ``reach`` [m] from every voxel's centre has none."""
    assert features.points is not None
    distance, token = cKDTree(features.points).query(points, distance_upper_bound=reach * 1.0001)
    known = measured & np.isfinite(distance)
    cells = features.pooled[np.where(known, token, 0)].astype(np.float64)
    return _normalised(cells, known), known


def _overlap(grid: int, side: int) -> Float[np.ndarray, "g s"]:
    """Share of each of ``grid`` stretches that each of ``side`` stretches of the same line has."""
    edges, others = np.arange(grid + 1) / grid, np.arange(side + 1) / side
    low = np.maximum(edges[:-1, None], others[None, :-1])
    high = np.minimum(edges[1:, None], others[None, 1:])
    return np.maximum(high - low, 0.0) * grid


def _normalised(
    cells: Float[np.ndarray, "v c f"], known: Bool[np.ndarray, "v c"]
) -> Float[np.ndarray, "v c f"]:
    """Zero mean and unit variance each: how loud a teacher's features are carries nothing."""
    centred = cells - cells.mean(axis=-1, keepdims=True)
    scale = np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-6)
    return np.where(known[..., None], centred / scale, 0.0)
