"""Recipes: functions that return complete configs, by verb and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def table(verb: str) -> Mapping[str, Callable[[], Any]]:
    """The recipes of a verb (pretrain-encoder, teach, distill) by name."""
    from stillroom.recipes import mini

    return {
        "pretrain-encoder": mini.PRETRAIN,
        "teach": mini.TEACH,
        "distill": mini.DISTILL,
    }[verb]
