"""Oriented boxes as arrays: corners, volume, moving them between frames."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: Corner k has the signs of row k; the low bit is x, then y, then z.
CORNER_SIGNS = np.array([[x, y, z] for z in (-0.5, 0.5) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
#: Pairs of corners that share an edge.
EDGES = tuple((a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1)


def corners(
    center: Float[np.ndarray, "3"], size: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "8 3"]:
    """The eight corners in the frame of ``center``, in the order of ``CORNER_SIGNS``."""
    return CORNER_SIGNS * size @ rotation.T + center


def box_around(
    points: Float[np.ndarray, "n 3"], rotation: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Centre (in the points' frame) and full size of the tightest box with that rotation."""
    local = points @ rotation
    low, high = local.min(axis=0), local.max(axis=0)
    return rotation @ (0.5 * (low + high)), high - low
