"""Thirds of a family by how clear its cases are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from stillroom.records import Question


def margin_thirds(questions: Sequence[Question]) -> list[list[int]]:
    """Positions of one family's questions: hardest, middle, clearest third.

    A margin says how clear a case is among cases of its own kind only: degrees are no metres, and
    the gap of things apart begins where that of things that touch ends. So questions are ranked
    among those of their unit, in ``contact`` of their answer too, and the shares of the ranks are
    compared. Questions without a margin are left out; nothing is said of fewer than three with one,
    or where no two of a kind differ.
    """
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        if question.margin is not None:
            kinds[_kind(question)].append(i)
    ranked: list[tuple[float, str, int]] = []
    for where in kinds.values():
        where.sort(key=lambda i: (questions[i].margin, questions[i].question_id))
        ranked += [
            ((rank + 0.5) / len(where), questions[i].question_id, i) for rank, i in enumerate(where)
        ]
    differ = any(len({questions[i].margin for i in where}) > 1 for where in kinds.values())
    if len(ranked) < 3 or not differ:
        return []
    order = np.array([i for _, _, i in sorted(ranked)])
    return [third.tolist() for third in np.array_split(order, 3)]


def _kind(question: Question) -> tuple[str, ...]:
    answer = (question.answer,) if question.family == "contact" else ()
    return (question.family, question.unit, *answer)
