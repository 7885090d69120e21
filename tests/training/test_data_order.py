from collections import Counter
from dataclasses import replace

import pytest

from stillroom.training.config import TrainConfig
from stillroom.training.data_order import permutation, row_at, rows_at

CONFIG = TrainConfig(steps=10, scenes_per_step=6, seed=4)


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    epochs = [[row_at(7 * epoch + i, seed=1, rows=7) for i in range(7)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(7)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3


def test_a_step_across_the_end_of_an_epoch_skips_and_doubles_nothing() -> None:
    seen = [row for step in range(5) for row in rows_at(step, 0, config=CONFIG, rows=10)]
    assert Counter(seen) == dict.fromkeys(range(10), 3)


def test_micro_batches_end_to_end_are_the_step() -> None:
    split = replace(CONFIG, micro_batches=3)
    for step in range(4):
        whole = rows_at(step, 0, config=CONFIG, rows=10)
        parts = [row for micro in range(3) for row in rows_at(step, micro, config=split, rows=10)]
        assert parts == whole


def test_another_seed_is_another_order() -> None:
    assert row_order(1) != row_order(2)
    assert row_order(1) == row_order(1)


def row_order(seed: int) -> list[int]:
    return [row_at(i, seed=seed, rows=20) for i in range(20)]


def test_an_order_is_known_for_ever() -> None:
    # Changing the arithmetic would change every run that is gone on with.
    assert permutation(7, 2, 6).tolist() == [2, 3, 0, 5, 1, 4]


def test_the_cached_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        permutation(0, 0, 5)[0] = 3


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        rows_at(0, 0, config=CONFIG, rows=0)
