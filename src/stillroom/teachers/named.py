"""Where the questions of a micro-batch name things and where their answers begin, with targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.records import Question
from stillroom.teachers.measures import apart, measured


@dataclass(frozen=True)
class Named:
    """Gathered question by question; teacher and student learn from the same six arrays."""

    _at: list[tuple[int, int]] = field(default_factory=list)
    _boxes: list[np.ndarray] = field(default_factory=list)
    _apart: list[tuple[float, float]] = field(default_factory=list)
    _begins: list[tuple[int, int]] = field(default_factory=list)
    _kinds: list[int] = field(default_factory=list)
    _numbers: list[tuple[float, float]] = field(default_factory=list)

    def add(
        self,
        row: int,
        question: Question,
        said: Sequence[tuple[int, int]],
        objects: Float[np.ndarray, "m 8"],
        *,
        start: int,
        answer: int,
    ) -> None:
        """A question of ``row`` whose first token stands ``start`` behind V, and the ``<bos>`` of
        whose answer stands ``answer`` behind that; ``said`` is what ``text.mentions`` found in it,
        ``objects`` the scene's table."""
        things = [thing for _, thing in said]
        self._at.extend((row, start + place) for place, _ in said)
        self._boxes.extend(objects[thing, 2:8] for thing in things)
        self._apart.extend(apart(objects, things))
        if (decides := measured(question)) is not None:
            self._begins.append((row, start + answer))
            self._kinds.append(decides[0])
            self._numbers.append(decides[1])

    def arrays(self) -> dict[str, Tensor]:
        """The fields of a batch: ``mention_at`` and ``measure_at`` are row and place behind V,
        ``mention_box`` centre [m] and log size, ``mention_apart`` and ``measure`` as in
        ``measures.py``, ``measure_kind`` which of ``MEASURES``."""
        return {
            "mention_at": torch.tensor(self._at, dtype=torch.long).reshape(-1, 2),
            "mention_box": torch.from_numpy(np.array(self._boxes, np.float32).reshape(-1, 6)),
            "mention_apart": torch.tensor(self._apart, dtype=torch.float32).reshape(-1, 2),
            "measure_at": torch.tensor(self._begins, dtype=torch.long).reshape(-1, 2),
            "measure_kind": torch.tensor(self._kinds, dtype=torch.long),
            "measure": torch.tensor(self._numbers, dtype=torch.float32).reshape(-1, 2),
        }
