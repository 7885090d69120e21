"""Depth maps: bins, and what two posed views say of each other's depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stillroom.geometry.cameras import project, unproject
from stillroom.geometry.poses import invert, transform


def log_bin_edges(count: int, near: float, far: float) -> Float[np.ndarray, "edges"]:
    """``count`` + 1 edges in metres, evenly spaced in log depth (specs: 64 from 0.3 to 10 m)."""
    return np.exp(np.linspace(np.log(near), np.log(far), count + 1))


@dataclass(frozen=True, kw_only=True)
class Reprojection:
    """Depth of one view carried into another: ``dz`` [m] is carried minus measured."""

    # Share of the source's valid pixels that land inside the target on a measured pixel.
    overlap: float
    dz: Float[np.ndarray, "n"]

    @property
    def median_abs_dz(self) -> float:
        """Median of |dz| [m]; NaN without overlap."""
        return float(np.median(np.abs(self.dz))) if self.dz.size else float("nan")


def reproject(
    depth_a: Float[np.ndarray, "h w"],
    intrinsics_a: Float[np.ndarray, "3 3"],
    c2w_a: Float[np.ndarray, "4 4"],
    depth_b: Float[np.ndarray, "h2 w2"],
    intrinsics_b: Float[np.ndarray, "3 3"],
    c2w_b: Float[np.ndarray, "4 4"],
    *,
    stride: int = 1,
) -> Reprojection:
    """Lift view a's depth, move it by the poses into view b, and compare with b's depth.

    Both poses are camera to world in one frame; depth 0 is unmeasured.
    """
    points = unproject(depth_a, intrinsics_a)[::stride, ::stride].reshape(-1, 3)
    points = points[points[:, 2] > 0]
    moved = transform(invert(c2w_b) @ c2w_a, points)
    in_front = moved[:, 2] > 1e-6
    height, width = depth_b.shape
    pixels = np.floor(project(np.where(in_front[:, None], moved, 1.0), intrinsics_b))
    x, y = pixels[:, 0], pixels[:, 1]
    inside = in_front & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    measured = depth_b[y[inside].astype(int), x[inside].astype(int)]
    known = measured > 0
    overlap = float(known.sum() / max(len(points), 1))
    return Reprojection(overlap=overlap, dz=moved[inside, 2][known] - measured[known])
