"""What a linear map can read from states: ridge regression, its control task, honest intervals.

A probe that reads a property well may have learnt it by heart. So the same probe is fitted to
control tasks too, after Hewitt and Liang (2019): every kind of input gets a random but fixed
target, which the states cannot know. What kind of input there is must not settle the property
itself, or the control could be had from the property. Selectivity is how far the property is read
beyond a guess, less how far the controls are (mean of several draws), each beyond its own guess.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from stillroom.evaluate.intervals import Resampler, interval_of

#: Penalties that are tried, as multiples of the mean variance of the states.
PENALTIES = tuple(10.0**power for power in range(-4, 4))
#: Scenes of the training split on which the penalty is chosen: one of so many.
HELD_OUT = 5


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """A property of questions and its control, over all questions that have it.

    Targets are numbers, or the numbers of ``classes``.
    """

    name: str
    classes: tuple[str, ...] = ()
    unit: str = ""
    # Places of the questions among all.
    where: Int[np.ndarray, "n"]
    targets: Float[np.ndarray, "n"]
    # Targets of several control tasks.
    controls: Float[np.ndarray, "c n"]

    @property
    def chosen(self) -> bool:
        """Whether targets are classes and not numbers."""
        return bool(self.classes)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure with its interval over scenes."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well a property is read. ``score`` is accuracy, or R^2 where targets are numbers.

    ``error`` is the mean absolute error in the target's unit; None of classes. ``guess`` is the
    score of saying always the same: the commonest class, or the mean (R^2 0). ``control`` and
    ``control_guess`` are means over the control tasks; ``selectivity`` is (score - guess) -
    (control - control_guess).
    """

    score: Score
    control: Score
    selectivity: Score
    guess: float
    control_guess: float
    error: Score | None
    n: int
    trained_on: int


def control_targets(
    keys: Sequence[Hashable],
    targets: Float[np.ndarray, "n"],
    train: Bool[np.ndarray, "n"],
    seed: int,
    *,
    within: Sequence[Hashable] | None = None,
) -> Float[np.ndarray, "n"]:
    """A random but fixed target for every kind of input (``keys``).

    The kinds get even shares of the training's targets in random order, so that controls are as
    balanced as the property. With ``within`` (one value for all inputs of a key) that holds inside
    each of its groups too: then a group tells as little of the control as can be.
    """
    known = np.sort(targets[train])
    groups: dict[str, set[Hashable]] = {}
    for key, group in zip(keys, [0] * len(keys) if within is None else within, strict=True):
        groups.setdefault(repr(group), set()).add(key)
    drawn: dict[Hashable, float] = {}
    for group in sorted(groups):
        rng = np.random.default_rng([seed, *group.encode()])
        members = sorted(groups[group], key=repr)
        even = (np.arange(len(members)) + rng.random()) / len(members)
        chosen = known[(rng.permutation(even) * len(known)).astype(int)]
        drawn |= dict(zip(members, chosen.tolist(), strict=True))
    return np.array([drawn[key] for key in keys])


def probe_task(
    states: Float[np.ndarray, "n d"],
    task: ProbeTask,
    train: Bool[np.ndarray, "n"],
    scenes: Sequence[str],
    resampler: Resampler,
) -> ProbeScore:
    """Fit on the training scenes, score on the others; the control likewise.

    ``states``, ``train`` and ``scenes`` are of the task's own questions. ``resampler`` draws the
    scenes that are scored.
    """
    names = np.array(scenes)
    fit = _Ridge(states[train], names[train])
    asked = [str(name) for name in names[~train]]

    def judged(targets: Float[np.ndarray, "n"]) -> _Judged:
        return _judge(fit, states[~train], targets[train], targets[~train], task, asked, resampler)

    real, controls = judged(task.targets), [judged(targets) for targets in task.controls]
    control, guessed = (_mean([getattr(one, part) for one in controls]) for part in _PARTS)
    beyond = _less(_less(real.score, real.guess), _less(control, guessed))
    return ProbeScore(
        score=_score(real.score),
        control=_score(control),
        selectivity=_score(beyond),
        guess=real.guess[0],
        control_guess=guessed[0],
        error=None
        if real.errors is None
        else _score((float(real.errors.mean()), resampler.draws(real.errors, asked))),
        n=len(asked),
        trained_on=int(train.sum()),
    )


#: A figure, and itself in every draw of the scenes.
_Drawn = tuple[float, Float[np.ndarray, "draws"]]


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A score and that of always saying the same; of numbers the absolute errors too."""

    score: _Drawn
    guess: _Drawn
    errors: Float[np.ndarray, "m"] | None


_PARTS = ("score", "guess")


def _mean(found: Sequence[_Drawn]) -> _Drawn:
    values, draws = zip(*found, strict=True)
    return float(np.mean(values)), np.mean(draws, axis=0)


def _less(one: _Drawn, other: _Drawn) -> _Drawn:
    return one[0] - other[0], one[1] - other[1]


def _score(found: _Drawn) -> Score:
    low, high = interval_of(found[1])
    return Score(value=found[0], low=low, high=high)


def _judge(
    fit: _Ridge,
    states: Float[np.ndarray, "m d"],
    learnt: Float[np.ndarray, "n"],
    true: Float[np.ndarray, "m"],
    task: ProbeTask,
    scenes: Sequence[str],
    resampler: Resampler,
) -> _Judged:
    if task.chosen:
        one_hot = np.eye(len(task.classes))
        said = fit.predictor(one_hot[learnt.astype(int)])(states).argmax(axis=1)
        commonest = np.bincount(learnt.astype(int)).argmax()
        right, lucky = (
            (float(hits.mean()), resampler.draws(hits.astype(np.float64), scenes))
            for hits in (said == true, commonest == true)
        )
        return _Judged(score=right, guess=lucky, errors=None)
    said = fit.predictor(learnt[:, None])(states)[:, 0]
    # Against always saying the mean of training, as whoever has no states would.
    squared = np.stack([(said - true) ** 2, (learnt.mean() - true) ** 2], axis=1)
    sums = resampler.sums(squared, scenes)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = 1 - sums[:, 0] / sums[:, 1]
    off, spread = squared.sum(axis=0)
    # Where nothing varies there is nothing to tell.
    value = float(1 - off / spread) if spread > 0 else 0.0
    return _Judged(
        score=(value, draws), guess=(0.0, np.zeros_like(draws)), errors=np.abs(said - true)
    )


class _Ridge:
    """Ridge regressions on the same states: one decomposition for all targets and penalties."""

    def __init__(self, states: Float[np.ndarray, "n d"], scenes: np.ndarray) -> None:
        names = sorted(set(scenes.tolist()))
        held = set(names[::HELD_OUT]) if len(names) >= 2 else set()
        self._held = np.isin(scenes, list(held))
        self._whole = _Decomposed(states)
        self._part = _Decomposed(states[~self._held]) if held else self._whole
        self._states = states

    def predictor(
        self, targets: Float[np.ndarray, "n k"]
    ) -> Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, "m k"]]:
        """The map with the penalty that does best on the scenes held out."""
        if not self._held.any():
            return self._whole.solve(targets, PENALTIES[-1])
        asked, true = self._states[self._held], targets[self._held]
        errors = [
            np.mean((self._part.solve(targets[~self._held], penalty)(asked) - true) ** 2)
            for penalty in PENALTIES
        ]
        return self._whole.solve(targets, PENALTIES[int(np.argmin(errors))])


class _Decomposed:
    """States brought to mean 0 and variance 1, with the eigenvectors of their covariance."""

    def __init__(self, states: Float[np.ndarray, "n d"]) -> None:
        self._mean, self._scale = states.mean(axis=0), states.std(axis=0)
        self._scale = np.where(self._scale > 1e-6, self._scale, np.inf)  # what never varies is out
        self._states = self._brought(states)
        # Whichever side is shorter: channels, or questions.
        self._dual = len(states) < states.shape[1]
        square = self._states @ self._states.T if self._dual else self._states.T @ self._states
        self._values, self._vectors = np.linalg.eigh(square / len(states))

    def _brought(self, states: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        return (states.astype(np.float64) - self._mean) / self._scale

    def solve(
        self, targets: Float[np.ndarray, "n k"], penalty: float
    ) -> Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, "m k"]]:
        """The ridge regression's map from states to targets."""
        middle = targets.mean(axis=0)
        off = (targets - middle) / len(targets)
        pulled = off if self._dual else self._states.T @ off
        weights = self._vectors @ (self._vectors.T @ pulled / (self._values[:, None] + penalty))
        weights = self._states.T @ weights if self._dual else weights
        return lambda states: self._brought(states) @ weights + middle
