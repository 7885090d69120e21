"""An encoder's own depth of a scene in the metres of the scene's poses.

Its lengths have a unit of their own: the public VGGT's is free, ours learnt metres in made rooms.
Carried into another view by given poses, depth of another unit would land anywhere.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32

from stillroom.distill.targets import measured_depth
from stillroom.geometry.poses import is_rigid
from stillroom.records import BadInputError, Scene
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_camera import decode_pose, invert_w2c
from stillroom.students.encoders.vggt_load import encoder_config, load_vggt

if TYPE_CHECKING:
    from stillroom.students.encoders.vggt_config import Head
    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor

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

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float32[np.ndarray, "v s s"]:
        """Depth [m], 0 everywhere if its scale is not known.

        Raises:
            BadInputError: the encoder has no depth head.
        """
        photos = torch.from_numpy(self.processor.images([view.rgb for view in scene.views]))
        photos = photos[None].to(self.student.device)
        found = self.student.features(photos).depth_map
        if found is None:
            raise BadInputError(
                "losses.pairs_from own needs an encoder with a depth head; take measured"
            )
        own: np.ndarray = found[0].float().cpu().numpy()
        scale = scale_by_depth(own, measured_depth(scene, self.processor))
        if scale is None:
            scale = self._scale_by_cameras(scene, photos)
        return own * np.float32(0.0 if scale is None else scale)

    def _scale_by_cameras(
        self, scene: Scene, photos: Float[torch.Tensor, "1 v 3 s s"]
    ) -> float | None:
        if self._cameras is None:
            return None
        heads: tuple[Head, ...] = ("camera",)
        code = self._cameras.encode(photos, (), heads=heads).pose_enc
        assert code is not None
        w2c, _ = decode_pose(code[0].double(), (photos.shape[-2], photos.shape[-1]))
        own = invert_w2c(w2c)[:, :3, 3].cpu().numpy()
        poses = [scene.views[number].c2w for number in self.processor.chosen(len(scene.views))]
        known = [i for i, pose in enumerate(poses) if pose is not None and is_rigid(pose)]
        given = np.array([poses[i][:3, 3] for i in known]).reshape(-1, 3)  # type: ignore[index]
        return scale_by_distances(own[known], given)

    @cached_property
    def _cameras(self) -> VGGT | None:
        """The checkpoint's camera head on the student's own encoder; None if it has none."""
        if not encoder_config(self.encoder).camera_head:
            return None
        found = load_vggt(self.encoder, heads=("camera_head",)).to(self.student.device)
        own = self.student.encoder
        # Only a VGGT has a depth head, without which nothing comes here.
        assert isinstance(own, VGGT)
        found.aggregator = own.aggregator
        return found


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
