"""Depth, cameras and intrinsics of plain photos, as a VGGT sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image

from stillroom.geometry.cameras import pixel_centers
from stillroom.records import BadInputError, View
from stillroom.students.encoders.preprocess import TARGET, prepare
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_camera import decode_pose, invert_w2c
from stillroom.students.encoders.vggt_load import load_vggt, made_by_us

#: Neighbours whose depths differ by more than this lie on different things.
SAME_SURFACE = 1.1


class VGGTEstimator:
    """Fills in what photos lack: ``views`` to the same views with depth, intrinsics and poses.

    Poses are in the first camera's frame (OpenCV axes). Lengths are metres where ``metric`` (our
    own encoders), else in the unit of the weights. The public VGGT looks at whole photos, ours at
    their middle square, which is what it was trained on; outside of it there is no depth.
    """

    def __init__(self, encoder: VGGT, *, metric: bool) -> None:
        config = encoder.config
        if not (config.camera_head and config.depth_head):
            raise BadInputError(
                "an encoder without camera and depth heads cannot tell geometry; use encoder_mini "
                "or a VGGT with its heads"
            )
        self.encoder, self.metric = encoder, metric

    @classmethod
    def from_folder(cls, where: Path | str) -> VGGTEstimator:
        """An encoder's folder or hub id; ours are known by their ``config.json``.

        Raises:
            BadInputError: no VGGT there, or one without the heads.
        """
        return cls(load_vggt(where), metric=made_by_us(where))

    def __call__(self, views: Sequence[View]) -> list[View]:
        """The views with the encoder's depth, intrinsics and poses in place of their own.

        Raises:
            BadInputError: there is no view.
        """
        config = self.encoder.config
        pictures = [Image.fromarray(view.rgb) for view in views]
        if config.image_size == TARGET:
            cuts = [(0, 0, *picture.size) for picture in pictures]
        else:
            cuts = [_middle_square(*picture.size) for picture in pictures]
        images = prepare(
            [picture.crop(cut) for picture, cut in zip(pictures, cuts, strict=True)],
            target=config.image_size,
            multiple=config.patch_size,
        )
        with torch.no_grad():
            out = self.encoder.encode(torch.from_numpy(images)[None], (), heads=("camera", "depth"))
        assert out.pose_enc is not None
        assert out.depth is not None
        height, width = images.shape[-2:]
        w2c, intrinsics = decode_pose(out.pose_enc[0].double(), (height, width))
        found = zip(out.depth[0].float().numpy(), intrinsics.numpy(), strict=True)
        poses = invert_w2c(w2c).numpy()
        return [
            _filled(view, depth, k, pose, _placed(cut, config.patch_size, (height, width)))
            for view, cut, pose, (depth, k) in zip(views, cuts, poses, found, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a photo lies in the encoder's image: ``photo = start + scale * (image - offset)``."""

    start: Float[np.ndarray, "2"]
    scale: Float[np.ndarray, "2"]
    offset: Float[np.ndarray, "2"]


def _middle_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _placed(cut: tuple[int, int, int, int], multiple: int, image_hw: tuple[int, int]) -> Placement:
    """What ``prepare`` did to a cut: width to the target, height to a multiple, then cut or pad."""
    height, target = image_hw
    left, top, right, bottom = cut
    resized = max(round((bottom - top) * target / (right - left) / multiple), 1) * multiple
    shown = min(resized, target)
    # Rows lost above count as negative, white rows above as positive.
    above = (height - shown) // 2 - max(resized - target, 0) // 2
    return Placement(
        start=np.array([left, top], dtype=np.float64),
        scale=np.array([(right - left) / target, (bottom - top) / resized]),
        offset=np.array([0.0, above]),
    )


def _filled(
    view: View,
    depth: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
    c2w: Float[np.ndarray, "4 4"],
    place: Placement,
) -> View:
    """A view with what the encoder says of it, in the photo's own pixels."""
    k = intrinsics.copy()
    k[[0, 1], [0, 1]] *= place.scale
    k[:2, 2] = place.start + place.scale * (intrinsics[:2, 2] - place.offset)
    centres = pixel_centers(*view.rgb.shape[:2])
    where = place.offset + (centres - place.start) / place.scale
    return replace(view, depth=sampled(depth, where), intrinsics=k, c2w=c2w)


def sampled(
    depth: Float[np.ndarray, "h w"], where: Float[np.ndarray, "*n 2"]
) -> Float32[np.ndarray, "*n"]:
    """A depth map at places (x, y) between its pixels' centres (+0.5); 0 outside of it.

    Linear on a surface; where neighbours differ by more than ``SAME_SURFACE`` the nearest is
    taken, since a mean over an edge is a depth that nothing has.
    """
    height, width = depth.shape
    inside = ((where >= 0) & (where < [width, height])).all(axis=-1)
    x, y = np.moveaxis(np.clip(where - 0.5, 0, [width - 1, height - 1]), -1, 0)
    left, top = x.astype(int), y.astype(int)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    corners = np.stack(
        [depth[top, left], depth[top, right], depth[below, left], depth[below, right]]
    )
    u, v = x - left, y - top
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    nearest = np.take_along_axis(corners, weights.argmax(axis=0)[None], axis=0)[0]
    smooth = corners.max(axis=0) <= SAME_SURFACE * corners.min(axis=0)
    mixed = np.where(smooth, (weights * corners).sum(axis=0), nearest)
    return np.where(inside, mixed, 0.0).astype(np.float32)
