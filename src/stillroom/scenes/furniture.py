"""Every kind of thing, at any size and in any colour."""

from __future__ import annotations

import numpy as np

from stillroom.scenes import paints
from stillroom.scenes.builder import DARK, STEEL, Builder, Item, Kind
from stillroom.scenes.large_things import LARGE, MORE_LARGE
from stillroom.scenes.small_things import MORE_SMALL, SMALL

#: In a settled order: models that name kinds by number depend on it.
KINDS: dict[str, Kind] = LARGE | SMALL | MORE_LARGE | MORE_SMALL


def build(
    category: str,
    size: tuple[float, float, float],
    colour: str,
    pattern: str,
    rng: np.random.Generator,
    *,
    unseen: bool = False,
) -> Item:
    """A thing of that kind that fills a box of ``size`` [m] as its kind allows."""
    main = paints.patterned(
        paints.shade(colour, rng, unseen=unseen), pattern, rng.uniform(0.08, 0.13)
    )
    trims = (paints.wooden(rng), STEEL, DARK)
    builder = Builder(main, trims[int(rng.integers(len(trims)))])
    KINDS[category].build(builder, *size, rng)
    return builder.item(category, colour, pattern)


def draw_size(
    category: str, rng: np.random.Generator, *, natural: bool = False
) -> tuple[float, float, float]:
    """Width, depth and height, even in their logarithms over the kind's ranges.

    ``natural`` keeps to the part of the ranges that is usual in a home.
    """
    kind = KINDS[category]
    low, high = 0.0, 1.0
    if natural and category in LARGE:
        low, high = 0.3, 0.85
    elif natural and category in SMALL:
        low, high = 0.0, 0.6
    # What is wide tends to be deep and high: so small and large ones differ in all.
    middle = rng.uniform(low, high)
    at = np.clip(middle + rng.uniform(-0.2, 0.2, 3), low, high)
    width = _between(kind.width, at[0])
    depth = width if kind.depth is None else _between(kind.depth, at[1])
    height = width if kind.height is None else _between(kind.height, at[2])
    return width, depth, height


def _between(span: tuple[float, float], at: float) -> float:
    low, high = np.log(span[0]), np.log(span[1])
    return float(np.exp(low + (high - low) * at))
