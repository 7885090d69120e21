"""Pictures: exact depth and ids, light and shadow, and agreement of the two ray casters."""

from __future__ import annotations

import numpy as np
import pytest

from stillroom.geometry.cameras import pinhole_from_fov, unproject
from stillroom.geometry.poses import look_at, rotation_z, transform
from stillroom.scenes import paints
from stillroom.scenes.casting import EmbreeCaster, MujocoCaster, caster
from stillroom.scenes.paints import Paint
from stillroom.scenes.render import Light, Stage, render
from stillroom.scenes.solids import BOX, CYLINDER, SPHERE, Solids

SIDE = 64
LOOK = pinhole_from_fov(np.radians(60.0), SIDE, SIDE)
LAMP = Light(position=(0.4, -0.5, 3.0), colour=(1.0, 1.0, 1.0))
POSE = look_at(np.array([0.3, -3.0, 1.5]), np.array([0.0, 0.0, 0.4]))


def stage(lights: tuple[Light, ...] = (LAMP,), texture: int = paints.FLAT) -> Stage:
    """A floor, a turned box (1), a cylinder (2) and a ball (3)."""
    solids = Solids(
        kind=np.array([BOX, BOX, CYLINDER, SPHERE]),
        center=np.array([[0, 0, -0.05], [-0.7, 0, 0.3], [0.1, 0.2, 0.4], [0.8, -0.2, 0.35]]),
        size=np.array([[20, 20, 0.1], [0.5, 0.4, 0.6], [0.5, 0.5, 0.8], [0.7, 0.7, 0.7]]),
        rotation=np.stack([np.eye(3), rotation_z(0.6), rotation_z(0.2), np.eye(3)]),
    )
    floor = Paint(colour=(0.5, 0.5, 0.5))
    rest = Paint(colour=(0.7, 0.1, 0.1), second=(0.9, 0.9, 0.9), texture=texture, period=0.12)
    return Stage(
        solids=solids,
        paints=paints.stack([floor, rest, rest, rest]),
        owner=np.array([0, 1, 2, 3]),
        lights=lights,
    )


def test_every_depth_lies_on_the_surface_of_what_the_pixel_shows() -> None:
    pictures = render(stage(), [POSE], LOOK, SIDE, SIDE)
    points = transform(POSE, unproject(pictures.depth[0].astype(np.float64), LOOK))
    ids = pictures.ids[0]
    assert set(np.unique(ids)) == {0, 1, 2, 3}
    ball = points[ids == 3] - [0.8, -0.2, 0.35]
    np.testing.assert_allclose(np.linalg.norm(ball, axis=1), 0.35, atol=2e-3)
    floor = points[(ids == 0) & (pictures.depth[0] > 0)]
    np.testing.assert_allclose(floor[:, 2], 0.0, atol=1e-4)
    tube = points[ids == 2] - [0.1, 0.2, 0.4]
    side = np.hypot(tube[:, 0], tube[:, 1])
    on_side, on_top = np.abs(side - 0.25) < 2e-3, np.abs(tube[:, 2] - 0.4) < 1e-4
    assert (on_side | on_top).all()
    assert on_side.any()
    assert on_top.any()
    box = np.abs((points[ids == 1] - [-0.7, 0, 0.3]) @ rotation_z(0.6)) / [0.25, 0.2, 0.3]
    np.testing.assert_allclose(box.max(axis=1), 1.0, atol=1e-4)


def test_a_ray_that_hits_nothing_has_no_depth_no_object_and_no_light() -> None:
    up = look_at(np.array([0.0, -3.0, 1.0]), np.array([0.0, 0.0, 4.0]))
    pictures = render(stage(), [up], LOOK, SIDE, SIDE)
    assert pictures.depth[0, 0, 0] == 0
    assert pictures.ids[0, 0, 0] == 0
    assert (pictures.rgb[0, 0, 0] == 0).all()


def test_pixel_centres_are_at_half() -> None:
    # Straight ahead lies between the two middle pixels, so depth mirrors about the middle.
    ahead = look_at(np.array([0.0, -3.0, 0.4]), np.array([0.0, 0.0, 0.4]))
    floor = render(stage(), [ahead], LOOK, SIDE, SIDE).depth[0, -1]
    np.testing.assert_allclose(floor, floor[::-1], rtol=1e-5)
    expected = 0.4 * LOOK[1, 1] / (SIDE - 0.5 - LOOK[1, 2])
    assert floor[0] == pytest.approx(expected, rel=1e-4)


def test_a_shadow_falls_away_from_the_lamp() -> None:
    lit = render(stage(), [POSE], LOOK, SIDE, SIDE).rgb[0].astype(int)
    alone = stage()
    floor_only = Stage(
        solids=Solids(
            kind=alone.solids.kind[:1],
            center=alone.solids.center[:1],
            size=alone.solids.size[:1],
            rotation=alone.solids.rotation[:1],
        ),
        paints=paints.stack([Paint(colour=(0.5, 0.5, 0.5))]),
        owner=np.array([0]),
        lights=(LAMP,),
    )
    empty = render(floor_only, [POSE], LOOK, SIDE, SIDE).rgb[0].astype(int)
    floor = render(stage(), [POSE], LOOK, SIDE, SIDE).ids[0] == 0
    darker = (empty - lit).max(axis=2) > 15
    assert (darker & floor).sum() > 30
    assert not (lit[floor] > empty[floor]).any()


def test_without_lamps_there_is_still_light() -> None:
    rgb = render(stage(lights=()), [POSE], LOOK, SIDE, SIDE).rgb
    assert rgb[render(stage(), [POSE], LOOK, SIDE, SIDE).depth > 0].min() > 0


def test_antialiasing_changes_colours_at_edges_and_neither_depth_nor_ids() -> None:
    plain = render(stage(), [POSE], LOOK, SIDE, SIDE)
    smooth = render(stage(), [POSE], LOOK, SIDE, SIDE, antialias=3)
    np.testing.assert_array_equal(plain.depth, smooth.depth)
    np.testing.assert_array_equal(plain.ids, smooth.ids)
    changed = (plain.rgb != smooth.rgb).any(axis=3)[0]
    assert 0.01 < changed.mean() < 0.4


@pytest.mark.parametrize("texture", range(len(paints.TEXTURES)))
def test_every_texture_shows_two_tones_at_most_as_bright_as_its_paints(texture: int) -> None:
    pictures = render(stage(texture=texture), [POSE], LOOK, SIDE, SIDE)
    shown = pictures.rgb[0][pictures.ids[0] > 0]
    assert len(np.unique(shown, axis=0)) > 5
    if texture == paints.STRIPES:
        greenest, least = shown[:, 1].max(), shown[:, 1].min()
        assert int(greenest) - int(least) > 60


def test_mujoco_and_embree_see_the_same() -> None:
    scene = stage()
    poses = [POSE, look_at(np.array([-2.0, 2.0, 1.2]), np.array([0.0, 0.0, 0.3]))]
    fast = render(scene, poses, LOOK, SIDE, SIDE, cast=EmbreeCaster(scene.solids))
    slow = render(scene, poses, LOOK, SIDE, SIDE, cast=MujocoCaster(scene.solids))
    same = fast.ids == slow.ids
    assert same.mean() > 0.995
    np.testing.assert_allclose(fast.depth[same], slow.depth[same], atol=3e-3)
    difference = np.abs(fast.rgb.astype(int) - slow.rgb.astype(int)).max(axis=3)
    assert (difference > 8).mean() < 0.02


def test_where_embree_is_missing_mujoco_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    assert isinstance(caster(stage().solids), MujocoCaster)


def test_the_same_stage_gives_the_same_bytes() -> None:
    one = render(stage(), [POSE], LOOK, SIDE, SIDE, antialias=2)
    two = render(stage(), [POSE], LOOK, SIDE, SIDE, antialias=2)
    assert one.rgb.tobytes() == two.rgb.tobytes()
    assert one.depth.tobytes() == two.depth.tobytes()
