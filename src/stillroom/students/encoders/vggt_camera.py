"""VGGT's pose code: translation 3, quaternion x y z w, vertical and horizontal field of view.

The transform is camera from world (w2c) with OpenCV axes; the world is the first camera's frame.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotation_from_xyzw(xyzw: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation of a quaternion of any norm but zero, scalar last."""
    x, y, z, w = xyzw.unbind(-1)
    s = 2.0 / xyzw.square().sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def xyzw_from_rotation(rotation: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit quaternion, scalar last and not negative, from the best conditioned of four formulas."""
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Four times the squares of x, y, z, w.
    squares = torch.stack([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz])
    sx, sy, sz = m[..., 2, 1], m[..., 0, 2], m[..., 1, 0]
    tx, ty, tz = m[..., 1, 2], m[..., 2, 0], m[..., 0, 1]
    candidates = torch.stack(
        [
            torch.stack([squares[0], sz + tz, sy + ty, sx - tx], dim=-1),
            torch.stack([sz + tz, squares[1], sx + tx, sy - ty], dim=-1),
            torch.stack([sy + ty, sx + tx, squares[2], sz - tz], dim=-1),
            torch.stack([sx - tx, sy - ty, sz - tz, squares[3]], dim=-1),
        ],
        dim=-2,
    )  # [*n 4 4]
    best = squares.argmax(dim=0)[..., None, None].expand(*m.shape[:-2], 1, 4)
    xyzw = candidates.gather(-2, best).squeeze(-2)
    xyzw = xyzw / xyzw.norm(dim=-1, keepdim=True)
    return torch.where(xyzw[..., 3:] < 0, -xyzw, xyzw)


def encode_pose(
    w2c: Float[Tensor, "*n 3 4"], intrinsics: Float[Tensor, "*n 3 3"], image_hw: tuple[int, int]
) -> Float[Tensor, "*n 9"]:
    """Cameras to pose codes. The principal point is not coded."""
    fov_y = 2 * torch.atan(0.5 * image_hw[0] / intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan(0.5 * image_hw[1] / intrinsics[..., 0, 0])
    xyzw = xyzw_from_rotation(w2c[..., :3, :3])
    return torch.cat([w2c[..., :3, 3], xyzw, fov_y[..., None], fov_x[..., None]], dim=-1)


def decode_pose(
    pose_enc: Float[Tensor, "*n 9"], image_hw: tuple[int, int]
) -> tuple[Float[Tensor, "*n 3 4"], Float[Tensor, "*n 3 3"]]:
    """Pose codes to w2c and intrinsics [pixels], principal point in the image's middle.

    A field of view of 0 gives an infinite focal length.
    """
    w2c = torch.cat([rotation_from_xyzw(pose_enc[..., 3:7]), pose_enc[..., :3, None]], dim=-1)
    intrinsics = pose_enc.new_zeros(*pose_enc.shape[:-1], 3, 3)
    intrinsics[..., 0, 0] = 0.5 * image_hw[1] / torch.tan(0.5 * pose_enc[..., 8])
    intrinsics[..., 1, 1] = 0.5 * image_hw[0] / torch.tan(0.5 * pose_enc[..., 7])
    intrinsics[..., 0, 2] = 0.5 * image_hw[1]
    intrinsics[..., 1, 2] = 0.5 * image_hw[0]
    intrinsics[..., 2, 2] = 1.0
    return w2c, intrinsics


def invert_w2c(w2c: Float[Tensor, "*n 3 4"]) -> Float[Tensor, "*n 4 4"]:
    """World from camera (c2w) as a full matrix."""
    rotation = w2c[..., :3].transpose(-1, -2)
    shift = -(rotation @ w2c[..., 3:])
    last = w2c.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*w2c.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, shift], dim=-1), last], dim=-2)


def points_from_depth(
    depth: Float[Tensor, "*n h w"],
    w2c: Float[Tensor, "*n 3 4"],
    intrinsics: Float[Tensor, "*n 3 3"],
    *,
    pixel_center: float = 0.0,
) -> Float[Tensor, "*n h w 3"]:
    """World points of depth maps; VGGT counts pixel centres as whole numbers (ours: +0.5)."""
    height, width = depth.shape[-2:]
    u = torch.arange(width, dtype=depth.dtype, device=depth.device) + pixel_center
    v = torch.arange(height, dtype=depth.dtype, device=depth.device) + pixel_center
    fx, fy = intrinsics[..., 0, 0, None, None], intrinsics[..., 1, 1, None, None]
    cx, cy = intrinsics[..., 0, 2, None, None], intrinsics[..., 1, 2, None, None]
    camera = torch.stack([(u - cx) / fx * depth, (v[:, None] - cy) / fy * depth, depth], dim=-1)
    shifted = camera - w2c[..., None, None, :, 3]
    # R^T (x - t), written for row vectors.
    return torch.einsum("...hwi,...ij->...hwj", shifted, w2c[..., :3])
