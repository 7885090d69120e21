"""Which questions of a scene join a training step, and which of them a model got right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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
