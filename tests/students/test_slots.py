"""Slots: how many parameters, who trains them, and that nothing but the answer does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.engine.mask import Kind
from stillroom.engine.packing import IGNORE_INDEX, Packed, pack_questions, stack_rows
from stillroom.engine.prefix import decoder_states
from stillroom.students.model import StillroomStudent
from stillroom.students.slots import SLOT_STD, SlotKind, Slots

Make = Callable[..., Any]


def drawn(kind: SlotKind, count: int = 8, width: int = 64) -> Slots:
    torch.manual_seed(0)
    slots = Slots(kind, count, width)
    slots.reset_parameters()
    return slots


@pytest.mark.parametrize(("count", "parameters"), [(8, 16_384), (16, 32_768)])
def test_learned_slots_have_exactly_count_times_width_parameters(
    count: int, parameters: int
) -> None:
    slots = Slots("learned", count, 2048)
    assert sum(p.numel() for p in slots.parameters()) == parameters


def test_learned_slots_are_drawn_with_the_papers_spread() -> None:
    values = drawn("learned", 64, 256)().detach()
    assert values.shape == (64, 256)
    assert abs(float(values.std()) - SLOT_STD) < 0.001
    assert abs(float(values.mean())) < 0.001


def test_frozen_random_slots_are_the_same_draw_without_a_gradient() -> None:
    learned, frozen = drawn("learned"), drawn("frozen_random")
    assert torch.equal(learned(), frozen())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_filler_slots_are_one_embedding_over_and_over() -> None:
    slots = drawn("filler")
    assert sum(p.numel() for p in slots.parameters()) == 64
    assert torch.equal(slots(), slots()[:1].expand(8, -1))


def test_no_slots_have_no_parameters() -> None:
    assert not list(Slots("none", 0, 64).parameters())
    assert Slots("none", 0, 64)().shape == (0, 64)


def answer_loss(student: StillroomStudent, packed: Packed, images: Tensor) -> Tensor:
    logits = student.forward_packed(student.vision_tokens(student.features(images)), packed)
    return F.cross_entropy(logits, packed.labels[packed.labels != IGNORE_INDEX])


@pytest.mark.parametrize("position", ["before", "after"])
def test_slots_learn_from_the_answer_and_from_nothing_else(
    make_student: Make, make_rows: Make, make_images: Make, position: str
) -> None:
    student, images = make_student(slot_position=position), make_images()
    packed = make_rows(student)
    answer_loss(student, packed, images).backward()
    gradient = student.slots.embeddings.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=-1) > 0).all()
    # No slot is ever scored, and the depth head does not read them.
    assert (packed.labels[packed.kind == Kind.T] == IGNORE_INDEX).all()
    student.zero_grad()
    student.depth_bins(student.cells(student.features(images))).sum().backward()
    assert student.slots.embeddings.grad is None


def test_frozen_random_slots_stay_as_they_are(
    make_student: Make, make_rows: Make, make_images: Make
) -> None:
    student = make_student(slot_kind="frozen_random")
    answer_loss(student, make_rows(student), make_images()).backward()
    assert student.slots.embeddings.grad is None


def test_the_answer_changes_when_a_slot_changes(
    make_student: Make, make_rows: Make, make_images: Make
) -> None:
    student, images = make_student(), make_images()
    packed = make_rows(student)
    with torch.no_grad():
        before = answer_loss(student, packed, images)
        student.slots.embeddings[0, 1, 3] += 5.0
        after = answer_loss(student, packed, images)
    assert not torch.isclose(before, after)


def test_without_slots_the_loss_is_the_plain_language_models(
    make_student: Make, make_images: Make
) -> None:
    student, images = make_student(slot_kind="none", visibility="causal"), make_images()
    vision = student.vision_tokens(student.features(images))
    n, question, answer = vision.shape[1], [40, 41, 42, 1], [50, 51, 2]
    packed = pack_questions([(question, answer)], prefix_length=n)
    # [V] [Q] [A] under a plain triangle, put together by hand.
    ids = torch.tensor([question + answer])
    embeds = torch.cat([vision, student.get_input_embeddings()(ids)], dim=1)
    length = embeds.shape[1]
    triangle = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    states = decoder_states(
        student.language_model, embeds, mask=triangle, position=torch.arange(length)[None]
    )
    start = n + len(question) - 1
    logits = student.get_output_embeddings()(states[0, start : start + len(answer)])
    expected = F.cross_entropy(logits, torch.tensor(answer))
    torch.testing.assert_close(answer_loss(student, stack_rows([packed]), images), expected)
