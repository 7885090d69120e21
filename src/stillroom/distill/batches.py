"""Rows of a distillation step: a scene's cached features and its questions with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from stillroom.distill.config import DistillConfig
from stillroom.distill.features import FeatureCache
from stillroom.distill.scene_labels import SceneLabels, scene_labels
from stillroom.distill.targets import SceneTargets
from stillroom.engine.naming import UNKNOWN, Words
from stillroom.engine.packing import Packed, pack_questions, question_places, stack_rows
from stillroom.records import FAMILIES, BadInputError, Question, TeacherLabel
from stillroom.scenes.pixels import object_names
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.teachers.named import Named
from stillroom.teachers.sampling import choose_questions
from stillroom.text.mentions import mentions, word_tokens
from stillroom.text.tokenizer import Tokenizer
from stillroom.training.data_order import rows_at


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes of one micro-batch; ``a`` counts the answer tokens of all rows, row by row."""

    tokens: Float[Tensor, "b v p d"]
    own_depth: Float[Tensor, "b v g g"]
    true_depth: Float[Tensor, "b v g g"]
    packed: Packed
    # Kind and colour of what each cell shows, counted from 1, and the tokens of their words.
    cell_names: Int[Tensor, "b v c 2"]
    name_words: tuple[Words, Words]
    # Names in questions: row, place behind V, and the box meant: centre in view0 [m], log size.
    mention_at: Int[Tensor, "n 2"]
    mention_box: Float[Tensor, "n 6"]
    # At each of these names: log metres to the first and second thing named; NaN where none.
    mention_apart: Float[Tensor, "n 2"]
    # Answers that a number decides: row, place behind V of <bos>, kind of number, its two values.
    measure_at: Int[Tensor, "m 2"]
    measure_kind: Int[Tensor, "m"]
    measure: Float[Tensor, "m 2"]
    # The teacher's logits at every answer token; None where it gave none at all, zeros where it
    # gave none to some answers, as ``has_logits`` then says.
    topk_ids: Int[Tensor, "a k"] | None
    topk_logits: Float[Tensor, "a k"] | None
    logsumexp: Float[Tensor, "a"] | None
    has_logits: Bool[Tensor, "a"] | None = None
    # What detection, spatial, multi-view and feature terms are taught by; None where they are off.
    scene: SceneLabels | None = None
    # The photos, where the encoder's depth head is trained: tokens and own_depth are then not used.
    photos: UInt8[Tensor, "b v 3 s s"] | None = None
    # There too: which of their pixels ``true_depth`` is the mean of.
    measured: Bool[Tensor, "b v s s"] | None = None


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
        largest = max([*ids, 0 if label.topk_ids is None else int(label.topk_ids.max())])
        if largest >= tokenizer.vocab_size:
            raise BadInputError(
                f"the labels hold token {largest}, the student's tokenizer has "
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
        prompts: Mapping[str, str],
        tokenizer: Tokenizer,
        targets: SceneTargets | None = None,
    ) -> None:
        self.config, self.features, self.targets = config, features, targets
        self.items, self.start_id = items, tokenizer.bos_id
        self.scene_ids = list(items)
        self.rows = features.rows(self.scene_ids)
        places = [] if targets is None else targets.rows(self.scene_ids)
        # By row of the features: the scene's row of the targets.
        self._targets_at = dict(zip(self.rows, places, strict=False))
        self.words = (
            Words.of(word_tokens(CATEGORIES, tokenizer)),
            Words.of(word_tokens(COLOURS, tokenizer)),
        )
        names = [object_names(features.objects[row]) for row in self.rows]
        #: By question: places of all tokens of each name, and the object_id meant.
        self.mentions = {
            item.question.question_id: mentions(
                prompts[item.question.question_id], known, tokenizer
            )
            for scene_id, known in zip(self.scene_ids, names, strict=True)
            for item in items[scene_id]
        }

    def at(self, step: int, micro: int) -> Batch:
        """One micro-batch of training."""
        chosen = rows_at(step, micro, config=self.config.train, rows=len(self.scene_ids))
        return self.sample(chosen, step)

    def sample(self, chosen: Sequence[int], step: int = 0) -> Batch:
        """Scenes by their number in ``scene_ids``, with the questions that a step asks."""
        picked = [self._pick(index, step) for index in chosen]
        return self.batch([self.rows[index] for index in chosen], picked)

    def _pick(self, index: int, step: int) -> list[Item]:
        config = self.config
        items = self.items[self.scene_ids[index]]
        rng = np.random.default_rng([config.train.seed, step, index])
        if not any(item.question.family in FAMILIES for item in items):
            # A capture: nothing to balance, but every question has its turn.
            count = min(config.questions_per_scene, len(items))
            return [items[i] for i in sorted(rng.choice(len(items), count, replace=False))]
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
        sizes = self.config.student
        prefix = 1 if sizes.vision_pool == "mean" else views * sizes.vision_grid**2
        layout: dict[str, Any] = {
            "slots": self.config.slots.used,
            "slot_position": self.config.slots.position,
            "start_id": self.start_id,
        }
        pairs = [[(item.question_ids, item.answer_ids) for item in row] for row in items]
        packed = stack_rows(
            [pack_questions(row, prefix_length=prefix, **layout) for row in pairs], multiple_of=32
        )
        named = Named()
        for number, (row, asked) in enumerate(zip(rows, items, strict=True)):
            if not self.config.vision:
                break
            for start, item in zip(question_places(pairs[number], **layout), asked, strict=True):
                named.add(
                    number,
                    item.question,
                    self.mentions[item.question.question_id],
                    self.features.objects[row],
                    start=start,
                    answer=self._steps_to_answer(item),
                )
        # Where nothing is known of a scene, no cell is nameless either: nothing is labelled.
        known = self.features.objects[rows][:, :, 0].any(axis=1) & self.config.vision
        cells = self.features.cells[rows].astype(np.int64).reshape(len(rows), -1)
        shown = np.take_along_axis(self.features.objects[rows], cells[:, :, None], axis=1)[..., :2]
        shown[~known] = UNKNOWN
        # A thing whose kind or colour has no word of ours is not nameless: nobody says what it is.
        shown[(cells > 0)[..., None] & (shown == 0)] = UNKNOWN
        tokens = torch.from_numpy(self.features.tokens[rows].astype(np.float32))
        true = torch.from_numpy(self.features.true_depth[rows].astype(np.float32))
        return Batch(
            tokens=tokens,
            own_depth=own,
            # The blind student learns neither depth nor where things are.
            true_depth=true if self.config.vision else torch.zeros_like(true),
            packed=packed,
            cell_names=torch.from_numpy(shown.astype(np.int64)).unflatten(1, (views, -1)),
            name_words=self.words,
            scene=self.scene(rows),
            photos=None
            if self.features.photos is None
            else torch.from_numpy(np.asarray(self.features.photos[rows])),
            measured=None
            if self.features.measured is None
            else torch.from_numpy(np.asarray(self.features.measured[rows])),
            **named.arrays(),
            **_logits([item for row in items for item in row]),
        )

    def _steps_to_answer(self, item: Item) -> int:
        """From a question's first token to the ``<bos>`` that its answer is said from."""
        slots = self.config.slots
        return len(item.question_ids) + (slots.used if slots.position == "after" else 0)

    def scene(self, rows: Sequence[int]) -> SceneLabels | None:
        """What the scenes themselves teach, whatever is asked; None for a blind student."""
        if self.targets is None or not self.config.vision:
            return None
        return scene_labels(
            self.targets,
            [self._targets_at[row] for row in rows],
            self.features.cells[rows],
            self.config.losses,
            queries=self.config.student.detection_queries,
        )


def _logits(items: Sequence[Item]) -> dict[str, Any]:
    """The teacher's logits end to end, in the order of the answer tokens of the rows."""
    dtypes = {"topk_ids": np.int64, "topk_logits": np.float32, "logsumexp": np.float32}
    given = [item for item in items if item.label.topk_ids is not None]
    if not given:
        return dict.fromkeys(dtypes)
    tokens = sum(len(item.answer_ids) for item in items)
    has = np.zeros(tokens, dtype=bool)
    found: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        array = np.zeros((tokens, *getattr(given[0].label, name).shape[1:]), dtype)
        start = 0
        for item in items:
            here = slice(start, start + len(item.answer_ids))
            if item.label.topk_ids is not None:
                array[here], has[here] = getattr(item.label, name), True
            start = here.stop
        found[name] = torch.from_numpy(array)
    return found | {"has_logits": None if has.all() else torch.from_numpy(has)}
