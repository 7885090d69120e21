"""A contact sheet: photos, boxes, depth, the plan from above and three questions, on one picture.

Works for any posed scene; what a capture does not know (objects, room size) is left out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from stillroom.geometry.boxes import EDGES, corners
from stillroom.geometry.cameras import project
from stillroom.geometry.poses import invert, transform
from stillroom.records import BadInputError, Question, Scene, SceneObject, View
from stillroom.scenes.facts import MIN_SHARE, pixel_shares
from stillroom.scenes.plan import draw_plan, object_colour

#: Photos on a sheet; of a longer capture an even choice is shown.
MOST_VIEWS = 8
#: Names written into one photo; the largest things go first.
MOST_NAMES = 9
#: Edges are cut off this near to the camera (metres).
_NEAR_M = 0.05
#: Longest side of a photo on the sheet, in pixels.
_SIDE = 320
_DPI = 100
_INK, _PALE, _RIGHT, _WRONG = "#1f2430", "#6b7280", "#15803d", "#b91c1c"
_PLATE = {"boxstyle": "round,pad=0.15", "edgecolor": "none"}
# Asked about first, then whatever else there is.
_SHOWN_FAMILIES = ("proximity", "contact", "orientation", "size", "description")


def contact_sheet(
    scene: Scene, questions: Sequence[Question], *, predictions: Mapping[str, str] | None = None
) -> Image.Image:
    """The sheet of a scene. ``predictions`` (question_id to text) stand beside the true answers.

    Raises:
        BadInputError: the scene has no photo.
    """
    if not scene.views:
        raise BadInputError(f"scene {scene.scene_id} has no photos, so there is nothing to show")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = _even_choice(len(scene.views), MOST_VIEWS)
    views = [scene.views[i] for i in chosen]
    rows = _rows(scene, views)
    columns = max(len(views), 4)
    cell, aspect = 13.6 / columns, views[0].rgb.shape[0] / views[0].rgb.shape[1]
    pictures, below = len(rows) * (cell * aspect + 0.06), 5.3
    figure = Figure(figsize=(14.2, 0.55 + pictures + below), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    height = figure.get_figheight()
    top, split = 1 - 0.5 / height, below / height
    figure.text(0.02, 1 - 0.3 / height, _title(scene), fontsize=13, color=_INK, weight="bold")
    grid = figure.add_gridspec(
        len(rows), columns, left=0.02, right=0.98, top=top, bottom=split, wspace=0.03, hspace=0.04
    )
    farthest = _farthest(views)
    for row, kind in enumerate(rows):
        for column, (number, view) in enumerate(zip(chosen, views)):
            axes = figure.add_subplot(grid[row, column])
            axes.set_axis_off()
            _PAINTERS[kind](axes, scene, view, farthest)
            if row == 0:
                _tag(axes, f"{number}")
    low, high = 0.3 / height, split - 0.35 / height
    lower = figure.add_gridspec(
        1, 2, left=0.03, right=0.98, top=high, bottom=low, width_ratios=(1.0, 1.15), wspace=0.05
    )
    if any(view.c2w is not None for view in scene.views):
        draw_plan(figure.add_subplot(lower[0, 0]), scene, chosen)
    _write_questions(figure.add_subplot(lower[0, 1]), questions, predictions or {})
    sink = io.BytesIO()
    canvas.print_png(sink)
    return Image.open(sink).convert("RGB")


def _even_choice(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _rows(scene: Scene, views: list[View]) -> list[str]:
    rows = ["photo"]
    if scene.objects and any(view.c2w is not None for view in views):
        rows.append("boxes")
    if any(view.depth is not None for view in views):
        rows.append("depth")
    return rows


def _title(scene: Scene) -> str:
    parts = [scene.scene_id, scene.source, scene.split, f"{len(scene.views)} photos"]
    if scene.objects:
        parts.append(f"{len(scene.objects)} things")
    if scene.room_size is not None:
        parts.append(" × ".join(f"{edge:.1f}" for edge in scene.room_size) + " m")
    return "  ·  ".join(parts)


def _farthest(views: list[View]) -> float:
    """Depth that is painted as far, in metres: nearly the largest."""
    measured = [view.depth[view.depth_valid] for view in views if view.depth is not None]
    values = np.concatenate(measured) if measured else np.empty(0)
    return float(np.percentile(values, 99)) if values.size else 1.0


def _paint_photo(axes: Any, scene: Scene, view: View, farthest: float) -> None:
    axes.imshow(_shrunk(view.rgb), interpolation="nearest")


def _paint_depth(axes: Any, scene: Scene, view: View, farthest: float) -> None:
    if view.depth is None:
        return
    shown = np.ma.masked_array(view.depth, mask=~view.depth_valid)
    axes.set_facecolor("#d4d4d8")
    axes.imshow(_shrunk(shown), cmap="turbo_r", vmin=0.3, vmax=farthest, interpolation="nearest")
    span = f"{shown.min():.1f} to {shown.max():.1f} m" if shown.count() else "none"
    _tag(axes, f"depth {span}")


def _paint_boxes(axes: Any, scene: Scene, view: View, farthest: float) -> None:
    from matplotlib.collections import LineCollection

    height, width = view.rgb.shape[:2]
    pale = (0.45 * view.rgb.astype(np.float32) + 0.55 * 255).astype(np.uint8)
    axes.imshow(pale, interpolation="nearest", extent=(0, width, height, 0))
    if view.c2w is None or view.intrinsics is None:
        return
    share = pixel_shares((view,), scene.objects)[0]
    for rank, i in enumerate(np.argsort(-share, kind="stable").tolist()):
        if share[i] < MIN_SHARE:
            break
        lines = box_lines(scene.objects[i], view.c2w, view.intrinsics)
        colour = object_colour(i)
        axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.1))
        if rank < MOST_NAMES:
            _write_name(axes, lines, scene.objects[i].name, colour, (width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


_PAINTERS = {"photo": _paint_photo, "boxes": _paint_boxes, "depth": _paint_depth}


def box_lines(
    thing: SceneObject, c2w: Float[np.ndarray, "4 4"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "lines 2 2"]:
    """The edges of a box as pixel segments; what lies behind the camera is cut off."""
    points = corners(thing.box.center, thing.box.size, thing.box.rotation)
    seen = transform(invert(c2w), points)
    lines = []
    for a, b in EDGES:
        start, end = sorted((seen[a], seen[b]), key=lambda point: float(point[2]))
        if end[2] <= _NEAR_M:
            continue
        if start[2] < _NEAR_M:
            start = start + (end - start) * (_NEAR_M - start[2]) / (end[2] - start[2])
        lines.append(project(np.stack([start, end]), intrinsics))
    return np.array(lines).reshape(-1, 2, 2)


def _write_name(
    axes: Any,
    lines: np.ndarray,
    name: str,
    colour: tuple[float, float, float],
    size: tuple[int, int],
) -> None:
    if not len(lines):
        return
    inside = np.clip(lines.reshape(-1, 2), 0, size)
    x, y = inside[:, 0].mean(), inside[:, 1].mean()
    plate = _PLATE | {"facecolor": colour, "alpha": 0.85}
    axes.text(
        x, y, name, fontsize=5.5, color="white", ha="center", va="center", clip_on=True, bbox=plate
    )


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that a sheet of large photos is drawn in a moment."""
    step = max(1, round(max(picture.shape[:2]) / _SIDE))
    return picture[::step, ::step]


def _tag(axes: Any, text: str) -> None:
    plate = _PLATE | {"facecolor": "black", "alpha": 0.55}
    place = axes.transAxes
    axes.text(0.02, 0.97, text, transform=place, fontsize=7, color="white", va="top", bbox=plate)


def _write_questions(axes: Any, questions: Sequence[Question], said: Mapping[str, str]) -> None:
    from textwrap import wrap

    axes.set_axis_off()
    axes.set_xlim(0, 1)
    y, line = 1.0, 0.043
    for question in _three(questions):
        axes.text(0.0, y, question.family, fontsize=8.5, color=_PALE, va="top", weight="bold")
        y -= line
        for text, size, colour in _paragraphs(question, said.get(question.question_id)):
            for piece in wrap(text, 92 if size > 9 else 108):
                axes.text(0.0, y, piece, fontsize=size, color=colour, va="top")
                y -= line
        y -= 0.6 * line


def _paragraphs(question: Question, said: str | None) -> list[tuple[str, float, str]]:
    """(text, size, colour) of the lines under one question."""
    shown = [(question.question, 10.5, _INK)]
    shown += [(option, 9.5, _INK) for option in question.options if option[1:3] == ". "]
    if question.answer:
        shown.append((f"→ {question.answer}", 10.5, _RIGHT))
    if said is not None:
        # A wrong answer is told by its colour; free texts are neither right nor wrong here.
        same = said.strip().lower() == question.answer.strip().lower()
        wrong = _WRONG if question.options else _PALE
        shown.append((f"model: {said}", 10.0, _RIGHT if same else wrong))
    if question.rationale:
        shown.append((question.rationale, 8.0, _PALE))
    return shown


def _three(questions: Sequence[Question]) -> list[Question]:
    """Three questions of different families where there are such."""
    rank = {family: i for i, family in enumerate(_SHOWN_FAMILIES)}
    seen: dict[str, int] = {}
    order = []
    for place, question in enumerate(questions):
        repeat = seen.get(question.family, 0)
        seen[question.family] = repeat + 1
        order.append((repeat, rank.get(question.family, len(rank)), place))
    return [questions[place] for _, _, place in sorted(order)[:3]]
