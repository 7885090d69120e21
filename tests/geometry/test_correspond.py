"""Corresponding cells: worked by hand on two cameras before a wall, then on a made room."""

from __future__ import annotations

import numpy as np
import pytest

from stillroom.geometry.cameras import pinhole
from stillroom.geometry.correspond import (
    carried_depth,
    cell_means,
    cell_points,
    correspond,
    paired,
)
from stillroom.geometry.poses import rotation_z, transform, yaw_of
from stillroom.scenes.rooms import make_room
from stillroom.students.processor import StillroomProcessor

#: 8 x 8 pixels in 4 x 4 cells of 2 x 2; at 2 m a cell is 1 m wide.
INTRINSICS = pinhole(4.0, 4.0, 4.0, 4.0)
GRID = 4


def wall(*depths: float) -> np.ndarray:
    return np.stack([np.full((8, 8), depth) for depth in depths])


def cameras(*right: float) -> np.ndarray:
    """Cameras side by side, so many metres to the right, looking along z."""
    poses = np.tile(np.eye(4), (len(right), 1, 1))
    poses[:, 0, 3] = right
    return poses


def matches(depth: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    return correspond(depth, np.stack([INTRINSICS] * len(depth)), c2w, grid=GRID)


def test_one_metre_to_the_right_moves_a_wall_at_two_metres_by_a_cell_to_the_left() -> None:
    found = matches(wall(2.0, 2.0), cameras(0.0, 1.0))
    # Columns 1, 2, 3 of the first view are columns 0, 1, 2 of the second; column 0 left the photo.
    row = [-1, 0, 1, 2]
    assert found[0, 1].tolist() == [-1 if c < 0 else 4 * r + c for r in range(4) for c in row]
    back = [1, 2, 3, -1]
    assert found[1, 0].tolist() == [-1 if c < 0 else 4 * r + c for r in range(4) for c in back]
    assert (found[0, 0] == -1).all()
    assert (found[1, 1] == -1).all()


def test_the_same_camera_twice_sees_every_cell_again() -> None:
    found = matches(wall(2.0, 2.0), cameras(0.0, 0.0))
    assert found[0, 1].tolist() == list(range(16))


def test_what_something_nearer_hides_does_not_correspond() -> None:
    depth = wall(2.0, 2.0)
    depth[1, :4] = 1.0  # a board before the upper half of the wall, in the second photo only
    found = matches(depth, cameras(0.0, 0.0))
    assert (found[0, 1][:8] == -1).all()
    assert found[0, 1][8:].tolist() == list(range(8, 16))


@pytest.mark.parametrize(("gap", "same"), [(0.049, True), (0.051, False)])
def test_depth_agrees_within_five_centimetres(gap: float, same: bool) -> None:
    found = matches(wall(1.0, 1.0 + gap), cameras(0.0, 0.0))
    assert (found[0, 1] >= 0).all() == same
    assert (found[0, 1] == -1).all() != same


def test_far_away_depth_agrees_within_three_percent() -> None:
    assert (matches(wall(10.0, 10.28), cameras(0.0, 0.0))[0, 1] >= 0).all()
    assert (matches(wall(10.0, 10.32), cameras(0.0, 0.0))[0, 1] == -1).all()


def test_a_cell_that_mixes_near_and_far_corresponds_to_nothing() -> None:
    depth = wall(2.0, 2.0)
    depth[:, 0, :2] = 8.0  # two of the four pixels of the first cell; its middle is still the wall
    found = matches(depth, cameras(0.0, 0.0))
    assert found[0, 1].tolist() == [-1, *range(1, 16)]


def test_nothing_lands_behind_a_camera() -> None:
    poses = cameras(0.0, 0.0)
    poses[1, 2, 3] = 3.0  # beyond the wall, looking away from it
    assert (matches(wall(2.0, 1.0), poses) == -1).all()


def test_unmeasured_depth_and_single_views_correspond_to_nothing() -> None:
    assert (matches(wall(0.0, 0.0), cameras(0.0, 0.0)) == -1).all()
    assert (matches(wall(2.0, 0.0), cameras(0.0, 0.0)) == -1).all()
    assert (matches(wall(2.0), cameras(0.0)) == -1).all()


def test_carried_depth_is_that_of_the_moved_point() -> None:
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4), (3, 1, 1))
    c2w[1, :3, :3] = rotation_z(0.3)
    c2w[2, :3, :3] = rotation_z(-0.2)[[2, 0, 1]][:, [2, 0, 1]]
    c2w[:, :3, 3] = rng.normal(size=(3, 3))
    intrinsics = np.stack([INTRINSICS, pinhole(5.0, 6.0, 3.5, 4.5), INTRINSICS])
    carry = carried_depth(intrinsics, c2w, grid=GRID, height=8, width=8)
    depth = rng.uniform(1, 5, size=(3, 8, 8))
    points = cell_points(depth, intrinsics, grid=GRID)
    for i in range(3):
        for j in range(3):
            moved = transform(np.linalg.inv(c2w[j]) @ c2w[i], points[i])
            expected = carry[i, j, :, 0] * points[i, :, 2] + carry[i, j, :, 1]
            np.testing.assert_allclose(moved[:, 2], expected, atol=1e-9)


def test_the_mean_of_a_cell_needs_half_of_its_pixels() -> None:
    depth = np.zeros((1, 4, 4))
    depth[0, 0, :2] = 3.0  # half of the first cell
    depth[0, 0, 2] = 5.0  # a quarter of the second
    assert cell_means(depth, 2)[0].tolist() == [3.0, 0.0, 0.0, 0.0]


def test_cells_of_a_photo_that_does_not_divide_evenly_share_all_pixels() -> None:
    depth = np.arange(1.0, 26.0).reshape(1, 5, 5)
    means = cell_means(depth, 2)[0]
    # Rows and columns 0, 1, 2 | 3, 4.
    blocks = [depth[0, :3, :3], depth[0, :3, 3:], depth[0, 3:, :3], depth[0, 3:, 3:]]
    np.testing.assert_allclose(means, [block.mean() for block in blocks])


def test_a_cell_is_paired_if_its_point_or_a_partners_point_is_seen() -> None:
    partner = np.full((2, 2, 4), -1, dtype=np.int16)
    partner[0, 1, 2] = 3
    assert paired(partner).tolist() == [[False, False, True, False], [False, False, False, True]]
    assert paired(np.stack([partner, np.full_like(partner, -1)])).any(axis=(1, 2)).tolist() == [
        True,
        False,
    ]


def test_yaw_is_what_turned_the_box() -> None:
    for yaw in (-3.0, -0.5, 0.0, 1.2, 3.1):
        assert yaw_of(rotation_z(yaw)) == pytest.approx(yaw)


def test_in_a_made_room_corresponding_cells_show_the_same_place() -> None:
    room = make_room(5, 0)
    processor = StillroomProcessor(image_size=112, max_views=8)
    depth = processor.depth([view.depth for view in room.views])
    intrinsics = np.stack([view.intrinsics for view in room.views])
    c2w = np.stack([view.c2w for view in room.views])
    found = correspond(depth, intrinsics, c2w, grid=8)
    points = cell_points(depth, intrinsics, grid=8)
    world = np.stack([transform(pose, own) for pose, own in zip(c2w, points, strict=True)])
    i, j, p = np.nonzero(found >= 0)
    assert len(i) > 100  # of 6 x 5 x 64
    apart = np.linalg.norm(world[i, p] - world[j, found[i, j, p]], axis=-1)
    # Points of one cell: never farther apart than a cell and its slope, mostly much nearer.
    assert np.median(apart) < 0.25
    assert np.quantile(apart, 0.99) < 1.0
    # What carries depth over lands on what is measured there.
    carry = carried_depth(intrinsics, c2w, grid=8, height=112, width=112)[i, j, p]
    landed = carry[:, 0] * points[i, p, 2] + carry[:, 1]
    there = cell_means(depth, 8)[j, found[i, j, p]]
    assert (np.abs(landed - there) <= 0.1 * landed + 1e-6).all()
