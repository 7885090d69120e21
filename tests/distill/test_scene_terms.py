"""Whole runs with every term on, which terms reach the answer, and what is refused."""

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
from tiny_world import ALL, EVERY, PARTS, SIZES, TINY, WIDTH, batches_of, run

from stillroom.distill.build import build_student
from stillroom.distill.config import (
    LoraConfig,
    LossConfig,
    SlotConfig,
    StudentSizes,
)
from stillroom.distill.lacking import scenes_without
from stillroom.distill.reach import parts_reached, require_reach, term_reach
from stillroom.distill.step import count_labelled, distill_step
from stillroom.distill.targets import (
    measured_depth,
)
from stillroom.recipes import mini, table
from stillroom.records import BadInputError, Scene
from stillroom.scenes.rooms import CATEGORIES
from stillroom.scenes.store import SceneStore, open_store
from stillroom.students.connector import VisionFeatures
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.measures import MEASURES
from stillroom.training.runlog import read_log


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
