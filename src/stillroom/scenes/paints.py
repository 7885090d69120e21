"""Colours and patterns of made things, under the names that questions use."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Float32, Int

#: ``Paint.texture`` is an index into this.
TEXTURES = ("flat", "cloth", "wood", "stripes", "checks", "planks", "tiles", "panes", "painting")
FLAT, CLOTH, WOOD, STRIPES, CHECKS, PLANKS, TILES, PANES, PAINTING = range(len(TEXTURES))

#: Reflectance (linear, 0 to 1) at the heart of each colour name; far apart from each other.
PALETTE = MappingProxyType(
    {
        "red": (0.72, 0.06, 0.06),
        "orange": (0.95, 0.36, 0.03),
        "yellow": (0.95, 0.80, 0.08),
        "green": (0.07, 0.42, 0.10),
        "blue": (0.06, 0.20, 0.78),
        "purple": (0.36, 0.09, 0.55),
        "pink": (0.98, 0.45, 0.62),
        "brown": (0.28, 0.13, 0.05),
        "black": (0.04, 0.04, 0.045),
        "white": (0.92, 0.92, 0.90),
        "grey": (0.36, 0.37, 0.39),
    }
)
COLOURS: tuple[str, ...] = tuple(PALETTE)
#: Words that tell two things of one kind and colour apart.
PATTERNS = ("plain", "striped", "checked")


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How one solid is painted: two reflectances and a texture of ``period`` metres."""

    colour: tuple[float, float, float]
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    texture: int = FLAT
    period: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Paints:
    """The paints of many solids as arrays."""

    colour: Float32[np.ndarray, "n 3"]
    second: Float32[np.ndarray, "n 3"]
    texture: Int[np.ndarray, "n"]
    period: Float32[np.ndarray, "n"]


def stack(paints: list[Paint]) -> Paints:
    """One row a paint."""
    return Paints(
        colour=np.array([paint.colour for paint in paints], dtype=np.float32).reshape(-1, 3),
        second=np.array([paint.second for paint in paints], dtype=np.float32).reshape(-1, 3),
        texture=np.array([paint.texture for paint in paints], dtype=np.int64),
        period=np.array([paint.period for paint in paints], dtype=np.float32),
    )


def join(groups: list[Paints]) -> Paints:
    """All paints of all groups, in order."""
    return Paints(
        colour=np.concatenate([group.colour for group in groups]),
        second=np.concatenate([group.second for group in groups]),
        texture=np.concatenate([group.texture for group in groups]),
        period=np.concatenate([group.period for group in groups]),
    )


def shade(
    colour: str, rng: np.random.Generator, *, unseen: bool = False
) -> tuple[float, float, float]:
    """A reflectance that a person still calls ``colour``; ``unseen`` ones lie in an outer ring."""
    heart = np.array(PALETTE[colour])
    lightness = rng.uniform(0.14, 0.22) if unseen else rng.uniform(0.0, 0.12)
    lightness = 1.0 + lightness * rng.choice([-1.0, 1.0])
    tint = rng.uniform(-0.025, 0.025, 3)
    return _triple(np.clip(heart * lightness + tint * (heart + 0.05), 0.015, 1.0))


def patterned(colour: tuple[float, float, float], pattern: str, period: float) -> Paint:
    """The paint of a thing: its colour, and a lighter or darker tone where it has a pattern."""
    tone = np.array(colour)
    if pattern == "plain":
        return Paint(colour=colour, second=_triple(0.8 * tone), texture=CLOTH, period=0.02)
    # Two tones of one colour, so that its name stays true: dark orange would be brown.
    if tone.max() < 0.4:
        second = 0.6 * tone + 0.16
    elif tone.mean() > 0.42 and tone.min() < 0.7:
        second = 0.4 * tone + 0.55
    else:
        second = 0.45 * tone
    texture = STRIPES if pattern == "striped" else CHECKS
    return Paint(colour=colour, second=_triple(second), texture=texture, period=period)


def darker(colour: tuple[float, float, float], factor: float) -> Paint:
    """The same colour in shadow, for doors and drawers that must stand out from their body."""
    return Paint(colour=_triple(factor * np.array(colour)))


def wooden(rng: np.random.Generator) -> Paint:
    """A wood from birch to walnut."""
    tone = np.array([0.55, 0.34, 0.17]) * rng.uniform(0.35, 1.2)
    return Paint(colour=_triple(tone), second=_triple(0.6 * tone), texture=WOOD, period=0.16)


def _triple(values: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
