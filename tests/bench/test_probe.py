"""Probes of the shipped student on a few made rooms: figures, pictures, resuming, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillroom import api
from stillroom.bench import probe as probing
from stillroom.bench.probe_tasks import probed_questions
from stillroom.records import FAMILIES, BadInputError
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.testing import tiny_questions, tiny_scene

LEVELS = 6


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "rooms"
    api.make_scenes(out, count=20, seed=5, questions=14, workers=1)
    return out


@pytest.fixture(scope="module")
def probed(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("probe") / "out"
    return out, api.probe("student_mini", rooms, out=out)


def test_every_property_is_scored_at_every_layer_from_every_representation(
    probed: tuple[Path, dict[str, Any]],
) -> None:
    out, record = probed
    assert json.loads((out / "PROBE.json").read_text()) == record
    axes = {
        "proximity (place named)",
        "contact (no or yes)",
        "size (place named)",
        "orientation (left or right)",
    }
    assert list(record["scores"])[:2] == ["distance", "kind"]
    assert axes <= {task.removeprefix("answer: ") for task in record["scores"]}
    # Four words share one family, but no question asks for all of them: each axis is by itself.
    assert all(
        found["classes"] == 2 for t, found in record["scores"].items() if t.startswith("answer")
    )
    for task, found in record["scores"].items():
        assert set(found["levels"]) == {"slots", "slots_joined", "question", "random_slots"}
        for levels in found["levels"].values():
            assert len(levels) == LEVELS
            for one in levels:
                assert one["n"] > 2
                beyond = one["control"]["value"] - one["control_guess"]
                assert one["selectivity"]["value"] == pytest.approx(
                    one["score"]["value"] - one["guess"] - beyond
                )
                assert (one["error"] is None) == (task != "distance")
                if task != "distance":
                    assert 0 <= one["score"]["low"] <= one["score"]["value"]
    assert record["meta"]["scenes"] == {"train": 14, "test": 4}


def test_what_is_read_in_at_the_slots_knows_nothing_and_question_words_know_the_kind(
    probed: tuple[Path, dict[str, Any]],
) -> None:
    _, record = probed
    for found in record["scores"].values():
        for name in ("slots", "slots_joined", "random_slots"):
            first = found["levels"][name][0]
            # The same vectors for every question: always the same answer, of control too.
            assert first["score"]["value"] == pytest.approx(first["guess"], abs=1e-6)
            assert first["control"]["value"] == pytest.approx(first["control_guess"], abs=1e-6)
    kind = record["scores"]["kind"]["levels"]
    assert kind["question"][0]["score"]["value"] > kind["slots"][0]["score"]["value"]
    assert kind["slots"][0]["score"]["value"] == kind["slots"][0]["guess"]


def test_attention_is_a_share_of_the_photos(probed: tuple[Path, dict[str, Any]]) -> None:
    out, record = probed
    held = record["attention"]
    assert [row["slot"] for row in held["slots"]] == list(range(1, 9))
    for row in held["slots"]:
        assert 0 < row["on_photos"]["low"] <= row["on_photos"]["score"] <= row["on_photos"]["high"]
        assert sum(row["by_photo"]) == pytest.approx(1)
        assert 0 < row["entropy_nats"] <= held["even_entropy_nats"]
        assert row["on_things_named"]["score"] > 0
    sheets = sorted(out.glob("attention_*.png"))
    assert len(sheets) == 3
    for file in (*sheets, out / "probe.png"):
        with Image.open(file) as picture:
            picture.load()
            assert picture.width > 400
    page = (out / "PROBE.html").read_text()
    assert page.count("data:image/png;base64") == 4
    best = record["scores"]["distance"]["levels"]["slots"]
    assert f"{max(one['score']['value'] for one in best):.3f}" in page


def test_a_killed_probe_goes_on_and_a_finished_one_reads_nothing_again(
    rooms: Path,
    probed: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, record = probed
    read: list[str] = []
    once = probing._states_of

    def counted(answerer: Any, store: Any, scene_id: str, seed: int) -> Any:
        read.append(scene_id)
        return once(answerer, store, scene_id, seed)

    monkeypatch.setattr(probing, "_states_of", counted)
    assert api.probe("student_mini", rooms, out=out) == record
    assert read == []
    (out / "PROBE.json").unlink()
    (out / "states" / "00001.npz").unlink()
    again = api.probe("student_mini", rooms, out=out)
    assert len(read) == 8
    assert again["scores"] == record["scores"]


def test_other_settings_and_what_cannot_be_probed_are_refused(
    rooms: Path, probed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = probed
    with pytest.raises(BadInputError, match=r"other settings \(seed\)"):
        api.probe("student_mini", rooms, out=out, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for model, where, how, sentence in (
        ("student_mini", tmp_path / "mine", {}, "holds no probe"),
        ("teacher_mini", tmp_path / "o", {}, "has no slots; name a student"),
        ("student_mini", tmp_path / "o", {"split": "shifted"}, "0 scenes in split 'shifted'"),
        ("student_mini", tmp_path / "o", {"split": "train"}, "learn from the split 'train'"),
        ("student_mini", tmp_path / "o", {"limit": 1}, "--limit must be at least 2"),
    ):
        with pytest.raises(BadInputError, match=sentence):
            api.probe(model, rooms, out=where, **how)
    assert not (tmp_path / "o").exists()


def test_a_damaged_plan_or_states_are_named(
    rooms: Path, probed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for content, sentence in (
        ("{", "not readable JSON"),
        ("[]", "no JSON object"),
        ("{}", "version"),
    ):
        out = tmp_path / str(len(content) + ord(content[0]))
        out.mkdir()
        (out / "plan.json").write_text(content)
        with pytest.raises(BadInputError, match=sentence):
            api.probe("student_mini", rooms, out=out)
    copied = shutil.copytree(probed[0], tmp_path / "copied")
    (copied / "PROBE.json").unlink()
    (copied / "states" / "00000.npz").write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"00000.npz is not readable .* delete it"):
        api.probe("student_mini", rooms, out=copied)


def test_rooms_of_which_nothing_is_known_are_refused(tmp_path: Path) -> None:
    scenes = [replace(tiny_scene(n, split=("train", "test")[n % 2]), objects=()) for n in range(4)]
    write_manifest(tmp_path / "scenes", {"count": 4})
    write_shard(tmp_path / "scenes", 0, scenes, [q for s in scenes for q in tiny_questions(s)])
    with pytest.raises(BadInputError, match="knows of no two things that a question of split"):
        api.probe("student_mini", tmp_path / "scenes", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_question_tells_the_distance_the_relation_and_the_kinds(rooms: Path) -> None:
    store = open_store(rooms)
    scene = store.scene(store.scene_ids()[0])
    found = probed_questions(scene, store)
    assert {one.question.family for one in found} == set(FAMILIES)
    for one in found:
        first, second = (scene.object(i) for i in one.question.object_ids[:2])
        assert one.distance == pytest.approx(np.linalg.norm(first.box.center - second.box.center))
        assert one.kinds[:2] == (first.category, second.category)
        assert len(one.kinds) == len(one.question.object_ids)
        assert first.name == one.name
        assert first.name in one.question.question
        if one.question.family in ("proximity", "size"):
            place = one.question.options.index(one.question.answer)
            assert one.relation == f"option {place + 1}"
        else:
            assert one.relation == one.question.answer
            assert set(one.axis.split(" or ")) == set(one.question.options)
