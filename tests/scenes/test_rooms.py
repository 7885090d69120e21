"""Made rooms: exact contact, tight boxes, useful names and views, and nothing left to chance."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from stillroom.geometry.boxes import corners
from stillroom.geometry.depth import reproject
from stillroom.geometry.poses import is_rigid
from stillroom.records import Scene
from stillroom.scenes import furniture
from stillroom.scenes.casting import caster
from stillroom.scenes.facts import MIN_SHARE, pixel_shares
from stillroom.scenes.physics import APART, TOUCH, Surfaces, surface_distances
from stillroom.scenes.rooms import CATEGORIES, COLOURS, draw_rooms, make_room, split_of
from stillroom.scenes.solids import from_parts


@cache
def plain() -> tuple[Scene, ...]:
    return tuple(make_room(5, index) for index in range(5))


@cache
def furnished() -> tuple[Scene, ...]:
    return (make_room(5, 0, density="furnished"),)


@cache
def shifted() -> tuple[Scene, ...]:
    return (make_room(5, 0, split="shifted"),)


@pytest.fixture(
    params=[
        (rooms, k) for rooms, n in ((plain, 3), (furnished, 1), (shifted, 1)) for k in range(n)
    ],
    ids=lambda param: f"{param[0].__name__}{param[1]}",
)
def room(request: pytest.FixtureRequest) -> Scene:
    rooms, k = request.param
    return rooms()[k]


def test_a_room_is_drawn_from_seed_and_number_alone() -> None:
    again = make_room(5, 3)
    assert again.scene_id == plain()[3].scene_id
    np.testing.assert_array_equal(again.views[0].rgb, plain()[3].views[0].rgb)
    assert len({room.scene_id for room in (*plain(), *shifted())}) == 6
    assert make_room(6, 3).scene_id != plain()[3].scene_id


def test_the_next_draw_for_the_same_place_is_another_room() -> None:
    rooms = draw_rooms(5, 3)
    first, second = next(rooms), next(rooms)
    assert first[0].scene_id == plain()[3].scene_id != second[0].scene_id
    assert first[1].random() != second[1].random()


def test_splits_go_by_number_unless_one_is_named() -> None:
    splits = [split_of(index) for index in range(20)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [14, 2, 4]
    assert plain()[4].split == "train"
    assert shifted()[0].split == "shifted"


def test_densities_and_shifted_rooms_differ_in_counts_views_and_eye_height() -> None:
    for room in plain():
        assert 4 <= len(room.objects) <= 9
        assert len(room.views) == 6
        assert room.views[0].rgb.shape == (112, 112, 3)
    for room in furnished():
        assert 20 <= len(room.objects) <= 40
        assert len(room.views) == 8
        assert room.views[0].rgb.shape == (224, 224, 3)
    for room in shifted():
        assert len(room.objects) > 9
        assert min(view.c2w[2, 3] for view in room.views) > 1.55  # type: ignore[index]
    assert max(view.c2w[2, 3] for room in plain() for view in room.views) < 1.7  # type: ignore[index]


def test_things_touch_or_are_clearly_apart_and_never_inside_each_other(room: Scene) -> None:
    surfaces = Surfaces()
    for thing in room.objects:
        surfaces.put(from_parts(thing.parts))
    count = len(room.objects)
    gaps = np.array([surfaces.distance(a, b) for a in range(count) for b in range(a)])
    assert gaps.min() > -1e-3
    assert not ((gaps > TOUCH) & (gaps < APART)).any()


def test_everything_stands_on_what_is_said_to_carry_it(room: Scene) -> None:
    distances = surface_distances(room.objects)
    place = {thing.object_id: k for k, thing in enumerate(room.objects)}
    for thing in room.objects:
        low = corners(thing.box.center, thing.box.size, thing.box.rotation)[:, 2].min()
        if thing.supported_by is None:
            assert thing.category == "picture"
            assert low > 0.5
        elif thing.supported_by == 0:
            assert low == pytest.approx(0.0, abs=1e-6)
        else:
            assert low > 0.005
            assert distances[place[thing.object_id], place[thing.supported_by]] < 1e-6


def test_boxes_are_tight_around_the_parts_in_the_things_own_turn(room: Scene) -> None:
    for thing in room.objects:
        solids = from_parts(thing.parts)
        half = solids.half_extents(thing.box.rotation)
        local = (solids.center - thing.box.center) @ thing.box.rotation
        np.testing.assert_allclose((local + half).max(axis=0), 0.5 * thing.box.size, atol=1e-9)
        np.testing.assert_allclose((local - half).min(axis=0), -0.5 * thing.box.size, atol=1e-9)
        np.testing.assert_allclose(thing.box.rotation[2], [0, 0, 1], atol=1e-12)


def test_things_and_cameras_are_within_the_walls(room: Scene) -> None:
    assert room.room_size is not None
    half = 0.5 * room.room_size
    for thing in room.objects:
        low, high = from_parts(thing.parts).bounds()
        assert (np.abs(np.concatenate([low, high])[:, :2]) < half[:2]).all()
        assert low[:, 2].min() > -1e-6
        assert high[:, 2].max() < room.room_size[2]
    for view in room.views:
        assert view.c2w is not None
        assert is_rigid(view.c2w)
        assert (np.abs(view.c2w[:2, 3]) < half[:2] - 0.25).all()


def test_a_name_means_one_thing_and_names_its_colour_and_kind(room: Scene) -> None:
    names = [thing.name for thing in room.objects]
    assert len(set(names)) == len(names)
    for thing in room.objects:
        assert thing.category in CATEGORIES
        assert thing.colour in COLOURS
        assert thing.name.endswith(f"{thing.colour} {thing.category}")
        alike = [other for other in names if other.endswith(f"{thing.colour} {thing.category}")]
        # Where two are of one kind and colour, both carry a word that the other lacks.
        assert (len(thing.name.split()) == 3) == (len(alike) > 1)


def test_ids_in_the_pictures_are_those_of_the_things(room: Scene) -> None:
    known = {thing.object_id for thing in room.objects}
    assert known == set(range(1, len(room.objects) + 1))
    for view in room.views:
        assert view.instances is not None
        assert view.depth is not None
        assert set(np.unique(view.instances).tolist()) - {0} <= known
        assert (view.depth > 0).all()
        assert 20 < view.rgb.mean() < 235


def test_most_things_are_well_seen_twice() -> None:
    def well(rooms: tuple[Scene, ...]) -> float:
        seen: list[bool] = []
        for room in rooms:
            ids = np.stack([view.instances for view in room.views])  # type: ignore[misc]
            share = [(ids == thing.object_id).mean(axis=(1, 2)) for thing in room.objects]
            seen += [bool((views >= 0.003).sum() >= 2) for views in share]
        return float(np.mean(seen))

    assert well(plain()) > 0.85
    assert well(furnished()) > 0.5


def test_neighbouring_views_overlap() -> None:
    for room in plain()[:4]:
        overlaps = []
        for a, b in zip(room.views, room.views[1:] + room.views[:1]):
            found = reproject(
                a.depth.astype(float), a.intrinsics, a.c2w,  # type: ignore[union-attr, arg-type]
                b.depth.astype(float), b.intrinsics, b.c2w,  # type: ignore[union-attr, arg-type]
                stride=4,
            )  # fmt: skip
            overlaps.append(found.overlap * (np.abs(found.dz) < 0.02).mean())
        assert 0.3 < np.mean(overlaps) < 0.8


def test_touching_and_near_pairs_are_both_common() -> None:
    gaps = np.concatenate(
        [surface_distances(room.objects)[np.triu_indices(len(room.objects), 1)] for room in plain()]
    )
    touching, near = (gaps <= TOUCH).sum(), ((gaps >= APART) & (gaps <= 0.6)).sum()
    assert touching >= 1.5 * len(plain())
    assert near >= 1.5 * len(plain())


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_kind_fills_the_box_it_was_asked_to_fill(category: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        size = furniture.draw_size(category, rng)
        item = furniture.build(category, size, "red", "plain", rng)
        assert (np.array(item.size) <= 1.21 * np.array(size) + 0.03).all()
        assert (np.array(item.size) >= 0.45 * np.array(size)).all()
        low, high = item.solids.bounds()
        assert low[:, 2].min() == pytest.approx(0.0, abs=1e-9)
        assert (item.solids.size > 0).all()
        np.testing.assert_allclose(low.min(axis=0)[:2], -high.max(axis=0)[:2], atol=1e-9)
        for top in item.tops:
            # What is said to carry others is there, right below.
            spot = [0.6 * low + 0.4 * high for low, high in zip(top.low, top.high)]
            eye = np.array([[*spot, top.z + 0.01]], dtype=np.float32)
            down = np.array([[0.0, 0.0, -1.0]], dtype=np.float32)
            solid, distance = caster(item.solids).first(eye, down)
            assert solid[0] >= 0
            assert distance[0] == pytest.approx(0.01, abs=1e-3)


def test_sizes_of_kinds_overlap_so_that_names_do_not_tell_which_is_bigger() -> None:
    rng = np.random.default_rng(1)

    def volumes(category: str) -> np.ndarray:
        items = [
            furniture.build(category, furniture.draw_size(category, rng), "red", "plain", rng)
            for _ in range(30)
        ]
        return np.array([np.prod(item.size) for item in items])

    chair, table, box = volumes("chair"), volumes("table"), volumes("box")
    for one, other in ((chair, table), (box, chair)):
        bigger = (one[:, None] > other[None]).mean()
        assert 0.1 < bigger < 0.9


def test_cameras_start_anywhere() -> None:
    first = [room.views[0].c2w for room in plain()]
    bearings = [np.arctan2(pose[1, 3], pose[0, 3]) for pose in first if pose is not None]
    assert np.ptp(bearings) > 2.0


def test_in_a_plain_room_the_colour_alone_says_which_thing_is_meant() -> None:
    for room in plain():
        colours = [thing.colour for thing in room.objects]
        assert len(set(colours)) == len(colours)
    # Twelve things or more cannot all differ in eleven colours.
    assert len({thing.colour for thing in furnished()[0].objects}) < len(furnished()[0].objects)


def test_plain_photos_are_wide_and_the_first_mostly_shows_most() -> None:
    most = 0
    for room in plain():
        half = np.arctan(room.views[0].rgb.shape[0] / 2 / room.views[0].intrinsics[1, 1])
        assert 70 <= np.degrees(2 * half) <= 75
        shares = pixel_shares(room.views, room.objects)
        seen = (shares >= MIN_SHARE).sum(axis=1)
        most += seen[0] >= seen.max() - 1
    assert most >= 3  # three quarters of the rooms, judged by coarse pictures
