"""Pinhole cameras: pixels, camera points, and what resizing and cropping do to intrinsics.

Pixel centres lie at +0.5: the top-left pixel covers [0, 1) x [0, 1).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """Intrinsics in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pinhole_from_fov(fov_y: float, height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of a camera with square pixels and vertical field of view ``fov_y`` [rad]."""
    focal = 0.5 * height / np.tan(0.5 * fov_y)
    return pinhole(focal, focal, 0.5 * width, 0.5 * height)


def project(
    points_cam: Float[np.ndarray, "*n 3"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "*n 2"]:
    """Pixels (x, y) of camera points [m]; meaningless where z <= 0."""
    z = points_cam[..., 2:3]
    xy = points_cam[..., :2] / np.where(z == 0, np.finfo(np.float64).tiny, z)
    return xy * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]


def pixel_centers(height: int, width: int) -> Float[np.ndarray, "h w 2"]:
    """(x, y) of every pixel's centre."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x + 0.5, y + 0.5], axis=-1)


def rays(
    pixels: Float[np.ndarray, "*n 2"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "*n 3"]:
    """Camera-frame directions with z = 1, so that a step of d along one has depth d."""
    xy = (pixels - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]]
    return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1)


def unproject(
    depth: Float[np.ndarray, "h w"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "h w 3"]:
    """Camera points [m] of every pixel's centre."""
    return rays(pixel_centers(*depth.shape), intrinsics) * depth[..., None]


def resize_intrinsics(
    intrinsics: Float[np.ndarray, "3 3"], old_hw: tuple[int, int], new_hw: tuple[int, int]
) -> Float[np.ndarray, "3 3"]:
    """Intrinsics after the image was resized; with centres at +0.5 everything just scales."""
    scale = np.array([new_hw[1] / old_hw[1], new_hw[0] / old_hw[0], 1.0])
    return intrinsics * scale[:, None]


def crop_intrinsics(
    intrinsics: Float[np.ndarray, "3 3"], left: float, top: float
) -> Float[np.ndarray, "3 3"]:
    """Intrinsics after ``left`` columns and ``top`` rows were cut off."""
    cropped = intrinsics.copy()
    cropped[:2, 2] -= (left, top)
    return cropped


def fov(intrinsics: Float[np.ndarray, "3 3"], height: int, width: int) -> tuple[float, float]:
    """Vertical and horizontal field of view [rad]."""
    fov_y = 2 * np.arctan(0.5 * height / intrinsics[1, 1])
    fov_x = 2 * np.arctan(0.5 * width / intrinsics[0, 0])
    return float(fov_y), float(fov_x)
