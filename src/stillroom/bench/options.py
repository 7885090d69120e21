"""What ``stillroom bench latency`` measures, and how often. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from stillroom.records import BadInputError

_AT_LEAST_ONE = (
    "teacher_views",
    "student_views",
    "question_tokens",
    "sweep_views",
    "sweep_batch",
    "repeats",
    "threads",
    "turns",
    "at_teacher_views",
    "at_student_views",
)


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """What is measured, and how often."""

    # Where to compute; auto is the GPU if there is one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Weights and computation of both models.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Photos that each looks at; none is as many as it usually does.
    teacher_views: int | None = None
    student_views: int | None = None
    # Tokens of a question (random words), and of an answer: just so many are said.
    question_tokens: int = 32
    tokens: int = 64
    # Numbers of photos, and of questions asked at once, that are tried besides.
    sweep_views: tuple[int, ...] = ()
    sweep_batch: tuple[int, ...] = ()
    # How often each is measured, in turns, after how many that only warm up.
    repeats: int = 10
    warm_up: int = 2
    # Processor threads; none is torch's own choice.
    threads: int | None = None
    # together holds both models in memory and asks them in turns; in_turn loads one at a time, and
    # each so many times, a share of the repeats each time.
    resident: Literal["together", "in_turn"] = "together"
    turns: int = 1
    # Besides, what scenes of this many photos would take, by operations, from what was measured on
    # fewer; none tells only what was measured.
    at_teacher_views: int | None = None
    at_student_views: int | None = None

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            given = getattr(self, name)
            for count in given if isinstance(given, tuple) else (given,):
                if count is not None and count < 1:
                    raise BadInputError(f"{name} must be at least 1, got {count}")
        cores = os.cpu_count()
        if self.threads is not None and cores is not None and self.threads > cores:
            raise BadInputError(
                f"threads must be at most the {cores} cores of this machine, got {self.threads}"
            )
        if self.warm_up < 0:
            raise BadInputError(f"warm_up must be at least 0, got {self.warm_up}")
        if self.tokens < 2:
            raise BadInputError(
                f"tokens must be at least 2, so that one can be timed alone, got {self.tokens}"
            )
