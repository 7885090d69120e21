"""Distances between surfaces: known cases, laws, and independence of whoever measured before."""

from __future__ import annotations

import numpy as np
import pytest

from stillroom.geometry.poses import rotation_from_wxyz, rotation_z
from stillroom.records import OrientedBox, Part, SceneObject
from stillroom.scenes.physics import Surfaces, surface_distances, touching
from stillroom.scenes.solids import BOX, CYLINDER, SPHERE, Solids, from_parts, join

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


def solid(kind: int, center: tuple, size: tuple, yaw: float = 0.0) -> Solids:
    return Solids(
        kind=np.array([kind]),
        center=np.array([center], dtype=float),
        size=np.array([size], dtype=float),
        rotation=rotation_z(yaw)[None],
    )


def thing(number: int, parts: tuple[Part, ...]) -> SceneObject:
    box = from_parts(parts).box(np.eye(3))
    return SceneObject(
        object_id=number, category="box", name=f"{number}", colour="red", box=box, parts=parts
    )


def part(kind: str, center: tuple, size: tuple) -> Part:
    return Part(
        kind=kind,  # type: ignore[arg-type]
        center=np.array(center, dtype=float),
        size=np.array(size, dtype=float),
        wxyz=UPRIGHT,
    )


@pytest.mark.parametrize(
    ("a", "b", "gap"),
    [
        (solid(BOX, (0, 0, 0), (1, 1, 1)), solid(BOX, (1.3, 0.4, 0), (1, 1, 1)), 0.3),
        (
            solid(BOX, (0, 0, 0), (1, 1, 1)),
            solid(BOX, (1.5, 0, 0), (1, 1, 1), np.pi / 4),
            1.0 - np.sqrt(0.5),
        ),
        (
            solid(CYLINDER, (0, 0, 0), (0.4, 0.4, 2.0)),
            solid(SPHERE, (0, 1.0, 0.3), (0.6, 0.6, 0.6)),
            0.5,
        ),
        (
            solid(CYLINDER, (0, 0, 0), (0.4, 0.4, 1.0)),
            solid(BOX, (0, 0, 1.0), (0.2, 0.2, 0.4)),
            0.3,
        ),
        (solid(SPHERE, (0, 0, 0), (1, 1, 1)), solid(SPHERE, (3, 4, 0), (2, 2, 2)), 3.5),
        (solid(BOX, (0, 0, 0), (1, 1, 1)), solid(BOX, (0.9, 0, 0), (1, 1, 1)), -0.1),
    ],
)
def test_known_gaps_are_measured_exactly(a: Solids, b: Solids, gap: float) -> None:
    surfaces = Surfaces()
    first, second = surfaces.put(a), surfaces.put(b)
    assert surfaces.distance(first, second) == pytest.approx(gap, abs=1e-6)
    assert surfaces.distance(second, first) == pytest.approx(gap, abs=1e-6)


def test_of_many_parts_the_nearest_pair_counts() -> None:
    table = join(
        [
            solid(BOX, (0, 0, 0.72), (1.2, 0.8, 0.04)),
            solid(BOX, (0.5, 0.3, 0.35), (0.06, 0.06, 0.7)),
            solid(BOX, (-0.5, -0.3, 0.35), (0.06, 0.06, 0.7)),
        ]
    )
    surfaces = Surfaces()
    surfaces.put(table)
    under = surfaces.put(solid(SPHERE, (0, 0.3, 0.2), (0.4, 0.4, 0.4)))
    # The leg is 0.47 m away from the ball's middle, the top 0.5 m.
    assert surfaces.distance(0, under) == pytest.approx(0.27, abs=1e-6)


def test_the_deepest_overlap_is_found_behind_a_mere_touch() -> None:
    surfaces = Surfaces()
    one = surfaces.put(join([solid(BOX, (0, 0, 0), (1, 1, 1)), solid(BOX, (3, 0, 0), (1, 1, 1))]))
    other = surfaces.put(
        join([solid(BOX, (0, 1, 0), (1, 1, 1)), solid(BOX, (3, 0.8, 0), (1, 1, 1))])
    )
    assert surfaces.distance(one, other) == pytest.approx(-0.2, abs=1e-6)


def test_no_point_of_one_is_nearer_to_a_box_than_the_distance_says() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        wxyz = rng.normal(size=(2, 4))
        turn = rotation_from_wxyz(wxyz)
        a = Solids(
            kind=np.array([BOX]),
            center=np.zeros((1, 3)),
            size=rng.uniform(0.05, 1, (1, 3)),
            rotation=turn[:1],
        )
        b = Solids(
            kind=np.array([BOX]),
            center=rng.normal(size=(1, 3)),
            size=rng.uniform(0.05, 1, (1, 3)),
            rotation=turn[1:],
        )
        surfaces = Surfaces()
        surfaces.put(a)
        surfaces.put(b)
        distance = max(surfaces.distance(0, 1), 0.0)
        inside_b = (rng.uniform(-0.5, 0.5, (4000, 3)) * b.size[0]) @ turn[1].T + b.center[0]
        local = inside_b @ turn[0]
        gap = np.linalg.norm(np.maximum(np.abs(local) - 0.5 * a.size[0], 0), axis=1).min()
        assert gap >= distance - 1e-9
        # Samples come near the true minimum, so the distance is no mere lower bound.
        assert gap <= distance + 0.25


def test_two_measurers_at_work_do_not_disturb_each_other() -> None:
    one, other = Surfaces(), Surfaces()
    for surfaces, gap in ((one, 0.25), (other, 0.75)):
        surfaces.put(solid(BOX, (0, 0, 0), (1, 1, 1)))
        surfaces.put(solid(BOX, (1 + gap, 0, 0), (1, 1, 1)))
    for _ in range(2):
        assert one.distance(0, 1) == pytest.approx(0.25)
        assert other.distance(0, 1) == pytest.approx(0.75)


def test_a_shifted_thing_is_measured_where_it_is() -> None:
    surfaces = Surfaces()
    surfaces.put(solid(BOX, (0, 0, 0), (1, 1, 1)))
    surfaces.put(solid(BOX, (3, 0, 0), (1, 1, 1)))
    assert surfaces.distance(0, 1) == pytest.approx(2.0)
    surfaces.shift_last(np.array([-1.5, 0.0, 0.0]))
    assert surfaces.distance(0, 1) == pytest.approx(0.5)


def test_more_parts_than_the_first_model_holds_are_measured_too() -> None:
    surfaces = Surfaces()
    for k in range(300):
        surfaces.put(solid(BOX, (2.0 * k, 0, 0), (1, 1, 1)))
    assert surfaces.distance(0, 1) == pytest.approx(1.0)
    assert surfaces.distance(298, 299) == pytest.approx(1.0)


def test_touching_is_within_two_millimetres_and_never_with_itself() -> None:
    objects = [
        thing(1, (part("box", (0, 0, 0.5), (1, 1, 1)),)),
        thing(2, (part("cylinder", (0, 0, 1.3), (0.4, 0.4, 0.6)),)),
        thing(3, (part("sphere", (1.0019, 0, 0.5), (1, 1, 1)),)),
        thing(4, (part("box", (0, 1.003, 0.5), (1, 1, 1)),)),
    ]
    close = touching(objects)
    assert close[0].tolist() == [False, True, True, False]
    assert (close == close.T).all()
    distances = surface_distances(objects)
    assert distances[0, 3] == pytest.approx(0.003, abs=1e-6)
    assert (np.diag(distances) == 0).all()


def test_an_object_without_parts_is_measured_by_its_box() -> None:
    box = OrientedBox(center=np.array([2.0, 0, 0.5]), size=np.ones(3), rotation=np.eye(3))
    bare = SceneObject(object_id=2, category="box", name="2", colour="", box=box)
    known = thing(1, (part("box", (0, 0, 0.5), (1, 1, 1)),))
    assert surface_distances([known, bare])[0, 1] == pytest.approx(1.0)
