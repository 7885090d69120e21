"""Scores with 95 % intervals: scenes are drawn again, not questions.

All questions about one room share its pictures, so they are right and wrong together; drawing
whole scenes keeps that in the interval (percentile bootstrap, 2,000 draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

DRAWS = 2_000
_BLOCK = 100
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over ``n`` items (a fraction) with its 95 % interval over scenes."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Student score over teacher score on the same items, with its paired 95 % interval.

    None where the teacher scores 0: a share of nothing has no value.
    """

    score: float | None
    low: float | None
    high: float | None


class Resampler:
    """Draws scenes again; one set of draws serves every row, so differences are paired."""

    def __init__(self, scene_ids: Sequence[str], *, rng: np.random.Generator) -> None:
        names = sorted(set(scene_ids))
        if not names:
            raise ValueError("no scene to draw from: an interval over nothing has no value")
        self._place = {name: i for i, name in enumerate(names)}
        shares = np.full(len(names), 1.0 / len(names))
        # [draws scenes]: how often each scene was drawn. In blocks, as int64 counts are large.
        self._weights = np.concatenate(
            [
                rng.multinomial(len(names), shares, size=min(_BLOCK, DRAWS - start)).astype(
                    np.float32
                )
                for start in range(0, DRAWS, _BLOCK)
            ]
        )

    def mean(self, scores: Float[np.ndarray, "n"], scene_ids: Sequence[str]) -> Estimate:
        """Mean of the items with its interval. No items is an error, not 0.

        One scene says nothing about others: its interval is the whole of [0, 1].
        """
        where = self._index(scores, scene_ids)
        score = float(np.mean(scores))
        if len(np.unique(where)) < 2:
            return Estimate(score=score, low=0.0, high=1.0, n=len(scores))
        low, high = interval_of(self.draws(scores, scene_ids))
        assert low is not None
        assert high is not None
        return Estimate(score=score, low=low, high=high, n=len(scores))

    def draws(
        self,
        scores: Float[np.ndarray, "n"],
        scene_ids: Sequence[str],
        weights: Float[np.ndarray, "n"] | None = None,
    ) -> Float[np.ndarray, "draws"]:
        """Mean of the items, weighed if asked, in every draw; NaN where none of them was drawn."""
        where = self._index(scores, scene_ids)
        weights = np.ones(len(scores)) if weights is None else weights
        count = self._drawn(weights, where)
        with np.errstate(invalid="ignore"):
            means: Float[np.ndarray, "draws"] = self._drawn(scores * weights, where) / count
        return means

    def ratio(
        self,
        student: Float[np.ndarray, "n"],
        teacher: Float[np.ndarray, "n"],
        scene_ids: Sequence[str],
    ) -> Ratio:
        """Retention: both means over the same items, drawn together."""
        where = self._index(student, scene_ids)
        self._index(teacher, scene_ids)
        if float(np.mean(teacher)) <= 0:
            return Ratio(score=None, low=None, high=None)
        score = float(np.mean(student) / np.mean(teacher))
        below = self._drawn(teacher, where)
        drawn = below > 0
        if len(np.unique(where)) < 2:
            return Ratio(score=score, low=None, high=None)
        ratios = self._drawn(student, where)[drawn] / below[drawn]
        low, high = np.percentile(ratios, _LEVELS)
        return Ratio(score=score, low=float(low), high=float(high))

    def sums(
        self, values: Float[np.ndarray, "n k"], scene_ids: Sequence[str]
    ) -> Float[np.ndarray, "draws k"]:
        """Sums of the values over each draw's scenes, column by column."""
        where = self._index(values, scene_ids)
        return np.stack([self._drawn(column, where) for column in values.T], axis=1)

    def counts(self, scene_ids: Sequence[str]) -> Float[np.ndarray, "draws n"]:
        """How often each of these scenes was drawn."""
        places = [self._place[name] for name in scene_ids]
        drawn: Float[np.ndarray, "draws n"] = self._weights[:, places].astype(np.float64)
        return drawn

    def _index(
        self, scores: Float[np.ndarray, "n ..."], scene_ids: Sequence[str]
    ) -> Int[np.ndarray, "n"]:
        if len(scores) == 0:
            raise ValueError("no items were scored: a mean over nothing has no value")
        if len(scores) != len(scene_ids):
            raise ValueError(f"{len(scores)} scores came with {len(scene_ids)} scene ids")
        return np.array([self._place[name] for name in scene_ids])

    def _drawn(
        self, values: Float[np.ndarray, "n"], where: Int[np.ndarray, "n"]
    ) -> Float[np.ndarray, "draws"]:
        """Sum of the values over each draw's scenes."""
        sums = np.bincount(where, weights=values, minlength=len(self._place))
        return (self._weights @ sums).astype(np.float64)


def interval_of(draws: Float[np.ndarray, "draws"] | None) -> tuple[float | None, float | None]:
    """The 95 % interval of a figure's draws; none where there are none.

    Draws in which it has no value (no item of it, nothing to divide by) are left out.
    """
    finite = draws[np.isfinite(draws)] if draws is not None else np.empty(0)
    if not len(finite):
        return None, None
    low, high = np.percentile(finite, _LEVELS)
    return float(low), float(high)


def above_blind(student: float, teacher: float, blind: float) -> float | None:
    """(student - blind) / (teacher - blind): what is kept of the teacher's seeing.

    None where the teacher is not above blind, as there is nothing to keep.
    """
    return (student - blind) / (teacher - blind) if teacher > blind else None
