"""The number behind an answer: what teaching asks for beside the words.

"The sofa" is one bit of what there is to know about two distances; their ratio is the whole of it.
Heads that only training has predict such numbers, first between the things that a question names,
then, where the answer begins, the one that decides it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillroom.records import Question

#: What a target has where nothing is asked.
NOTHING = math.nan
#: Where the error of a number turns from square to linear.
MEASURE_BETA = 0.1
#: Shortest length that is told from others, in metres.
_LEAST_M = 0.05


_Target = tuple[float, float]


def _lead(value: float, question: Question) -> _Target:
    """Logarithm of how much more there is of the option named first, cut where it is plain."""
    lead = min(abs(math.log(value)), 1.5)
    return (lead if question.answer == question.options[0] else -lead), NOTHING


def _metres(least: float, most: float) -> Callable[[float, Question], _Target]:
    return lambda value, _: (min(max(value, least), most), NOTHING)


def _log(value: float, _: Question) -> _Target:
    return math.log(max(value, _LEAST_M)), NOTHING


def _turn(degrees: float, _: Question) -> _Target:
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))


_TARGETS: Mapping[tuple[str, str], Callable[[float, Question], _Target]] = {
    ("proximity", "ratio"): _lead,
    ("size", "ratio"): _lead,
    ("contact", "m"): _metres(0.0, 1.0),
    ("orientation", "m"): _metres(-2.0, 2.0),
    ("orientation", "deg"): _turn,
    ("object_rel_direction_easy", "deg"): _turn,
    ("object_rel_direction_medium", "deg"): _turn,
    ("object_rel_direction_hard", "deg"): _turn,
    ("route_planning", "deg"): _turn,
    ("object_abs_distance", "m"): _log,
    ("object_size_estimation", "cm"): lambda value, question: _log(value / 100.0, question),
    ("room_size_estimation", "m2"): _log,
    ("object_counting", "count"): _log,
}
#: Every kind of number, by family and unit; each has two outputs of its own.
MEASURES = tuple(_TARGETS)


def measured(question: Question) -> tuple[int, _Target] | None:
    """Which of ``MEASURES`` decides the answer and its target, or None where there is none.

    Ratios (proximity, size) are logarithms with the sign of the option named first; gaps and
    leads metres; angles sine and cosine; estimates logarithms. An unused output is ``NOTHING``.
    """
    kind = (question.family, question.unit)
    if question.value is None or kind not in _TARGETS:
        return None
    return MEASURES.index(kind), _TARGETS[kind](question.value, question)


def apart(objects: Float[np.ndarray, "m 8"], named: Sequence[int]) -> list[_Target]:
    """For each name of a question in reading order: how far it is from what was named before.

    ``objects`` is a scene's table (``PixelCache.objects``), ``named`` the object of each place.
    The two values are log metres between the centres of this object and the first and the second
    one that the question names; ``NOTHING`` where that is itself or comes later.
    """
    order = list(dict.fromkeys(named))

    def length(thing: int, number: int) -> float:
        if number >= order.index(thing):
            return NOTHING
        metres = np.linalg.norm(objects[thing, 2:5] - objects[order[number], 2:5])
        return math.log(max(float(metres), _LEAST_M))

    return [(length(thing, 0), length(thing, 1)) for thing in named]


def measure_error(said: Float[Tensor, "n 2"], truth: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Smooth L1, number by number, in the target's own unit; 0 where it is ``NOTHING``."""
    known = truth.isfinite()
    error = F.smooth_l1_loss(said.float(), truth.nan_to_num(), reduction="none", beta=MEASURE_BETA)
    return torch.where(known, error, 0.0)
