"""A scene from above: walls, footprints with names, cameras with their views, the view0 axes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stillroom.geometry.boxes import corners
from stillroom.geometry.cameras import fov, unproject
from stillroom.geometry.poses import invert, transform, view0_from_world
from stillroom.records import Scene, SceneObject

_WALL, _FLOOR, _CAMERA = "#374151", "#f5f2ec", "#111827"
_AXES = (("x", "#dc2626"), ("y", "#16a34a"))
#: Footprints of boxes: the order of the lower four corners around the rectangle.
_AROUND = (0, 1, 3, 2)
#: Height of a line and width of a letter of a name, as shares of the plan's width.
_LINE, _LETTER = 0.03, 0.017
_STEPS = (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0)
#: Depth pixels drawn of a capture, and heights above the floor that are drawn (metres).
_MOST_POINTS = 30_000
_HEIGHTS_M = (0.05, 2.0)
#: Share of points on each side, in percent, that counts as stray.
_STRAY = 2.0


def object_colour(index: int) -> tuple[float, float, float]:
    """A colour for the index-th object: neighbours in number differ most."""
    # The golden ratio spreads any number of hues evenly.
    hue = (0.07 + index * 0.618034) % 1.0
    return colorsys.hls_to_rgb(hue, 0.40 + 0.08 * (index % 3), 0.72)


def draw_plan(axes: Any, scene: Scene, numbered: Sequence[int]) -> None:
    """Draw a posed scene in metres of its own frame; cameras in ``numbered`` carry their number."""
    axes.set_aspect("equal")
    axes.set_axis_off()
    if scene.room_size is not None:
        _draw_walls(axes, scene.room_size)
    if not scene.objects:
        _draw_points(axes, scene)
    # Low things first, so that what stands on a table is drawn over it.
    order = sorted(range(len(scene.objects)), key=lambda i: _top(scene.objects[i]))
    for i in order:
        _draw_footprint(axes, scene.objects[i], object_colour(i))
    _write_names(axes, scene)
    for i, view in enumerate(scene.views):
        if view.c2w is not None and i in numbered:
            _draw_camera(axes, view.c2w, _half_fov(scene, i), i)
    _draw_view0(axes, scene)
    axes.margins(0.04)
    axes.autoscale_view()
    axes.set_title("from above, metres", fontsize=8.5, color="#6b7280")


def _top(thing: SceneObject) -> float:
    return float(thing.box.center[2] + 0.5 * thing.box.size[2])


def _draw_walls(axes: Any, room_size: Float[np.ndarray, "3"]) -> None:
    from matplotlib.patches import Rectangle

    width, depth = room_size[:2]
    axes.add_patch(
        Rectangle((-width / 2, -depth / 2), width, depth, facecolor=_FLOOR, edgecolor=_WALL, lw=2.5)
    )
    for x in np.arange(np.ceil(-width / 2), width / 2):
        axes.plot([x, x], [-depth / 2, depth / 2], color="#e2ddd2", lw=0.6, zorder=1)
    for y in np.arange(np.ceil(-depth / 2), depth / 2):
        axes.plot([-width / 2, width / 2], [y, y], color="#e2ddd2", lw=0.6, zorder=1)


def _draw_footprint(axes: Any, thing: SceneObject, colour: tuple[float, float, float]) -> None:
    from matplotlib.patches import Polygon

    ground = corners(thing.box.center, thing.box.size, thing.box.rotation)[list(_AROUND), :2]
    axes.add_patch(Polygon(ground, facecolor=(*colour, 0.35), edgecolor=colour, lw=1.4, zorder=3))


def _write_names(axes: Any, scene: Scene) -> None:
    """Names on their things, moved up or down a line or more where they would cover another."""
    middles = np.array([thing.box.center[:2] for thing in scene.objects]).reshape(-1, 2)
    span = max(float(np.ptp(middles, axis=0).max()), 3.0) if len(middles) else 3.0
    line, letter = span * _LINE, span * _LETTER
    taken: list[tuple[float, float, float]] = []
    for thing, (x, y) in zip(scene.objects, middles.tolist()):
        half = 0.5 * letter * len(thing.name)
        free = [
            y + line * step
            for step in _STEPS
            if not any(
                abs(x - tx) < half + other and abs(y + line * step - ty) < line
                for tx, ty, other in taken
            )
        ]
        place = free[0] if free else y
        taken.append((x, place, half))
        axes.text(
            x, place, thing.name, fontsize=6.5, ha="center", va="center", color=_CAMERA, zorder=6
        )


def _draw_camera(axes: Any, c2w: Float[np.ndarray, "4 4"], half_fov: float, number: int) -> None:
    from matplotlib.patches import Wedge

    x, y = c2w[:2, 3]
    heading = np.degrees(np.arctan2(c2w[1, 2], c2w[0, 2]))
    spread = np.degrees(half_fov)
    axes.add_patch(
        Wedge((x, y), 0.55, heading - spread, heading + spread, color=_CAMERA, alpha=0.13, zorder=4)
    )
    axes.plot([x], [y], marker="o", ms=9, color=_CAMERA, zorder=7)
    axes.text(x, y, f"{number}", fontsize=6.5, color="white", ha="center", va="center", zorder=8)


def _half_fov(scene: Scene, i: int) -> float:
    intrinsics = scene.views[i].intrinsics
    if intrinsics is None:
        return 0.5
    return 0.5 * fov(intrinsics, *scene.views[i].rgb.shape[:2])[1]


def _draw_view0(axes: Any, scene: Scene) -> None:
    """The two level axes of the frame that answers are given in, from below the first camera."""
    first = scene.views[0].c2w
    if first is None or np.linalg.norm(first[:2, 2]) < 1e-6:
        return
    to_world = invert(view0_from_world(first, scene.floor_z))
    origin = to_world[:2, 3]
    for axis, (name, colour) in enumerate(_AXES):
        end = origin + 0.75 * to_world[:2, axis]
        # An arrow alone would not widen the plan.
        axes.plot(*zip(origin, end), color=colour, lw=1.0, zorder=9)
        axes.annotate(
            "", end, origin, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8}, zorder=9
        )
        axes.text(*(origin + 0.88 * to_world[:2, axis]), name, color=colour, fontsize=9, zorder=9)


def _draw_points(axes: Any, scene: Scene) -> None:
    """What a capture's depth shows between floor and door height, in its own colours."""
    points, colours = [], []
    for view in scene.views:
        if view.depth is None or view.c2w is None or view.intrinsics is None:
            continue
        if view.depth.shape != view.rgb.shape[:2]:
            continue
        keep = view.depth_valid
        points.append(transform(view.c2w, unproject(view.depth, view.intrinsics)[keep]))
        colours.append(view.rgb[keep] / 255.0)
    if not points:
        return
    where, paint = np.concatenate(points), np.concatenate(colours)
    height = where[:, 2] - scene.floor_z
    rows = np.flatnonzero((height > _HEIGHTS_M[0]) & (height < _HEIGHTS_M[1]))
    rows = rows[:: max(1, len(rows) // _MOST_POINTS)]
    if not len(rows):
        return
    # Stray points far away would make the room small.
    low, high = np.percentile(where[rows, :2], (_STRAY, 100 - _STRAY), axis=0)
    rows = rows[((where[rows, :2] >= low) & (where[rows, :2] <= high)).all(axis=1)]
    rows = rows[np.argsort(height[rows], kind="stable")]
    axes.scatter(where[rows, 0], where[rows, 1], s=1.2, c=paint[rows], linewidths=0, zorder=2)
