"""A figure of a benchmark's table, kept as sums over its items, so that scenes can be drawn again.

Whatever a published scorer prints, a mean, a mean of means or a corpus BLEU, is a function of such
sums; its interval and its ratio to the teacher's come from the same draws (``intervals``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stillroom.evaluate.intervals import Resampler

#: Sums over items [... k] -> the figure [...].
OfSums = Callable[[Float[np.ndarray, "*d k"]], Float[np.ndarray, "*d"]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: ``of`` the sum of ``stats`` over its units, which are items or groups of them."""

    stats: Float[np.ndarray, "n k"]
    # The scene of each unit.
    scenes: tuple[str, ...]
    of: OfSums
    # False for what only a foreign program computes from the whole corpus: it has no interval.
    resampled: bool = True

    @property
    def value(self) -> float:
        """The figure over all units."""
        return float(self.of(self.stats.sum(axis=0)))

    def drawn(self, resampler: Resampler) -> Float[np.ndarray, "draws"] | None:
        """The figure in every draw of the scenes; not a number where a draw has no unit of it.

        None where it cannot be drawn again, or where all units are of one scene.
        """
        if not self.resampled or len(set(self.scenes)) < 2:
            return None
        return self.of(resampler.sums(self.stats, self.scenes))


Figures = dict[str, Figure]


def mean_figure(scores: Sequence[float], scenes: Sequence[str]) -> Figure:
    """Mean of the scores.

    Raises:
        ValueError: there is none.
    """
    return nested_mean([[(list(scores), list(scenes))]])


def nested_mean(
    tasks: Sequence[Sequence[tuple[Sequence[float], Sequence[str]]]],
    *,
    weights: Sequence[float] | None = None,
) -> Figure:
    """Mean over tasks, weighted if so said, of the mean over a task's parts of their mean score.

    A part is its scores and their scenes.

    Raises:
        ValueError: a part is empty.
    """
    shares = np.array([1.0] * len(tasks) if weights is None else weights)
    parts = [(share / shares.sum() / len(t), p) for share, t in zip(shares, tasks) for p in t]
    if not parts or not all(len(scores) for _, (scores, _) in parts):
        raise ValueError("no answer was scored: a mean over nothing has no value")
    stats = np.zeros((sum(len(scores) for _, (scores, _) in parts), 2 * len(parts)))
    start = 0
    for column, (_, (scores, _)) in enumerate(parts):
        stats[start : start + len(scores), 2 * column] = scores
        stats[start : start + len(scores), 2 * column + 1] = 1.0
        start += len(scores)
    of_part = np.array([weight for weight, _ in parts])

    def of(sums: Float[np.ndarray, "*d k"]) -> Float[np.ndarray, "*d"]:
        pairs = sums.reshape(*sums.shape[:-1], -1, 2)
        # A part that a draw has no item of is left out of it, as a table leaves out a task that
        # was never asked.
        there = (pairs[..., 1] > 0) * of_part
        means = pairs[..., 0] / np.maximum(pairs[..., 1], 1.0)
        total = there.sum(axis=-1)
        return np.asarray((means * there).sum(axis=-1) / np.where(total > 0, total, np.nan))

    scenes = tuple(scene for _, (_, where) in parts for scene in where)
    return Figure(stats=stats, scenes=scenes, of=of)


def weighted_groups(
    groups: Sequence[str],
    weights: Mapping[str, float],
    scores: Sequence[float],
    scenes: Sequence[str],
) -> Figure:
    """sum(weight * group mean) / sum(weights); a group that nothing was asked of counts 0."""
    names = list(weights)
    shares = np.array([weights[name] for name in names])
    stats = np.zeros((len(scores), 2 * len(names)))
    for row, group, score in zip(stats, groups, scores, strict=True):
        if group in weights:
            column = 2 * names.index(group)
            row[column : column + 2] = score, 1.0

    def of(sums: Float[np.ndarray, "*d k"]) -> Float[np.ndarray, "*d"]:
        pairs = sums.reshape(*sums.shape[:-1], -1, 2)
        means = np.where(pairs[..., 1] > 0, pairs[..., 0] / np.maximum(pairs[..., 1], 1.0), 0.0)
        return np.asarray(means @ shares / shares.sum())

    return Figure(stats=stats, scenes=tuple(scenes), of=of)


def corpus_figure(value: float, scenes: Sequence[str]) -> Figure:
    """A figure that is known for the whole corpus alone."""
    return Figure(
        stats=np.zeros((len(scenes), 1)),
        scenes=tuple(scenes),
        of=lambda sums: np.full(sums.shape[:-1], value),
        resampled=False,
    )


def means_by(
    keys: Sequence[str], scores: Sequence[float], scenes: Sequence[str], *, name: str = "{}"
) -> Figures:
    """The mean figure of each key, keys sorted."""
    return {
        name.format(key): mean_figure([scores[i] for i in where], [scenes[i] for i in where])
        for key, where in positions(keys).items()
    }


def positions(keys: Sequence[str]) -> Mapping[str, list[int]]:
    """Where each key stands, keys sorted."""
    found: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return dict(sorted(found.items()))


def grouped_figure(keys: Sequence[str], scores: Sequence[float], scenes: Sequence[str]) -> Figure:
    """Share of the groups (items of equal key) in which every item is right."""
    groups = positions(keys).values()
    return mean_figure(
        [min(scores[i] for i in where) for where in groups],
        # Mirrored pictures are other pictures: a group is drawn with its first.
        [scenes[where[0]] for where in groups],
    )
