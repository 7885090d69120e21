"""Set prediction: who is matched with what, and the three losses of a match."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.distill.config import LossConfig
from stillroom.distill.detection import (
    FOCAL_ALPHA,
    MATCH_BOX,
    MATCH_CLASS,
    UNKNOWN_KIND,
    UNMATCHED,
    box_l1,
    focal,
    giou_error,
    match,
)
from stillroom.distill.scene_labels import SceneLabels, Things, label_counts
from stillroom.distill.scene_terms import detection_sums
from stillroom.students.detector import Detections, box_numbers


def box(center: tuple[float, float, float], size: tuple[float, float, float] = (1, 1, 1)) -> Tensor:
    numbers = box_numbers(np.array(center, float), np.array(size, float), np.array(0.0))
    return torch.from_numpy(numbers).float()


def guesses(*kinds: int, sure: float = 6.0) -> Tensor:
    """Logits of queries that are rather sure of one kind each; of three kinds and none."""
    return torch.nn.functional.one_hot(torch.tensor(kinds), 4).float() * sure


TRUTH = torch.stack([box((0, 2, 0.5)), box((1, 3, 0.5)), box((0, 0, 0))])[None]
KIND = torch.tensor([[1, 2, 0]])  # the third row is no thing


def test_each_thing_gets_the_guess_of_its_kind_and_place() -> None:
    logits = guesses(2, 0, 1)[None]
    said = torch.stack([box((1, 3, 0.5)), box((5, 5, 0)), box((0, 2, 0.5))])[None]
    assert match(logits, said, KIND, TRUTH).tolist() == [[1, UNMATCHED, 0]]


def test_the_matching_is_the_cheapest_of_all() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 4, 4, generator=generator)
    said = torch.randn(1, 4, 8, generator=generator)
    truth = torch.randn(1, 3, 8, generator=generator)
    kind = torch.tensor([[3, 1, 2]])
    probs = logits[0].softmax(-1)

    def cost(guess: int, thing: int) -> float:
        apart = (said[0, guess] - truth[0, thing]).abs().mean().item()
        return MATCH_BOX * apart - MATCH_CLASS * probs[guess, kind[0, thing]].item()

    best = min(
        itertools.permutations(range(4), 3),
        key=lambda order: sum(cost(guess, thing) for thing, guess in enumerate(order)),
    )
    which = match(logits, said, kind, truth)[0].tolist()
    assert [which.index(thing) for thing in range(3)] == list(best)


def test_of_more_things_than_guesses_the_rest_stay_unmatched() -> None:
    which = match(guesses(2)[None], box((1, 3, 0.5))[None, None], KIND, TRUTH)
    assert which.tolist() == [[1]]


def test_a_scene_without_things_matches_nothing_and_teaches_nothing() -> None:
    said = Detections(
        logits=torch.randn(2, 2, 4, requires_grad=True),
        box=torch.randn(2, 2, 8, requires_grad=True),
    )
    things = Things(kind=torch.tensor([[1, 0], [0, 0]]), box=torch.zeros(2, 2, 8))
    sums = detection_sums(said, things, iou=True)
    sum(sums.values()).backward()
    assert said.logits.grad[0].abs().sum() > 0
    assert said.logits.grad[1].abs().sum() == 0
    assert said.box.grad[1].abs().sum() == 0


def test_a_diverged_model_is_reported_by_its_loss_and_not_by_the_matching() -> None:
    said = Detections(logits=torch.full((1, 3, 4), math.nan), box=torch.full((1, 3, 8), math.nan))
    sums = detection_sums(said, Things(kind=KIND, box=TRUTH), iou=False)
    assert all(value.isnan() for value in sums.values())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_guesses_and_of_things_does_not_matter(order: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 4, generator=generator)
    said = torch.randn(1, 3, 8, generator=generator)
    things = Things(kind=KIND, box=TRUTH)
    plain = detection_sums(Detections(logits=logits, box=said), things, iou=True)
    turned = list(order)
    other = Detections(logits=logits[:, turned], box=said[:, turned])
    mixed = Things(kind=KIND[:, turned[::-1]], box=TRUTH[:, turned[::-1]])
    for sums in (detection_sums(other, things, iou=True), detection_sums(other, mixed, iou=True)):
        for name, value in plain.items():
            torch.testing.assert_close(sums[name], value)


def test_a_perfect_set_of_guesses_costs_nothing_but_the_class() -> None:
    said = Detections(logits=guesses(1, 2, 0, sure=60.0)[None], box=TRUTH)
    sums = detection_sums(said, Things(kind=KIND, box=TRUTH), iou=True)
    assert sums["detection_box"] == 0
    assert sums["detection_iou"].item() == pytest.approx(0, abs=1e-5)
    assert sums["detection_class"].item() == pytest.approx(0, abs=1e-6)


def test_sums_of_scenes_add_up() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 4, generator=generator)
    said = torch.randn(2, 3, 8, generator=generator)
    things = Things(kind=torch.tensor([[1, 2, 0], [3, 0, 0]]), box=TRUTH.repeat(2, 1, 1))
    whole = detection_sums(Detections(logits=logits, box=said), things, iou=True)
    for name, value in whole.items():
        halves = [
            detection_sums(
                Detections(logits=logits[k : k + 1], box=said[k : k + 1]),
                Things(kind=things.kind[k : k + 1], box=things.box[k : k + 1]),
                iou=True,
            )[name]
            for k in range(2)
        ]
        torch.testing.assert_close(sum(halves), value)


def test_focal_matches_a_case_worked_by_hand() -> None:
    # Odds of 3 to 1 for the second outcome: 1/4, 3/4.
    logits = torch.tensor([[0.0, math.log(3.0)]] * 2)
    value = focal(logits, torch.tensor([1, 0]))
    thing = FOCAL_ALPHA * (1 / 4) ** 2 * math.log(4 / 3)
    none = (1 - FOCAL_ALPHA) * (3 / 4) ** 2 * math.log(4)
    torch.testing.assert_close(value, torch.tensor([thing, none]))


def test_focal_of_a_sure_and_right_guess_has_neither_value_nor_gradient() -> None:
    logits = torch.tensor([[0.0, 50.0]], requires_grad=True)
    focal(logits, torch.tensor([1])).sum().backward()
    assert logits.grad.abs().max() < 1e-6
    assert logits.grad.isfinite().all()


def test_boxes_beside_each_other_have_the_generalised_iou_worked_by_hand() -> None:
    # Unit cubes, centres 3 m apart along x: no overlap, union 2, hull 4.
    value = giou_error(box((0, 0, 0)), box((3, 0, 0)))
    assert value.item() == pytest.approx(1 + (4 - 2) / 4, abs=1e-3)
    # Half overlapping: inner 0.5, union 1.5, hull 1.5.
    assert giou_error(box((0, 0, 0)), box((0.5, 0, 0))).item() == pytest.approx(2 / 3, abs=1e-3)
    assert giou_error(box((0, 0, 0)), box((0, 0, 0))).item() == pytest.approx(0, abs=1e-6)


def test_a_quarter_turn_exchanges_width_and_depth_and_half_a_turn_nothing() -> None:
    where, size = np.zeros(3), np.array([2.0, 0.5, 1.0])
    turned = torch.from_numpy(box_numbers(where, size, np.array(math.pi / 2)))
    exchanged = torch.from_numpy(box_numbers(where, size[[1, 0, 2]], np.array(0.0)))
    assert giou_error(turned, exchanged).item() == pytest.approx(0, abs=5e-3)
    half = torch.from_numpy(box_numbers(where, size, np.array(math.pi)))
    plain = torch.from_numpy(box_numbers(where, size, np.array(0.0)))
    assert box_l1(half, plain).max().item() == pytest.approx(0, abs=1e-12)


def test_box_l1_is_told_number_by_number() -> None:
    value = box_l1(box((0, 2, 0.5), (1, 2, 1)), box((0, 1, 0.5)))
    torch.testing.assert_close(value, torch.tensor([0, 1, 0, 0, math.log(2), 0, 0, 0]))


def test_switches_name_the_parts() -> None:
    assert LossConfig(detection=True).parts == {
        "detection": {"detection_class": 1.0, "detection_box": 1.0}
    }
    assert LossConfig(detection=True, detection_iou=0.5).parts["detection"]["detection_iou"] == 0.5


def test_a_thing_of_an_unknown_kind_teaches_its_box_and_no_class() -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(4)).requires_grad_()
    said = Detections(logits=logits, box=TRUTH.clone().requires_grad_())
    unknown = torch.tensor([[1, UNKNOWN_KIND, 0]])
    assert match(logits, said.box, unknown, TRUTH).tolist() == [[0, 1, UNMATCHED]]
    sums = detection_sums(said, Things(kind=unknown, box=TRUTH + 0.1), iou=True)
    sum(sums.values()).backward()
    taught = logits.grad[0].abs().sum(dim=-1) > 0
    # The second guess found it: none would be as wrong as any kind.
    assert taught.tolist() == [True, False, True]
    assert (said.box.grad[0].abs().sum(dim=-1) > 0).tolist() == [True, True, False]


def test_for_an_unknown_kind_whoever_is_sure_of_a_thing_is_a_good_match() -> None:
    logits = guesses(0, 3)[None]
    apart = torch.stack([box((0, 2, 0.5)), box((0, 2.3, 0.5))])[None]
    unknown = torch.tensor([[UNKNOWN_KIND]])
    assert match(logits, apart, unknown, TRUTH[:, :1]).tolist() == [[UNMATCHED, 0]]


def test_counts_of_unknown_kinds_are_those_of_boxes() -> None:
    things = Things(kind=torch.tensor([[1, UNKNOWN_KIND, 0]]), box=TRUTH)
    counts = label_counts(SceneLabels(things=things))
    assert (counts["detection_class"], counts["detection_box"]) == (1, 16)
