"""Which parameters that an answer is made from each loss term reaches.

The promise of the connector is that heads and language model read the same tokens, so that a loss
on a head teaches the answer too. Here it is measured: by gradients that are not zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stillroom.distill.batches import Batch
from stillroom.distill.config import BEHIND_SLOTS, DistillConfig, LossConfig
from stillroom.distill.step import count_labelled, distill_step
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent
from stillroom.training.handed import Sheltered

#: Parts of a student that an answer is made from; of the encoder, what is trained.
ANSWER_PATH = ("connector", "slots", "language_model", "encoder")


def sheltered_slots(student: StillroomStudent, config: DistillConfig) -> Sheltered | None:
    """The slots, where they learn from the answer alone while other terms reach them."""
    if not config.shelters_slots:
        return None
    return Sheltered(
        parameters=tuple(student.slots.parameters()),
        terms=frozenset({"text"}),
        others=frozenset(BEHIND_SLOTS),
    )


def term_reach(
    student: StillroomStudent, batch: Batch, config: DistillConfig
) -> dict[str, tuple[str, ...]]:
    """Per term (or part of one) that is labelled in the batch: the answer path's parameters that
    it gives a gradient that is not zero, by name. Frozen ones are never reached."""
    named = [
        (name, parameter)
        for name, parameter in student.named_parameters()
        if name.split(".")[0] in ANSWER_PATH and parameter.requires_grad
    ]
    counts = count_labelled(batch)
    kept_out = BEHIND_SLOTS if config.shelters_slots else ()
    with torch.enable_grad():
        terms = distill_step(student, batch, config.losses).terms
        return {
            term: tuple(
                name
                for (name, _), gradient in zip(named, _gradients(value, named), strict=True)
                if gradient is not None
                and bool((gradient != 0).any())
                and not (term in kept_out and name.startswith("slots."))
            )
            for term, value in terms.items()
            if counts[term] > 0
        }


def require_reach(reach: Mapping[str, Sequence[str]], config: LossConfig) -> None:
    """Refuse a recipe with a term that teaches nothing an answer is made from.

    Raises:
        BadInputError: such a term, unless ``reach_nothing`` names it (or the term it is part of).
    """
    part_of = {part: term for term, parts in config.parts.items() for part in parts}
    for name, parameters in reach.items():
        allowed = {name, part_of.get(name, name)} & set(config.reach_nothing)
        if not parameters and not allowed:
            raise BadInputError(
                f"the loss term {name!r} reaches no parameter of {', '.join(ANSWER_PATH)}: it "
                "cannot change an answer. Turn it off, or name it in losses.reach_nothing"
            )


def parts_reached(parameters: Sequence[str]) -> tuple[str, ...]:
    """The parts of ``ANSWER_PATH`` among some parameters' names."""
    found = {name.split(".")[0] for name in parameters}
    return tuple(part for part in ANSWER_PATH if part in found)


def _gradients(
    value: torch.Tensor, named: Sequence[tuple[str, torch.nn.Parameter]]
) -> Sequence[torch.Tensor | None]:
    if not value.requires_grad:
        return [None] * len(named)
    return torch.autograd.grad(
        value, [parameter for _, parameter in named], retain_graph=True, allow_unused=True
    )
