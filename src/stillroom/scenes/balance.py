"""Which candidates may be asked, so that no answer can be guessed from the names alone.

In furnished rooms some answers are likelier than others: a bed is usually bigger than a desk, a
mug usually touches a table. A table of weights, estimated once from many rooms
(``fit_balance``) and kept in ``balance.json``, gives the probability of every answer given the
categories named. A candidate is then kept with a probability inversely proportional to that of
its answer, after which all answers to the same names are equally likely. The method and what it
leaves over are in ``docs/world.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float

#: A candidate whose rarest answer is less likely than this share of its target is never asked:
#: so rare a case cannot be balanced with an estimated table.
RAREST = 0.1
#: Weights are kept with so many decimals.
DECIMALS = 3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A question that geometry would allow, before the draw.

    ``ids`` are indices of the objects in the order named. ``keys`` holds, for each possible
    answer, the names of the weights that make it likely; ``targets`` the shares wanted.
    """

    task: str
    ids: tuple[int, ...]
    answer: int
    keys: tuple[tuple[str, ...], ...]
    value: float
    margin: float
    targets: tuple[float, ...] = ()
    # What a task needs besides: options as said, angles.
    said: tuple[str, ...] = ()

    @property
    def wanted(self) -> Float[np.ndarray, "answers"]:
        """Shares of the answers after balancing; equal unless ``targets`` says otherwise."""
        count = len(self.keys)
        return np.array(self.targets) if self.targets else np.full(count, 1.0 / count)


class Balance:
    """Weights by table; an absent weight is 0, an absent table calls all answers equally likely."""

    def __init__(self, tables: Mapping[str, Mapping[str, float]]) -> None:
        self.tables = tables

    def likely(self, candidate: Candidate, density: str) -> Float[np.ndarray, "answers"]:
        """Probability of each answer given the names."""
        weights = self.tables.get(f"{density}/{candidate.task}")
        if weights is None:
            return candidate.wanted
        scores = np.array([sum(weights.get(key, 0.0) for key in keys) for keys in candidate.keys])
        odds = np.exp(scores - scores.max())
        return odds / odds.sum()

    def keep(self, candidate: Candidate, density: str) -> float:
        """Probability of keeping the candidate; the rarest answer of its names is always kept."""
        ratio = self.likely(candidate, density) / candidate.wanted
        rarest = float(ratio.min())
        if rarest < RAREST:
            return 0.0
        return rarest / float(ratio[candidate.answer])


@cache
def shipped_balance() -> Balance:
    """The table that belongs to this version of the rooms."""
    text = files("stillroom.scenes").joinpath("balance.json").read_text()
    return Balance(json.loads(text))


def thin(
    candidates: Iterable[Candidate], balance: Balance, density: str, *, rng: np.random.Generator
) -> list[Candidate]:
    """The candidates that the draw keeps, in their order."""
    return [c for c in candidates if rng.random() < balance.keep(c, density)]


def fit_balance(rooms: Sequence[Sequence[Candidate]], *, shrink: float) -> dict[str, float]:
    """Weights of one task's table: a conditional logit model fitted to unthinned candidates.

    Candidates come by room, and every room counts alike: it is asked about equally often, however
    many cases it has. ``shrink`` is the precision of the normal prior that pulls every weight to 0.
    """
    from scipy.optimize import minimize

    candidates = [c for room in rooms for c in room]
    counts = np.array([1.0 / len(room) for room in rooms for _ in room])
    counts *= len(counts) / max(counts.sum(), 1.0)
    names = sorted({key for c in candidates for keys in c.keys for key in keys})
    if not names:
        return {}
    place = {name: i for i, name in enumerate(names)}
    answers = len(candidates[0].keys)
    entry = [
        (row * answers + k, place[key])
        for row, c in enumerate(candidates)
        for k, keys in enumerate(c.keys)
        for key in keys
    ]
    cell, weight = np.array(entry).T
    truth = np.arange(len(candidates)) * answers + np.array([c.answer for c in candidates])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.bincount(cell, weights=w[weight], minlength=len(candidates) * answers)
        scores = scores.reshape(-1, answers)
        top = scores.max(axis=1, keepdims=True)
        odds = np.exp(scores - top)
        total = odds.sum(axis=1, keepdims=True)
        missing = (np.log(total) + top).ravel() - scores.ravel()[truth]
        slope = (odds / total).ravel()
        slope[truth] -= 1.0
        slope *= np.repeat(counts, answers)
        gradient = np.bincount(weight, weights=slope[cell], minlength=len(names))
        return float(counts @ missing) + 0.5 * shrink * float(w @ w), gradient + shrink * w

    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B")
    return {
        name: round(float(w), DECIMALS)
        for name, w in zip(names, found.x)
        if abs(w) >= 0.5 * 10**-DECIMALS
    }
