"""Open scenes within a budget of memory: closed in turn, answers the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stillroom.engine.scene_cache import SceneCache
from stillroom.records import Answer, BadInputError, Question, Scene
from stillroom.testing import tiny_scene


class Sized:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return []


class Opener:
    """Scenes of 10 bytes."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, scene: Scene) -> Sized:
        self.opened.append(scene.scene_id)
        return Sized(10)


@pytest.fixture
def scenes() -> list[Scene]:
    return [tiny_scene(seed) for seed in range(4)]


def test_a_scene_is_opened_once_and_the_one_asked_longest_ago_is_closed(
    scenes: list[Scene],
) -> None:
    opener = Opener()
    cache = SceneCache(opener, budget_bytes=25)
    a, b, c, d = scenes
    first = cache.open(a)
    cache.open(b)
    assert cache.open(a) is first
    cache.open(c)  # b was asked longest ago
    assert (a.scene_id in cache, b.scene_id in cache, c.scene_id in cache) == (True, False, True)
    cache.open(d)
    cache.open(b)
    assert opener.opened == [one.scene_id for one in (a, b, c, d, b)]
    assert (cache.opened, cache.found, cache.evicted, len(cache)) == (5, 1, 3, 2)
    assert cache.nbytes == 20


def test_room_is_made_before_a_scene_is_opened(scenes: list[Scene]) -> None:
    held: list[int] = []

    class Watching(Opener):
        def open(self, scene: Scene) -> Sized:
            held.append(cache.nbytes)
            return super().open(scene)

    cache = SceneCache(Watching(), budget_bytes=25)
    for scene in scenes:
        cache.open(scene)
    assert held == [0, 10, 10, 10]


def test_the_last_scene_stays_even_if_it_is_larger_than_the_budget(scenes: list[Scene]) -> None:
    cache = SceneCache(Opener(), budget_bytes=5)
    for scene in scenes:
        cache.open(scene)
        assert len(cache) == 1


def test_scenes_that_grow_are_counted_as_they_are_now(scenes: list[Scene]) -> None:
    cache = SceneCache(Opener(), budget_bytes=45)
    grown = cache.open(scenes[0])
    cache.open(scenes[1])
    grown.nbytes = 40
    cache.open(scenes[1])
    assert scenes[0].scene_id not in cache


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(BadInputError, match="budget_bytes must be at least 1, got 0"):
        SceneCache(Opener(), budget_bytes=0)
