"""Which rows a step sees: arithmetic on (seed, step), so resuming needs no loader state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from stillroom.training.config import TrainConfig


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, rows: int) -> Int64[np.ndarray, "rows"]:
    """The order of all rows in one epoch; read-only, the same on every machine."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    order.setflags(write=False)
    return order


def row_at(position: int, *, seed: int, rows: int) -> int:
    """The row drawn after ``position`` others; each epoch sees every row once, in a new order."""
    epoch, place = divmod(position, rows)
    return int(permutation(seed, epoch, rows)[place])


def rows_at(step: int, micro: int, *, config: TrainConfig, rows: int) -> list[int]:
    """The rows of one micro-batch (both counted from 0) out of ``rows``.

    The micro-batches of a step, end to end, are the step's rows whatever ``micro_batches`` is.
    A step at the end of an epoch goes on into the next.
    """
    if rows < 1:
        raise ValueError("there are no rows to draw from")
    portion = config.scenes_per_step // config.micro_batches
    start = step * config.scenes_per_step + micro * portion
    return [row_at(start + offset, seed=config.seed, rows=rows) for offset in range(portion)]
