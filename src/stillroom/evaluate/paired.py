"""What several seeds of two arms say together: means, paired differences, and what can be told.

Two things make a figure uncertain: which scenes were asked (drawn again, as in ``intervals.py``,
the same draws for every arm) and which seed was trained. With three seeds their spread is known
badly, which Student's t says honestly.

A single arm's interval (``over_seeds``) adds to every draw of the scenes a draw of t with
(seeds - 1) degrees of freedom, scaled by the standard error between seeds.

A difference (``difference``) has the variance of its scenes, plus that between seeds over their
number. The latter is taken from all arms that are compared at once (``seed_noise``): what is left
of arms x seeds when each arm's and each seed's own mean is taken away, with (arms - 1) x (seeds -
1) degrees of freedom, as in a randomised block design. Its interval, its p-value and the smallest
difference that would have been told all come from that one variance, by Student's t with
Satterthwaite's degrees of freedom. One seed says nothing about others: its interval is of the
scenes alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

#: What the intervals stand for, as tables print it.
INTERVAL = (
    "95 %: paired bootstrap over scenes, Student's t (seeds - 1 degrees of freedom) between seeds"
)
P_VALUE = (
    "two-sided, Student's t on the variance over scenes (paired bootstrap) plus that between seeds "
    "(pooled over the arms, degrees of freedom added up); Holm's correction over the primary "
    "comparisons, none over the secondary"
)
DETECTABLE = (
    "the true difference that has 80 % power to be told from 0 by the same test, at the level of "
    "Holm's first step (5 % over the number of primary comparisons; secondary ones 5 %)"
)
#: Power that ``Difference.detectable`` has.
POWER = 0.80
#: A row whose differences vary so much more than the others' (F test) is not pooled with them.
ODD_ROW = 0.01
_Key = TypeVar("_Key", bound=Hashable)


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
class SeedNoise:
    """Variance of one seed's difference between two arms, and how well it is known."""

    variance: float
    freedom: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm's figure less another's, paired by scene and by seed, with its 95 % interval.

    ``detectable`` is the smallest true difference that would have been told at ``level``: see
    ``DETECTABLE``; None where nothing differs, in no scene and no seed: then nothing tells what
    would have. ``freedom`` are the degrees of freedom of p.
    """

    value: float
    low: float
    high: float
    p: float
    detectable: float | None
    level: float
    freedom: float
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


def seed_noise(rows: Mapping[str, Mapping[int, float]], base: str) -> dict[str, SeedNoise | None]:
    """For each row (figure by seed) the noise of its difference from ``base``, pooled over rows.

    A row whose differences vary far more than the others' is taken out of the pool and has its
    own, of few degrees of freedom. None where no two seeds are shared.
    """
    pool, found = dict(rows), dict[str, SeedNoise | None]()
    while len(pool) > 2:
        odd = {row: _oddness(pool, row, base) for row in pool if row != base}
        row = min(odd, key=lambda name: odd[name])
        if odd[row] >= ODD_ROW / len(odd):
            break
        found[row] = _pooled({row: pool.pop(row), base: pool[base]})
    together = _pooled(pool)
    return {row: found.get(row, together) for row in rows if row != base}


def _oddness(rows: Mapping[str, Mapping[int, float]], row: str, base: str) -> float:
    """p that a row's own variance is no larger than that of all others."""
    own = _pooled({row: rows[row], base: rows[base]})
    others = _pooled({name: values for name, values in rows.items() if name != row})
    if own is None or others is None or own.variance <= others.variance:
        return 1.0
    if others.variance == 0:
        return 0.0
    return float(stats.f.sf(own.variance / others.variance, own.freedom, others.freedom))


def _pooled(rows: Mapping[str, Mapping[int, float]]) -> SeedNoise | None:
    """Twice the residual variance of (row + seed): that of a difference between two rows."""
    seeds = sorted({seed for values in rows.values() for seed in values})
    cells = [(i, seeds.index(s)) for i, values in enumerate(rows.values()) for s in values]
    values = np.array([value for one in rows.values() for value in one.values()])
    design = np.zeros((len(cells), len(rows) + len(seeds)))
    for line, (row, seed) in zip(design, cells, strict=True):
        line[row] = line[len(rows) + seed] = 1.0
    fit, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    freedom = len(cells) - int(rank)
    if freedom < 1:
        return None
    left = values - design @ fit
    return SeedNoise(variance=float(2 * (left @ left) / freedom), freedom=freedom)


def difference(
    arm: Mapping[int, SeedFigure],
    other: Mapping[int, SeedFigure],
    *,
    scenes: int,
    noise: SeedNoise | None,
    level: float,
) -> Difference | None:
    """``arm`` less ``other`` over the seeds that both have; None where they share none.

    ``noise`` is that between seeds; without it the interval is of the ``scenes`` alone. ``level``
    is the p-value below which the difference will be told.
    """
    shared = sorted(arm.keys() & other.keys())
    if not shared:
        return None
    value = float(np.mean([arm[seed].value - other[seed].value for seed in shared]))
    draws = np.stack([arm[seed].draws - other[seed].draws for seed in shared])
    draws = draws[:, np.isfinite(draws).all(axis=0)]
    about: dict[str, Any] = {"value": value, "level": level, "seeds": len(shared)}
    if not draws.any():
        return Difference(**about, low=value, high=value, p=1.0, detectable=None, freedom=0.0)
    by_scene = _scene_variance(draws) * scenes / max(scenes - 1, 1)
    parts = [(by_scene, max(scenes - 1, 1))]
    if noise is not None:
        parts.append((noise.variance / len(shared), noise.freedom))
    variance = sum(part for part, _ in parts)
    if variance == 0:  # the same difference in every scene and seed
        p, far = float(value == 0), 0.0
        return Difference(**about, low=value, high=value, p=p, detectable=far, freedom=0.0)
    freedom = variance**2 / sum(part**2 / known for part, known in parts)
    error = float(np.sqrt(variance))
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return Difference(
        **about,
        low=value - reach,
        high=value + reach,
        p=float(2 * stats.t.sf(abs(value) / error, freedom)),
        detectable=error * _told_from(freedom, level),
        freedom=float(freedom),
    )


def _scene_variance(draws: Float[np.ndarray, "seeds draws"]) -> float:
    """What the choice of scenes adds to the mean over seeds.

    Scenes drawn again carry each seed's own luck with single questions too, which the variance
    between seeds holds already; it is told from what the seeds share and left out.
    """
    count, whole = len(draws), float(draws.mean(axis=0).var())
    if count == 1:
        return whole
    single = float(draws.var(axis=1).mean())
    return max((count * whole - single) / (count - 1), 0.0)


def _told_from(freedom: float, level: float) -> float:
    """Standard errors that a true difference must have to be told with ``POWER``."""
    bound = float(stats.t.ppf(1 - level / 2, freedom))
    # The noncentral t, as a normal over an even grid of what the standard error may be taken for.
    steps = (np.arange(256) + 0.5) / 256
    bounds = bound * np.sqrt(stats.chi2.ppf(steps, freedom) / freedom)

    def lacking(away: float) -> float:
        told = stats.norm.sf(bounds - away) + stats.norm.cdf(-bounds - away)
        return float(told.mean()) - POWER

    return float(optimize.brentq(lacking, 0.0, 4 * bound + 4, xtol=1e-4))


def holm(p_values: Mapping[_Key, float], *, of: int | None = None) -> dict[_Key, float]:
    """p-values of several comparisons, corrected so that one error in all has 5 % (Holm 1979).

    ``of`` is how many were planned, where some are not there yet.
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    planned = max(of or 0, len(ordered))
    corrected: dict[_Key, float] = {}
    largest = 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, p_values[name] * (planned - place)))
        corrected[name] = largest
    return corrected
