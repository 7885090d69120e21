"""Labels of things, relations, pairs and teacher features, and whole runs with every term on."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distill_run import TINY, run
from test_distill_run import world as world  # the same scenes, labels and encoder

from stillroom.distill import own_depth
from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import (
    DistillConfig,
    LoraConfig,
    LossConfig,
    SlotConfig,
    StudentSizes,
)
from stillroom.distill.detection import UNKNOWN_KIND
from stillroom.distill.features import cache_features, cell_ids
from stillroom.distill.lacking import scenes_without
from stillroom.distill.own_depth import ScaledDepth, scale_by_depth, scale_by_distances
from stillroom.distill.reach import parts_reached, require_reach, term_reach
from stillroom.distill.run import distill
from stillroom.distill.scene_labels import label_counts, relation_probs, scene_labels
from stillroom.distill.step import count_labelled, distill_step
from stillroom.distill.targets import (
    LEAST_PIXELS,
    SceneTargets,
    cache_targets,
    find_teacher,
    kinds_to_tell,
    measured_depth,
    posed_depth,
    things_in_sight,
)
from stillroom.engine.naming import UNKNOWN
from stillroom.geometry.correspond import correspond
from stillroom.geometry.poses import transform, view0_from_world, yaw_of
from stillroom.recipes import mini, table
from stillroom.records import BadInputError, Scene, SceneFeatures
from stillroom.scenes.pixels import OTHERS, object_rows, object_table, shown_rows
from stillroom.scenes.rooms import CATEGORIES, COLOURS, make_room
from stillroom.scenes.store import SceneStore, open_store, write_manifest, write_shard
from stillroom.students.config import StillroomConfig
from stillroom.students.connector import VisionFeatures
from stillroom.students.detector import oriented_box
from stillroom.students.encoders.vggt import VGGT, Aggregator, VGGTOutput
from stillroom.students.encoders.vggt_camera import decode_pose, encode_pose, invert_w2c
from stillroom.students.encoders.vggt_load import load_vggt, save_vggt
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.label_store import LabelStore, open_labels
from stillroom.teachers.measures import MEASURES
from stillroom.testing import tiny_encoder_config, tiny_scene
from stillroom.training.runlog import read_log

EVERY = LossConfig(
    measures=True, detection=True, detection_iou=0.5, spatial=True, multi_view=True, feature=True
)
SIZES = StudentSizes(
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=32,
    vision_grid=2,
    detection_queries=4,
    detection_width=32,
    detection_layers=1,
    relation_width=8,
)
ALL = replace(TINY, losses=EVERY, student=SIZES)
PARTS = {
    *("text", "depth_ce", "depth_reg", "depth_kl", "naming", "grounding"),
    *("apart", "measure"),
    *("detection_class", "detection_box", "detection_iou"),
    *("spatial_feature", "spatial_views", "spatial_relation", "multi_view", "feature"),
}
WIDTH = 10


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label stores that hold features: 4 x 4 patches in each of two views, 6 tokens, width 10."""

    def scene_features(self: LabelStore, scene_id: str) -> SceneFeatures:
        rng = np.random.default_rng(int(scene_id, 16))
        return SceneFeatures(
            scene_id=scene_id,
            pooled=rng.normal(size=(6, WIDTH)),
            patch_token=rng.integers(0, 6, 32),
            views=(0, 1),
        )

    monkeypatch.setattr(LabelStore, "scene_features", scene_features, raising=False)


def batches_of(world: Path, folder: Path, config: DistillConfig = ALL) -> tuple[Any, Batches]:
    """A student that can learn all that the config asks for, and its training batches."""
    store, labels = open_store(world / "scenes"), open_labels(world / "labels")
    ids = store.scene_ids("train")
    teacher = find_teacher(labels, ids, settings=labels.settings)
    student, processor = build_student(
        config, world / "encoder", feature_width=0 if teacher is None else teacher.width
    )
    features = cache_features(
        student, processor, store, ids, folder, encoder="x", scenes_per_pass=2
    )
    targets = cache_targets(
        store, ids, folder, processor=processor, grid=2, losses=config.losses, teacher=teacher
    )
    questions = {scene_id: store.questions(scene_id) for scene_id in ids}
    prompts = {q.question_id: q.prompt for asked in questions.values() for q in asked}
    said = {scene_id: labels.labels(scene_id) for scene_id in ids}
    items = items_by_scene(questions, said, prompts, processor.tokenizer)
    batches = Batches(
        config, features, items, prompts=prompts, tokenizer=processor.tokenizer, targets=targets
    )
    return student, batches


def test_every_question_of_a_capture_has_its_turn(world: Path, tmp_path: Path) -> None:
    _, batches = batches_of(world, tmp_path, replace(TINY, questions_per_scene=1))
    # Not one of the four families: nothing to balance.
    batches.items = {
        scene_id: [
            replace(item, question=replace(item.question, family="object_counting"))
            for item in items
        ]
        for scene_id, items in batches.items.items()
    }
    rows = {tuple(batches.sample([0], step).packed.ids[0].tolist()) for step in range(60)}
    asked = {tuple(item.question_ids) for item in batches.items[batches.scene_ids[0]]}
    assert len(rows) == len(asked) > 1


# Labels. ----------------------------------------------------------------------------------------


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


# Terms. -----------------------------------------------------------------------------------------


def test_nothing_new_is_labelled_or_made_while_its_term_is_off(world: Path, tmp_path: Path) -> None:
    student, batches = batches_of(world, tmp_path, TINY)
    assert batches.targets is None
    assert (student.detector, student.relations, student.feature_projector) == (None,) * 3
    batch = batches.at(0, 0)
    assert batch.scene is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("targets")]
    assert set(distill_step(student, batch, TINY.losses).terms) == PARTS & set(TINY.losses.terms)


@pytest.mark.usefixtures("taught")
def test_sums_and_counts_of_single_scenes_add_up_to_those_of_the_batch(
    world: Path, tmp_path: Path
) -> None:
    student, batches = batches_of(world, tmp_path)
    student.eval()
    whole, parts = batches.sample([0, 1, 2]), [batches.sample([index]) for index in range(3)]
    with torch.no_grad():
        sums = distill_step(student, whole, EVERY).terms
        single = [distill_step(student, part, EVERY).terms for part in parts]
    assert set(sums) == PARTS
    counts = [count_labelled(part) for part in parts]
    for name, total in count_labelled(whole).items():
        assert total == pytest.approx(sum(count[name] for count in counts))
        assert total > 0, name
    for name, value in sums.items():
        torch.testing.assert_close(
            value, torch.stack([one[name] for one in single]).sum(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.usefixtures("taught")
def test_all_terms_off_but_one_give_the_same_value_of_that_one(world: Path, tmp_path: Path) -> None:
    student, batches = batches_of(world, tmp_path)
    student.eval()
    batch = batches.sample([0, 1])
    plain = {"depth": False, "grounding": False}
    with torch.no_grad():
        every = distill_step(student, batch, EVERY).terms
        for switch in ("detection", "spatial", "multi_view", "feature"):
            alone = distill_step(student, batch, LossConfig(**plain, **{switch: True})).terms
            assert set(alone) > {"text"}
            for name, value in alone.items():
                torch.testing.assert_close(value, every[name], msg=name)


# Numbers behind answers. -------------------------------------------------------------------------


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize("position", ["before", "after"])
def test_numbers_stand_where_answers_begin_and_distances_at_names(
    world: Path, tmp_path: Path, position: Any
) -> None:
    config = replace(ALL, slots=SlotConfig(count=2, position=position))
    _, batches = batches_of(world, tmp_path, config)
    batch = batches.sample([0, 1])
    text = batch.packed.ids[:, batch.packed.prefix_length :]
    row, place = batch.measure_at.T
    assert (text[row, place] == batches.start_id).all()
    assert len(place) == len(set(map(tuple, batch.measure_at.tolist()))) == 8
    families = [MEASURES[kind][0] for kind in batch.measure_kind.tolist()]
    assert sorted(families) == sorted(("proximity", "contact", "size", "orientation") * 2)
    gaps = batch.measure[batch.measure_kind == MEASURES.index(("contact", "m"))]
    np.testing.assert_allclose(gaps[:, 0], 0.6, atol=1e-6)
    # The red table is named first: nothing came before it, and the chair lies off it.
    table = batches.features.objects[batches.rows[0]]
    off = math.log(np.linalg.norm(table[1, 2:5] - table[2, 2:5]))
    known = batch.mention_apart[batch.mention_at[:, 0] == 0]
    firsts = known[~known[:, 0].isnan(), 0].numpy()
    assert len(firsts)
    assert np.isclose(firsts, off, atol=1e-5).any()


@pytest.mark.usefixtures("taught")
def test_a_run_learns_the_numbers(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "run", replace(TINY, losses=LossConfig(measures=True)))
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert {"apart", "measure"} <= set(rows[0]["terms"])
    assert rows[-1]["terms"]["measure"] < rows[0]["terms"]["measure"]
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert config["measures"] == len(MEASURES)


# Reach. -----------------------------------------------------------------------------------------

CONNECTOR, LM, SLOTS = "connector", "language_model", "slots"
#: What each term teaches of what an answer is made from.
REACH = {
    "text": (CONNECTOR, SLOTS, LM),
    **dict.fromkeys(("depth_ce", "depth_reg", "depth_kl"), (CONNECTOR,)),
    # Words are the language model's own embeddings; a name stands behind the slots.
    "naming": (CONNECTOR, LM),
    **dict.fromkeys(("grounding", "apart", "measure"), (CONNECTOR, SLOTS, LM)),
    **dict.fromkeys(("detection_class", "detection_box", "detection_iou"), (CONNECTOR,)),
    **dict.fromkeys(("spatial_feature", "spatial_views", "spatial_relation"), (CONNECTOR,)),
    "multi_view": (CONNECTOR,),
    "feature": (CONNECTOR,),
}


RECIPES = table("distill")


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize(
    ("name", "every_term"),
    [*((name, False) for name in RECIPES), *((name, True) for name in mini.DISTILL)],
)
def test_each_term_of_each_recipe_reaches_the_answer(
    world: Path, tmp_path: Path, name: str, every_term: bool
) -> None:
    recipe = RECIPES[name]()
    # The recipe's own choices at the smallest sizes; the tiny encoder and words from scratch.
    sizes = replace(
        SIZES,
        layers=2,
        vision_pool=recipe.student.vision_pool,
        tie_embeddings=recipe.student.tie_embeddings,
        rotary_share=recipe.student.rotary_share,
    )
    small = replace(
        recipe,
        train=TINY.train,
        student=sizes,
        language_model="",
        tokenizer="",
        lora=LoraConfig(),
        losses=replace(recipe.losses, **switched_on()) if every_term else recipe.losses,
    )
    student, batches = batches_of(world, tmp_path, small)
    batch = batches.sample([0, 1, 2])
    reach = term_reach(student, batch, small)
    require_reach(reach, small.losses)
    terms = {
        part for term in small.losses.terms for part in small.losses.parts.get(term, {term: 1.0})
    }
    assert not every_term or terms == PARTS
    assert set(reach) == (terms if recipe.vision else {"text"})
    for term, parameters in reach.items():
        there = {CONNECTOR, LM}
        learns = recipe.slots.used and recipe.slots.kind != "frozen_random"
        if learns and (term == "text" or recipe.slots.supervision == "extra"):
            there.add(SLOTS)
        assert set(parts_reached(parameters)) == there & set(REACH[term]), term
    if recipe.vision:
        # Every weight of the connector, so that no part of a vision token is left untaught.
        connector = {f"connector.{key}" for key, _ in student.connector.named_parameters()}
        for term, parameters in reach.items():
            assert connector <= set(parameters), term


def switched_on() -> dict[str, Any]:
    switches = ("measures", "detection", "spatial", "multi_view", "feature")
    return {**dict.fromkeys(switches, True), "detection_iou": 0.5}


@pytest.mark.usefixtures("taught")
def test_a_term_that_reaches_nothing_is_an_error_unless_the_recipe_says_so(
    world: Path, tmp_path: Path
) -> None:
    student, batches = batches_of(world, tmp_path)
    student.connector.requires_grad_(False)
    reach = term_reach(student, batches.sample([0]), ALL)
    assert reach["multi_view"] == ()
    assert parts_reached(reach["text"]) == (SLOTS, LM)
    with pytest.raises(BadInputError, match="reaches no parameter of connector, slots, language"):
        require_reach(reach, EVERY)
    named = ("depth_ce", "depth_reg", "depth_kl", "detection", "spatial", "multi_view", "feature")
    require_reach(reach, replace(EVERY, reach_nothing=named))


def test_a_depth_head_is_compared_where_depth_was_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = SceneStore.scene

    def holed(self: SceneStore, scene_id: str) -> Scene:
        """Every third column unmeasured: each cell still has more than half of its depth."""
        found = scene(self, scene_id)
        views = []
        for view in found.views:
            depth = view.depth.copy()
            depth[:, ::3] = 0
            views.append(replace(view, depth=depth))
        return replace(found, views=tuple(views))

    monkeypatch.setattr(SceneStore, "scene", holed)
    config = replace(TINY, losses=LossConfig(depth_head=True))
    student, batches = batches_of(world, tmp_path, config)
    batch = batches.sample([0])
    assert 0.6 < batch.measured.float().mean() < 0.7
    # An encoder that is right wherever depth was measured, and far off everywhere else.
    true = torch.from_numpy(
        measured_depth(
            holed(open_store(world / "scenes"), batches.scene_ids[0]),
            StillroomProcessor(image_size=28, max_views=4),
        )
    )[None]
    said = torch.where(true > 0, true, 50.0)

    def right(images: torch.Tensor) -> VisionFeatures:
        return VisionFeatures(
            tokens=batch.tokens, depth=batch.own_depth, depth_map=said.requires_grad_()
        )

    monkeypatch.setattr(student, "features", right)
    terms = distill_step(student, batch, config.losses).terms
    error = terms["depth_map"] / count_labelled(batch)["depth_map"]
    assert error.item() == pytest.approx(0, abs=1e-2)  # depth is kept in half precision


@pytest.mark.usefixtures("taught")
def test_a_depth_head_that_is_trained_learns_from_depth_and_from_answers(
    world: Path, tmp_path: Path
) -> None:
    config = replace(ALL, losses=replace(EVERY, depth_head=True))
    student, batches = batches_of(world, tmp_path, config)
    reach = term_reach(student, batches.sample([0, 1]), config)
    assert parts_reached(reach["depth_map"]) == ("encoder",)
    assert parts_reached(reach["text"]) == (CONNECTOR, SLOTS, LM, "encoder")
    touched = {name for parameters in reach.values() for name in parameters}
    assert {name.split(".")[1] for name in touched if name.startswith("encoder")} == {"depth_head"}
    run(world, tmp_path / "run", config)
    before = student.state_dict()
    answerer = StudentAnswerer.from_folder(tmp_path / "run" / "student")
    moved = {
        name
        for name, value in answerer.student.state_dict().items()
        if name.startswith("encoder") and not torch.equal(value, before[name].bfloat16().float())
    }
    assert any("depth_head" in name for name in moved)
    assert not any("aggregator" in name for name in moved)
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert all(row["labelled"]["depth_map"] > 0 for row in rows)
    assert "depth_map" in rows[0]["weights"]


# Runs. ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("taught")
def test_a_run_with_every_term_ends_with_a_student_that_tells_boxes(
    world: Path, tmp_path: Path
) -> None:
    longer = replace(ALL, train=replace(TINY.train, steps=12, evaluate_every=12))
    run(world, tmp_path / "run", longer)
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert set(rows[0]["terms"]) == PARTS
    # Eight terms of the paper and the two of ours, each with one weight.
    assert set(rows[0]["weights"]) == set(EVERY.terms)
    for name in ("detection_box", "feature", "spatial_relation"):
        assert rows[-1]["terms"][name] < rows[0]["terms"][name], name
    said = {
        name: value
        for row in read_log(tmp_path / "run" / "log.jsonl", kind="eval")
        for name, value in row["metrics"].items()
    }
    assert set(said) >= PARTS
    answerer = StudentAnswerer.from_folder(tmp_path / "run" / "student")
    scene = next(open_store(world / "scenes").iter_scenes("val"))
    geometry = answerer.open(scene).geometry(least_score=0.0)
    assert len(geometry.boxes) == 4
    assert {name for name, _ in geometry.boxes} <= set(CATEGORIES)


@pytest.mark.usefixtures("taught")
def test_the_weighted_total_is_made_of_terms_and_the_parts_of_terms(
    world: Path, tmp_path: Path
) -> None:
    weights = {"detection": 2.0, "text": 0.5}
    losses = replace(EVERY, weighting="static", weights=weights, cross_view=0.25)
    one = replace(ALL, losses=losses, train=replace(TINY.train, steps=1))
    run(world, tmp_path / "run", one)
    (row,) = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    terms = row["terms"]
    detection = terms["detection_class"] + terms["detection_box"] + 0.5 * terms["detection_iou"]
    spatial = terms["spatial_feature"] + terms["spatial_relation"] + 0.25 * terms["spatial_views"]
    others = sum(terms[name] for name in set(EVERY.terms) & set(terms) - {"text"})
    expected = 2 * detection + spatial + 0.5 * terms["text"] + others
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("taught")
def test_accumulation_does_not_change_a_run_with_every_term(world: Path, tmp_path: Path) -> None:
    for micro in (1, 2):
        train = replace(TINY.train, steps=2, micro_batches=micro)
        run(world, tmp_path / str(micro), replace(ALL, train=train))
    one, two = (read_log(tmp_path / str(micro) / "log.jsonl", kind="step") for micro in (1, 2))
    for before, after in zip(one, two, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert after["terms"] == pytest.approx(before["terms"], rel=1e-4, abs=1e-5)


def test_terms_without_labels_are_off_and_said_once(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # This label store holds no features.
    with caplog.at_level(logging.INFO, logger="stillroom"):
        run(world, tmp_path / "run", replace(ALL, losses=LossConfig(spatial=True, feature=True)))
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert all("feature" not in row["terms"] for row in rows)
    assert all("spatial_feature" not in row["terms"] for row in rows)
    assert all("spatial_views" in row["terms"] for row in rows)
    assert rows[-1]["weights"]["feature"] == 0.5  # never moved
    told = [record.message for record in caplog.records if "without labels" in record.message]
    assert told == [
        "scenes without labels, where the term is off: feature 6 of 6",
        "steps without labels, where the term is off: feature 6 of 6",
    ]


@pytest.mark.usefixtures("taught")
def test_scenes_that_lack_labels_are_counted_by_term(world: Path, tmp_path: Path) -> None:
    _, batches = batches_of(world, tmp_path)
    assert scenes_without(batches) == {name: [] for name in EVERY.terms}
    partner = np.array(batches.targets.partner)
    partner[2] = -1
    things = np.array(batches.targets.things)
    things[1] = 0
    batches.targets = replace(batches.targets, partner=partner, things=things)
    lacking = scenes_without(batches)
    assert lacking["multi_view"] == [2]
    assert lacking["detection"] == [1]
    assert lacking["spatial"] == []  # parts of it are labelled everywhere


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


@pytest.mark.usefixtures("taught")
def test_a_student_to_go_on_from_gets_the_heads_it_lacks(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "first")
    start = str(tmp_path / "first" / "student")
    plain, _ = build_student(replace(TINY, start_from=start), world / "encoder")
    grown, _ = build_student(replace(ALL, start_from=start), world / "encoder", feature_width=WIDTH)
    before, after = plain.state_dict(), grown.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    new = {name.split(".")[0] for name in after.keys() - before.keys()}
    assert new == {"measures", "detector", "relations", "feature_projector"}
    assert grown.config.detection_width == 32
    grown.save_pretrained(tmp_path / "grown")
    (tmp_path / "grown" / "processor_config.json").write_bytes(
        (tmp_path / "first" / "student" / "processor_config.json").read_bytes()
    )
    (tmp_path / "grown" / "tokenizer.json").write_bytes(
        (tmp_path / "first" / "student" / "tokenizer.json").read_bytes()
    )
    again = replace(ALL, start_from=str(tmp_path / "grown"))
    same, _ = build_student(again, world / "encoder", feature_width=WIDTH)
    assert all(torch.equal(value, after[name]) for name, value in same.state_dict().items())
    more = replace(again, student=replace(SIZES, detection_queries=5))
    with pytest.raises(BadInputError, match="has 4 detection_queries, the recipe 5"):
        build_student(more, world / "encoder", feature_width=WIDTH)
    with pytest.raises(BadInputError, match="features 10 wide, these labels have 12"):
        build_student(again, world / "encoder", feature_width=12)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": {"text": 2.0}}, "need losses.weighting static"),
        ({"reach_nothing": ("foo",)}, "reach_nothing names 'foo', which is no term or part"),
        ({"reach_nothing": ("text", "detection")}, "reach_nothing names 'detection'"),
        ({"weighting": "static", "weights": {"feature": 2.0}}, "no term that is on"),
        ({"weighting": "static", "weights": {"text": -1.0}}, "must not be negative"),
        ({"cross_view": -0.1}, "cross_view must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_losses_that_cannot_work_say_why(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        LossConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"detection_queries": 0}, "at least 1"), ({"detection_width": 48}, "multiple of 32")],
)
def test_sizes_that_cannot_work_say_why(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        StudentSizes(**changes)
