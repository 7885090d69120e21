import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.distill.detection import box_l1, focal, giou_error
from stillroom.distill.losses import (
    LOSSES,
    answer_cross_entropy,
    cross_view_error,
    depth_bin,
    depth_ce,
    depth_kl,
    depth_reg,
    feature_error,
    masked_sum,
    multi_view_error,
    relation_kl,
    soft_depth_bins,
    text_loss,
    topk_forward_kl,
)
from stillroom.engine.naming import box_error, naming_error
from stillroom.engine.packing import IGNORE_INDEX
from stillroom.geometry.depth import log_bin_edges
from stillroom.teachers.measures import measure_error

EDGES = torch.from_numpy(log_bin_edges(64, 0.3, 10.0)).float()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a label store keeps of a teacher's logits."""
    best = logits.topk(k, dim=-1)
    return best.indices, best.values, logits.logsumexp(dim=-1)


def full_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p = (teacher / temperature).softmax(dim=-1)
    q = (student / temperature).softmax(dim=-1)
    return temperature**2 * (p * (p / q).log()).sum(dim=-1)


# --- masking


def test_a_masked_sum_is_that_of_the_valid_positions() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 100.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_sum(values, mask) == 6


def test_what_is_masked_may_even_be_nan() -> None:
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    total = masked_sum(values, torch.tensor([True, False]))
    total.backward()
    assert total == 1
    assert values.grad.tolist() == [1, 0]


def test_sums_of_two_halves_over_both_counts_equal_the_mean_of_the_whole() -> None:
    values, mask = draw(8, 5), draw(8, 5, seed=1) > 0.3
    halves = masked_sum(values[:4], mask[:4]) + masked_sum(values[4:], mask[4:])
    torch.testing.assert_close(halves / mask.sum(), values[mask].mean())


# --- text


def test_cross_entropy_matches_a_case_worked_by_hand() -> None:
    # Two tokens at odds of 3 to 1.
    logits = torch.tensor([[[math.log(3.0), 0.0], [math.log(3.0), 0.0]]])
    loss = answer_cross_entropy(logits, torch.tensor([[0, 1]]))
    torch.testing.assert_close(loss, torch.tensor([[math.log(4 / 3), math.log(4.0)]]))


def test_cross_entropy_is_zero_where_nothing_is_scored() -> None:
    loss = answer_cross_entropy(draw(1, 3, 7), torch.tensor([[IGNORE_INDEX, 2, IGNORE_INDEX]]))
    assert loss[0, 0] == loss[0, 2] == 0 < loss[0, 1]


def test_topk_kl_is_zero_for_equal_logits_at_any_temperature() -> None:
    logits = draw(4, 5, 30) * 3
    for temperature in (1.0, 2.0, 5.0):
        kl = topk_forward_kl(logits, *topk(logits, 6), temperature=temperature)
        torch.testing.assert_close(kl, torch.zeros(4, 5), atol=1e-5, rtol=0)


def test_topk_kl_matches_a_case_worked_by_hand() -> None:
    # Teacher 1/2, 1/4, 1/8, 1/8 with k = 1 is (1/2, 1/2 other); student 1/8, 1/8, 1/4, 1/2 is
    # (1/8, 7/8 other).
    teacher = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    student = torch.tensor([0.125, 0.125, 0.25, 0.5]).log()
    kl = topk_forward_kl(student, *topk(teacher, 1), temperature=1.0)
    assert kl.item() == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(4 / 7), abs=1e-6)


def test_topk_kl_softens_the_tail_as_one_outcome() -> None:
    # The same case at temperature 2: odds become their square roots before they are compared.
    teacher = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    student = torch.tensor([0.125, 0.125, 0.25, 0.5]).log()
    kl = topk_forward_kl(student, *topk(teacher, 1), temperature=2.0)
    q = 1 / (1 + math.sqrt(7))
    expected = 4 * (0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q)))
    assert kl.item() == pytest.approx(expected, abs=1e-5)


def test_where_the_teacher_gave_no_logits_the_cross_entropy_is_left() -> None:
    logits, labels = draw(5, 30).requires_grad_(), torch.arange(5)
    given = topk(draw(5, 30, seed=1) * 3, 6)
    has = torch.tensor([True, False, True, False, False])
    # What stands where there are none may be anything.
    filled = [torch.where(has.view(-1, *[1] * (v.ndim - 1)), v, v.new_zeros(())) for v in given]
    filled[2] = torch.where(has, filled[2], torch.nan)
    options = {"kl_alpha": 0.5, "temperature": 2.0}
    mixed = text_loss(logits, labels, *filled, has_logits=has, **options)
    whole = text_loss(logits, labels, *given, **options)
    torch.testing.assert_close(mixed[has], whole[has])
    torch.testing.assert_close(mixed[~has], answer_cross_entropy(logits, labels)[~has])
    assert torch.autograd.grad(mixed.sum(), logits)[0].isfinite().all()


def test_topk_kl_over_the_whole_vocabulary_is_the_full_kl() -> None:
    student, teacher = draw(3, 9), draw(3, 9, seed=1)
    for temperature in (1.0, 2.0):
        kl = topk_forward_kl(student, *topk(teacher, 9), temperature=temperature)
        torch.testing.assert_close(kl, full_kl(student, teacher, temperature))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 19), scale=st.floats(0.1, 8))
def test_topk_kl_lies_between_zero_and_the_full_kl(seed: int, k: int, scale: float) -> None:
    student, teacher = draw(20, seed=seed) * scale, draw(20, seed=seed + 1) * scale
    kl = topk_forward_kl(student, *topk(teacher, k), temperature=1.0).item()
    assert -1e-5 <= kl <= full_kl(student, teacher).item() + 1e-4


def test_topk_kl_ignores_a_constant_added_to_all_logits_of_a_side() -> None:
    student, teacher = draw(3, 20), draw(3, 20, seed=1)
    kl = topk_forward_kl(student, *topk(teacher, 4), temperature=2.0)
    moved = topk_forward_kl(student + 7, *topk(teacher - 30, 4), temperature=2.0)
    torch.testing.assert_close(moved, kl, atol=1e-4, rtol=1e-4)


def test_a_certain_teacher_rounded_to_16_bits_gives_finite_loss_and_gradient() -> None:
    teacher = torch.zeros(2, 50)
    teacher[:, 3] = 40.0
    ids, logits, logsumexp = topk(teacher, 4)
    student = draw(2, 50).requires_grad_()
    # Rounded up, the stored logits hold more mass than there is.
    kl = topk_forward_kl(student, ids, logits + 0.01, logsumexp, temperature=2.0)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert student.grad.isfinite().all()


def test_text_is_cross_entropy_plus_a_share_of_the_kl() -> None:
    student, teacher, labels = draw(6, 20), draw(6, 20, seed=1), torch.arange(6)
    stored = topk(teacher, 4)
    ce = answer_cross_entropy(student, labels)
    kl = topk_forward_kl(student, *stored, temperature=2.0)
    both = text_loss(student, labels, *stored, kl_alpha=0.5, temperature=2.0)
    torch.testing.assert_close(both, ce + 0.5 * kl)
    alone = text_loss(student, labels, None, None, None, kl_alpha=0.5, temperature=2.0)
    torch.testing.assert_close(alone, ce)


def test_low_precision_logits_are_taken_up_before_anything_is_summed() -> None:
    student, labels = draw(6, 200).bfloat16(), torch.arange(6)
    stored = topk(draw(6, 200, seed=1), 4)
    given_low = text_loss(student, labels, *stored, kl_alpha=0.5, temperature=2.0)
    given_high = text_loss(student.float(), labels, *stored, kl_alpha=0.5, temperature=2.0)
    assert given_low.dtype == torch.float32
    assert torch.equal(given_low, given_high)


# --- depth


def test_a_bin_begins_at_its_edge() -> None:
    depth = torch.cat([EDGES[:-1], EDGES[1:] * 0.999])
    expected = torch.cat([torch.arange(64), torch.arange(64)])
    assert torch.equal(depth_bin(depth, EDGES), expected)


def test_depth_beyond_the_bins_falls_into_the_end_ones() -> None:
    assert depth_bin(torch.tensor([0.0, 0.1, 10.0, 99.0]), EDGES).tolist() == [0, 0, 63, 63]


def test_depth_ce_matches_a_case_worked_by_hand() -> None:
    edges = torch.tensor([1.0, 2.0, 4.0])
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2)
    loss = depth_ce(logits, torch.tensor([1.5, 2.5]), edges)
    torch.testing.assert_close(loss, torch.tensor([math.log(4 / 3), math.log(4.0)]))


def test_depth_reg_is_in_metres_and_zero_at_equality() -> None:
    loss = depth_reg(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.5, 3.0]))
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.5, 2.0]))


def test_soft_bins_are_a_distribution_that_peaks_at_the_depth() -> None:
    depth = torch.linspace(0.31, 9.9, 50)
    probs = soft_depth_bins(depth, EDGES, width=1.0)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(50))
    assert torch.equal(probs.argmax(dim=-1), depth_bin(depth, EDGES))
    # Away from the ends the bell is centred: its mean log depth is the depth's.
    centers = (EDGES[1:].log() + EDGES[:-1].log()) / 2
    inner = (depth > 0.5) & (depth < 6)
    mean = (probs * centers).sum(dim=-1).exp()
    torch.testing.assert_close(mean[inner], depth[inner], rtol=1e-3, atol=0)


def test_soft_bins_match_a_case_worked_by_hand() -> None:
    # Bins of one octave; 2^0.5 is the centre of the first and one bin from the second's.
    probs = soft_depth_bins(torch.tensor([2**0.5]), torch.tensor([1.0, 2.0, 4.0]), width=0.5)
    far = math.exp(-2.0)
    torch.testing.assert_close(probs, torch.tensor([[1 / (1 + far), far / (1 + far)]]))


def test_no_depth_and_far_depth_have_finite_soft_bins() -> None:
    probs = soft_depth_bins(torch.tensor([0.0, 500.0]), EDGES, width=1.0)
    assert probs.argmax(dim=-1).tolist() == [0, 63]
    assert probs.isfinite().all()


def test_depth_kl_is_zero_at_equality_and_matches_a_case_worked_by_hand() -> None:
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    student = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(4)]
    torch.testing.assert_close(depth_kl(student.log(), target), torch.tensor(expected))
    same = depth_kl(student.log(), student)
    torch.testing.assert_close(same, torch.zeros(2), atol=1e-6, rtol=0)


# --- features, views, relations


def test_feature_error_is_the_mean_square_over_channels_and_zero_at_equality() -> None:
    teacher = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    assert feature_error(teacher, teacher).item() == 0
    assert feature_error(torch.tensor([[3.0, -1.0, 0.0, 2.0]]), teacher).item() == 2
    # Normalised features have a mean square of 1: that is what saying nothing costs.
    normal = torch.nn.functional.layer_norm(draw(3, 50), (50,))
    torch.testing.assert_close(
        feature_error(torch.zeros(3, 50), normal), torch.ones(3), atol=1e-3, rtol=0
    )


def test_cross_view_error_is_one_minus_the_cosine() -> None:
    ahead = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    other = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 7.0], [-1.0, 0.0]])
    expected = torch.tensor([0.0, 1 - 2**-0.5, 1.0, 2.0])
    torch.testing.assert_close(cross_view_error(ahead, other, sign="corrected"), expected)


def test_the_papers_sign_is_lowest_where_features_of_one_place_are_opposite() -> None:
    first = draw(5, 8)
    same, opposite = (cross_view_error(first, k * first, sign="paper") for k in (1, -1))
    torch.testing.assert_close(same, torch.ones(5))
    torch.testing.assert_close(opposite, -torch.ones(5))
    moved = first.clone().requires_grad_()
    other = draw(5, 8, seed=1)
    for sign, towards in (("corrected", 1), ("paper", -1)):
        (gradient,) = torch.autograd.grad(cross_view_error(moved, other, sign=sign).sum(), moved)
        after = torch.cosine_similarity(first - 0.01 * gradient, other)
        before = torch.cosine_similarity(first, other)
        assert ((after - before) * towards > 0).all()


def test_relation_kl_matches_a_case_worked_by_hand_and_is_zero_at_equality() -> None:
    target = torch.tensor([0.5, 1.0, 0.25])
    logits = torch.tensor([math.log(3.0), math.log(3.0), math.log(1 / 3)])
    expected = [0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), math.log(4 / 3), 0.0]
    torch.testing.assert_close(relation_kl(logits, target), torch.tensor(expected))


def test_multi_view_error_is_zero_where_one_depth_carried_over_is_the_other() -> None:
    source, scale, shift = (
        torch.tensor([2.0, 2.0]),
        torch.tensor([1.5, 1.0]),
        torch.tensor([0.5, 1.0]),
    )
    error = multi_view_error(source, torch.tensor([3.5, 2.0]), scale, shift)
    torch.testing.assert_close(error, torch.tensor([0.0, 1.0]))


# --- every term


def _text(x: Tensor) -> Tensor:
    stored = topk(draw(5, 9, seed=2).double(), 3)
    labels = torch.tensor([0, 3, 8, 2, 1])
    return text_loss(x, labels, *stored, kl_alpha=0.5, temperature=2.0)


HALF_KNOWN = torch.tensor([[0.3, math.nan], [0.1, 0.7]] * 2)

CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "text": ((5, 9), _text),
    "depth_ce": ((4, 64), lambda x: depth_ce(x, torch.tensor([0.4, 1.0, 3.0, 9.0]), EDGES)),
    "depth_reg": ((4,), lambda x: depth_reg(x, torch.tensor([0.4, 1.0, 3.0, 9.0]))),
    "depth_kl": (
        (4, 64),
        lambda x: depth_kl(
            x, soft_depth_bins(torch.tensor([0.4, 1.0, 3.0, 9.0]), EDGES, width=1.0)
        ),
    ),
    "naming": (
        (4, 8),
        lambda x: naming_error(x, torch.eye(3, 8), torch.tensor([1, 0, 3, 2])),
    ),
    "grounding": ((4, 6), lambda x: box_error(x, torch.full((4, 6), 0.3)).sum(dim=-1)),
    # Of every second pair one number is known.
    **dict.fromkeys(
        ("apart", "measure"),
        (
            (4, 2),
            lambda x: measure_error(x, torch.tensor([[0.3, math.nan], [0.1, 0.7]] * 2)).sum(-1),
        ),
    ),
    "detection_class": ((4, 5), lambda x: focal(x, torch.tensor([1, 0, 4, 2]))),
    "detection_box": ((4, 8), lambda x: box_l1(x, draw(4, 8, seed=3)).sum(dim=-1)),
    # Near each other, so that some boxes overlap.
    "detection_iou": ((4, 8), lambda x: giou_error(0.5 * x, 0.5 * draw(4, 8, seed=3))),
    "spatial_feature": ((4, 6), lambda x: feature_error(x, draw(4, 6, seed=4))),
    "spatial_views": (
        (4, 6),
        lambda x: cross_view_error(x, draw(4, 6, seed=4).to(x), sign="corrected"),
    ),
    "spatial_relation": (
        (4, 3),
        lambda x: relation_kl(x, draw(4, 3, seed=5).sigmoid()).sum(dim=-1),
    ),
    "multi_view": (
        (4,),
        lambda x: multi_view_error(x, *(draw(4, seed=seed) for seed in (6, 7, 8))),
    ),
    "feature": ((4, 6), lambda x: feature_error(x, draw(4, 6, seed=4))),
}
#: Single precision by what they are made of; the others take doubles as they are.
SINGLE = ("naming", "grounding", "apart", "measure")


def test_every_term_of_the_table_is_tested_here() -> None:
    assert CASES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", [name for name in CASES if name not in SINGLE])
def test_gradients_agree_with_finite_differences_in_double_precision(name: str) -> None:
    shape, loss = CASES[name]
    point = draw(*shape).double().requires_grad_()
    assert loss(point).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (point,), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    shape, loss = CASES[name]
    point, direction = draw(*shape), draw(*shape, seed=9)
    direction /= direction.norm()
    point.requires_grad_()
    loss(point).sum().backward()
    analytic = (point.grad * direction).sum().item()
    # Terms work in float32, so a wide step and a loose bound.
    step = 1e-2
    with torch.no_grad():
        up, down = (loss(point + sign * step * direction).double().sum() for sign in (1, -1))
    assert analytic == pytest.approx((up - down).item() / (2 * step), rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_masked_position_gives_no_gradient(name: str) -> None:
    shape, loss = CASES[name]
    point = draw(*shape).requires_grad_()
    mask = torch.arange(shape[0]) != 1
    masked_sum(loss(point), mask).backward()
    rows = point.grad.reshape(shape[0], -1).abs().sum(dim=-1)
    assert (rows > 0).tolist() == mask.tolist()


@pytest.mark.parametrize("name", CASES)
def test_a_value_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    shape, loss = CASES[name]
    point = draw(*shape)
    changed = point.clone()
    changed[0] += 1
    torch.testing.assert_close(loss(changed)[1:], loss(point)[1:])
