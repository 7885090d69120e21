"""Rows of a distillation step: a scene's cached features and its questions with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.distill.config import DistillConfig
from stillroom.distill.features import FeatureCache
from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.records import FAMILIES, BadInputError, Question, TeacherLabel
from stillroom.teachers.sampling import choose_questions
from stillroom.text.tokenizer import Tokenizer
from stillroom.training.data_order import rows_at


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes of one micro-batch; ``a`` counts the answer tokens of all rows, row by row."""

    tokens: Float[Tensor, "b v p d"]
    own_depth: Float[Tensor, "b v g g"]
    true_depth: Float[Tensor, "b v g g"]
    packed: Packed
    # The teacher's logits at every answer token; None where it gave none.
    topk_ids: Int[Tensor, "a k"] | None
    topk_logits: Float[Tensor, "a k"] | None
    logsumexp: Float[Tensor, "a"] | None


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with what the teacher said to it, as ids."""

    question: Question
    question_ids: list[int]
    answer_ids: list[int]
    label: TeacherLabel


def items_by_scene(
    questions: Mapping[str, Sequence[Question]],
    labels: Mapping[str, Sequence[TeacherLabel]],
    prompts: Mapping[str, str],
    tokenizer: Tokenizer,
) -> dict[str, list[Item]]:
    """Labelled questions of every scene, tokenised once. ``prompts`` is the text by question id.

    Raises:
        BadInputError: a scene without labels, or labels of other ids than the tokenizer's.
    """
    found: dict[str, list[Item]] = {}
    for scene_id, asked in questions.items():
        known = {label.question_id: label for label in labels[scene_id]}
        items = [
            _item(question, known[question.question_id], prompts, tokenizer)
            for question in asked
            if question.question_id in known
        ]
        if not items:
            raise BadInputError(
                f"scene {scene_id} has no labels; run 'stillroom label' on the same scenes first"
            )
        found[scene_id] = items
    return found


def _item(
    question: Question, label: TeacherLabel, prompts: Mapping[str, str], tokenizer: Tokenizer
) -> Item:
    # A teacher's own ids where it gave any: its logits stand at exactly these.
    ids = tokenizer.encode_answer(label.answer)
    if label.answer_ids is not None:
        ids = [int(i) for i in label.answer_ids]
        if max(ids, default=0) >= tokenizer.vocab_size:
            raise BadInputError(
                f"the labels hold token {max(ids)}, the student's tokenizer has "
                f"{tokenizer.vocab_size}: they come from a teacher with another tokenizer"
            )
    return Item(
        question=question,
        question_ids=tokenizer.encode(prompts[question.question_id]),
        answer_ids=ids,
        label=label,
    )


class Batches:
    """Micro-batch (step, micro) as a pure function, over scenes with features and labels."""

    def __init__(
        self,
        config: DistillConfig,
        features: FeatureCache,
        items: Mapping[str, Sequence[Item]],
        *,
        start_id: int,
    ) -> None:
        self.config, self.features = config, features
        self.items, self.start_id = items, start_id
        self.scene_ids = list(items)
        self.rows = features.rows(self.scene_ids)

    def at(self, step: int, micro: int) -> Batch:
        """One micro-batch of training."""
        chosen = rows_at(step, micro, config=self.config.train, rows=len(self.scene_ids))
        picked = [self._pick(index, step) for index in chosen]
        return self.batch([self.rows[index] for index in chosen], picked)

    def _pick(self, index: int, step: int) -> list[Item]:
        config = self.config
        items = self.items[self.scene_ids[index]]
        rng = np.random.default_rng([config.train.seed, step, index])
        if not any(item.question.family in FAMILIES for item in items):
            return list(items[: config.questions_per_scene])  # a capture: nothing to balance
        chosen = choose_questions(
            [item.question for item in items],
            count=config.questions_per_scene,
            description_share=config.description_share,
            other_share=config.other_share,
            rng=rng,
        )
        return [items[i] for i in chosen]

    def batch(self, rows: Sequence[int], items: Sequence[Sequence[Item]]) -> Batch:
        """Any scenes with any of their questions."""
        own = torch.from_numpy(self.features.own_depth[rows].astype(np.float32))
        views = own.shape[1]
        prefix = views * self.config.student.vision_grid**2
        packed = stack_rows(
            [
                pack_questions(
                    [(item.question_ids, item.answer_ids) for item in row],
                    prefix_length=prefix,
                    slots=self.config.slots.used,
                    slot_position=self.config.slots.position,
                    start_id=self.start_id,
                )
                for row in items
            ],
            multiple_of=32,
        )
        tokens = torch.from_numpy(self.features.tokens[rows].astype(np.float32))
        true = torch.from_numpy(self.features.true_depth[rows].astype(np.float32))
        return Batch(
            tokens=tokens,
            own_depth=own,
            # The blind student learns no depth either.
            true_depth=true if self.config.vision else torch.zeros_like(true),
            packed=packed,
            **_logits([item.label for row in items for item in row]),
        )


def _logits(labels: Sequence[TeacherLabel]) -> dict[str, Tensor | None]:
    """The teacher's logits end to end, in the order of the answer tokens of the rows."""
    names = ("topk_ids", "topk_logits", "logsumexp")
    if any(label.topk_ids is None for label in labels):
        return dict.fromkeys(names)
    arrays = {name: np.concatenate([getattr(label, name) for label in labels]) for name in names}
    return {
        "topk_ids": torch.from_numpy(arrays["topk_ids"].astype(np.int64)),
        "topk_logits": torch.from_numpy(arrays["topk_logits"].astype(np.float32)),
        "logsumexp": torch.from_numpy(arrays["logsumexp"].astype(np.float32)),
    }
