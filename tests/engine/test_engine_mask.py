"""The laws of the one mask, read off its entries."""

from __future__ import annotations

import pytest
import torch

from stillroom.engine.mask import Kind, Visibility, attention_mask
from stillroom.engine.packing import (
    Packed,
    SlotPosition,
    pack_questions,
    question_places,
    stack_rows,
)

ALL: tuple[Visibility, ...] = ("prefix", "full_prefix", "causal")


def mask_of(row: Packed, visibility: Visibility) -> torch.Tensor:
    return attention_mask(
        row.kind[None], row.segment[None], row.position[None], visibility=visibility
    )[0, 0]


def as_text(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in line) for line in mask.tolist()]


def test_prefix_mask_is_the_drawn_one() -> None:
    row = pack_questions([([7, 8], [9, 2])], prefix_length=2)
    assert as_text(mask_of(row, "prefix")) == [
        "xx....",
        "xx....",
        "xxxx..",
        "xxxx..",
        "xxxxx.",
        "xxxxxx",
    ]


def test_full_prefix_lets_vision_see_the_question_but_not_the_answer() -> None:
    row = pack_questions([([7, 8], [9, 2])], prefix_length=2)
    assert as_text(mask_of(row, "full_prefix")) == ["xxxx.."] * 4 + ["xxxxx.", "xxxxxx"]


def test_causal_mask_of_one_question_is_a_triangle() -> None:
    row = pack_questions([([7, 8], [9, 2])], prefix_length=2, slots=3)
    length = len(row.kind)
    assert torch.equal(mask_of(row, "causal"), torch.ones(length, length, dtype=torch.bool).tril())


@pytest.mark.parametrize("visibility", ALL)
@pytest.mark.parametrize("slot_position", ["before", "after"])
def test_no_question_sees_another(visibility: Visibility, slot_position: str) -> None:
    row = pack_questions(
        [([7, 8], [9, 2]), ([5], [6, 2]), ([3, 4, 5], [2])],
        prefix_length=3,
        slots=2,
        slot_position=slot_position,  # type: ignore[arg-type]
    )
    mask = mask_of(row, visibility)
    other = (row.segment[:, None] != row.segment[None]) & (row.segment[:, None] > 0)
    assert not mask[other & (row.segment[None] > 0)].any()
    assert mask[row.segment > 0][:, :3].all()


@pytest.mark.parametrize("visibility", ALL)
def test_padding_is_seen_by_nobody_and_sees_itself(visibility: Visibility) -> None:
    row = pack_questions([([7, 8], [9, 2])], prefix_length=2, pad_to=9)
    mask = mask_of(row, visibility)
    assert torch.equal(mask[6:], torch.eye(9, dtype=torch.bool)[6:])
    assert not mask[:6, 6:].any()
    unpadded = pack_questions([([7, 8], [9, 2])], prefix_length=2)
    assert torch.equal(mask[:6, :6], mask_of(unpadded, visibility))


@pytest.mark.parametrize("visibility", ALL)
def test_rows_left_out_by_query_start_are_the_last_rows_of_the_whole(
    visibility: Visibility,
) -> None:
    row = pack_questions([([7, 8], [9, 2]), ([5], [6, 2])], prefix_length=3, slots=2)
    part = attention_mask(
        row.kind[None],
        row.segment[None],
        row.position[None],
        visibility=visibility,
        query_start=5,
    )[0, 0]
    assert torch.equal(part, mask_of(row, visibility)[5:])


def test_the_label_stands_one_before_its_token() -> None:
    row = pack_questions([([7, 8], [9, 2])], prefix_length=2, slots=1)
    assert row.kind.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert row.ids.tolist()[3:] == [7, 8, 9, 2]
    assert row.labels.tolist() == [-100, -100, -100, -100, 9, 2, -100]


def test_slots_after_the_question_carry_no_label_when_a_start_token_follows_them() -> None:
    row = pack_questions(
        [([7, 8], [9, 2])], prefix_length=1, slots=2, slot_position="after", start_id=1
    )
    assert row.kind.tolist() == [0, 2, 2, 1, 1, 2, 3, 3]
    assert row.labels.tolist() == [-100, -100, -100, -100, -100, 9, 2, -100]
    assert row.ids.tolist()[5] == 1


@pytest.mark.parametrize("slot_position", ["before", "after"])
@pytest.mark.parametrize("start_id", [None, 1])
def test_questions_are_found_again_in_their_row(
    slot_position: SlotPosition, start_id: int | None
) -> None:
    pairs = [([7, 8], [9, 2]), ([5], [2]), ([6, 6, 6], [3, 2])]
    layout = {"slots": 2, "slot_position": slot_position, "start_id": start_id}
    row = pack_questions(pairs, prefix_length=3, **layout)
    for place, (question, _) in zip(question_places(pairs, **layout), pairs, strict=True):
        assert row.ids[3 + place :][: len(question)].tolist() == question


def test_every_question_restarts_right_behind_the_vision_tokens() -> None:
    row = pack_questions([([7, 8], [9, 2]), ([5], [2])], prefix_length=4)
    assert row.position.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5]


def test_rows_of_different_lengths_stack_with_their_own_positions() -> None:
    rows = [
        pack_questions([([7, 8], [9, 2])], prefix_length=4),
        pack_questions([([5], [2])], prefix_length=2),
    ]
    batch = stack_rows(rows, multiple_of=8)
    assert batch.kind.shape == (2, 8)
    assert batch.prefix_length == 4
    assert batch.kind[1].tolist() == [0, 0, 4, 4, 2, 3, 4, 4]
    assert batch.position[1].tolist()[4:6] == [2, 3]
    assert batch.labels[1].tolist()[4] == 2


def test_a_row_longer_than_its_padding_is_an_error() -> None:
    with pytest.raises(ValueError, match="more than pad_to=3"):
        pack_questions([([7, 8], [9, 2])], prefix_length=2, pad_to=3)


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="question 1 of the row is empty"):
        pack_questions([([], [9, 2])], prefix_length=2)


def test_every_kind_of_a_row_is_named() -> None:
    assert [kind.name for kind in Kind] == ["V", "T", "Q", "A", "PAD"]
