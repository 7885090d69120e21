import json
from pathlib import Path

import numpy as np
import pytest

from stillroom.evaluate.depth_metrics import align, depth_errors, mean_errors, resized

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "metrics" / "depth.json").read_text())[
    "cases"
]
RECORDED = {
    "metric": "none",
    "median_scaled": "median",
    "lsq_scale_only": "scale",
    "lsq_scale_shift_depth": "scale_shift",
}
NAMES = {"d1": "delta1", "d2": "delta2", "d3": "delta3"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("key", RECORDED)
def test_depth_errors_match_the_recorded_ones(case, key):
    ours = depth_errors(np.array(case["pred"]), np.array(case["target"]), alignment=RECORDED[key])
    assert ours is not None
    for name, recorded in case[key].items():
        if name in ("scale", "shift"):
            continue
        # silog of an exact match is 0 up to rounding under a square root.
        assert ours[NAMES.get(name, name)] == pytest.approx(recorded, abs=1e-6), name


def test_errors_by_hand():
    # Off by +1 m and -1 m at 2 m and 4 m; the third pixel was not measured.
    errors = depth_errors(np.array([3.0, 3.0, 9.0]), np.array([2.0, 4.0, 0.0]), alignment="none")
    assert errors is not None
    assert errors["rmse"] == pytest.approx(1.0)
    assert errors["mae"] == pytest.approx(1.0)
    assert errors["abs_rel"] == pytest.approx((0.5 + 0.25) / 2)
    # Ratios 1.5 and 1.33: none below 1.25, both below 1.25^2.
    assert (errors["delta1"], errors["delta2"]) == (0.0, 1.0)


def test_a_ratio_of_exactly_one_and_a_quarter_is_outside_delta1():
    errors = depth_errors(np.array([1.25]), np.array([1.0]), alignment="none")
    assert errors is not None
    assert errors["delta1"] == 0.0


def test_median_alignment_forgives_a_scale_and_none_does_not():
    target = np.linspace(1.0, 4.0, 7)
    assert depth_errors(2 * target, target, alignment="median")["rmse"] == pytest.approx(0.0)
    assert depth_errors(2 * target, target, alignment="none")["abs_rel"] == pytest.approx(1.0)


def test_a_picture_without_measured_depth_has_no_errors():
    assert depth_errors(np.ones((2, 3)), np.zeros((2, 3)), alignment="none") is None
    with pytest.raises(ValueError, match="no picture had measured depth"):
        mean_errors([])


@pytest.mark.parametrize("alignment", ["none", "median", "scale", "scale_shift"])
def test_a_map_of_zeros_or_nan_is_wrong_and_never_raises(alignment):
    target = np.full((3, 3), 2.0)
    errors = depth_errors(np.zeros((3, 3)), target, alignment=alignment)
    assert errors is not None
    assert np.isfinite(list(errors.values())).all()
    assert depth_errors(np.full((3, 3), np.nan), target, alignment=alignment) is None


def test_alignment_none_leaves_the_prediction():
    predicted = np.array([1.0, 2.0])
    assert align(predicted, np.array([5.0, 5.0]), "none") is predicted


def test_resizing_a_plane_keeps_it_a_plane():
    plane = np.add.outer(np.arange(8) + 0.5, 2 * (np.arange(6) + 0.5)) + 1.0
    larger = resized(plane, 16, 12)
    expected = np.add.outer((np.arange(16) + 0.5) / 2, np.arange(12) + 0.5) + 1.0
    # The border has no outer neighbour and is held.
    np.testing.assert_allclose(larger[1:-1, 1:-1], expected[1:-1, 1:-1])
    assert resized(plane, 8, 6) is plane
    assert resized(np.full((1, 1), 3.0), 2, 2).tolist() == [[3.0, 3.0], [3.0, 3.0]]
