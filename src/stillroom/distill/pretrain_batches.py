"""Rooms as batches for the encoder: pictures, cameras, and what covers each cell.

Scenes are varied without leaving the truth: another view may set the frame, a mirror may turn
left into right. Which, is arithmetic on (seed, step), so that a killed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from stillroom.distill.pretrain_config import PretrainConfig
from stillroom.geometry.poses import transform, view0_from_world
from stillroom.scenes.pixels import PixelCache
from stillroom.students.encoders.vggt_camera import encode_pose, points_from_depth
from stillroom.training.data_order import rows_at

#: x to -x, as a rigid transform's two sides.
_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class PretrainBatch:
    """Scenes ready for a step; lengths in metres."""

    images: Float[Tensor, "b v 3 h w"]
    # Views whose maps are scored.
    dense: Int[Tensor, "b k"]
    # z-depth of those views, 0 where there is none.
    depth: Float[Tensor, "b k h w"]
    # Their points in the first camera's frame.
    points: Float[Tensor, "b k h w 3"]
    # Pose code of every view relative to the first.
    pose_enc: Float[Tensor, "b v 9"]
    # What covers each cell: object_id, 0 for background.
    cells: Int[Tensor, "b v r c"]
    # Its row of the object table: category, colour, centre in view0, log size.
    facts: Float[Tensor, "b v r c 8"]
    # Its centre in the camera of the view that the cell is in.
    center_cam: Float[Tensor, "b v r c 3"]


class PretrainRows:
    """The scenes of one split, cut into batches."""

    def __init__(self, pixels: PixelCache, config: PretrainConfig) -> None:
        self.pixels = pixels
        self.config = config

    def __len__(self) -> int:
        return len(self.pixels)

    def training_batch(self, step: int, micro: int) -> PretrainBatch:
        """Micro-batch of a step, varied; a pure function of both numbers."""
        rows = rows_at(step, micro, config=self.config.train, rows=len(self))
        rng = np.random.default_rng([self.config.train.seed, step, micro])
        scenes = [_varied(_scene(self.pixels, row), self.config, rng) for row in rows]
        views = self.pixels.rgb.shape[1]
        kept = min(self.config.dense_views, views)
        dense = [np.sort(rng.permutation(views)[:kept]) for _ in rows]
        return _batch(scenes, np.stack(dense), self.config)

    def plain_batch(self, rows: Sequence[int]) -> PretrainBatch:
        """Scenes as they are, every view dense."""
        views = self.pixels.rgb.shape[1]
        dense = np.tile(np.arange(views), (len(rows), 1))
        return _batch([_scene(self.pixels, row) for row in rows], dense, self.config)


@dataclass(frozen=True)
class _Scene:
    rgb: np.ndarray
    depth: np.ndarray
    instances: np.ndarray
    objects: np.ndarray
    c2w: np.ndarray
    intrinsics: np.ndarray
    gain: float = 1.0


def _scene(pixels: PixelCache, row: int) -> _Scene:
    return _Scene(
        rgb=pixels.rgb[row],
        depth=pixels.depth[row],
        instances=pixels.instances[row],
        objects=pixels.objects[row],
        c2w=pixels.c2w[row].astype(np.float64),
        intrinsics=pixels.intrinsics[row],
    )


def _varied(scene: _Scene, config: PretrainConfig, rng: np.random.Generator) -> _Scene:
    # All draws happen whatever comes of them: one chance does not shift the next.
    shuffled, mirrored, bright = rng.random(3)
    order = rng.permutation(len(scene.rgb))
    if shuffled < config.reorder:
        scene = _reordered(scene, order)
    if mirrored < config.mirror:
        scene = _mirrored(scene)
    gain = 1.0 + config.brightness * (2 * bright - 1)
    return _Scene(**{**vars(scene), "gain": gain})


def _reordered(scene: _Scene, order: np.ndarray) -> _Scene:
    """The same room, its views in another order and everything in the new first camera's view0."""
    c2w = scene.c2w[order]
    move = view0_from_world(c2w[0], 0.0)
    objects = scene.objects.copy()
    objects[:, 2:5] = transform(move, objects[:, 2:5])
    return _Scene(
        rgb=scene.rgb[order],
        depth=scene.depth[order],
        instances=scene.instances[order],
        objects=objects,
        c2w=move @ c2w,
        intrinsics=scene.intrinsics[order],
    )


def _mirrored(scene: _Scene) -> _Scene:
    """The room in a mirror: x of view0 and of every camera changes its sign."""
    objects, intrinsics = scene.objects.copy(), scene.intrinsics.copy()
    objects[:, 2] *= -1
    intrinsics[:, 0, 2] = scene.rgb.shape[-1] - intrinsics[:, 0, 2]
    return _Scene(
        rgb=scene.rgb[..., ::-1],
        depth=scene.depth[..., ::-1],
        instances=scene.instances[..., ::-1],
        objects=objects,
        c2w=_MIRROR @ scene.c2w @ _MIRROR,
        intrinsics=intrinsics,
    )


def _batch(scenes: Sequence[_Scene], dense: np.ndarray, config: PretrainConfig) -> PretrainBatch:
    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes]))

    gain = torch.tensor([scene.gain for scene in scenes], dtype=torch.float32)
    gain = gain.view(-1, 1, 1, 1, 1)
    images = (stacked("rgb").float() * (gain / 255)).clamp(max=1.0)
    height, width = images.shape[-2:]
    intrinsics = stacked("intrinsics").float()
    c2w = stacked("c2w")
    # Camera from first camera: the first view's is the identity.
    w2c = (torch.linalg.inv(c2w) @ c2w[:, :1])[..., :3, :].float()
    chosen = torch.from_numpy(dense)
    depth = _take(stacked("depth"), chosen).float()
    cells = cell_objects(
        stacked("instances"),
        config.encoder.patch_size // config.cells_per_patch,
        smallest_cover=config.smallest_cover,
    )
    table = stacked("objects").float()  # [b m 8]
    facts = table.gather(1, cells.flatten(1)[..., None].expand(-1, -1, table.shape[-1]))
    facts = facts.view(*cells.shape, -1)
    to_camera = torch.linalg.inv(c2w).float()
    center_cam = torch.einsum("bvrci,bvji->bvrcj", facts[..., 2:5], to_camera[..., :3, :3])
    return PretrainBatch(
        images=images,
        dense=chosen,
        depth=depth,
        points=points_from_depth(
            depth, _take(w2c, chosen), _take(intrinsics, chosen), pixel_center=0.5
        ),
        pose_enc=encode_pose(w2c, intrinsics, (height, width)),
        cells=cells,
        facts=facts,
        center_cam=center_cam + to_camera[:, :, None, None, :3, 3],
    )


def _take(values: Tensor, chosen: Tensor) -> Tensor:
    """Per scene, the views chosen."""
    return values[torch.arange(len(values))[:, None], chosen]


def cell_objects(
    instances: Integer[Tensor, "b v h w"], cell: int, *, smallest_cover: float
) -> Int[Tensor, "b v r c"]:
    """object_id of the object with most pixels in each cell, 0 where none covers enough of it."""
    b, v, height, width = instances.shape
    rows, columns = height // cell, width // cell
    blocks = instances[:, :, : rows * cell, : columns * cell].long()
    blocks = blocks.view(b, v, rows, cell, columns, cell).transpose(3, 4).flatten(4)
    counts = torch.zeros(*blocks.shape[:4], int(blocks.max()) + 1, dtype=torch.float32)
    counts.scatter_add_(-1, blocks, torch.ones(()).expand(blocks.shape))
    counts[..., 0] = 0.0
    most, which = counts.max(dim=-1)
    return torch.where(most >= max(smallest_cover * cell * cell, 1.0), which, 0)
