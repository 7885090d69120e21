"""Rigid transforms: 4x4 matrices, quaternions ``wxyz``, and the frame the student speaks in."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: Camera axes of OpenGL, Blender and ARKit (y up, z backward) to OpenCV: right-multiply a c2w.
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def invert(pose: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 4 4"]:
    """The inverse of a rigid transform."""
    inverse = np.zeros_like(pose)
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def transform(
    pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "*n 3"]:
    """Points moved from the pose's source frame to its target frame."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def is_rigid(pose: Float[np.ndarray, "4 4"], *, tolerance: float = 1e-3) -> bool:
    """Whether the matrix is finite, a proper rotation with a shift, and ends in 0 0 0 1."""
    if not np.isfinite(pose).all():
        return False
    rotation = pose[:3, :3]
    return bool(
        np.abs(rotation @ rotation.T - np.eye(3)).max() < tolerance
        and np.linalg.det(rotation) > 0
        and np.abs(pose[3] - [0.0, 0.0, 0.0, 1.0]).max() < tolerance
    )


def look_at(
    eye: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """c2w of a level camera at ``eye`` that sees ``target`` in its centre; world z up."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = eye
    return pose


def rotation_z(angle: float) -> Float[np.ndarray, "3 3"]:
    """Turn by ``angle`` [rad] about z, counter-clockwise seen from above."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def yaw_of(rotation: Float[np.ndarray, "*n 3 3"]) -> Float[np.ndarray, "*n"]:
    """Turn about z [rad] of a box's own x axis seen from above; exact for upright boxes."""
    return np.asarray(np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0]))


def rotation_from_wxyz(wxyz: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n 3 3"]:
    """Rotation matrix of a quaternion of any norm but zero."""
    w, x, y, z = np.moveaxis(wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def wxyz_from_rotation(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion with w >= 0, from the best conditioned of the four formulas."""
    m = rotation
    squares = 1.0 + np.array(
        [
            m[0, 0] + m[1, 1] + m[2, 2],
            m[0, 0] - m[1, 1] - m[2, 2],
            m[1, 1] - m[0, 0] - m[2, 2],
            m[2, 2] - m[0, 0] - m[1, 1],
        ]
    )
    best = int(squares.argmax())
    skew = (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1])
    sums = (m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1])
    candidates = (
        (squares[0], skew[0], skew[1], skew[2]),
        (skew[0], squares[1], sums[0], sums[1]),
        (skew[1], sums[0], squares[2], sums[2]),
        (skew[2], sums[1], sums[2], squares[3]),
    )
    wxyz = np.array(candidates[best])
    wxyz = wxyz / np.linalg.norm(wxyz)
    return -wxyz if wxyz[0] < 0 else wxyz


def view0_from_world(
    first_c2w: Float[np.ndarray, "4 4"], floor_z: float
) -> Float[np.ndarray, "4 4"]:
    """World to ``view0``: origin below the first camera on the floor, x right, y forward, z up.

    Raises:
        ValueError: the first camera looks straight up or down, so that forward is undefined.
    """
    forward = first_c2w[:2, 2]
    length = np.linalg.norm(forward)
    if length < 1e-6:
        raise ValueError(
            "the first camera looks straight up or down; view0 needs a level direction"
        )
    fx, fy = forward / length
    pose = np.eye(4)
    pose[:2, :2] = [[fy, -fx], [fx, fy]]
    origin = np.array([first_c2w[0, 3], first_c2w[1, 3], floor_z])
    pose[:3, 3] = -pose[:3, :3] @ origin
    return pose
