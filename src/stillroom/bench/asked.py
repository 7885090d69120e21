"""Real questions to real models, as their sessions answer them: how long, and whether as they must.

Beside ``latency.py``, where every answer has the same length, this is what a user sees: answers as
long as they are, bound to their options where there are any.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from stillroom.bench.machine import synchronise
from stillroom.records import Answer, Answerer, Question, Scene

Asked = Sequence[tuple[Scene, Sequence[Question]]]


class CheckedSession(Protocol):
    """A session that can also answer the slow way."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """As a session answers."""
        ...

    def plain_answer(self, questions: Sequence[Question]) -> list[Answer]:
        """By the model's own ``forward``, each question with the scene read anew."""
        ...


def ask_in_turns(
    answerers: Mapping[str, Answerer], asked: Asked, device: torch.device
) -> dict[str, dict[str, float]]:
    """Milliseconds (median) of a scene's first question with the opening, and of the later ones."""
    cold: dict[str, list[float]] = {name: [] for name in answerers}
    warm: dict[str, list[float]] = {name: [] for name in answerers}
    for number, (scene, questions) in enumerate(asked):
        for name, answerer in answerers.items():
            taken = []
            synchronise(device)
            began = time.perf_counter()
            session = answerer.open(scene)
            for question in questions:
                session.answer([question])
                synchronise(device)
                taken.append(time.perf_counter() - began)
                began = time.perf_counter()
            if number:  # the first scene warms up
                cold[name].append(taken[0])
                warm[name] += taken[1:]
    return {
        name: {
            "cold_ms": round(1000 * statistics.median(cold[name]), 4),
            "warm_ms": round(1000 * statistics.median(warm[name]), 4),
        }
        for name in answerers
    }


def count_equal(answerer: Answerer, asked: Asked) -> tuple[int, int]:
    """Of how many questions a session answers just so many as the model's own ``forward`` does.

    Each scene's questions are asked one by one and all at once; both have to agree with it.
    """
    equal = total = 0
    for scene, questions in asked:
        session: Any = answerer.open(scene)
        checked: CheckedSession = session
        expected = checked.plain_answer(questions)
        together = checked.answer(questions)
        for question, all_at_once, plain in zip(questions, together, expected, strict=True):
            equal += checked.answer([question])[0] == all_at_once == plain
            total += 1
    return equal, total
