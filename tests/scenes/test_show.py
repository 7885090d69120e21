"""Contact sheets are drawn for made rooms and for captures that know less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stillroom.geometry.cameras import pinhole
from stillroom.records import BadInputError, OrientedBox, Scene, SceneObject
from stillroom.scenes.balance import Balance
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.questions import ask_facts
from stillroom.scenes.show import box_lines, contact_sheet


def test_a_made_room_fills_its_sheet_with_photos_plan_and_questions(
    hand_made_facts: RoomFacts,
) -> None:
    questions = ask_facts(
        hand_made_facts, count=16, balance=Balance({}), rng=np.random.default_rng(0)
    )
    assert questions is not None
    scene = hand_made_facts.scene
    plain = np.asarray(contact_sheet(scene, questions))
    assert plain.shape[1] == 1420
    assert plain.shape[0] > 900
    # Neither the top half (photos) nor the two lower quarters (plan, questions) are left white.
    half, middle = plain.shape[0] // 2, plain.shape[1] // 2
    for part, least in (
        (plain[:half], 0.5),
        (plain[half:, :middle], 0.05),
        (plain[half:, middle:], 0.01),
    ):
        assert (part < 230).any(axis=2).mean() > least
    said = {question.question_id: "nonsense" for question in questions}
    told = np.asarray(contact_sheet(scene, questions, predictions=said))
    # Only the quarter with the questions differs.
    differs = (told != plain).any(axis=2)
    assert differs[half:, middle:].any()
    assert not differs[:half].any()
    assert not differs[:, : middle - 100].any()


def test_a_capture_without_objects_is_shown_with_its_cameras(hand_made_room: Scene) -> None:
    capture = replace(hand_made_room, objects=(), room_size=None, source="capture:scannet")
    assert contact_sheet(capture, []).size[0] == 1420


def test_plain_photos_without_cameras_or_depth_are_shown(hand_made_room: Scene) -> None:
    bare = tuple(
        replace(view, c2w=None, depth=None, intrinsics=None, instances=None)
        for view in hand_made_room.views
    )
    photos = replace(hand_made_room, views=bare, objects=(), room_size=None, source="photos")
    assert contact_sheet(photos, []).size[0] == 1420


def test_a_scene_without_photos_is_refused(hand_made_room: Scene) -> None:
    with pytest.raises(BadInputError, match="no photos"):
        contact_sheet(replace(hand_made_room, views=()), [])


def test_box_edges_behind_the_camera_are_cut_off() -> None:
    box = OrientedBox(center=np.zeros(3), size=np.full(3, 2.0), rotation=np.eye(3))
    thing = SceneObject(object_id=1, category="box", name="box", colour="red", box=box)
    inside = box_lines(thing, np.eye(4), pinhole(50.0, 50.0, 24.0, 24.0))
    # The camera is in the middle: the far face is whole, four edges are cut, the near face is gone.
    assert inside.shape == (8, 2, 2)
    assert np.isfinite(inside).all()
    away = np.eye(4)
    away[2, 3] = 5.0
    assert len(box_lines(thing, away, pinhole(50.0, 50.0, 24.0, 24.0))) == 0
