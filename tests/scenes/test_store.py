"""The scene store: what is written is what is read, whole or not at all, the same bytes again."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.geometry.poses import look_at
from stillroom.records import (
    BadInputError,
    OrientedBox,
    Part,
    Question,
    Scene,
    SceneObject,
    Split,
    View,
)
from stillroom.scenes import store as storing
from stillroom.scenes.store import (
    ROWS_PER_GROUP,
    SHARDS_HELD,
    open_store,
    read_manifest,
    shard_path,
    write_atomically,
    write_manifest,
    write_shard,
)

#: Depth is stored in quarter millimetres below 16 m and in millimetres beyond.
FINE, COARSE = 0.00025, 0.001


def a_scene(scene_id: str = "room", *, split: Split = "train", seed: int = 0) -> Scene:
    """A small scene in which every field holds something."""
    rng = np.random.default_rng(seed)
    depth = (rng.integers(0, 40_000, (6, 8)) * FINE).astype(np.float32)
    box = OrientedBox(
        center=rng.normal(size=3), size=rng.random(3) + 0.1, rotation=np.eye(3)[[1, 0, 2]]
    )
    part = Part(
        kind="cylinder",
        center=rng.normal(size=3),
        size=rng.random(3) + 0.1,
        wxyz=np.array([1.0, 0.0, 0.0, 0.0]),
    )
    views = [
        View(
            name="full",
            rgb=rng.integers(0, 256, (6, 8, 3)).astype(np.uint8),
            intrinsics=np.array([[9.1, 0.0, 4.2], [0.0, 9.2, 3.3], [0.0, 0.0, 1.0]]),
            c2w=look_at(np.array([1.0, 2.0, 1.5]), np.zeros(3)),
            depth=depth,
            instances=rng.integers(0, 60_000, (6, 8)).astype(np.uint16),
        ),
        View(name="photo", rgb=rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)),
    ]
    things = [
        SceneObject(
            object_id=1,
            category="table",
            name="red table",
            colour="red",
            box=box,
            parts=(part,),
            supported_by=0,
        ),
        SceneObject(object_id=2, category="picture", name="picture", colour="blue", box=box),
    ]
    return Scene(
        scene_id=scene_id,
        source="made:plain",
        views=tuple(views),
        split=split,
        objects=tuple(things),
        floor_z=-0.25,
        room_size=np.array([4.0, 3.0, 2.5]),
    )


def a_question(scene_id: str, number: int = 0, *, split: Split = "train") -> Question:
    return Question(
        scene_id=scene_id,
        question_id=f"{scene_id}-{number}",
        split=split,
        family="size" if number % 2 else "contact",
        question="Which is bigger, the red table or the picture?",
        answer="red table",
        options=("red table", "picture"),
        value=1.5,
        unit="m3",
        margin=1.5,
        rationale="locate, relate, conclude",
        renderings=("A room.", "Ein Zimmer, schön."),
        facts=(("object", "red table"), ("on", "mug", "table")),
        object_ids=(1, 2),
    )


def assert_same(one: object, other: object, where: str = "scene") -> None:
    """Equal in type and value down to the last array."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert one.dtype == other.dtype, where
        assert np.array_equal(one, other), where
    elif isinstance(one, tuple):
        assert isinstance(other, tuple)
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    elif hasattr(one, "__dataclass_fields__"):
        for entry in fields(one):  # type: ignore[arg-type]
            a, b = getattr(one, entry.name), getattr(other, entry.name)
            assert_same(a, b, f"{where}.{entry.name}")
    else:
        assert one == other, where


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of two shards: seven scenes of two splits, and one."""
    splits: list[Split] = ["train", "test"]
    scenes = [a_scene(f"s{i}", split=splits[i % 2], seed=i) for i in range(8)]
    home = tmp_path / "store"
    for index, part in enumerate((scenes[:7], scenes[7:])):
        asked = [a_question(s.scene_id, n, split=s.split) for s in part for n in range(2)]
        write_shard(home, index, part, asked)
    write_manifest(home, {"seed": 1, "count": 8})
    return home


def test_a_scene_comes_back_bit_for_bit(tmp_path: Path) -> None:
    scene, question = a_scene(), a_question("room")
    write_shard(tmp_path, 0, [scene], [question])
    write_manifest(tmp_path, {})
    store = open_store(tmp_path)
    assert_same(store.scene("room"), scene)
    assert store.questions() == [question]


def test_a_question_without_truth_comes_back_as_it_was(tmp_path: Path) -> None:
    bare = Question(
        scene_id="room",
        question_id="q",
        split="test",
        family="asked",
        question="Is the lamp on?",
        answer="",
    )
    write_shard(tmp_path, 0, [a_scene()], [bare])
    write_manifest(tmp_path, {})
    assert open_store(tmp_path).questions("room") == [bare]


@pytest.mark.parametrize(("far", "unit"), [(3.0, FINE), (40.0, COARSE)])
def test_depth_is_kept_to_half_a_unit_and_no_reading_stays_none(
    tmp_path: Path, far: float, unit: float
) -> None:
    depth = np.linspace(0.3, far, 48).reshape(6, 8).astype(np.float32)
    depth[0, :3] = 0.0
    scene = a_scene()
    views = (replace(scene.views[0], depth=depth), scene.views[1])
    write_shard(tmp_path, 0, [replace(scene, views=views)], [])
    write_manifest(tmp_path, {})
    back = open_store(tmp_path).scene("room").views[0].depth
    assert back is not None
    assert back[0, :3].tolist() == [0, 0, 0]
    assert np.abs(back - depth).max() <= 0.5 * unit + 1e-6


def test_depth_of_nan_or_infinity_is_kept_as_none(tmp_path: Path) -> None:
    scene = a_scene()
    depth = np.full((6, 8), 2.0, dtype=np.float32)
    depth[0, :3] = (np.nan, np.inf, -1.0)
    views = (replace(scene.views[0], depth=depth), scene.views[1])
    write_shard(tmp_path, 0, [replace(scene, views=views)], [])
    write_manifest(tmp_path, {})
    back = open_store(tmp_path).scene("room").views[0].depth
    assert back is not None
    assert back[0, :4].tolist() == [0, 0, 0, 2]


def test_ids_and_questions_follow_the_order_of_making_split_and_family(folder: Path) -> None:
    store = open_store(folder)
    assert len(store) == 8
    assert store.scene_ids() == [f"s{i}" for i in range(8)]
    assert store.scene_ids("test") == ["s1", "s3", "s5", "s7"]
    assert store.scene_ids("val") == []
    assert [scene.scene_id for scene in store.iter_scenes("test")] == store.scene_ids("test")
    assert len(store.questions()) == 16
    assert len(store.questions(split="train")) == 8
    assert [q.question_id for q in store.questions("s7", family="size")] == ["s7-1"]
    with pytest.raises(KeyError):
        store.scene("s9")


def test_scenes_are_read_in_any_order_and_one_row_group_at_a_time(folder: Path) -> None:
    store = open_store(folder)
    for index in (7, 0, ROWS_PER_GROUP, 1, 6):
        assert_same(
            store.scene(f"s{index}"),
            a_scene(f"s{index}", split="test" if index % 2 else "train", seed=index),
        )
    assert store._group is not None
    assert len(store._group[1]) <= ROWS_PER_GROUP


def test_many_shards_need_few_open_files_and_little_memory(tmp_path: Path) -> None:
    shards = 3 * SHARDS_HELD
    for index in range(shards):
        scene = a_scene(f"s{index}")
        write_shard(tmp_path, index, [scene], [a_question(f"s{index}", n) for n in range(2)])
    write_manifest(tmp_path, {})
    before = len(os.listdir("/proc/self/fd"))
    store = open_store(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    for index in (*range(shards), 0):
        assert store.scene(f"s{index}").scene_id == f"s{index}"
        assert len(store.questions(f"s{index}")) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + SHARDS_HELD
    assert len(store._asked) <= SHARDS_HELD
    assert list(store.question_ids()) == [q.question_id for q in store.questions()]


def test_the_same_scenes_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    scenes = list(open_store(folder).iter_scenes())
    again = tmp_path / "again"
    write_shard(again, 0, scenes[:7], open_store(folder).questions()[:14])
    write_manifest(again, {"count": 8, "seed": 1})
    for name in ("scenes/00000.parquet", "questions/00000.parquet", "manifest.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_write_that_dies_leaves_the_old_file_and_no_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard_path(folder, "scenes", 0)
    before = path.read_bytes()

    def die(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"half")
    with pytest.raises(OSError, match="power cut"):
        write_shard(folder, 2, [a_scene("new")], [])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert open_store(folder).scene_ids() == [f"s{i}" for i in range(8)]


def test_a_shards_scenes_are_written_after_its_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = storing.write_atomically
    monkeypatch.setattr(
        storing,
        "write_atomically",
        lambda path, data: (written.append(path.parent.name), real(path, data)),
    )
    write_shard(tmp_path, 0, [a_scene()], [a_question("room")])
    assert written == ["questions", "scenes"]


@pytest.mark.parametrize("kept", [0, 4, 400, -1])
def test_a_truncated_shard_of_scenes_is_refused_with_its_name(folder: Path, kept: int) -> None:
    path = shard_path(folder, "scenes", 0)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadInputError, match=r"00000\.parquet is truncated or not a Parquet shard"):
        open_store(folder)


def test_a_truncated_shard_of_questions_is_refused_when_they_are_read(folder: Path) -> None:
    path = shard_path(folder, "questions", 1)
    path.write_bytes(path.read_bytes()[:-9])
    store = open_store(folder)
    with pytest.raises(BadInputError, match="truncated"):
        store.questions()


def test_a_folder_that_is_no_store_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="scene folder not found"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match=r"holds no scenes store: manifest\.json is missing"):
        open_store(tmp_path)
    write_manifest(tmp_path, {})
    with pytest.raises(BadInputError, match="holds no finished shard"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable JSON"),
        ("[]", "kind None"),
        ('{"kind": "labels", "version": 1}', "kind 'labels'"),
        ('{"kind": "scenes", "version": 99}', "has version 99"),
    ],
)
def test_a_manifest_of_another_kind_or_version_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadInputError, match=said):
        read_manifest(tmp_path)


def test_the_manifest_says_what_was_asked_for_and_no_date(folder: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    assert record == {"kind": "scenes", "version": 1, "settings": {"count": 8, "seed": 1}}
