"""Furniture that stands on the floor: each kind takes the size of the box around it."""

from __future__ import annotations

import numpy as np

from stillroom.scenes import paints
from stillroom.scenes.builder import DARK, LINEN, STEEL, Builder, Kind, Top


def _chair(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    seat = 0.5 * h
    thick = 0.05
    b.legs(w, d, seat - thick, rng.uniform(0.03, 0.05), rng.random() < 0.5)
    b.box((0, 0, seat - thick), (w, d, thick))
    for x in (-1, 1):
        b.box((x * (w - 0.05) / 2, d / 2 - 0.02, seat), (0.05, 0.04, h - seat))
    if rng.random() < 0.5:
        b.box((0, d / 2 - 0.02, seat + 0.3 * (h - seat)), (w - 0.08, 0.03, 0.7 * (h - seat)))
    else:
        rail = 0.26 * (h - seat)
        for level in (0.22, 0.7):
            b.box((0, d / 2 - 0.02, seat + level * (h - seat)), (w - 0.08, 0.03, rail))
    b.top(seat, w, d - 0.05, y=-0.025)


def _armchair(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    arm, back, foot = 0.16 * w, 0.22 * d, 0.06
    seat = 0.48 * h
    b.box((0, -back / 2, foot), (w - 2 * arm, d - back, seat - foot))
    b.box((0, (d - back) / 2, foot), (w, back, h - foot))
    for x in (-1, 1):
        b.box((x * (w - arm) / 2, -back / 2, foot), (arm, d - back, 0.68 * h - foot))
    for x in (-1, 1):
        for y in (-1, 1):
            b.tube((x * (w / 2 - 0.06), y * (d / 2 - 0.06), 0), 0.05, foot, DARK)
    b.top(seat, w - 2 * arm, d - back, y=-back / 2)


def _stool(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = 0.06
    if rng.random() < 0.5:
        b.legs(0.8 * w, 0.8 * w, h - thick, 0.035, True)
        b.tube((0, 0, h - thick), w, thick)
        b.top(h, 0.72 * w, 0.72 * w)
    else:
        b.legs(w, d, h - thick, 0.045, False)
        b.box((0, 0, h - thick), (w, d, thick))
        b.top(h, w, d)


def _bench(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = 0.06
    if rng.random() < 0.5:
        b.legs(w, d, h - thick, 0.06, False)
    else:
        for x in (-1, 1):
            b.box((x * (w / 2 - 0.08), 0, 0), (0.06, d, h - thick), b.trim)
        b.hollow = Top(
            z=0, low=(-w / 2 + 0.11, -d / 2), high=(w / 2 - 0.11, d / 2), clearance=h - thick
        )
    b.box((0, 0, h - thick), (w, d, thick))
    b.top(h, w, d)


def _sofa(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    arm, back, foot = 0.14, 0.2, 0.08
    seat = 0.5 * h
    inner = w - 2 * arm
    b.box((0, 0, foot), (w, d, seat - 0.12 - foot))
    b.box((0, (d - back) / 2, seat - 0.12), (w, back, h - seat + 0.12))
    for x in (-1, 1):
        b.box((x * (w - arm) / 2, -back / 2, seat - 0.12), (arm, d - back, 0.72 * h - seat + 0.12))
    cushions = 2 if w < 1.6 else 3
    for k in range(cushions):
        middle = (k + 0.5) * inner / cushions - inner / 2
        b.box((middle, -back / 2, seat - 0.12), (inner / cushions - 0.012, d - back - 0.01, 0.12))
    for x in (-1, 1):
        for y in (-1, 1):
            b.tube((x * (w / 2 - 0.08), y * (d / 2 - 0.08), 0), 0.05, foot, DARK)
    b.top(seat, inner, d - back - 0.02, y=-back / 2)


def _bed(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    lie = min(0.62 * h, 0.55)
    board = 0.05
    b.box((0, 0, 0), (w, d - board, lie - 0.18))
    b.box((0, -0.01, lie - 0.18), (w - 0.06, d - board - 0.06, 0.14), LINEN)
    b.box((0, d / 2, 0), (w, board, h))
    cover = 0.66 * (d - board)
    b.box((0, -(d - board - cover) / 2, lie - 0.16), (w, cover, 0.16))
    pillows = 1 if w < 1.15 else 2
    for k in range(pillows):
        middle = (k + 0.5) * w / pillows - w / 2
        wide = min(0.6, 0.8 * w / pillows)
        b.box((middle, d / 2 - 0.28, lie - 0.04), (wide, 0.32, 0.1), LINEN)
    b.top(lie, w, cover, y=-(d - board - cover) / 2)


def _table(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick = rng.uniform(0.04, 0.06)
    if rng.random() < 0.25 and w < 1.2:
        across = min(w, 1.2 * d)
        b.tube((0, 0, 0), 0.5 * across, 0.03, b.trim)
        b.tube((0, 0, 0.03), 0.08, h - thick - 0.03, b.trim)
        b.tube((0, 0, h - thick), across, thick)
        b.top(h, 0.7 * across, 0.7 * across)
    else:
        b.legs(w, d, h - thick, rng.uniform(0.05, 0.08), rng.random() < 0.4)
        b.box((0, 0, h - thick), (w, d, thick))
        b.top(h, w, d)


def _desk(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    thick, side = 0.05, 0.04
    drawers = 0.3 * w
    body = h - thick
    turn = rng.choice([-1.0, 1.0])
    b.box((0, 0, body), (w, d, thick))
    b.box((turn * (w - drawers) / 2, 0, 0), (drawers, d, body))
    face = paints.darker(b.main.colour, 0.7)
    for k in range(3):
        z = (0.05 + 0.31 * k) * body
        b.box(
            (turn * (w - drawers) / 2, -d / 2 - 0.005, z), (0.86 * drawers, 0.01, 0.27 * body), face
        )
    b.box((-turn * (w - side) / 2, 0, 0), (side, d, body))
    b.box((-turn * drawers / 2, d / 2 - 0.02, 0.3 * body), (w - drawers - side, 0.03, 0.7 * body))
    inner = w - drawers - side
    middle = -turn * (drawers - side) / 2
    b.hollow = Top(
        z=0, low=(middle - inner / 2, -d / 2), high=(middle + inner / 2, d / 2), clearance=body
    )
    b.top(h, w, d)


def _shelf(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    board, side = 0.03, 0.035
    for x in (-1, 1):
        b.box((x * (w - side) / 2, 0, 0), (side, d, h))
    b.box((0, d / 2 - 0.01, 0), (w - 2 * side, 0.02, h), paints.darker(b.main.colour, 0.75))
    count = max(2, round(h / 0.42)) + 1
    inner, depth = w - 2 * side, d - 0.02
    step = (h - board - 0.05) / (count - 1)
    for k in range(count):
        z = 0.05 + k * step
        b.box((0, -0.01, z), (inner, depth, board))
        if k < count - 1:
            b.top(z + board, inner, depth, y=-0.01, clearance=step - board)
    b.top(h, w - 2 * side, depth, y=-0.01)


def _cabinet(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    foot, front = 0.05, 0.02
    b.box((0, front / 2, foot), (w, d - front, h - foot))
    b.box((0, 0.03, 0), (0.92 * w, 0.85 * d, foot), DARK)
    face = paints.darker(b.main.colour, 0.82)
    if rng.random() < 0.5:
        for x in (-1, 1):
            b.box(
                (x * w / 4, -d / 2 + front / 2, foot + 0.02),
                (0.46 * w, front, h - foot - 0.04),
                face,
            )
            b.box((x * 0.05, -d / 2 - 0.012, 0.52 * h), (0.025, 0.025, 0.1 * h), STEEL)
    else:
        rows = 2 if h < 0.7 else 3
        tall = (h - foot) / rows
        for k in range(rows):
            z = foot + (k + 0.06) * tall
            b.box((0, -d / 2 + front / 2, z), (0.94 * w, front, 0.88 * tall), face)
            b.box((0, -d / 2 - 0.012, z + 0.4 * tall), (0.2 * w, 0.025, 0.03), STEEL)
    b.top(h, w, d - front, y=front / 2)


def _nightstand(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    foot = 0.12
    b.legs(w, d, foot, 0.04, False)
    _drawers(b, w, d, foot, h, 1, 1 if h < 0.5 else 2)


def _dresser(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    foot = 0.08
    b.box((0, 0.02, 0), (0.94 * w, 0.85 * d, foot), DARK)
    _drawers(b, w, d, foot, h, 2, 3)


def _drawers(
    b: Builder, w: float, d: float, foot: float, h: float, columns: int, rows: int
) -> None:
    """A body from ``foot`` to ``h`` with drawers and knobs on its front."""
    front, knob = 0.02, 0.025
    b.box((0, (front + knob) / 2, foot), (w, d - front - knob, h - foot))
    face = paints.darker(b.main.colour, 0.8)
    wide, tall = w / columns, (h - foot) / rows
    for column in range(columns):
        for row in range(rows):
            x = (column + 0.5) * wide - w / 2
            z = foot + (row + 0.07) * tall
            b.box((x, -d / 2 + knob + front / 2, z), (0.92 * wide, front, 0.86 * tall), face)
            b.box((x, -d / 2 + knob / 2, z + 0.4 * tall), (0.1, knob, 0.025), STEEL)
    b.top(h, w, d - front - knob, y=(front + knob) / 2)


def _wardrobe(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    front, grip = 0.02, 0.03
    b.box((0, (front + grip) / 2, 0), (w, d - front - grip, h - 0.05))
    b.box((0, 0, h - 0.05), (w, d, 0.05), b.trim)
    face = paints.darker(b.main.colour, 0.85)
    for x in (-1, 1):
        b.box((x * w / 4, -d / 2 + grip + front / 2, 0.06), (0.47 * w, front, h - 0.14), face)
        b.box((x * 0.05, -d / 2 + grip / 2, 0.45 * h), (0.025, grip, 0.2), STEEL)
    b.top(h, w, d)


def _fridge(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    front, grip = 0.05, 0.04
    split = rng.uniform(0.55, 0.7) * h
    b.box((0, (front + grip) / 2, 0), (w, d - front - grip, h))
    for low, high in ((0.04, split - 0.01), (split + 0.01, h)):
        b.box((0, -d / 2 + grip + front / 2, low), (w, front, high - low))
        tall = min(0.35, 0.6 * (high - low))
        z = split - 0.06 - tall if high < split else split + 0.06
        b.box((0.4 * w, -d / 2 + grip / 2, z), (0.03, grip, tall), STEEL)
    b.top(h, w, d - front - grip, y=(front + grip) / 2)


def _rug(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.box((0, 0, 0), (w, d, h))
    b.top(h, w, d)


LARGE: dict[str, Kind] = {
    "chair": Kind(build=_chair, width=(0.34, 0.68), depth=None, height=(0.58, 1.2)),
    "armchair": Kind(build=_armchair, width=(0.48, 0.95), depth=(0.46, 0.85), height=(0.52, 0.95)),
    "stool": Kind(build=_stool, width=(0.3, 0.64), depth=None, height=(0.34, 0.85)),
    "bench": Kind(build=_bench, width=(0.65, 1.5), depth=(0.3, 0.55), height=(0.34, 0.65)),
    "sofa": Kind(build=_sofa, width=(0.9, 1.7), depth=(0.5, 0.85), height=(0.5, 0.85)),
    "bed": Kind(build=_bed, width=(0.6, 1.3), depth=(1.05, 1.8), height=(0.36, 0.9)),
    "table": Kind(build=_table, width=(0.45, 1.4), depth=(0.4, 0.9), height=(0.36, 0.8)),
    "desk": Kind(build=_desk, width=(0.65, 1.4), depth=(0.38, 0.7), height=(0.5, 0.8)),
    "shelf": Kind(build=_shelf, width=(0.42, 1.1), depth=(0.26, 0.45), height=(0.6, 1.7)),
    "cabinet": Kind(build=_cabinet, width=(0.4, 1.2), depth=(0.32, 0.6), height=(0.42, 1.2)),
}

#: Kinds of furnished rooms only.
MORE_LARGE: dict[str, Kind] = {
    "nightstand": Kind(build=_nightstand, width=(0.34, 0.6), depth=(0.3, 0.45), height=(0.4, 0.7)),
    "dresser": Kind(build=_dresser, width=(0.7, 1.3), depth=(0.36, 0.5), height=(0.6, 1.0)),
    "wardrobe": Kind(build=_wardrobe, width=(0.7, 1.4), depth=(0.45, 0.6), height=(1.4, 2.05)),
    "fridge": Kind(build=_fridge, width=(0.5, 0.75), depth=(0.5, 0.7), height=(0.9, 1.85)),
    "rug": Kind(build=_rug, width=(1.2, 2.3), depth=(0.9, 1.7), height=(0.012, 0.012)),
}
