"""From depth to voxels: where each patch lies in the room, and which patches share a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def patch_points(
    depths: Float[Tensor, "*s h w"],
    poses: Float[Tensor, "*s 4 4"],
    intrinsics: Float[Tensor, "*s 4 4"],
    *,
    grid: int,
) -> Float[Tensor, "*s p 3"]:
    """World metres of the top-left pixel of each patch, row by row over a ``grid`` x ``grid``.

    The release unprojects whole pixel indices and resizes the map to the grid by nearest
    neighbour, which is this. Without depth (0) a patch lies in the camera centre. Computed in the
    dtype of ``depths``.
    """
    height, width = depths.shape[-2:]
    steps = torch.arange(grid, device=depths.device)
    rows, columns = steps * height // grid, steps * width // grid
    z = depths[..., rows[:, None], columns[None, :]]  # [*s g g]
    fx, fy, cx, cy = (
        intrinsics[..., i, j, None, None].to(z) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    x = (columns.to(z) - cx) * z / fx
    y = (rows.to(z)[:, None] - cy) * z / fy
    points_cam = torch.stack([x, y, z, torch.ones_like(z)], dim=-1).flatten(-3, -2)  # [*s p 4]
    return (points_cam @ poses.to(z).transpose(-1, -2))[..., :3]


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """The occupied voxels of one scene, in ascending (x, y, z) order of their indices."""

    # Voxel of every patch, views and patches flattened.
    of_patch: Int[Tensor, "n"]
    # Patches in every voxel.
    counts: Int[Tensor, "m"]
    # Integer coordinates, in voxel sizes.
    indices: Int[Tensor, "m 3"]


def voxelise(points: Float[Tensor, "n 3"], *, size: float) -> Voxels:
    """Voxels of edge ``size`` [m], centred on its multiples (round half to even)."""
    q = torch.round(points / size).long()
    low = q.amin(dim=0)
    span = q.amax(dim=0) - low + 1
    # One number per voxel that sorts as (x, y, z) does; sorting rows is far slower.
    key = ((q[:, 0] - low[0]) * span[1] + (q[:, 1] - low[1])) * span[2] + (q[:, 2] - low[2])
    unique, of_patch, counts = torch.unique(key, return_inverse=True, return_counts=True)
    z = unique % span[2]
    y = unique // span[2] % span[1]
    x = unique // (span[1] * span[2])
    return Voxels(of_patch=of_patch, counts=counts, indices=torch.stack([x, y, z], dim=1) + low)


def pool(
    features: Float[Tensor, "n c"], voxels: Voxels, *, dtype: torch.dtype
) -> Float[Tensor, "m c"]:
    """Mean of the features in every voxel, summed in ``dtype``, in the dtype of ``features``.

    In bfloat16 the count is summed as the release does it, and so stays at 256 from there on.
    """
    values = features.to(dtype)
    total = values.new_zeros(len(voxels.counts), features.shape[1])
    total = total.index_add(0, voxels.of_patch, values)
    count = voxels.counts.to(dtype)
    if dtype == torch.bfloat16:
        count = count.clamp(max=256)
    return (total / count[:, None]).to(features.dtype)


def draw_kept(count: int, cap: int, seed: int) -> Int[Tensor, "k"] | None:
    """Which tokens stay, in which order, when ``count`` exceeds ``cap``; None when all stay."""
    if count <= cap:
        return None
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:cap]
