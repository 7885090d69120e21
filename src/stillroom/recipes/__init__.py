"""Recipes: functions that return complete configs, by verb and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def table(verb: str) -> Mapping[str, Callable[[], Any]]:
    """The recipes of a verb (pretrain-encoder, teach, distill) by name."""
    from stillroom.recipes import ablations, edge, mini, paper

    return {
        "pretrain-encoder": mini.PRETRAIN,
        "teach": mini.TEACH,
        "distill": {**mini.DISTILL, **paper.DISTILL, **edge.DISTILL, **ablations.DISTILL},
    }[verb]
