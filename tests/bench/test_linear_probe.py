"""Probes on states whose content is known: what is there is read, what is not is not."""

import numpy as np
import pytest

from stillroom.bench.linear_probe import ProbeTask, _Decomposed, control_targets, probe_task
from stillroom.evaluate.intervals import Resampler

RNG = np.random.default_rng(0)
SCENES = [f"s{n // 10:03d}" for n in range(1200)]
TRAIN = np.array([int(name[1:]) < 80 for name in SCENES])
RESAMPLER = Resampler(
    [name for name, known in zip(SCENES, TRAIN, strict=True) if not known],
    rng=np.random.default_rng(0),
)
HIDDEN = RNG.normal(size=(1200, 3))
#: 24 channels that hold three hidden numbers, and noise.
STATES = (HIDDEN @ RNG.normal(size=(3, 24)) + 0.05 * RNG.normal(size=(1200, 24))).astype(np.float32)
#: What kind of input each is: 12 kinds, of which the states know nothing.
KINDS = RNG.integers(0, 12, 1200)


def task(
    targets: np.ndarray,
    classes: tuple[str, ...] = (),
    keys: np.ndarray = KINDS,
    within: np.ndarray | None = None,
) -> ProbeTask:
    groups = None if within is None else within.tolist()
    draws = [control_targets(keys.tolist(), targets, TRAIN, n, within=groups) for n in range(5)]
    return ProbeTask(
        name="made",
        classes=classes,
        where=np.arange(1200),
        targets=targets,
        controls=np.stack(draws),
    )


def test_a_number_that_is_there_is_read_and_its_control_is_not() -> None:
    found = probe_task(STATES, task(2.0 + HIDDEN[:, 0]), TRAIN, SCENES, RESAMPLER)
    assert found.score.value > 0.97
    assert found.error is not None
    assert found.error.value < 0.2
    assert found.control.value < 0.05
    assert found.selectivity.low is not None
    assert found.selectivity.low > 0.9
    assert (found.n, found.trained_on) == (400, 800)


def test_a_number_that_is_not_there_is_not_read() -> None:
    found = probe_task(STATES, task(RNG.normal(size=1200)), TRAIN, SCENES, RESAMPLER)
    assert -0.05 < found.score.value < 0.05
    assert found.score.low <= 0 <= found.score.high + 0.05


def test_classes_are_read_above_the_commonest() -> None:
    classes = (HIDDEN[:, 1] > 0.5).astype(float)
    found = probe_task(STATES, task(classes, ("few", "many")), TRAIN, SCENES, RESAMPLER)
    assert found.guess == pytest.approx(1 - classes[~TRAIN].mean())
    assert found.score.value > found.guess + 0.15
    assert found.error is None


def test_states_that_only_tell_the_kind_have_no_selectivity() -> None:
    # What is asked is a function of the kind, and the states are the kind: learnt by heart.
    one_hot = np.eye(12)[KINDS].astype(np.float32)
    by_kind = RNG.permutation(np.repeat([0, 1, 2], 4))[KINDS].astype(float)
    found = probe_task(one_hot, task(by_kind, ("a", "b", "c")), TRAIN, SCENES, RESAMPLER)
    assert found.score.value == found.control.value == 1.0
    # Each is set against its own commonest class.
    assert found.selectivity.value == pytest.approx(found.control_guess - found.guess)
    assert abs(found.selectivity.value) < 0.1


#: A full name: its kind and one of eight colours.
NAMES = KINDS * 8 + RNG.integers(0, 8, 1200)


def test_a_kind_that_is_read_is_selective_although_the_control_hangs_on_names() -> None:
    kinds = tuple(f"k{n:02d}" for n in range(12))
    asked = task(KINDS.astype(float), kinds, keys=NAMES, within=KINDS)
    knows_kind = np.eye(12)[KINDS].astype(np.float32)
    found = probe_task(knows_kind, asked, TRAIN, SCENES, RESAMPLER)
    assert found.score.value == 1.0
    # The kind tells next to nothing of the control: eight names of it have as many targets.
    assert found.control.value - found.control_guess < 0.15
    assert found.selectivity.low > 0.7
    # States that are the name know the control by heart too.
    by_name = probe_task(np.eye(96)[NAMES].astype(np.float32), asked, TRAIN, SCENES, RESAMPLER)
    assert by_name.score.value == 1.0
    assert by_name.control.value > 0.9
    assert abs(by_name.selectivity.value) < 0.1


def test_controls_are_balanced_inside_every_group() -> None:
    targets = KINDS.astype(float)
    drawn = control_targets(NAMES.tolist(), targets, TRAIN, 0, within=KINDS.tolist())
    for kind in range(12):
        of_name = {name: drawn[n] for n, name in enumerate(NAMES.tolist()) if KINDS[n] == kind}
        assert len(of_name) == 8
        assert max(np.bincount(np.array(list(of_name.values()), int))) <= 2


def test_states_that_never_vary_say_what_is_commonest() -> None:
    flat = np.ones((1200, 4), np.float32)
    classes = (HIDDEN[:, 1] > 0.5).astype(float)
    found = probe_task(flat, task(classes, ("few", "many")), TRAIN, SCENES, RESAMPLER)
    assert found.score.value == found.guess
    found = probe_task(flat, task(HIDDEN[:, 0]), TRAIN, SCENES, RESAMPLER)
    assert found.score.value == pytest.approx(0.0)


def test_control_targets_are_fixed_by_kind_and_look_like_the_real_ones() -> None:
    targets = RNG.choice([0.0, 1.0], p=[0.8, 0.2], size=1200)
    control = control_targets(list(range(1200)), targets, TRAIN, seed=0)
    assert control.mean() == pytest.approx(0.2, abs=0.05)
    again = control_targets(list(range(1200)), targets, TRAIN, seed=0)
    assert (control == again).all()
    assert (control != control_targets(list(range(1200)), targets, TRAIN, seed=1)).any()
    by_kind = control_targets(KINDS.tolist(), targets, TRAIN, seed=0)
    assert all(len(set(by_kind[kind == KINDS])) == 1 for kind in range(12))


@pytest.mark.parametrize("width", [8, 60])
def test_ridge_is_the_closed_form_whichever_side_is_shorter(width: int) -> None:
    states = RNG.normal(size=(30, width)).astype(np.float32)
    targets = RNG.normal(size=(30, 2))
    brought = (states - states.mean(0)) / states.std(0)
    square = brought.T @ brought / 30 + 0.5 * np.eye(width)
    wanted = np.linalg.solve(square, brought.T @ (targets - targets.mean(0)) / 30)
    said = _Decomposed(states).solve(targets, 0.5)(states)
    np.testing.assert_allclose(said, brought @ wanted + targets.mean(0), atol=1e-6)
