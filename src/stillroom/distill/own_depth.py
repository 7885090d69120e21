"""An encoder's own depth of a scene in the metres of the scene's poses.

Its lengths have a unit of their own: the public VGGT's is free, ours learnt metres in made rooms.
Carried into another view by given poses, depth of another unit would land anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stillroom.distill.targets import measured_depth
from stillroom.geometry.poses import is_rigid
from stillroom.records import BadInputError, Scene
from stillroom.students.connector import VisionFeatures, pool_features
from stillroom.students.encoders.vggt_camera import decode_pose, invert_w2c
from stillroom.students.encoders.vggt_config import Head, VGGTConfig
from stillroom.students.encoders.vggt_load import encoder_config, load_vggt

if TYPE_CHECKING:
    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor

_DEPTH: tuple[Head, ...] = ("depth",)
#: Share of the pixels that must be measured for the scale to be taken from them.
LEAST_MEASURED = 0.01
#: Cameras nearer to each other than this say nothing of a scale [m].
LEAST_APART_M = 0.05


class ScaledDepth:
    """The depth of a scene's pictures by the student's encoder, in the metres of its poses.

    One scale a scene: the median of measured over own depth, where at least ``LEAST_MEASURED`` of
    the pixels are measured; else the median of given over own distances between cameras, by the
    camera head of the checkpoint ``encoder``. Where neither is to be had the depth is 0, unknown.
    """

    def __init__(
        self, student: StillroomStudent, processor: StillroomProcessor, encoder: Path | str
    ) -> None:
        self.student, self.processor, self.encoder = student, processor, encoder
        # By scene: own depth and, where there is a camera head, pose codes.
        self._seen: dict[str, tuple[np.ndarray, Tensor | None]] = {}

    @torch.no_grad()
    def see(self, scene_ids: Sequence[str], photos: Float[Tensor, "b v 3 s s"]) -> VisionFeatures:
        """What the student's ``features`` would say of the photos of scenes.

        All that their depth here needs of the same pass is kept until it is asked for, or until
        ``forget``.

        Raises:
            BadInputError: the encoder has no depth head.
        """
        config, sizes = self.student.config, self.student.config.encoder_sizes
        if not (isinstance(sizes, VGGTConfig) and sizes.depth_head):
            raise BadInputError(
                "losses.pairs_from own needs an encoder with a depth head; take measured"
            )
        head, last = self._camera_head, sizes.rounds - 1
        rounds = {config.round_read} if head is None else {config.round_read, last}
        out = self.student.encoder.encode(photos, rounds, heads=_DEPTH, tokens="all")
        assert out.depth is not None
        codes = None if head is None else head(out.tokens[last][:, :, 0])[-1].double().cpu()
        for place, scene_id in enumerate(scene_ids):
            depth = out.depth[place].float().cpu().numpy()
            self._seen[scene_id] = (depth, None if codes is None else codes[place])
        return pool_features(
            out.tokens[config.round_read][:, :, sizes.special_tokens :],
            out.depth,
            rows=photos.shape[-2] // sizes.patch_size,
            grid=config.vision_grid,
        )

    def forget(self) -> None:
        """Let go of what was seen and not asked for."""
        self._seen.clear()

    def __call__(self, scene: Scene) -> Float32[np.ndarray, "v s s"]:
        """Depth [m], 0 everywhere if its scale is not known.

        Raises:
            BadInputError: the encoder has no depth head.
        """
        if scene.scene_id not in self._seen:
            photos = torch.from_numpy(self.processor.images([view.rgb for view in scene.views]))
            self.see([scene.scene_id], photos[None].to(self.student.device))
        own, code = self._seen.pop(scene.scene_id)
        scale = scale_by_depth(own, measured_depth(scene, self.processor))
        if scale is None and code is not None:
            scale = self._scale_by_cameras(scene, code, (own.shape[-2], own.shape[-1]))
        return own * np.float32(0.0 if scale is None else scale)

    def _scale_by_cameras(
        self, scene: Scene, code: Float[Tensor, "v 9"], size: tuple[int, int]
    ) -> float | None:
        w2c, _ = decode_pose(code, size)
        own = invert_w2c(w2c)[:, :3, 3].numpy()
        poses = [scene.views[number].c2w for number in self.processor.chosen(len(scene.views))]
        known = [i for i, pose in enumerate(poses) if pose is not None and is_rigid(pose)]
        given = np.array([poses[i][:3, 3] for i in known]).reshape(-1, 3)  # type: ignore[index]
        return scale_by_distances(own[known], given)

    @cached_property
    def _camera_head(self) -> nn.Module | None:
        """The checkpoint's camera head, which reads the tokens of the student's own encoder; None
        if it has none."""
        if not encoder_config(self.encoder).camera_head:
            return None
        found = load_vggt(self.encoder, heads=("camera_head",))
        return found.camera_head.to(self.student.device)


def scale_by_depth(
    own: Float[np.ndarray, "v h w"], measured: Float[np.ndarray, "v h w"]
) -> float | None:
    """Metres per unit of ``own``, by the median; None where too little is measured."""
    both = (own > 0) & (measured > 0)
    if both.mean() < LEAST_MEASURED:
        return None
    return float(np.median(measured[both].astype(np.float64) / own[both]))


def scale_by_distances(
    own: Float[np.ndarray, "n 3"], given: Float[np.ndarray, "n 3"]
) -> float | None:
    """Metres per unit of ``own`` by the distances between cameras, of which ``given`` are in
    metres; None where all stand in one place."""
    first, second = np.triu_indices(len(given), k=1)
    true, mine = (np.linalg.norm(where[first] - where[second], axis=-1) for where in (given, own))
    told = (true >= LEAST_APART_M) & (mine > 0)
    return float(np.median(true[told] / mine[told])) if told.any() else None
