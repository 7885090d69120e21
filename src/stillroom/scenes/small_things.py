"""Things that stand on the floor or on furniture: each takes the size of the box around it."""

from __future__ import annotations

import numpy as np

from stillroom.scenes import paints
from stillroom.scenes.builder import DARK, LINEN, SCREEN, STEEL, Builder, Kind
from stillroom.scenes.paints import Paint

LEAF = ((0.05, 0.24, 0.05), (0.08, 0.34, 0.07), (0.12, 0.40, 0.10))


def _box(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.box((0, 0, 0), (w, d, h))
    b.top(h, w, d)


def _ball(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.ball((0, 0, 0), w)


def _vase(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    belly = min(w, 0.6 * h)
    b.tube((0, 0, 0), 0.6 * belly, 0.25 * h)
    b.ball((0, 0, 0.12 * h), belly)
    b.tube((0, 0, 0.12 * h + 0.8 * belly), 0.42 * belly, 0.86 * h - 0.8 * belly - 0.12 * h)
    b.tube((0, 0, 0.86 * h), 0.6 * belly, 0.14 * h)


def _lamp(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    shade = min(0.4 * h, 0.8 * w)
    b.tube((0, 0, 0), 0.62 * w, 0.03, DARK)
    b.tube((0, 0, 0.03), 0.035 if h < 0.8 else 0.045, h - shade - 0.03, STEEL)
    b.tube((0, 0, h - shade), w, 0.6 * shade)
    b.tube((0, 0, h - 0.4 * shade), 0.76 * w, 0.4 * shade)


def _plant(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    # Blossoms carry the colour; the pot is of the trim's.
    pot, crown = 0.3 * h, min(w, 0.66 * h)
    tone = LEAF[int(rng.integers(len(LEAF)))]
    leaf = Paint(colour=tone, second=(0.03, 0.14, 0.03), texture=paints.CLOTH, period=0.05)
    b.tube((0, 0, 0), 0.5 * w, pot, b.trim)
    b.tube((0, 0, pot), 0.035, h - pot - 0.6 * crown, leaf)
    b.ball((0, 0, h - 1.02 * crown), 0.5 * crown, leaf)
    turn = rng.uniform(0, 2 * np.pi)
    for k in range(3):
        angle = turn + 2 * np.pi * k / 3
        reach = (crown - 0.56 * crown) / 2
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        b.ball((x, y, h - (0.86 - 0.04 * k) * crown), 0.56 * crown)
    b.ball((0, 0, h - 0.55 * crown), 0.55 * crown)


def _bin(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.tube((0, 0, 0), 0.9 * w, h - 0.06)
    b.tube((0, 0, h - 0.06), w, 0.06, paints.darker(b.main.colour, 0.6))


def _screen(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    # The frame and the stand carry the colour.
    neck = 0.16 * h
    b.box((0, 0, 0), (0.45 * w, d, 0.02))
    b.box((0, 0.01, 0.02), (0.08 * w, 0.04, neck))
    b.box((0, 0, neck), (w, 0.05, h - neck))
    edge = 0.07 * h
    b.box((0, -0.027, neck + edge), (w - 2 * edge, 0.005, h - neck - 2 * edge), SCREEN)


def _laptop(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.box((0, 0, 0), (w, d, 0.02))
    b.box((0, -0.02, 0.02), (0.86 * w, 0.5 * d, 0.003), DARK)
    b.box((0, d / 2 - 0.008, 0.02), (w, 0.016, h - 0.02))
    b.box((0, d / 2 - 0.0175, 0.04), (0.92 * w, 0.003, h - 0.06), SCREEN)


def _book(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    cover = 0.2 * h
    b.box((0, 0, 0), (w, d, cover))
    b.box((0.008, 0, cover), (w - 0.03, d - 0.02, h - 2 * cover), LINEN)
    b.box((0, 0, h - cover), (w, d, cover))
    b.box((-w / 2 + 0.005, 0, cover), (0.01, d, h - 2 * cover))
    b.top(h, w, d)


def _mug(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.tube((0, 0, 0), 0.76 * w, h)
    b.tube((0, 0, h), 0.66 * w, 0.002, DARK)
    b.box((0.43 * w, 0, 0.25 * h), (0.14 * w, 0.16 * w, 0.5 * h))


def _bowl(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.tube((0, 0, 0), 0.5 * w, 0.25 * h)
    b.tube((0, 0, 0.25 * h), 0.8 * w, 0.4 * h)
    b.tube((0, 0, 0.65 * h), w, 0.35 * h)
    b.tube((0, 0, h), 0.88 * w, 0.002, paints.darker(b.main.colour, 0.5))


def _bottle(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.tube((0, 0, 0), w, 0.62 * h)
    b.ball((0, 0, 0.62 * h - 0.5 * w), w)
    b.tube((0, 0, 0.62 * h), 0.4 * w, 0.33 * h)
    b.tube((0, 0, 0.95 * h), 0.46 * w, 0.05 * h, DARK)


def _pillow(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    b.box((0, 0, 0), (0.84 * w, 0.8 * d, h))
    b.box((0, 0, 0.15 * h), (0.94 * w, 0.92 * d, 0.7 * h))
    b.box((0, 0, 0.32 * h), (w, d, 0.36 * h))


def _picture(b: Builder, w: float, d: float, h: float, rng: np.random.Generator) -> None:
    # The frame carries the colour.
    sky = Paint(colour=(0.5, 0.66, 0.8), second=LEAF[2], texture=paints.PAINTING, period=0.5 * h)
    edge = 0.14 * min(w, h)
    b.box((0, 0.003, 0), (w, d - 0.006, h))
    b.box((0, -d / 2 + 0.003, edge), (w - 2 * edge, 0.006, h - 2 * edge), sky)


SMALL: dict[str, Kind] = {
    "box": Kind(build=_box, width=(0.2, 0.8), depth=(0.2, 0.75), height=(0.18, 0.75)),
    "ball": Kind(build=_ball, width=(0.22, 0.75), depth=None, height=None),
    "vase": Kind(build=_vase, width=(0.22, 0.56), depth=None, height=(0.35, 1.05)),
    "lamp": Kind(build=_lamp, width=(0.26, 0.6), depth=None, height=(0.42, 1.7)),
    "plant": Kind(build=_plant, width=(0.3, 0.72), depth=None, height=(0.42, 1.5)),
    "bin": Kind(build=_bin, width=(0.24, 0.66), depth=None, height=(0.28, 0.95)),
}

#: Kinds of furnished rooms only.
MORE_SMALL: dict[str, Kind] = {
    "television": Kind(build=_screen, width=(0.55, 1.15), depth=(0.18, 0.24), height=(0.4, 0.72)),
    "monitor": Kind(build=_screen, width=(0.42, 0.7), depth=(0.16, 0.22), height=(0.34, 0.52)),
    "laptop": Kind(build=_laptop, width=(0.3, 0.44), depth=(0.22, 0.3), height=(0.19, 0.27)),
    "book": Kind(build=_book, width=(0.16, 0.32), depth=(0.12, 0.24), height=(0.03, 0.09)),
    "mug": Kind(build=_mug, width=(0.11, 0.17), depth=None, height=(0.09, 0.14)),
    "bowl": Kind(build=_bowl, width=(0.18, 0.38), depth=None, height=(0.07, 0.15)),
    "bottle": Kind(build=_bottle, width=(0.08, 0.13), depth=None, height=(0.22, 0.38)),
    "pillow": Kind(build=_pillow, width=(0.34, 0.6), depth=(0.28, 0.45), height=(0.1, 0.18)),
    "picture": Kind(build=_picture, width=(0.36, 0.95), depth=(0.03, 0.04), height=(0.3, 0.75)),
}
