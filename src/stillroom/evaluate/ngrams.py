"""What words alone give away: n-gram models of questions, fitted without any picture.

A choice is a conditional logit: each option gets a score from the words of the question and of
the options, and a softmax over the question's own options decides; two ways or four, the same
model. A number is a ridge regression on its logarithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from stillroom.text.answers import words

#: Weight decay tried, per question; the one that does best on held-out scenes is taken.
DECAYS = (3e-2, 3e-3, 3e-4)
#: Questions that the weight decay is chosen with, at most.
_CHOSEN_WITH = 3_000
_STEPS = 120


def grams(text: str) -> list[str]:
    """Words and pairs of neighbours."""
    single = words(text)
    return single + [f"{a} {b}" for a, b in pairwise(single)]


def option_features(question: str, options: Sequence[str], index: int) -> list[str]:
    """Names of the binary features of one option in its question."""
    return _features(grams(question), [words(option) for option in options], index)


def _features(said: list[str], options: list[list[str]], index: int) -> list[str]:
    own = options[index]
    whole = " ".join(own)
    rest = [word for i, other in enumerate(options) if i != index for word in other]
    return [
        f"place {index}",
        f"is {whole}",
        *(f"has {word}" for word in own),
        # What stands beside it: a bed against a mug is bigger, a bed against a sofa may not be.
        *(f"{word} over {other}" for word in own for other in rest),
        *(f"{gram} | place {index}" for gram in said),
        *(f"{gram} | {whole}" for gram in said),
        *(f"{gram} | {own[-1]}" for gram in said if len(own) > 1),
    ]


class _Vocabulary:
    """Column numbers of features; unknown ones are dropped once it is closed."""

    def __init__(self) -> None:
        self.columns: dict[str, int] = {}

    def matrix(self, rows: Iterable[Iterable[str]], *, grow: bool) -> csr_matrix:
        """One row of ones and zeros per list of names."""
        columns: list[int] = []
        starts = [0]
        for row in rows:
            for name in row:
                column = self.columns.setdefault(name, len(self.columns)) if grow else None
                column = self.columns.get(name) if column is None else column
                if column is not None:
                    columns.append(column)
            starts.append(len(columns))
        shape = (len(starts) - 1, max(len(self.columns), 1))
        return csr_matrix((np.ones(len(columns)), columns, starts), shape=shape)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A question with options and, for fitting, the index of the right one."""

    scene_id: str
    question: str
    options: tuple[str, ...]
    right: int


class ChoiceModel:
    """Says which option is likeliest; made by ``fit_choices``."""

    def __init__(self, vocabulary: _Vocabulary, weights: Float[np.ndarray, "features"]) -> None:
        self._vocabulary = vocabulary
        self._weights = weights

    def choose(self, question: str, options: Sequence[str]) -> int:
        """Index of the likeliest option; the first of equals."""
        said, split = grams(question), [words(option) or [""] for option in options]
        rows = (_features(said, split, i) for i in range(len(options)))
        return int(np.argmax(self._vocabulary.matrix(rows, grow=False) @ self._weights))


def fit_choices(choices: Sequence[Choice], *, rng: np.random.Generator) -> ChoiceModel:
    """The n-gram model of one family, its weight decay chosen on a fifth of the scenes."""
    if not choices:
        raise ValueError("an n-gram model needs at least one question to learn from")
    decay = _best_decay(choices, rng=rng)
    vocabulary = _Vocabulary()
    return ChoiceModel(vocabulary, _fit(*_design(choices, vocabulary), decay=decay))


def _best_decay(choices: Sequence[Choice], *, rng: np.random.Generator) -> float:
    """The decay under which a fifth of the scenes is best foretold from the others."""
    scenes = rng.permutation(sorted({choice.scene_id for choice in choices})).tolist()
    held = set(scenes[: len(scenes) // 5])
    if not held:
        return DECAYS[0]
    if len(choices) > _CHOSEN_WITH:
        drawn = rng.choice(len(choices), size=_CHOSEN_WITH, replace=False)
        choices = [choices[i] for i in drawn]
    vocabulary = _Vocabulary()
    fitted = _design([c for c in choices if c.scene_id not in held], vocabulary)
    asked = _design([c for c in choices if c.scene_id in held], vocabulary, grow=False)
    losses = [_loss(_fit(*fitted, decay=decay), *asked, decay=0.0)[0] for decay in DECAYS]
    return DECAYS[int(np.argmin(losses))]


_Design = tuple[csr_matrix, Int[np.ndarray, "questions"], Int[np.ndarray, "questions"]]


def _design(choices: Sequence[Choice], vocabulary: _Vocabulary, *, grow: bool = True) -> _Design:
    """One row per option; where each question's rows start; the row of each right option."""

    def rows() -> Iterable[list[str]]:
        for choice in choices:
            said, split = grams(choice.question), [words(o) or [""] for o in choice.options]
            for i in range(len(split)):
                yield _features(said, split, i)

    counts = np.array([len(choice.options) for choice in choices])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    right = starts + np.array([choice.right for choice in choices])
    return vocabulary.matrix(rows(), grow=grow), starts, right


def _fit(
    matrix: csr_matrix,
    starts: Int[np.ndarray, "q"],
    right: Int[np.ndarray, "q"],
    *,
    decay: float,
) -> Float[np.ndarray, "features"]:
    """Accelerated gradient descent with a step per feature (Beck and Teboulle 2009, section 4).

    Steps begin bolder than the bound on the curvature allows, and are cut when the loss rises.
    No BLAS call on purpose: its threads stall on a machine that is busy with training.
    """
    curvature = 0.1 * (matrix.T @ np.asarray(matrix.sum(axis=1)).ravel()) / len(starts) + decay
    weights = ahead = np.zeros(matrix.shape[1])
    momentum, last = 1.0, np.inf
    for _ in range(_STEPS):
        loss, gradient = _loss(ahead, matrix, starts, right, decay=decay)
        if loss > last:
            ahead, momentum, last = weights, 1.0, np.inf
            curvature = 1.5 * curvature
            continue
        stepped = ahead - gradient / curvature
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = stepped + (momentum - 1) / grown * (stepped - weights)
        weights, momentum, last = stepped, grown, loss
    return weights


def _loss(
    weights: Float[np.ndarray, "features"],
    matrix: csr_matrix,
    starts: Int[np.ndarray, "q"],
    right: Int[np.ndarray, "q"],
    *,
    decay: float,
) -> tuple[float, Float[np.ndarray, "features"]]:
    """Mean negative log-likelihood [nats] with its gradient."""
    scores = matrix @ weights
    sizes = np.diff(np.append(starts, len(scores)))
    highest = np.repeat(np.maximum.reduceat(scores, starts), sizes)
    exps = np.exp(scores - highest)
    totals = np.add.reduceat(exps, starts)
    nll = np.log(totals) + highest[starts] - scores[right]
    residual = exps / np.repeat(totals, sizes)
    residual[right] -= 1.0
    gradient = matrix.T @ (residual / len(starts)) + decay * weights
    return float(np.mean(nll) + 0.5 * decay * np.sum(weights**2)), gradient


class NumberModel:
    """Guesses a positive number from a question's words; made by ``fit_numbers``."""

    def __init__(
        self, vocabulary: _Vocabulary, weights: Float[np.ndarray, "features"], centre: float
    ) -> None:
        self._vocabulary = vocabulary
        self._weights = weights
        self._centre = centre

    def guess(self, question: str) -> float:
        """The number whose logarithm is expected."""
        row = self._vocabulary.matrix([grams(question)], grow=False)
        return float(np.exp(self._centre + (row @ self._weights)[0]))


def fit_numbers(questions: Sequence[str], values: Sequence[float]) -> NumberModel:
    """Ridge regression of log value on the question's n-grams; values of 0 and less are raised."""
    vocabulary = _Vocabulary()
    matrix = vocabulary.matrix([grams(question) for question in questions], grow=True)
    target = np.log(np.maximum(np.array(values, dtype=np.float64), 1e-3))
    # The median is what relative accuracy rewards when words say nothing.
    centre = float(np.median(target))
    weights = lsqr(matrix, target - centre, damp=2.0)[0]
    return NumberModel(vocabulary, weights, centre)
