import numpy as np
import pytest

from stillroom.evaluate.intervals import Resampler, above_blind


def resampler(names, seed=0):
    return Resampler(names, rng=np.random.default_rng(seed))


def coin(scenes, per_scene, *, shared, seed=1):
    """0/1 scores; ``shared``: all questions of a scene are right or wrong together."""
    rng = np.random.default_rng(seed)
    by_scene = rng.integers(0, 2, size=(scenes, 1 if shared else per_scene))
    scores = np.broadcast_to(by_scene, (scenes, per_scene)).ravel().astype(float)
    names = [f"s{i}" for i in range(scenes) for _ in range(per_scene)]
    return scores, names


def test_the_interval_of_independent_coins_is_the_textbook_one():
    scores, names = coin(400, 4, shared=False)
    estimate = resampler(names).mean(scores, names)
    half = 1.96 * np.sqrt(0.25 / 1600)
    assert estimate.n == 1600
    assert estimate.score == pytest.approx(scores.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.15)
    assert estimate.low < estimate.score < estimate.high


def test_questions_that_stand_and_fall_together_widen_the_interval():
    independent, names = coin(200, 9, shared=False)
    together, _ = coin(200, 9, shared=True)
    draw = resampler(names)
    narrow, wide = draw.mean(independent, names), draw.mean(together, names)
    # Nine equal answers are one piece of evidence: three times as wide.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3.0, rel=0.2)


def test_the_same_seed_gives_the_same_interval():
    scores, names = coin(30, 5, shared=False)
    assert resampler(names, 7).mean(scores, names) == resampler(names, 7).mean(scores, names)
    assert resampler(names, 7).mean(scores, names) != resampler(names, 8).mean(scores, names)


def test_all_right_has_an_interval_of_no_width():
    estimate = resampler(["a", "b"]).mean(np.ones(4), ["a", "a", "b", "b"])
    assert (estimate.score, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_one_scene_says_nothing_of_others():
    draw = resampler(["a", "b"])
    estimate = draw.mean(np.array([1.0, 0.0]), ["a", "a"])
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    assert draw.ratio(np.array([1.0]), np.array([1.0]), ["a"]).low is None


def test_no_items_is_an_error_and_not_zero():
    with pytest.raises(ValueError, match="no items were scored"):
        resampler(["a"]).mean(np.zeros(0), [])
    with pytest.raises(ValueError, match="no scene to draw from"):
        resampler([])
    with pytest.raises(ValueError, match="2 scores came with 1 scene ids"):
        resampler(["a"]).mean(np.zeros(2), ["a"])


def test_retention_is_paired_so_a_student_equal_to_its_teacher_keeps_exactly_all():
    scores, names = coin(50, 6, shared=False)
    ratio = resampler(names).ratio(scores, scores, names)
    assert (ratio.score, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_retention_by_hand_and_its_interval_covers_it():
    teacher, names = coin(100, 8, shared=False)
    student = teacher * (np.random.default_rng(5).random(teacher.size) < 0.8)
    ratio = resampler(names).ratio(student, teacher, names)
    assert ratio.score == pytest.approx(student.sum() / teacher.sum())
    assert ratio.low < ratio.score < ratio.high
    assert ratio.high - ratio.low < 0.12


def test_a_teacher_that_knows_nothing_leaves_nothing_to_retain():
    ratio = resampler(["a", "b"]).ratio(np.ones(2), np.zeros(2), ["a", "b"])
    assert ratio.score is None


def test_above_blind_is_the_kept_share_of_the_teachers_seeing():
    assert above_blind(0.7, 0.9, 0.5) == pytest.approx(0.5)
    # A coin keeps 5/9 of that teacher, and nothing above blind.
    assert above_blind(0.5, 0.9, 0.5) == 0.0
    assert above_blind(0.6, 0.5, 0.5) is None
