"""Which cells of two posed photos show the same place: by depth and pose, occlusion-checked.

Photos are cut into ``grid`` x ``grid`` cells, numbered row by row. A cell stands for the point that
the pixel at its middle sees. Depth is metres along the optical axis, 0 where unmeasured; poses are
camera to one common frame; all photos of a scene have one size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Int16

from stillroom.geometry.cameras import rays
from stillroom.geometry.poses import invert

#: A point carried into another photo is the one seen there if both depths agree within the larger
#: of these: metres, and a share of the depth.
SAME_POINT_M = 0.05
SAME_POINT_SHARE = 0.03
#: A cell whose mean depth is farther than this share from its point's mixes near and far things.
FLAT_SHARE = 0.1


def correspond(
    depth: Float[np.ndarray, "v h w"],
    intrinsics: Float[np.ndarray, "v 3 3"],
    c2w: Float[np.ndarray, "v 4 4"],
    *,
    grid: int,
) -> Int16[np.ndarray, "v v c"]:
    """``[i, j, p]`` is the cell of view j that shows the point of cell p of view i; -1 is none.

    A point is seen in j if it lands inside the photo, in front of the camera, on a pixel whose
    measured depth is its own (else something hides it, or it is a hole). Both cells must be flat:
    a cell that mixes near and far is like nothing else. A view does not correspond to itself.
    """
    views, height, width = depth.shape
    means = cell_means(depth, grid)  # [v c]
    rows, columns = _middles(height, grid), _middles(width, grid)
    own = depth[:, rows[:, None], columns[None, :]].reshape(views, -1)  # [v c]
    flat = (own > 0) & (means > 0) & (np.abs(means - own) <= FLAT_SHARE * own)
    carried = _carried(cell_points(depth, intrinsics, grid=grid), c2w)  # [i j c 3]
    z = carried[..., 2]
    ahead = z > 1e-6
    safe = np.where(ahead, z, 1.0)
    focal = intrinsics[:, [0, 1], [0, 1]][None, :, None]
    pixel = carried[..., :2] / safe[..., None] * focal + intrinsics[:, :2, 2][None, :, None]
    x, y = np.floor(pixel[..., 0]), np.floor(pixel[..., 1])
    inside = ahead & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = (np.where(inside, value, 0).astype(np.int64) for value in (x, y))
    target = np.arange(views)[None, :, None]
    measured = depth[target, y, x]
    seen = inside & (measured > 0)
    seen &= np.abs(z - measured) <= np.maximum(SAME_POINT_M, SAME_POINT_SHARE * z)
    cell = (y * grid // height) * grid + x * grid // width
    mean = means[target, cell]
    seen &= flat[:, None] & (mean > 0) & (np.abs(mean - z) <= FLAT_SHARE * z)
    seen &= ~np.eye(views, dtype=bool)[:, :, None]
    return np.where(seen, cell, -1).astype(np.int16)


def carried_depth(
    intrinsics: Float[np.ndarray, "v 3 3"],
    c2w: Float[np.ndarray, "v 4 4"],
    *,
    grid: int,
    height: int,
    width: int,
) -> Float[np.ndarray, "v v c 2"]:
    """``scale, shift`` [m]: a point at depth d in cell p of view i has depth scale d + shift in j.

    It lies on the ray through the middle of the cell, wherever on it d puts it.
    """
    directions = _rays(intrinsics, grid=grid, height=height, width=width)  # [v c 3]
    moves = invert(c2w)[None, :] @ c2w[:, None]  # [i j 4 4]
    scale = np.einsum("ijk,ick->ijc", moves[..., 2, :3], directions)
    shift = np.broadcast_to(moves[..., 2, 3][..., None], scale.shape)
    return np.stack([scale, shift], axis=-1)


def cell_points(
    depth: Float[np.ndarray, "v h w"], intrinsics: Float[np.ndarray, "v 3 3"], *, grid: int
) -> Float[np.ndarray, "v c 3"]:
    """The point of each cell in its own camera [m]; zeros where its pixel has no depth."""
    views, height, width = depth.shape
    rows, columns = _middles(height, grid), _middles(width, grid)
    own = depth[:, rows[:, None], columns[None, :]].reshape(views, -1, 1)
    return _rays(intrinsics, grid=grid, height=height, width=width) * own


def cell_means(depth: Float[np.ndarray, "v h w"], grid: int) -> Float[np.ndarray, "v c"]:
    """Mean measured depth [m] of each cell, 0 where less than half of its pixels have any."""
    views, height, width = depth.shape
    row, column = np.arange(height) * grid // height, np.arange(width) * grid // width
    cell = (row[:, None] * grid + column[None, :]).ravel()
    known = depth.reshape(views, -1) > 0
    counts = np.bincount(cell, minlength=grid * grid)
    found = np.zeros((views, grid * grid))
    for view in range(views):
        measured = known[view]
        number = np.bincount(cell[measured], minlength=grid * grid)
        total = np.bincount(
            cell[measured], weights=depth[view].ravel()[measured], minlength=grid * grid
        )
        enough = 2 * number >= np.maximum(counts, 1)
        found[view] = np.where(enough, total / np.maximum(number, 1), 0.0)
    return found


def paired(partner: Int[np.ndarray, "*n v v c"]) -> Bool[np.ndarray, "*n v c"]:
    """Whether a cell's point is seen in any other view, or is where another view's point lands."""
    cells = partner.shape[-1]
    lands = (partner[..., None] == np.arange(cells)).any(axis=(-4, -2))  # [*n j c]
    return (partner >= 0).any(axis=-2) | lands


def _middles(length: int, grid: int) -> Int[np.ndarray, "g"]:
    """The pixel at the middle of each of ``grid`` stretches of a row or column."""
    return (2 * np.arange(grid) + 1) * length // (2 * grid)


def _rays(
    intrinsics: Float[np.ndarray, "v 3 3"], *, grid: int, height: int, width: int
) -> Float[np.ndarray, "v c 3"]:
    """Camera directions with z = 1 through the centres of the middle pixels."""
    y, x = np.meshgrid(_middles(height, grid) + 0.5, _middles(width, grid) + 0.5, indexing="ij")
    pixels = np.stack([x.ravel(), y.ravel()], axis=-1)
    return np.stack([rays(pixels, matrix) for matrix in intrinsics])


def _carried(
    points: Float[np.ndarray, "v c 3"], c2w: Float[np.ndarray, "v 4 4"]
) -> Float[np.ndarray, "v v c 3"]:
    """``[i, j]``: the points of view i in the camera of view j."""
    moves = invert(c2w)[None, :] @ c2w[:, None]
    return np.einsum("ijkl,icl->ijck", moves[..., :3, :3], points) + moves[..., None, :3, 3]
