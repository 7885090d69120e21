"""What several seeds of two arms say together: means, paired differences, and what can be told.

Two things make a figure uncertain: which scenes were asked (drawn again, as in ``intervals.py``,
the same draws for every arm) and which seed was trained. With three seeds their spread is known
badly, which Student's t says honestly: ``over_seeds`` adds to every draw of the scenes a draw of t
with (seeds - 1) degrees of freedom, scaled by the standard error between seeds. Intervals and
p-values are read off the draws. One seed says nothing about others: its interval is of the scenes
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

#: What the draws stand for, as tables print it.
INTERVAL = (
    "95 %: paired bootstrap over scenes, Student's t (seeds - 1 degrees of freedom) between seeds"
)
P_VALUE = "two-sided, from the same paired bootstrap draws; Holm's correction over the arms"
DETECTABLE = (
    "the true difference that would have been told from 0 (two-sided 5 %) with 80 % power, "
    "from the same paired draws"
)


@dataclass(frozen=True, kw_only=True)
class SeedFigure:
    """One seed's figure: its value, and the value in every draw of the scenes."""

    value: float
    draws: Float[np.ndarray, "draws"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds with its draws; ``seeds`` is how many."""

    value: float
    draws: Float[np.ndarray, "draws"]
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the draws."""
        low, high = np.percentile(self.draws, (2.5, 97.5))
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm's figure less another's, paired by scene and by seed.

    ``detectable`` is the smallest true difference that would have been seen: see ``DETECTABLE``;
    None where nothing differs, in no scene and no seed: then nothing tells what would have.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float | None
    seeds: int


def over_seeds(figures: Sequence[SeedFigure], *, rng: np.random.Generator) -> Spread:
    """The mean over seeds.

    Raises:
        ValueError: no figure, or one that has a value in no draw.
    """
    if not figures:
        raise ValueError("no seed has this figure: a mean over nothing has no value")
    values = np.array([figure.value for figure in figures])
    draws = np.stack([figure.draws for figure in figures]).mean(axis=0)
    # A draw without any item of the figure has no value.
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        raise ValueError("the figure has a value in no draw of the scenes")
    count = len(figures)
    if count > 1:
        between = float(values.std(ddof=1)) / np.sqrt(count)
        # Even steps of the distribution in random order: its tails without the luck of drawing.
        steps = (np.arange(len(draws)) + 0.5) / len(draws)
        draws = draws + between * rng.permutation(stats.t.ppf(steps, df=count - 1))
    return Spread(value=float(values.mean()), draws=draws, seeds=count)


def difference(
    arm: Mapping[int, SeedFigure], other: Mapping[int, SeedFigure], *, rng: np.random.Generator
) -> Difference | None:
    """``arm`` less ``other`` over the seeds that both have; None where they share none."""
    shared = sorted(arm.keys() & other.keys())
    if not shared:
        return None
    spread = over_seeds(
        [
            SeedFigure(
                value=arm[seed].value - other[seed].value,
                draws=arm[seed].draws - other[seed].draws,
            )
            for seed in shared
        ],
        rng=rng,
    )
    draws, count = spread.draws, len(spread.draws)
    low, high = spread.interval
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    # What is drawn is as far from the figure as the figure is from what is true.
    off = draws - np.median(draws)
    return Difference(
        value=spread.value,
        low=low,
        high=high,
        p=min(1.0, 2 * (beyond + 1) / (count + 1)),
        detectable=float(np.quantile(np.abs(off), 0.95) + np.quantile(off, 0.80))
        if draws.any()
        else None,
        seeds=len(shared),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several comparisons, corrected so that one error in all has 5 % (Holm 1979)."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, p_values[name] * (len(ordered) - place)))
        corrected[name] = largest
    return corrected
