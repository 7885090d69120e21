import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stillroom.evaluate.box_metrics import (
    Detection,
    average_precision,
    detection_f1,
    euler_box,
    mean_ap,
    oriented_iou,
    yaw_box,
)
from stillroom.records import OrientedBox

UNIT = yaw_box([0, 0, 0], [1, 1, 1], 0.0)


def random_box(rng):
    return OrientedBox(
        center=rng.normal(0, 0.4, 3),
        size=rng.uniform(0.3, 2.0, 3),
        rotation=Rotation.random(rng=rng).as_matrix(),
    )


def test_overlap_by_hand():
    assert oriented_iou(UNIT, UNIT) == pytest.approx(1.0)
    assert oriented_iou(UNIT, yaw_box([0.5, 0, 0], [1, 1, 1], 0.0)) == pytest.approx(1 / 3)
    # Two unit squares at 45 degrees share a regular octagon of area 2 (sqrt 2 - 1).
    octagon = 2 * (2**0.5 - 1)
    turned = yaw_box([0, 0, 0], [1, 1, 1], np.pi / 4)
    assert oriented_iou(UNIT, turned) == pytest.approx(octagon / (2 - octagon))


@pytest.mark.parametrize(
    "other",
    [
        yaw_box([1, 0, 0], [1, 1, 1], 0.0),  # touching along a face
        yaw_box([3, 0, 0], [1, 1, 1], 0.3),
        yaw_box([0, 0, 0], [1, 1, 0], 0.0),  # no volume
    ],
)
def test_boxes_that_share_no_volume_overlap_nought(other):
    assert oriented_iou(UNIT, other) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_overlap_obeys_its_laws(seed):
    rng = np.random.default_rng(seed)
    a, b = random_box(rng), random_box(rng)
    overlap = oriented_iou(a, b)
    assert 0.0 <= overlap <= 1.0
    assert oriented_iou(b, a) == pytest.approx(overlap, abs=1e-9)
    turn, shift = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)

    def moved(box):
        return OrientedBox(
            center=turn @ box.center + shift, size=box.size, rotation=turn @ box.rotation
        )

    assert oriented_iou(moved(a), moved(b)) == pytest.approx(overlap, abs=1e-9)
    # Points drawn in the one box fall into the other as often as the volumes say.
    points = rng.uniform(-0.5, 0.5, (20_000, 3)) * a.size @ a.rotation.T + a.center
    inside = (np.abs((points - b.center) @ b.rotation) <= b.size / 2).all(axis=1).mean()
    shared = inside * np.prod(a.size)
    assert overlap == pytest.approx(shared / (np.prod(a.size) + np.prod(b.size) - shared), abs=0.02)


def test_euler_angles_are_intrinsic_z_x_y():
    box = euler_box([0, 0, 0, 1, 2, 3, 0.3, 0.2, 0.1])
    turns = [
        Rotation.from_euler(axis, angle).as_matrix() for axis, angle in zip("zxy", (0.3, 0.2, 0.1))
    ]
    np.testing.assert_allclose(box.rotation, turns[0] @ turns[1] @ turns[2], atol=1e-12)
    with pytest.raises(ValueError, match="9 numbers"):
        euler_box([1.0] * 7)


def detection(box, score, label="chair"):
    return Detection(label=label, box=box, score=score)


FAR = yaw_box([9, 0, 0], [1, 1, 1], 0.0)


def test_average_precision_by_hand():
    truth = {"a": [("chair", UNIT), ("chair", FAR)], "b": [("bed", UNIT)]}
    said = {
        # A hit, the same box once more (a miss), a miss elsewhere, then the second hit.
        "a": [detection(UNIT, 0.9), detection(UNIT, 0.8), detection(FAR, 0.5)],
        "b": [detection(UNIT, 0.7), detection(UNIT, 0.6, "lamp")],
    }
    found = average_precision(truth, said, threshold=0.5)
    # Precision 1 up to recall 1/2, then 2 of 4 up to recall 1.
    assert found["chair"].ap == pytest.approx(0.5 * 1.0 + 0.5 * 0.5)
    assert (found["chair"].recall, found["chair"].n) == (1.0, 2)
    assert found["bed"].ap == 0.0
    assert set(found) == {"bed", "chair"}
    assert mean_ap(found) == pytest.approx(0.375)


def test_the_threshold_must_be_passed_for_ap_and_reached_for_f1():
    half = yaw_box([0, 0, 0.25], [1, 1, 0.5], 0.0)
    overlap = oriented_iou(UNIT, half)
    truth, said = {"a": [("chair", UNIT)]}, {"a": [detection(half, 1.0)]}
    assert average_precision(truth, said, threshold=overlap)["chair"].ap == 0.0
    assert detection_f1(truth, {"a": [("chair", half)]}, threshold=overlap)["f1"] == 1.0


def test_f1_counts_what_was_missed_and_what_was_made_up():
    truth = {"a": [("chair", UNIT), ("chair", FAR)]}
    said = {"a": [("chair", UNIT), ("bed", FAR)], "b": [("chair", UNIT)]}
    found = detection_f1(truth, said, threshold=0.25)
    assert found == {
        "precision": pytest.approx(1 / 3), "recall": 0.5, "f1": pytest.approx(0.4), "n": 2.0
    }  # fmt: skip


def test_a_truth_without_boxes_is_an_error():
    with pytest.raises(ValueError, match="no box"):
        average_precision({"a": []}, {}, threshold=0.5)
    with pytest.raises(ValueError, match="no box"):
        detection_f1({}, {}, threshold=0.5)
