"""Collects the worst error of each recorded figure over all items of a fixture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from stillroom.records import BadInputError
from stillroom.verify import Compared

TOLERANCE = 1e-6


class Tally:
    """Named comparisons, in the order in which they were first made."""

    def __init__(self) -> None:
        self._worst: dict[str, float] = {}
        self._tolerance: dict[str, float] = {}
        self._skipped: dict[str, str] = {}

    def known(self, recorded: Mapping[str, Any], names: Collection[str]) -> None:
        """Raises BadInputError if something is recorded under another name than these."""
        unknown = sorted(set(recorded) - set(names))
        if unknown:
            raise BadInputError(
                f"it records {', '.join(unknown)}, which this comparison does not know"
            )

    def number(
        self,
        name: str,
        ours: float | int,
        recorded: float | int | None,
        *,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Two real numbers; null beside a number, and what is not finite, never agree."""
        error = math.inf if recorded is None else abs(float(ours) - float(recorded))
        self._add(name, math.inf if math.isnan(error) else error, tolerance)

    def equal(self, name: str, ours: object, recorded: object) -> None:
        """Two letters, texts, counts or booleans; different ones are off by 1."""
        self._add(name, float(ours != recorded), 0.0)

    def numbers(
        self,
        name: str,
        ours: Mapping[str, Any],
        recorded: Mapping[str, Any],
        *,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Every recorded number of a table."""
        self.known(recorded, ours)
        for key, value in recorded.items():
            self.number(f"{name}.{key}", ours[key], value, tolerance=tolerance)

    def skip(self, name: str, why: str) -> None:
        """A figure that cannot be made here."""
        self._skipped[name] = why

    def _add(self, name: str, error: float, tolerance: float) -> None:
        self._worst[name] = max(self._worst.get(name, 0.0), error)
        self._tolerance[name] = tolerance

    def compared(self) -> list[Compared]:
        """One entry per name."""
        done = [
            Compared(name=name, worst=worst, ok=worst <= self._tolerance[name])
            for name, worst in self._worst.items()
        ]
        return done + [
            Compared(name=name, worst=0.0, ok=True, skipped=why)
            for name, why in self._skipped.items()
        ]
