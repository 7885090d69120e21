"""Real captures pass the check; a copy with one convention mixed up is told which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from stillroom.geometry.cameras import pixel_centers, rays
from stillroom.geometry.poses import OPENGL_TO_OPENCV, invert
from stillroom.records import Scene, View
from stillroom.scenes.check_capture import (
    APART,
    INVERTED,
    INVERTED_OPENGL,
    OPENGL,
    RAY,
    RESOLUTION,
    TRANSPOSED,
    UNKNOWN,
    check_views,
)
from stillroom.scenes.importers import import_capture

CAPTURES = Path(__file__).parents[1] / "fixtures" / "captures"


@pytest.fixture(scope="module", params=["tum_fr3_cabinet", "tum_fr1_rpy"])
def capture(request: pytest.FixtureRequest) -> Scene:
    """One capture goes round its object, the other mostly turns on the spot."""
    scene = import_capture(CAPTURES / request.param).scene
    # Half of the cabinet's views are as telling as all of them.
    return replace(scene, views=scene.views[4:] if len(scene.views) > 4 else scene.views)


def spoilt(scene: Scene, how: Callable[[View], View]) -> Scene:
    return replace(scene, views=tuple(how(view) for view in scene.views))


def posed(
    change: Callable[[Float[np.ndarray, "4 4"]], Float[np.ndarray, "4 4"]],
) -> Callable[[View], View]:
    def how(view: View) -> View:
        assert view.c2w is not None
        return replace(view, c2w=change(view.c2w))

    return how


def _rotation_transposed(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    pose = pose.copy()
    pose[:3, :3] = pose[:3, :3].T
    return pose


def _in_millimetres(pose: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    return pose * np.array([1.0, 1.0, 1.0, 1000.0]) + np.diag([0.0, 0.0, 0.0, -999.0])


def depth_times(factor: float) -> Callable[[View], View]:
    def how(view: View) -> View:
        assert view.depth is not None
        return replace(view, depth=(view.depth * factor).astype(np.float32))

    return how


def intrinsics_times(x: float, y: float, centre: float) -> Callable[[View], View]:
    def how(view: View) -> View:
        assert view.intrinsics is not None
        scale = np.array([[x, 1.0, centre], [1.0, y, centre], [1.0, 1.0, 1.0]])
        return replace(view, intrinsics=view.intrinsics * scale)

    return how


def _distance_along_ray(view: View) -> View:
    assert view.depth is not None
    assert view.intrinsics is not None
    length = np.linalg.norm(rays(pixel_centers(*view.depth.shape), view.intrinsics), axis=-1)
    return replace(view, depth=(view.depth * length).astype(np.float32))


def world_turned(rows: list[list[float]]) -> Callable[[View], View]:
    turn = np.eye(4)
    turn[:3, :3] = rows
    return posed(lambda pose: turn @ pose)


FAULTS = {
    "inverted": (posed(invert), INVERTED),
    "opengl": (posed(lambda pose: pose @ OPENGL_TO_OPENCV), OPENGL),
    "inverted opengl": (posed(lambda pose: invert(pose @ OPENGL_TO_OPENCV)), INVERTED_OPENGL),
    "transposed": (posed(_rotation_transposed), TRANSPOSED),
    "poses in mm": (posed(_in_millimetres), "the poses' shifts look 1000 times too large"),
    "5000 read as 1000": (depth_times(5.0), "depth looks 5 times too large"),
    "1000 read as 5000": (depth_times(0.2), "depth looks 5 times too small"),
    "mm read as m": (depth_times(1000.0), "depth looks 1000 times too large"),
    "m read as mm": (depth_times(0.001), "depth looks 1000 times too small"),
    "along the ray": (_distance_along_ray, RAY),
    "intrinsics of 1296x968": (intrinsics_times(2.025, 2.017, 2.02), RESOLUTION),
    "intrinsics of 320x240": (intrinsics_times(0.5, 0.5, 0.5), RESOLUTION),
    "focal length": (
        intrinsics_times(1.5, 1.5, 1.0),
        "focal lengths look about 1.5 times too long",
    ),
    "y up": (world_turned([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), "the world looks y up"),
    "y down": (world_turned([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), "the world looks -y up"),
    "upside down": (world_turned([[1, 0, 0], [0, -1, 0], [0, 0, -1]]), "the world looks -z up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_copy_with_one_convention_mixed_up_is_told_which(capture: Scene, fault: str) -> None:
    how, said = FAULTS[fault]
    report = check_views(spoilt(capture, how))
    assert not report.ok
    assert len(report.faults) == 1
    assert report.faults[0].startswith(said)
    assert report.faults[0] in report.lines


@pytest.mark.parametrize(
    ("name", "layout"),
    [("tum_fr3_cabinet", "scannet"), ("tum_fr3_cabinet", "transforms"), ("tum_fr1_rpy", "tum")],
)
def test_every_real_capture_is_accepted_in_every_layout(name: str, layout: str) -> None:
    scene = import_capture(CAPTURES / name, layout=layout).scene  # type: ignore[arg-type]
    report = check_views(scene)
    assert report.ok
    assert report.faults == ()
    assert report.lines[-1] == "poses, intrinsics and depth scale agree"
    assert report.pairs >= 12
    assert report.median_abs_dz is not None
    assert report.median_abs_dz < 0.03


def test_the_sentence_on_inverted_poses_is_the_one_promised(capture: Scene) -> None:
    report = check_views(spoilt(capture, posed(invert)))
    assert report.faults == (
        "poses look inverted (world to camera where camera to world is expected)",
    )


def test_the_sentence_on_another_size_names_both(capture: Scene) -> None:
    (fault,) = check_views(spoilt(capture, intrinsics_times(0.5, 0.5, 0.5))).faults
    assert "fits about 3" in fault
    assert fault.endswith("the pictures have 640x480")


def test_poses_of_other_frames_agree_with_nothing_and_no_convention_is_blamed(
    capture: Scene,
) -> None:
    rng = np.random.default_rng(0)
    order = np.roll(np.arange(len(capture.views)), 1)
    shuffled = [capture.views[index].c2w for index in order]
    views = []
    for view, pose in zip(capture.views, shuffled, strict=True):
        assert pose is not None
        moved = pose.copy()
        moved[:3, 3] += rng.normal(0, 0.3, 3)
        views.append(replace(view, c2w=moved))
    report = check_views(replace(capture, views=tuple(views)))
    assert not report.ok
    assert report.faults[0] in (UNKNOWN, APART)


def test_a_common_unit_of_depth_and_poses_shows_in_the_size_of_the_room(capture: Scene) -> None:
    report = check_views(spoilt(spoilt(capture, depth_times(1000.0)), posed(_in_millimetres)))
    assert not report.ok
    assert "a room's lies between 0.2 and 10 m" in report.faults[0]


def test_two_photos_straight_down_at_a_table_are_not_called_a_tilted_world() -> None:
    scene = import_capture(CAPTURES / "tum_fr1_rpy").scene
    # The last two are taken with the camera turned by about 90 degrees.
    assert check_views(replace(scene, views=scene.views[2:])).ok
    assert check_views(replace(scene, views=scene.views[3:])).ok


def test_a_pose_that_is_no_rotation_is_named(capture: Scene) -> None:
    report = check_views(spoilt(capture, posed(lambda pose: pose * 2.0)))
    assert not report.ok
    assert capture.views[0].name in report.faults[0]


def test_without_depth_or_with_one_view_nothing_is_compared_and_that_is_said(
    capture: Scene,
) -> None:
    plain = spoilt(capture, lambda view: View(name=view.name, rgb=view.rgb))
    report = check_views(plain)
    assert report.ok
    assert report.pairs == 0
    assert "nothing to compare" in report.lines[0]
    blind = check_views(spoilt(capture, depth_times(0.0)))
    assert blind.ok
    assert "nothing to compare" in blind.lines[0]
    single = check_views(replace(capture, views=capture.views[:1]))
    assert single.ok
    assert "a single posed view" in single.lines[-1]


def test_a_long_capture_is_compared_in_stretches(capture: Scene) -> None:
    views = capture.views * 10
    report = check_views(replace(capture, views=views))
    assert report.ok
    assert f"{len(views)} views, 16 compared" in report.lines[0]
