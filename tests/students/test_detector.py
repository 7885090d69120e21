"""The heads that only some students have: the detector, relations, the feature projector."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.geometry.poses import rotation_z
from stillroom.records import BadInputError
from stillroom.students.detector import (
    START,
    Detections,
    Detector,
    box_numbers,
    found_boxes,
    oriented_box,
)
from stillroom.students.heads import Relations
from stillroom.students.model import StillroomStudent
from stillroom.students.parameters import parameter_table
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer

Make = Callable[..., Any]

KINDS = ["chair", "table", "lamp"]
HEADS = {
    "detection_queries": 5,
    "detection_width": 32,
    "detection_kinds": KINDS,
    "relation_width": 8,
    "feature_width": 12,
}


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_queries_look_at_all_views_and_say_different_things() -> None:
    torch.manual_seed(0)
    head = Detector(16, queries=5, width=32, layers=2, kinds=3).eval()
    cells = tokens(2, 3, 4, 16)
    said = head(cells)
    assert said.logits.shape == (2, 5, 4)
    assert said.box.shape == (2, 5, 8)
    assert torch.pdist(said.box[0]).min() > 1e-5
    for view in range(3):
        changed = cells.clone()
        changed[0, view, 0, 0] += 1.0
        other = head(changed)
        assert (other.box[0] - said.box[0]).abs().max() > 1e-6
        torch.testing.assert_close(other.box[1], said.box[1])


@torch.no_grad()
def test_the_first_guesses_are_mostly_none_and_ahead_of_the_camera() -> None:
    torch.manual_seed(0)
    said = Detector(16, queries=5, width=32, layers=1, kinds=30)(tokens(4, 2, 4, 16))
    none = said.logits.softmax(-1)[..., 0]
    assert none.min() > 0.8
    assert none.max() < 0.99
    torch.testing.assert_close(said.box.mean((0, 1)), torch.tensor(START), atol=0.5, rtol=0)


@pytest.mark.parametrize("yaw", [-1.5, -0.4, 0.0, 0.7, 1.5])
def test_a_box_and_its_numbers_are_the_same_thing(yaw: float) -> None:
    center, size = np.array([1.0, 2.0, 0.5]), np.array([0.4, 1.2, 0.9])
    box = oriented_box(box_numbers(center, size, np.array(yaw)))
    np.testing.assert_allclose(box.center, center)
    np.testing.assert_allclose(box.size, size)
    np.testing.assert_allclose(box.rotation, rotation_z(yaw), atol=1e-12)
    # Half a turn is the same box, and comes back as the one within a quarter turn.
    again = oriented_box(box_numbers(center, size, np.array(yaw + math.pi)))
    np.testing.assert_allclose(again.rotation, box.rotation, atol=1e-12)


def test_found_boxes_are_sure_enough_and_the_surest_first() -> None:
    probs = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.05, 0.05, 0.0, 0.9]])
    box = torch.zeros(1, 3, 8)
    box[0, :, 7] = 1.0
    box[0, :, 0] = torch.tensor([1.0, 2.0, 3.0])
    said = Detections(logits=probs.log().clamp_min(-50)[None], box=box)
    boxes, scores = found_boxes(said, KINDS, least_score=0.3)
    assert [name for name, _ in boxes] == ["lamp", "table"]
    assert [b.center[0] for _, b in boxes] == [3.0, 2.0]
    assert scores == pytest.approx((0.9, 0.7))
    every, _ = found_boxes(said, KINDS, least_score=0.0)
    assert len(every) == 3


@torch.no_grad()
def test_exchanging_the_things_of_a_pair_turns_every_relation_round() -> None:
    torch.manual_seed(0)
    head = Relations(16, width=8)
    first, second = tokens(4, 16), tokens(4, 16, seed=1)
    said = head(first, second)
    assert said.shape == (4, 3)
    assert said.abs().min() > 0
    torch.testing.assert_close(head(second, first), -said)
    assert head(first, first).abs().max() == 0


def test_a_student_has_only_the_heads_it_was_asked_for(make_config: Make) -> None:
    plain, rich = parameter_table(make_config()), parameter_table(make_config(**HEADS))
    assert rich.keys() - plain.keys() == {"detector", "relations", "feature_projector"}
    assert all(rich[name] == plain[name] for name in plain if name != "total")
    assert rich["total"] == sum(count for name, count in rich.items() if name != "total")
    assert rich["feature_projector"] == 32 * 12 + 12


def test_heads_leave_the_start_values_of_all_else_as_they_are(make_student: Make) -> None:
    plain, rich = make_student().state_dict(), make_student(**HEADS).state_dict()
    assert all(torch.equal(rich[name], value) for name, value in plain.items())
    new = {name.split(".")[0] for name in rich.keys() - plain.keys()}
    assert new == {"detector", "relations", "feature_projector"}


def test_saved_and_loaded_the_heads_are_bit_equal(make_student: Make, tmp_path: Path) -> None:
    student = make_student(**HEADS)
    student.save_pretrained(tmp_path)
    loaded = StillroomStudent.from_pretrained(tmp_path)
    mine, theirs = student.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert loaded.config.detection_kinds == KINDS


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"detection_kinds": None}, "needs detection_kinds"),
        ({"detection_width": 40}, "multiple of 32"),
        ({"relation_width": -1}, "must not be negative"),
    ],
)
def test_heads_that_cannot_be_made_say_why(
    make_config: Make, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        make_config(**(HEADS | changes))


def test_a_session_tells_boxes_in_the_frame_of_the_first_photo(
    make_student: Make, processor: StillroomProcessor, photos: list[np.ndarray]
) -> None:
    student = make_student(**HEADS)
    with torch.no_grad():  # sure of a table at the start position
        student.detector.kind.weight.zero_()
        student.detector.kind.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0]))
        student.detector.box.weight.zero_()
    session = StudentAnswerer(student, processor).open_scene(photos)
    geometry = session.geometry()
    assert [name for name, _ in geometry.boxes] == ["table"] * 5
    np.testing.assert_allclose(geometry.boxes[0][1].center, START[:3], atol=1e-6)
    assert all(0.99 < score <= 1 for score in geometry.box_scores)
    assert geometry.depth is not None
    assert session.geometry(least_score=1.01).boxes == ()


def test_a_student_without_a_detector_tells_no_boxes(
    make_student: Make, processor: StillroomProcessor, photos: list[np.ndarray]
) -> None:
    geometry = StudentAnswerer(make_student(), processor).open_scene(photos).geometry()
    assert geometry.boxes == ()
    assert geometry.box_scores == ()
