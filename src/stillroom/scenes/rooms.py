"""Made rooms: furnished, exact, posed, and drawn anew from a seed and a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np

from stillroom.geometry.poses import rotation_z
from stillroom.records import Scene, SceneObject, Split, View, content_hash
from stillroom.scenes import paints, solids
from stillroom.scenes.arrange import furnish_plain
from stillroom.scenes.cameras import walk_around
from stillroom.scenes.casting import caster
from stillroom.scenes.furniture import KINDS
from stillroom.scenes.homes import furnish_home
from stillroom.scenes.layout import Layout, Placed
from stillroom.scenes.paints import COLOURS as COLOURS
from stillroom.scenes.render import Pictures, Stage, render
from stillroom.scenes.shell import Shell, build_shell, draw_plan

Density = Literal["plain", "furnished"]
#: Every kind of thing, in a settled order: models that name kinds by number depend on it.
CATEGORIES: tuple[str, ...] = tuple(KINDS)

#: Per density: photos, their side in pixels, more rays where something ends.
_PHOTOS: dict[str, tuple[int, int, int]] = {"plain": (6, 112, 0), "furnished": (8, 224, 3)}
#: Per density: least and largest field of view [degrees]. A plain room's photos are small and few.
_FOV_DEG = {"plain": (70.0, 75.0), "furnished": (60.0, 66.0)}
#: How often the first photo is the one that shows most.
_OVERVIEW = {"plain": 0.75, "furnished": 0.0}
#: Largest share of things that no two photos show well; small things fill a furnished room.
_HIDDEN = {"plain": 0.2, "furnished": 0.5}


def split_of(index: int) -> Split:
    """Where room ``index`` goes unless a split is named: 70 % train, 10 % val, 20 % test."""
    return "train" if index % 10 < 7 else "val" if index % 10 == 7 else "test"


def make_room(
    seed: int, index: int, *, density: Density = "plain", split: Split | None = None
) -> Scene:
    """Room ``index`` of ``seed``: objects, exact geometry and photos; z up, floor at z = 0."""
    return next(draw_rooms(seed, index, density=density, split=split))[0]


def draw_rooms(
    seed: int, index: int, *, density: Density = "plain", split: Split | None = None
) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Room ``index`` of ``seed``, and then other rooms for the same place, without end.

    Each comes with its own stream of random numbers for whatever is drawn about it.
    """
    source = np.random.SeedSequence([seed, index])
    split = split_of(index) if split is None else split
    while True:
        for_room, for_questions = source.spawn(2)
        scene = _draw(np.random.default_rng(for_room), density, split)
        if scene is not None:
            yield scene, np.random.default_rng(for_questions)


def _draw(rng: np.random.Generator, density: Density, split: Split) -> Scene | None:
    """One room, or None if its things or its cameras found no place."""
    unseen = split == "shifted"
    plan = draw_plan(rng, density=density, unseen=unseen)
    layout = Layout(plan)
    furnish = furnish_plain if density == "plain" else furnish_home
    if not furnish(layout, rng, unseen=unseen):
        return None
    shell = build_shell(plan, rng, unseen=unseen)
    stage = _stage(shell, layout.placed)
    cast = caster(stage.solids)
    views, side, antialias = _PHOTOS[density]
    walk = walk_around(
        plan,
        stage.solids,
        stage.owner,
        cast,
        rng,
        views=views,
        side=side,
        unseen=unseen,
        fov_deg=_FOV_DEG[density],
        overview=_OVERVIEW[density],
    )
    if walk is None or (walk.seen < 2).mean() > _HIDDEN[density]:
        return None
    pictures = render(
        stage, walk.poses, walk.intrinsics, side, side, antialias=antialias, cast=cast
    )
    return _scene(layout, pictures, walk.poses, walk.intrinsics, density, split)


def _stage(shell: Shell, placed: list[Placed]) -> Stage:
    """The room and its things, ready to be drawn."""
    owners = [np.zeros(len(shell.solids), dtype=np.int64)]
    owners += [np.full(len(place.solids), k + 1) for k, place in enumerate(placed)]
    return Stage(
        solids=solids.join([shell.solids, *(place.solids for place in placed)]),
        paints=paints.join([shell.paints, *(place.item.paints for place in placed)]),
        owner=np.concatenate(owners),
        lights=shell.lights,
        ambient=shell.ambient,
        exposure=shell.exposure,
    )


def _names(placed: list[Placed]) -> list[str]:
    """One name each that means it alone: a pattern is named where colour and kind do not do."""
    short = [f"{place.item.colour} {place.item.category}" for place in placed]
    count = Counter(short)
    return [
        name if count[name] == 1 else f"{place.item.pattern} {name}"
        for name, place in zip(short, placed)
    ]


def _objects(placed: list[Placed]) -> tuple[SceneObject, ...]:
    return tuple(
        SceneObject(
            object_id=k + 1,
            category=place.item.category,
            name=name,
            colour=place.item.colour,
            box=place.solids.box(rotation_z(place.yaw)),
            parts=place.solids.parts(),
            supported_by=_supporter(place),
        )
        for k, (place, name) in enumerate(zip(placed, _names(placed)))
    )


def _supporter(place: Placed) -> int | None:
    if place.hung:
        return None
    return 0 if place.support is None else place.support + 1


def _scene(
    layout: Layout,
    pictures: Pictures,
    poses: tuple[np.ndarray, ...],
    intrinsics: np.ndarray,
    density: Density,
    split: Split,
) -> Scene:
    objects = _objects(layout.placed)
    views = tuple(
        View(
            name=f"view{k}",
            rgb=pictures.rgb[k],
            depth=pictures.depth[k],
            instances=pictures.ids[k],
            intrinsics=intrinsics,
            c2w=pose,
        )
        for k, pose in enumerate(poses)
    )
    plan = layout.plan
    return Scene(
        scene_id=_content_id(objects, views),
        source=f"made:{density}",
        views=views,
        split=split,
        objects=objects,
        room_size=np.array([plan.width, plan.depth, plan.height]),
    )


def _content_id(objects: tuple[SceneObject, ...], views: tuple[View, ...]) -> str:
    """A name for what is seen and known; equal only for equal rooms."""
    parts: list[bytes | str] = []
    for view in views:
        known = (view.rgb, view.depth, view.instances, view.c2w, view.intrinsics)
        parts += [array.tobytes() for array in known if array is not None]
    for thing in objects:
        parts += [thing.name, thing.category, str(thing.supported_by)]
        parts += [thing.box.center.tobytes(), thing.box.size.tobytes()]
        parts += [thing.box.rotation.tobytes()]
    return content_hash(parts)
