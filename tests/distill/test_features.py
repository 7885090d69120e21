"""The frozen encoder's features on disk: made once, whatever is killed or started twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.distill.features import FeatureCache, cache_features
from stillroom.distill.scene_pack import _Shelves
from stillroom.records import BadInputError, Scene
from stillroom.scenes.store import SceneStore, open_store, write_manifest, write_shard
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.testing import tiny_encoder_config, tiny_questions, tiny_scene, tiny_store

SCENES = 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def student() -> StillroomStudent:
    torch.manual_seed(0)
    encoder = tiny_encoder_config()
    text = neox_config(hidden_size=16, layers=1, heads=2)
    return StillroomStudent(
        StillroomConfig(
            encoder=encoder.to_dict(), text_config=text, vision_grid=2, image_size=28, max_views=4
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> SceneStore:
    return open_store(tiny_store(tmp_path / "scenes", scenes=SCENES))


def make(
    student: StillroomStudent,
    store: SceneStore,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    scene_ids: Sequence[str] = (),
    **changes: str,
) -> FeatureCache:
    processor = StillroomProcessor(image_size=28, max_views=student.config.max_views)
    given = {"encoder": "one", **changes}
    return cache_features(
        student,
        processor,
        store,
        scene_ids or store.scene_ids(),
        folder,
        scenes_per_pass=2,
        progress=progress,
        **given,  # type: ignore[arg-type]
    )


def same(one: FeatureCache, other: FeatureCache) -> bool:
    """Equal for the scenes of both, in whichever rows each has them."""
    names = ("tokens", "own_depth", "true_depth", "cells", "objects")
    ids = sorted({*one.scene_ids} & {*other.scene_ids})
    rows, others = one.rows(ids), other.rows(ids)
    return len(ids) > 0 and all(
        np.array_equal(getattr(one, name)[rows], getattr(other, name)[others]) for name in names
    )


def in_a_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_killed_at_any_moment_it_goes_on_and_no_scene_is_seen_twice(
    student: StillroomStudent, store: SceneStore, tmp_path: Path
) -> None:
    calm = make(student, store, tmp_path / "calm")
    folder, seen = tmp_path / "killed", []

    def die(*_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(2):
        child = in_a_child(lambda: make(student, store, folder, die))
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    finished = make(student, store, folder, lambda done, _: seen.append(done))
    # The two killed sittings did two scenes each; only the last two were left.
    assert seen == [SCENES]
    assert same(finished, calm)


def test_of_two_at_once_one_makes_it_and_the_other_reads_it(
    student: StillroomStudent, store: SceneStore, tmp_path: Path
) -> None:
    folder, log = tmp_path / "shared", tmp_path / "passes"
    log.touch()

    def work() -> None:
        with log.open("a") as file:
            made = make(student, store, folder, lambda *_: print("pass", file=file, flush=True))
            print(float(np.abs(made.tokens[-1]).sum()) > 0, file=file)

    children = [in_a_child(work) for _ in range(2)]
    for child in children:
        os.waitpid(child, 0)
    lines = log.read_text().split()
    assert lines.count("pass") == SCENES // 2
    assert lines.count("True") == 2


def test_what_shapes_the_features_has_a_cache_of_its_own(
    student: StillroomStudent, store: SceneStore, tmp_path: Path
) -> None:
    seen: list[int] = []

    def count(done: int, _: int) -> None:
        seen.append(done)

    make(student, store, tmp_path, count)
    make(student, store, tmp_path, count)
    assert len(seen) == 3
    make(student, store, tmp_path, count, encoder="another")
    assert len(seen) == 6
    half = make(student, store, tmp_path, count, precision="bf16")
    assert len(seen) == 9
    single = make(student, store, tmp_path)
    assert not np.array_equal(half.tokens, single.tokens)
    np.testing.assert_allclose(half.tokens, single.tokens, atol=0.2)


def test_runs_with_other_lists_share_the_scenes_they_have_in_common(
    student: StillroomStudent, store: SceneStore, tmp_path: Path
) -> None:
    ids, seen = store.scene_ids(), list[int]()
    calm = make(student, store, tmp_path / "calm")
    for part in (ids[:4], ids[2:], list(reversed(ids))):
        found = make(student, store, tmp_path / "cache", lambda *_: seen.append(1), scene_ids=part)
        assert {*part} <= {*found.scene_ids}
        assert same(found, calm)
    # Two passes of two scenes for the first list, one for what the second adds.
    assert len(seen) == 3
    # Nothing is loaded: a row is read when it is asked for.
    assert isinstance(found.tokens.base, np.memmap) or isinstance(found.tokens, np.memmap)


def test_what_a_killed_writer_left_behind_is_written_over(
    student: StillroomStudent, store: SceneStore, tmp_path: Path
) -> None:
    ids = store.scene_ids()
    before = make(student, store, tmp_path, scene_ids=ids[:2])
    kept = {name: np.array(getattr(before, name)) for name in ("tokens", "objects")}
    (form,) = tmp_path.glob("features-*/*/")
    # Killed between two arrays of the next rows, or within the line that names one.
    for name, torn in (("tokens.bin", b"x" * 1000), ("scenes", ids[2][:5].encode())):
        with (form / name).open("ab") as file:
            file.write(torn)
    assert before.scene_ids == make(student, store, tmp_path, scene_ids=ids[:2]).scene_ids
    after = make(student, store, tmp_path)
    assert same(after, make(student, store, tmp_path / "calm"))
    assert (form / "scenes").read_text().split() == [*ids]
    # What was mapped before is what it was.
    assert all(np.array_equal(getattr(before, name), kept[name]) for name in kept)


def test_several_runs_on_one_folder_make_each_scene_once_and_read_whole_rows(
    student: StillroomStudent, tmp_path: Path
) -> None:
    many = open_store(tiny_store(tmp_path / "many", scenes=16))
    ids = many.scene_ids()
    calm = make(student, many, tmp_path / "calm")
    log = tmp_path / "passes"
    log.touch()
    lists = (ids[:12], ids[4:], list(reversed(ids)))

    def work(mine: list[str]) -> Callable[[], None]:
        def make_mine() -> None:
            with log.open("a") as file:
                made = make(
                    student,
                    many,
                    tmp_path / "shared",
                    lambda *_: print("pass", file=file, flush=True),
                    scene_ids=mine,
                )
                print(same(made, calm), file=file, flush=True)

        return make_mine

    def look() -> None:
        """Reads at every moment whatever is there."""
        while log.read_text().count("e\n") < len(lists):
            for form in (tmp_path / "shared").glob("features-*/*/form.json"):
                shelves = _Shelves(form.parent.parent)
                shelves.look()
                if shelves.place:
                    pack = shelves.open(form.parent.name)
                    seen = FeatureCache(scene_ids=pack.scene_ids, **pack.arrays)
                    assert same(seen, calm)
        with log.open("a") as file:
            print("looked", file=file)

    children = [in_a_child(work(mine)) for mine in lists] + [in_a_child(look)]
    for child in children:
        os.waitpid(child, 0)
    lines = log.read_text().split()
    assert lines.count("True") == 3
    assert lines.count("looked") == 1
    # Two scenes a pass at most; an odd one may be left over where lists meet.
    assert 8 <= lines.count("pass") <= 10
    (form,) = (tmp_path / "shared").glob("features-*/*/")
    assert sorted((form / "scenes").read_text().split()) == sorted(ids)


def write(folder: Path, scenes: list[Scene]) -> SceneStore:
    write_shard(folder, 0, scenes, [q for scene in scenes for q in tiny_questions(scene)])
    write_manifest(folder, {"count": len(scenes)})
    return open_store(folder)


def test_scenes_of_one_view_are_scenes(student: StillroomStudent, tmp_path: Path) -> None:
    one = write(tmp_path / "scenes", [tiny_scene(seed, views=1) for seed in range(2)])
    cache = make(student, one, tmp_path / "features")
    assert cache.tokens.shape == (2, 1, 4, 32)
    assert np.isfinite(cache.tokens).all()


def test_scenes_of_several_numbers_of_views_are_refused(
    student: StillroomStudent, tmp_path: Path
) -> None:
    mixed = write(tmp_path / "scenes", [tiny_scene(0, views=1), tiny_scene(1, views=3)])
    with pytest.raises(BadInputError, match="the scenes have 1 to 3 views"):
        make(student, mixed, tmp_path / "features")
    # In passes of their own they are found out too.
    apart = write(tmp_path / "more", [tiny_scene(seed, views=1 + seed // 2) for seed in range(4)])
    with pytest.raises(BadInputError, match="distil on scenes of one kind"):
        make(student, apart, tmp_path / "features")


def test_a_scene_without_any_depth_has_none(student: StillroomStudent, tmp_path: Path) -> None:
    scene = tiny_scene(0)
    bare = replace(scene, views=tuple(replace(view, depth=None) for view in scene.views))
    zero = tiny_scene(1)
    empty = tuple(replace(v, depth=np.zeros(v.rgb.shape[:2], np.float32)) for v in zero.views)
    store = write(tmp_path / "scenes", [bare, replace(zero, views=empty)])
    cache = make(student, store, tmp_path / "features")
    assert not cache.true_depth.any()
    assert np.isfinite(cache.tokens).all()
