"""Labels of things, relations, pairs and regions of a scene."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import ALL, EVERY, SIZES, TINY, batches_of

from stillroom.distill.config import (
    LossConfig,
)
from stillroom.distill.detection import UNKNOWN_KIND
from stillroom.distill.features import cell_ids
from stillroom.distill.run import distill
from stillroom.distill.scene_labels import label_counts, relation_probs, scene_labels
from stillroom.distill.targets import (
    LEAST_PIXELS,
    SceneTargets,
    kinds_to_tell,
    posed_depth,
    things_in_sight,
)
from stillroom.engine.naming import UNKNOWN
from stillroom.geometry.poses import transform, view0_from_world, yaw_of
from stillroom.records import BadInputError, Scene
from stillroom.scenes.pixels import OTHERS, object_rows, object_table, shown_rows
from stillroom.scenes.rooms import CATEGORIES, COLOURS, make_room
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.students.detector import oriented_box
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer
from stillroom.testing import tiny_scene
from stillroom.training.runlog import read_log


def test_things_are_boxes_in_view0_with_the_most_seen_first() -> None:
    room = make_room(5, 1)
    table = things_in_sight(room, StillroomProcessor(image_size=112, max_views=8))
    rows = table[table[:, 1] > 0]
    assert 4 <= len(rows) <= len(room.objects)
    assert (table[len(rows) :] == 0).all()
    seen = np.concatenate([view.instances.ravel() for view in room.views])
    pixels = [(seen == int(row[0])).sum() for row in rows]
    assert pixels == sorted(pixels, reverse=True)
    assert min(pixels) >= LEAST_PIXELS
    to_view0 = view0_from_world(room.views[0].c2w, room.floor_z)
    for row in rows:
        thing = room.object(int(row[0]))
        assert CATEGORIES[int(row[1]) - 1] == thing.category
        box = oriented_box(row[2:].astype(np.float64))
        np.testing.assert_allclose(box.center, transform(to_view0, thing.box.center), atol=1e-5)
        np.testing.assert_allclose(box.size, thing.box.size, rtol=1e-5)
        turn = yaw_of(to_view0[:3, :3] @ thing.box.rotation) - yaw_of(box.rotation)
        assert math.sin(float(turn)) == pytest.approx(0, abs=1e-5)


def renamed(scene: Scene, names: dict[str, str], *, add: int = 0) -> Scene:
    """The same scene with other kinds of things, and object ids so much larger."""
    objects = tuple(
        replace(
            thing,
            object_id=thing.object_id + add,
            category=names.get(thing.category, thing.category),
        )
        for thing in scene.objects
    )
    views = tuple(
        replace(
            view,
            instances=np.where(view.instances > 0, view.instances + add, 0).astype(np.uint16),
        )
        for view in scene.views
    )
    return replace(scene, objects=objects, views=views)


def test_things_of_other_kinds_are_told_by_the_kinds_given() -> None:
    scene = renamed(tiny_scene(0), {"chair": "bidet"})
    processor = StillroomProcessor(image_size=28, max_views=4)
    made = things_in_sight(scene, processor)
    assert sorted(made[:2, 1].tolist()) == [UNKNOWN_KIND, CATEGORIES.index("table") + 1]
    told = things_in_sight(scene, processor, ("bidet", "table"))
    assert sorted(told[:2, 1].tolist()) == [1, 2]
    np.testing.assert_array_equal(told[:, 2:], made[:, 2:])


@pytest.mark.parametrize("add", [62, 100, 60_000])
def test_object_ids_may_be_any(add: int) -> None:
    plain, large = tiny_scene(0), renamed(tiny_scene(0), {}, add=add)
    processor = StillroomProcessor(image_size=28, max_views=4)
    rows = object_rows(large)
    assert set(rows.values()) == {1, 2}
    where = view0_from_world(plain.views[0].c2w, plain.floor_z)
    table, cells = object_table(large, where), cell_ids(large, processor, 2)
    mine = {thing.object_id: rows[thing.object_id + add] for thing in plain.objects}
    for object_id, row in mine.items():
        np.testing.assert_array_equal(table[row], object_table(plain, where)[object_id])
        same = cell_ids(plain, processor, 2) == object_id
        assert torch.equal(cells == row, same)
        assert same.any()
    things = things_in_sight(large, processor)
    assert set(things[:2, 0].tolist()) == {1, 2}


def test_of_more_things_than_the_table_has_rows_those_least_in_sight_share_one() -> None:
    scene = tiny_scene(0)
    one = scene.objects[0]
    instances = np.zeros(scene.views[0].rgb.shape[:2], np.uint16)
    # 80 things, of 1 to 80 pixels where there is room.
    ids = np.repeat(np.arange(1, 81), np.minimum(np.arange(1, 81), instances.size // 80))
    instances.ravel()[: len(ids)] = ids
    crowd = replace(
        scene,
        objects=tuple(replace(one, object_id=number) for number in range(1, 81)),
        views=(replace(scene.views[0], instances=instances),),
    )
    rows = object_rows(crowd)
    assert len(rows) == OTHERS - 1
    assert 9 in rows
    assert 80 not in rows
    assert 1 not in rows
    shown = shown_rows(instances, rows)
    assert set(shown[instances == 1].tolist()) == {OTHERS}
    assert set(shown[instances == 0].tolist()) <= {0}
    table = object_table(crowd, np.eye(4))
    assert (table[OTHERS] == 0).all()


def test_made_rooms_keep_their_kinds_and_others_give_theirs() -> None:
    few = {"most": 2, "least": 2}
    assert kinds_to_tell({"table": 1, "chair": 1}, **few) == CATEGORIES
    assert kinds_to_tell({}, **few) == CATEGORIES
    found = {"table": 5, "bidet": 2, "sink": 9, "urn": 1, "": 30}
    assert kinds_to_tell(found, **few) == ("sink", "table")
    assert kinds_to_tell(found, most=9, least=2) == ("bidet", "sink", "table")
    with pytest.raises(BadInputError, match=r"3 kinds.*none with 4 things.*detection-least"):
        kinds_to_tell({"urn": 3, "bidet": 1, "vat": 2}, most=9, least=4)


def test_boxes_of_a_scanned_world_come_back_under_its_own_kinds(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(world / "scenes")
    ids = store.scene_ids()
    scenes = [
        renamed(
            store.scene(scene_id),
            {"chair": "bidet", "table": "urn" if number == 0 else "table"},
            add=500,
        )
        for number, scene_id in enumerate(ids)
    ]
    write_manifest(tmp_path / "scenes", {"count": len(ids)})
    asked = [question for scene_id in ids for question in store.questions(scene_id)]
    write_shard(tmp_path / "scenes", 0, scenes, asked)
    losses = LossConfig(detection=True, spatial=True, depth=False)
    config = replace(ALL, losses=losses, student=replace(SIZES, detection_least=2))
    with caplog.at_level(logging.INFO, logger="stillroom.distill"):
        distill(
            config,
            scenes=tmp_path / "scenes",
            labels=world / "labels",
            out=tmp_path / "run",
            encoder=world / "encoder",
        )
    assert "detection tells 2 kinds apart; 1 of 16 things are of 1 others" in caplog.text
    answerer = StudentAnswerer.from_folder(tmp_path / "run" / "student")
    assert answerer.student.config.detection_kinds == ["bidet", "table"]
    boxes = answerer.open(scenes[0]).geometry(least_score=0.0).boxes
    assert {name for name, _ in boxes} <= {"bidet", "table"}
    assert boxes
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert {"detection_class", "detection_box", "spatial_relation", "naming"} <= set(
        rows[0]["terms"]
    )


def test_cells_of_an_unnamed_kind_are_not_called_nameless(world: Path, tmp_path: Path) -> None:
    _, batches = batches_of(world, tmp_path, TINY)
    batch = batches.sample([0])
    row = batches.rows[0]
    shown = batches.features.cells[row].astype(int).reshape(batch.cell_names.shape[1:3])
    assert (batch.cell_names[0][torch.from_numpy(shown > 0)] > 0).all()
    # The same scene, of whose chair nobody here has the word, and whose table has no known colour.
    objects = np.array(batches.features.objects)
    objects[row, 2, 0] = 0
    objects[row, 1, 1] = 0
    batches.features = replace(batches.features, objects=objects)
    found = batches.sample([0]).cell_names[0]
    assert {tuple(pair) for pair in found[torch.from_numpy(shown == 2)].tolist()} == {
        (UNKNOWN, COLOURS.index("blue") + 1)
    }
    assert {tuple(pair) for pair in found[torch.from_numpy(shown == 1)].tolist()} == {
        (CATEGORIES.index("table") + 1, UNKNOWN)
    }
    assert (found[torch.from_numpy(shown == 0)] == 0).all()


def test_of_a_scene_without_a_first_pose_no_thing_is_known() -> None:
    scene = tiny_scene(0)
    processor = StillroomProcessor(image_size=28, max_views=4)
    assert (things_in_sight(scene, processor)[:2, 1] > 0).all()
    lost = replace(scene, views=(replace(scene.views[0], c2w=None), scene.views[1]))
    assert (things_in_sight(lost, processor) == 0).all()
    # Its other view still has depth, and the lost one none to be brought together.
    depth, _, _ = posed_depth(lost, processor)
    assert (depth[0] == 0).all()
    assert (depth[1] > 0).all()


def test_intrinsics_of_the_square_put_a_pixel_where_the_picture_has_it() -> None:
    processor = StillroomProcessor(image_size=28, max_views=4)
    matrix = np.array([[50.0, 0, 60.0], [0, 50.0, 30.0], [0, 0, 1]])
    cut = processor.intrinsics(matrix, (60, 100))
    # The middle 60 x 60 of a 60 x 100 photo, then 28 / 60 of it.
    np.testing.assert_allclose(cut[0], [50 * 28 / 60, 0, 40 * 28 / 60])
    np.testing.assert_allclose(cut[1], [0, 50 * 28 / 60, 14])


def test_relations_hold_with_the_odds_worked_by_hand() -> None:
    ahead, aside, behind = [0.0, 2.0, 0.5], [2.0, 2.0, 0.8], [0.5, -1.0, 0.5]
    probs, known = relation_probs(np.array([ahead, ahead, aside]), np.array([aside, behind, ahead]))
    # 45 degrees to the left, 0.3 m below, as near.
    expected = [1 / (1 + math.exp(-9)), 1 / (1 + math.exp(2)), 0.5]
    np.testing.assert_allclose(probs[0], expected)
    np.testing.assert_allclose(probs[2], 1 - probs[0])
    # What lies behind the first camera is neither left nor in front of anything; its height counts.
    assert known.tolist() == [[True] * 3, [False, True, False], [True] * 3]


def test_pairs_and_regions_stand_at_the_right_cells() -> None:
    things = np.zeros((1, 64, 10), np.float32)
    things[0, 0] = [7, 1, -1.0, 2.0, 0.5, 0, 0, 0, 0, 1]
    things[0, 1] = [3, 2, 1.0, 2.0, 0.5, 0, 0, 0, 0, 1]
    things[0, 2] = [5, 2, 1.0, 2.0, 0.5, 0, 0, 0, 0, 1]  # shown by no cell
    partner = np.full((1, 2, 2, 4), -1, np.int16)
    partner[0, 0, 1, 2] = 3
    targets = SceneTargets(
        scene_ids=("a",),
        things=things,
        partner=partner,
        intrinsics=np.tile(np.float32([[28, 0, 14], [0, 28, 14], [0, 0, 1]]), (1, 2, 1, 1)),
        c2w=np.tile(np.eye(4, dtype=np.float32), (1, 2, 1, 1)),
        image_size=28,
    )
    cells = np.array([[[[7, 3], [0, 7]], [[0, 0], [3, 0]]]], np.float16)
    labels = scene_labels(targets, [0], cells, EVERY, queries=2)
    assert labels.things is not None
    assert labels.things.kind.tolist() == [[1, 2]]
    assert labels.related is not None
    assert labels.related.pair.tolist() == [[0, 1, 0]]
    assert labels.related.regions[0, 0].tolist() == [0.5, 0, 0, 0.5, 0, 0, 0, 0]
    assert labels.related.regions[0, 1].tolist() == [0, 0.5, 0, 0, 0, 0, 0.5, 0]
    assert labels.related.probs[0, 0] < 0.01  # the second row stands to the right of the first
    assert labels.pairs is not None
    assert labels.pairs.cells.tolist() == [[0, 2, 4 + 3]]
    assert labels.pairs.carry.tolist() == [[1.0, 0.0]]
    assert labels.teacher is None
    counts = label_counts(labels)
    assert counts["detection_class"] == 2
    assert counts["detection_box"] == 16
    assert counts["spatial_views"] == counts["multi_view"] == 1
    assert counts["spatial_relation"] == 3
    assert counts["feature"] == counts["spatial_feature"] == 0
