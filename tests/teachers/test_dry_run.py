"""``--dry-run``: options that change what a labelling costs change what it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillroom import api
from stillroom.records import asked
from stillroom.scenes.store import write_manifest, write_shard
from stillroom.teachers.cost import Load, cost, tower_flops
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.options import TeacherOptions
from stillroom.testing import tiny_scene, tiny_store

SEVEN = LLaVA3DConfig()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("dry") / "scenes", scenes=2)


def priced(scenes: Path, **options: Any) -> tuple[dict[str, Any], str]:
    signals = options.pop("signals", ("answers",))
    figures, lines = api.label_cost(
        scenes, teacher="llava3d-7b", options=TeacherOptions(**options), signals=signals
    )
    return figures, "\n".join(lines)


def test_a_scene_that_is_not_shared_is_paid_with_every_question(scenes: Path) -> None:
    shared, _ = priced(scenes)
    alone, shown = priced(scenes, share_scene=False)
    assert alone["flop"] == alone["questions"] * alone["unshared_flop"]
    assert alone["flop"] > 2 * shared["flop"]
    assert alone["hours"] > 2 * shared["hours"]
    assert "anew for each question" in shown
    assert "once for all its questions" not in shown
    # Features are read once more.
    more, _ = priced(scenes, share_scene=False, signals=("answers", "scene_features"))
    assert more["flop"] == pytest.approx(alone["flop"] + alone["scenes"] * alone["scene_flop"])


def test_a_photo_is_one_view_of_576_tokens_without_points(scenes: Path) -> None:
    full, _ = priced(scenes, signals=("answers", "scene_features"))
    photo, shown = priced(scenes, vision="2d", signals=("answers", "scene_features"))
    assert "a scene: 1 views, 576 visual tokens" in shown
    assert "the first view alone is read, as a photo" in shown
    load = Load.of_photo(SEVEN)
    by_hand = cost(SEVEN, load, signals=("answers",), scenes=2, questions=8, topk=1, photo=True)
    assert photo["scene_flop"] == by_hand.scene_flop
    assert photo["scene_flop"] != full["scene_flop"]
    # 576 patches: pooled 2 x 1024, semantics 4 x 4096, the token of each patch; no points.
    assert photo["scene_bytes"]["scene_features"] == 576 * (2048 + 2) + 4 * 4096


def test_a_photo_has_no_cap() -> None:
    tight = replace(SEVEN, max_visual_tokens=100)
    load = Load.of_photo(SEVEN)
    given: dict[str, Any] = {"signals": ("answers",), "scenes": 1, "questions": 1, "topk": 1}
    assert cost(tight, load, photo=True, **given) == cost(SEVEN, load, photo=True, **given)


def test_views_are_those_that_were_asked_for(scenes: Path) -> None:
    every, _ = priced(scenes)
    five, shown = priced(scenes, frames=5)
    assert (every["views"], five["views"]) == (20, 5)
    assert "a scene: 5 views" in shown
    assert every["scene_flop"] - five["scene_flop"] >= tower_flops(SEVEN, 15)


def test_scenes_without_depth_are_said_to_be_assumed(tmp_path: Path) -> None:
    scene = tiny_scene(0)
    bare = replace(scene, views=tuple(replace(view, depth=None) for view in scene.views))
    write_shard(tmp_path / "bare", 0, [bare], [asked(bare.scene_id, "What is this?")])
    write_manifest(tmp_path / "bare", {})
    figures, shown = priced(tmp_path / "bare")
    assert "visual tokens assumed: 1,300 (" in shown
    assert figures["views"] == 20


def test_every_group_of_attention_layers_has_its_bytes(scenes: Path) -> None:
    signals = ("answers", "attention")
    four, _ = priced(scenes, signals=signals)
    one, _ = priced(scenes, signals=signals, attention_layers=("0-31",))
    assert four["question_bytes"]["attention"] == 4 * one["question_bytes"]["attention"]


def test_answers_are_no_longer_than_max_new_tokens(scenes: Path) -> None:
    assert priced(scenes, max_new_tokens=2)[0]["flop"] < priced(scenes)[0]["flop"]
