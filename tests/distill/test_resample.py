"""A teacher's features on the student's grid: by patches, by place, of any grid and width."""

from __future__ import annotations

import numpy as np
import pytest

from stillroom.distill.resample import VOXEL_REACH, by_patches, by_points
from stillroom.records import BadInputError, SceneFeatures


def normal(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / centred.std(axis=-1, keepdims=True)


def features(
    patch_token: list[int] | None, *, views: tuple[int, ...] = (0,), tokens: int = 4, width: int = 6
) -> SceneFeatures:
    return SceneFeatures(
        scene_id="s",
        pooled=np.random.default_rng(0).normal(size=(tokens, width)),
        patch_token=None if patch_token is None else np.array(patch_token),
        views=views,
    )


def test_patches_of_the_same_grid_go_to_their_own_cells() -> None:
    found = features([2, 0, 1, 3])
    cells, known = by_patches(found, [0], grid=2)
    np.testing.assert_allclose(cells[0], normal(found.pooled[[2, 0, 1, 3]]), atol=1e-4)
    assert known.all()


def test_a_finer_grid_is_averaged_by_area() -> None:
    # 3 x 3 patches in 2 x 2 cells: a cell is 1.5 patches wide, so that it has the whole of its
    # corner patch, half of the two beside it and a quarter of the middle one.
    found = features(list(range(9)), tokens=9)
    cells, _ = by_patches(found, [0], grid=2)
    corner = (
        found.pooled[0] + 0.5 * found.pooled[1] + 0.5 * found.pooled[3] + 0.25 * found.pooled[4]
    )
    np.testing.assert_allclose(cells[0, 0], normal(corner), atol=1e-4)


def test_a_coarser_grid_is_repeated() -> None:
    found = features([0, 1, 2, 3])
    cells, known = by_patches(found, [0], grid=4)
    np.testing.assert_allclose(
        cells[0].reshape(4, 4, -1)[2:, :2],
        np.broadcast_to(normal(found.pooled[2]), (2, 2, 6)),
        atol=1e-4,
    )
    assert known.all()


def test_patches_left_out_do_not_count_and_cells_of_mostly_such_are_unknown() -> None:
    # Cells of 2 x 2 patches: the first has one token, the second three, the others none.
    token = np.full((4, 4), -1)
    token[0, 0] = 1
    token[0, 2] = token[0, 3] = 2
    token[1, 2] = 3
    found = features(token.ravel().tolist())
    cells, known = by_patches(found, [0], grid=2)
    assert known.tolist() == [[False, True, False, False]]
    expected = normal((2 * found.pooled[2] + found.pooled[3]) / 3)
    np.testing.assert_allclose(cells[0, 1], expected, atol=1e-4)
    assert (cells[0, 0] == 0).all()


def test_views_are_matched_by_number_and_repeated_ones_are_averaged() -> None:
    # One patch a view: the teacher looked at views 3, 1 and 3 again; the student at 1, 2 and 3.
    found = features([0, 1, 2], views=(3, 1, 3))
    cells, known = by_patches(found, [1, 2, 3], grid=1)
    assert known[:, 0].tolist() == [True, False, True]
    np.testing.assert_allclose(cells[0, 0], normal(found.pooled[1]), atol=1e-4)
    np.testing.assert_allclose(
        cells[2, 0], normal((found.pooled[0] + found.pooled[2]) / 2), atol=1e-4
    )


def test_a_patch_map_that_is_no_square_grid_is_refused() -> None:
    with pytest.raises(BadInputError, match="3 patches, which is no square grid in each of 1"):
        by_patches(features([0, 1, 2]), [0], grid=2)


def test_by_place_a_cell_gets_the_nearest_voxel_within_reach() -> None:
    centers = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = SceneFeatures(
        scene_id="s", pooled=np.random.default_rng(0).normal(size=(2, 5)), points=centers
    )
    points = np.array([[[0.05, 0.1, 0.0], [1.0, 0.0, 0.17], [1.0, 0.0, 0.18], [0.0, 0.0, 0.0]]])
    measured = np.array([[True, True, True, False]])
    cells, known = by_points(found, points, measured)
    assert pytest.approx(0.1732, abs=1e-4) == VOXEL_REACH
    assert known.tolist() == [[True, True, False, False]]
    np.testing.assert_allclose(cells[0, :2], normal(found.pooled), atol=1e-4)
    assert (cells[0, 2:] == 0).all()


def test_how_loud_the_features_are_does_not_matter() -> None:
    quiet = features([0, 1, 2, 3])
    loud = SceneFeatures(
        scene_id="s", pooled=50 * quiet.pooled + 9, patch_token=quiet.patch_token, views=(0,)
    )
    (one, _), (other, _) = (by_patches(found, [0], grid=2) for found in (quiet, loud))
    np.testing.assert_allclose(one, other, atol=1e-4)
