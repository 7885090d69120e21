"""Which questions of a scene join a training step, and which of them a model got right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stillroom.records import FAMILIES, Question


def choose_questions(
    questions: Sequence[Question],
    *,
    count: int,
    description_share: float,
    other_share: float,
    rng: np.random.Generator,
) -> list[int]:
    """Indices of at most ``count`` questions, in the order of the list.

    The scene's description joins with probability ``description_share``: it is as long as all
    other answers together. Families beyond the paper's four (VSI-Bench's tasks) each join with
    probability ``other_share``; the rest is filled from the four, without replacement.
    """
    described = [i for i, q in enumerate(questions) if q.family == "description"]
    core = [i for i, q in enumerate(questions) if q.family in FAMILIES]
    others = [i for i in range(len(questions)) if i not in {*described, *core}]
    chosen = [i for i in described if rng.random() < description_share]
    chosen += [i for i in others if rng.random() < other_share]
    chosen = chosen[:count]
    room = min(count - len(chosen), len(core))
    if room > 0:
        chosen += [core[i] for i in rng.choice(len(core), size=room, replace=False)]
    return sorted(chosen)


class AnswerScores:
    """How well answers are known, gathered over an evaluation.

    Right is meant teacher-forced: every token of an answer, given the ones before it.
    """

    def __init__(self) -> None:
        self._error, self._count = 0.0, 0
        self._right: dict[str, list[bool]] = {}

    def add(
        self,
        errors: Float[Tensor, "a"],
        said: Bool[Tensor, "a"],
        answers: Sequence[tuple[str, int]],
    ) -> None:
        """Cross-entropy of all answer tokens end to end and whether each would have been said;
        ``answers`` are (family, tokens)."""
        self.add_right(said.tolist(), answers)
        core = [family in FAMILIES for family, count in answers for _ in range(count)]
        self._error += float(errors[torch.tensor(core, device=errors.device)].sum())
        self._count += sum(core)

    def add_right(self, said: Sequence[bool], answers: Sequence[tuple[str, int]]) -> None:
        """Only whether each answer token would have been said."""
        for family, values in right_by_family(said, answers).items():
            self._right.setdefault(family, []).extend(values)

    def answer_ce(self) -> float:
        """Nats per answer token over the four families."""
        return self._error / self._count

    def shares(self) -> dict[str, float]:
        """Share of right answers by family."""
        return {family: float(np.mean(hits)) for family, hits in sorted(self._right.items())}


def right_by_family(
    token_right: Sequence[bool], answers: Iterable[tuple[str, int]]
) -> dict[str, list[bool]]:
    """Whether each answer was right to its last token, teacher-forced, by family.

    ``token_right`` runs over all answer tokens end to end; ``answers`` are (family, tokens).
    """
    found: dict[str, list[bool]] = {}
    start = 0
    for family, length in answers:
        found.setdefault(family, []).append(all(token_right[start : start + length]))
        start += length
    return found
