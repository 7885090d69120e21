"""Pairs of cells from the student's own depth, whatever its unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import ALL, TINY, run

from stillroom.distill import own_depth
from stillroom.distill.build import build_student
from stillroom.distill.config import (
    LossConfig,
)
from stillroom.distill.own_depth import ScaledDepth, scale_by_depth, scale_by_distances
from stillroom.distill.run import distill
from stillroom.distill.targets import (
    posed_depth,
)
from stillroom.geometry.correspond import correspond
from stillroom.records import Scene
from stillroom.scenes.rooms import make_room
from stillroom.scenes.store import open_store
from stillroom.students.config import StillroomConfig
from stillroom.students.encoders.vggt import VGGT, Aggregator, VGGTOutput
from stillroom.students.encoders.vggt_camera import decode_pose, encode_pose, invert_w2c
from stillroom.students.encoders.vggt_load import load_vggt, save_vggt
from stillroom.students.processor import StillroomProcessor
from stillroom.testing import tiny_encoder_config, tiny_scene


@pytest.mark.usefixtures("taught")
def test_own_depth_brings_cells_together_where_asked(world: Path, tmp_path: Path) -> None:
    own = replace(ALL, losses=LossConfig(multi_view=True, pairs_from="own"))
    measured = replace(ALL, losses=LossConfig(multi_view=True))
    for name, config in (("own", own), ("measured", measured)):
        run(world, tmp_path / name, replace(config, train=replace(TINY.train, steps=1)))
    found = [
        next((tmp_path / name / "features").glob("targets-*/*/partner.bin")).read_bytes()
        for name in ("own", "measured")
    ]
    assert found[0] != found[1]


@pytest.mark.usefixtures("taught")
def test_own_depth_and_features_take_one_pass_of_the_encoder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run_it = Aggregator.forward

    def spied(self: Aggregator, images: torch.Tensor, rounds: Any) -> Any:
        seen.append(len(images))
        return run_it(self, images, rounds)

    monkeypatch.setattr(Aggregator, "forward", spied)
    config = replace(tiny_encoder_config(), camera_head=True)
    save_vggt(VGGT(config, seed=0), tmp_path / "encoder")
    asked = replace(TINY, losses=LossConfig(multi_view=True, pairs_from="own"), scenes_per_pass=3)
    # Measured depth is gone, so that the scale comes from the cameras of the same pass.
    monkeypatch.setattr(own_depth, "measured_depth", lambda *_: np.zeros((2, 28, 28), np.float32))
    distill(
        asked,
        scenes=world / "scenes",
        labels=world / "labels",
        out=tmp_path / "run",
        encoder=tmp_path / "encoder",
    )
    assert sum(seen) == len(open_store(world / "scenes").scene_ids())
    # What it says of photos is what the student says of them.
    student, processor = build_student(asked, tmp_path / "encoder")
    photos = torch.rand(2, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    own = ScaledDepth(student, processor, tmp_path / "encoder").see(["a", "b"], photos)
    plain = student.features(photos)
    torch.testing.assert_close(own.tokens, plain.tokens)
    torch.testing.assert_close(own.depth, plain.depth)


class OtherUnit:
    """A student whose encoder tells the depth of a room in a unit of its own."""

    device = torch.device("cpu")
    config = StillroomConfig(
        encoder=replace(tiny_encoder_config(), patch_size=28).to_dict(),
        image_size=112,
        vision_grid=2,
    )

    def __init__(self, depth: np.ndarray, unit_m: float) -> None:
        self.depth = torch.from_numpy(depth / np.float32(unit_m))[None]
        self.encoder = self

    def encode(self, images: torch.Tensor, rounds: Any, **_: Any) -> VGGTOutput:
        tokens = torch.zeros(*images.shape[:2], self.config.encoder_sizes.special_tokens + 16, 8)
        return VGGTOutput(tokens=dict.fromkeys(rounds, tokens), depth=self.depth)


class OtherUnitCameras:
    """A camera head that knows where the photos were taken, in that unit."""

    def __init__(self, c2w: np.ndarray, intrinsics: np.ndarray, unit_m: float) -> None:
        w2c = np.linalg.inv(np.linalg.inv(c2w[0]) @ c2w)[:, :3]
        w2c[..., 3] /= unit_m
        self.code = encode_pose(torch.from_numpy(w2c), torch.from_numpy(intrinsics), (112, 112))

    def __call__(self, camera_tokens: torch.Tensor) -> list[torch.Tensor]:
        return [self.code[None].float()]


def test_own_depth_of_another_unit_gives_the_pairs_that_measured_depth_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = make_room(5, 1)
    processor = StillroomProcessor(image_size=112, max_views=8)
    depth, intrinsics, c2w = posed_depth(room, processor)
    true = correspond(depth, intrinsics, c2w, grid=8)
    assert (true >= 0).sum() > 100
    encoder: Any = OtherUnit(depth.astype(np.float32), unit_m=7.3)
    # As it comes, it brings together what does not belong together.
    raw = encoder.depth[0].double().numpy()
    assert (correspond(raw, intrinsics, c2w, grid=8) == true).mean() < 0.9

    def pairs(room: Scene, cameras: Any) -> np.ndarray:
        own = ScaledDepth(encoder, processor, "")
        monkeypatch.setattr(ScaledDepth, "_camera_head", cameras)
        return correspond(*posed_depth(room, processor, own), grid=8)

    def same(found: np.ndarray) -> bool:
        return bool((found == true).mean() > 0.999)

    assert same(pairs(room, None))
    bare = replace(room, views=tuple(replace(view, depth=None) for view in room.views))
    assert same(pairs(bare, OtherUnitCameras(c2w, intrinsics, unit_m=7.3)))
    # Without measured depth and without cameras of its own nobody knows the scale: no pair.
    assert (pairs(bare, None) == -1).all()


def test_the_scale_is_the_median_worked_by_hand() -> None:
    own = np.array([[[1.0, 2.0, 4.0, 0.0]]])
    assert scale_by_depth(own, np.array([[[3.0, 6.0, 100.0, 5.0]]])) == 3.0
    assert scale_by_depth(own, np.zeros((1, 1, 4))) is None
    given = np.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])
    assert scale_by_distances(given / 2, given) == 2.0
    assert scale_by_distances(given * 0, given) is None
    assert scale_by_distances(given[:1], given[:1]) is None


def test_an_encoder_with_cameras_tells_the_scale_by_them(tmp_path: Path) -> None:
    config = replace(tiny_encoder_config(), camera_head=True)
    save_vggt(VGGT(config, seed=0), tmp_path / "encoder")
    student, processor = build_student(TINY, tmp_path / "encoder")
    scene = tiny_scene(0)
    bare = replace(scene, views=tuple(replace(view, depth=None) for view in scene.views))
    found = ScaledDepth(student, processor, tmp_path / "encoder")(bare)
    photos = torch.from_numpy(processor.images([view.rgb for view in bare.views]))[None]
    out = load_vggt(tmp_path / "encoder").encode(photos, (), heads=("camera", "depth"))
    # The two cameras of a tiny scene stand 0.3 m apart; the first is where its own world begins.
    w2c, _ = decode_pose(out.pose_enc[0].double(), (28, 28))
    centers = invert_w2c(w2c)[:, :3, 3]
    expected = out.depth[0] * (0.3 / (centers[1] - centers[0]).norm())
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4)
