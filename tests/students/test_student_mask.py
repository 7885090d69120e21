"""The mask in the student: V never knows the question, thinking does, neighbours do not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from stillroom.engine.mask import Kind, attention_mask
from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.engine.prefix import decoder_states
from stillroom.students.model import StillroomStudent

Make = Callable[..., Any]

#: Language models of three families, pretrained ones among them; None is the student's own.
FAMILIES = ["gpt_neox", "llama", "qwen2", "qwen3"]


def of_family(family: str) -> dict[str, Any]:
    """What gives the tiny student a language model of another family."""
    if family == "gpt_neox":
        return {}
    text = {
        "model_type": family,
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        # Two heads read the same keys.
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
    }
    return {"text_config": text}


def read_whole(
    student: StillroomStudent, packed: Packed, images: Tensor
) -> tuple[Tensor, DynamicCache]:
    """States and cache of V and the questions read in one piece."""
    vision = student.vision_tokens(student.features(images))
    n = packed.prefix_length
    text = student.embed(packed.kind[:, n:], packed.ids[:, n:])
    mask = attention_mask(
        packed.kind, packed.segment, packed.position, visibility=student.config.visibility
    )
    cache = DynamicCache()
    states = decoder_states(
        student.language_model,
        torch.cat([vision, text], dim=1),
        mask=mask,
        position=packed.position,
        cache=cache,
    )
    return states, cache


def one_question(student: StillroomStudent, question: list[int]) -> Packed:
    settings = student.config
    row = pack_questions(
        [(question, [50, 2])],
        prefix_length=student.vision_length(2),
        slots=settings.slot_count,
        slot_position=settings.slot_position,
        start_id=1,
        pad_to=32,
    )
    return stack_rows([row])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("visibility", ["prefix", "causal"])
@torch.no_grad()
def test_keys_and_values_of_vision_are_bit_equal_under_two_questions(
    make_student: Make, make_images: Make, visibility: str, family: str
) -> None:
    student, images = make_student(visibility=visibility, **of_family(family)), make_images()
    n = student.vision_length(2)
    caches = [
        read_whole(student, one_question(student, question), images)[1]
        for question in ([40, 41, 42], [60, 61])
    ]
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(one.keys[:, :, :n], other.keys[:, :, :n])
        assert torch.equal(one.values[:, :, :n], other.values[:, :, :n])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("visibility", "position", "knows"),
    [
        ("prefix", "before", True),
        ("prefix", "after", True),
        ("full_prefix", "before", True),
        ("causal", "before", False),
        ("causal", "after", True),
    ],
)
@torch.no_grad()
def test_slots_know_the_question_unless_causal_and_before_it(
    make_student: Make,
    make_images: Make,
    visibility: str,
    position: str,
    knows: bool,
    family: str,
) -> None:
    student = make_student(visibility=visibility, slot_position=position, **of_family(family))
    thought = []
    for question in ([40, 41, 42], [60, 61, 42]):
        packed = one_question(student, question)
        states, _ = read_whole(student, packed, make_images())
        thought.append(states[packed.kind == Kind.T])
    assert torch.equal(thought[0], thought[1]) is not knows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("visibility", ["prefix", "causal"])
@pytest.mark.parametrize("position", ["before", "after"])
@torch.no_grad()
def test_questions_of_a_row_are_trained_as_each_would_be_alone(
    make_student: Make,
    make_rows: Make,
    make_images: Make,
    visibility: str,
    position: str,
    family: str,
) -> None:
    student = make_student(visibility=visibility, slot_position=position, **of_family(family))
    vision = student.vision_tokens(student.features(make_images(scenes=2)))
    pairs = [([40, 41, 42], [50, 2]), ([43, 44], [51, 52, 2]), ([45] * 5, [53, 2])]
    together = student.forward_packed(vision, make_rows(student, pairs, scenes=2))
    alone = [
        student.forward_packed(vision[row : row + 1], make_rows(student, [pair]))
        for row in range(2)
        for pair in pairs
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("visibility", ["prefix", "full_prefix", "causal"])
@torch.no_grad()
def test_with_and_without_a_cache_the_same_is_said(
    make_student: Make, make_images: Make, visibility: str, family: str
) -> None:
    student, images = make_student(visibility=visibility, **of_family(family)), make_images()
    features = student.features(images)
    question, said = [40, 41, 42], []
    for _ in range(4):
        # The whole row again for every token: nothing is remembered.
        row = pack_questions(
            [(question, [*said, 50])],
            prefix_length=student.vision_length(2),
            slots=student.config.slot_count,
            slot_position=student.config.slot_position,
            start_id=1,
        )
        logits = student.forward_packed(student.vision_tokens(features), stack_rows([row]))
        said.append(int(logits[-1].argmax()))
        if said[-1] == 2:
            break
    (cached,) = student.answer_ids(student.open_prefix(features), [question], max_new_tokens=4)
    assert cached == said
