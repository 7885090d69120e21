"""Figures of several seeds: known cases, and how often the intervals hold what is true."""

import numpy as np
import pytest
from scipy import stats

from stillroom.evaluate.paired import (
    SeedFigure,
    SeedNoise,
    difference,
    holm,
    over_seeds,
    seed_noise,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def figure(value: float, draws: np.ndarray) -> SeedFigure:
    return SeedFigure(value=value, draws=draws)


def test_one_seed_has_the_interval_of_the_scenes_alone() -> None:
    draws = rng().normal(0.5, 0.1, 2000)
    spread = over_seeds([figure(0.5, draws)], rng=rng())
    assert spread.interval == pytest.approx(np.percentile(draws, (2.5, 97.5)))
    assert spread.seeds == 1


def test_three_seeds_that_differ_have_students_t_between_them() -> None:
    # All scenes alike: what is left is the spread between 0.4, 0.5 and 0.6.
    seeds = [figure(value, np.full(2000, value)) for value in (0.4, 0.5, 0.6)]
    low, high = over_seeds(seeds, rng=rng()).interval
    half = stats.t.ppf(0.975, df=2) * 0.1 / np.sqrt(3)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=2e-3)


def test_a_difference_is_paired_by_seed_and_by_scene() -> None:
    # Both arms swing together, by scene and by seed; the one is always 0.1 better.
    swing = {seed: rng(seed).normal(0.5, 0.2, 2000) for seed in range(3)}
    arm = {s: figure(d.mean() + 0.1, d + 0.1) for s, d in swing.items()}
    base = {s: figure(d.mean(), d) for s, d in swing.items()}
    noise = noise_of(arm, base)
    found = difference(arm, base, scenes=50, noise=noise, level=0.05)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.p < 0.002
    assert found.seeds == 3
    back = difference(base, arm, scenes=50, noise=noise, level=0.05)
    assert back is not None
    assert back.value == pytest.approx(-0.1)


def noise_of(arm: dict[int, SeedFigure], base: dict[int, SeedFigure]) -> SeedNoise | None:
    rows = {"arm": arm, "base": base}
    values = {name: {seed: one.value for seed, one in row.items()} for name, row in rows.items()}
    return seed_noise(values, "base")["arm"]


def test_only_seeds_of_both_are_compared() -> None:
    draws = np.zeros(2000)
    arm = {0: figure(0.9, draws + 0.9), 1: figure(0.1, draws + 0.1)}
    how = {"scenes": 50, "noise": None, "level": 0.05}
    found = difference(arm, {0: figure(0.5, draws + 0.5)}, **how)
    assert found is not None
    assert (found.value, found.seeds) == (pytest.approx(0.4), 1)
    assert difference(arm, {2: figure(0.5, draws)}, **how) is None


def test_no_difference_at_all_has_p_1() -> None:
    same = {0: figure(0.5, np.full(2000, 0.5))}
    found = difference(same, same, scenes=50, noise=None, level=0.05)
    assert found is not None
    assert (found.value, found.p, found.detectable) == (0.0, 1.0, None)


def test_a_single_seed_of_many_scenes_is_a_bell() -> None:
    steps = (np.arange(2000) + 0.5) / 2000
    draws = stats.norm.ppf(steps) * 0.01
    arm, other = {0: figure(0.02, draws)}, {0: figure(0.0, draws * 0)}
    found = difference(arm, other, scenes=10_000, noise=None, level=0.05)
    assert found is not None
    assert found.detectable == pytest.approx((1.96 + 0.8416) * 0.01, rel=0.01)
    assert found.p == pytest.approx(0.0455, rel=0.03)
    assert (found.low, found.high) == pytest.approx((0.0004, 0.0396), abs=2e-4)


def test_what_would_be_told_at_two_degrees_of_freedom_is_that_of_the_noncentral_t() -> None:
    flat = np.zeros(2000)
    arm = {seed: figure(v, flat + v) for seed, v in enumerate((0.01, 0.0, -0.01))}
    base = {seed: figure(0.0, flat) for seed in range(3)}
    noise = noise_of(arm, base)
    assert noise is not None
    assert (noise.variance, noise.freedom) == (pytest.approx(1e-4), 2)
    found = difference(arm, base, scenes=50, noise=noise, level=0.01)
    assert found is not None
    assert found.detectable is not None
    error = 0.01 / np.sqrt(3)
    bound, away = stats.t.ppf(0.995, 2), found.detectable / error
    assert stats.nct.sf(bound, 2, away) == pytest.approx(0.80, abs=0.005)


def test_noise_between_seeds_is_pooled_over_the_arms_and_its_degrees_of_freedom_add_up() -> None:
    draw, variances = rng(), []
    for _ in range(300):
        luck = draw.normal(0, 5.0, 3)  # shared by all arms of a seed: paired away
        rows = {
            name: dict(enumerate(mean + luck + draw.normal(0, 1.0, 3)))
            for name, mean in (("base", 0.0), ("a", 1.0), ("b", -2.0), ("c", 7.0))
        }
        noise = seed_noise(rows, "base")
        assert {one.freedom for one in noise.values() if one} <= {6, 4, 2}
        variances.append(noise["a"].variance)
    assert np.mean(variances) == pytest.approx(2.0, rel=0.1)


def test_a_row_that_varies_far_more_than_the_others_is_not_pooled() -> None:
    calm = {f"c{n}": dict(enumerate(rng(n).normal(0, 0.001, 3))) for n in range(5)}
    wild = {"wild": {0: 0.3, 1: -0.2, 2: 0.1}}
    noise = seed_noise(calm | wild, "c0")
    assert (noise["wild"].freedom, noise["c1"].freedom) == (2, 8)
    assert noise["wild"].variance > 1e3 * noise["c1"].variance


def test_one_seed_has_no_noise_between_seeds() -> None:
    assert seed_noise({"base": {0: 0.5}, "arm": {0: 0.6}}, "base") == {"arm": None}


def test_holm_is_as_worked_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_holm_counts_comparisons_that_are_not_there_yet() -> None:
    assert holm({"a": 0.01, "b": 0.02}, of=5) == pytest.approx({"a": 0.05, "b": 0.08})
