"""What a step of teaching reads: pictures of a few scenes, questions, and targets at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.engine.packing import question_places
from stillroom.records import BadInputError, Question
from stillroom.scenes.pixels import PixelCache, cache_pixels, object_names
from stillroom.scenes.store import SceneStore
from stillroom.teachers.named import Named
from stillroom.teachers.preprocess import normalise, whole_pixel_intrinsics
from stillroom.teachers.sampling import choose_questions
from stillroom.teachers.teach_config import TeachConfig
from stillroom.text.mentions import mentions
from stillroom.text.tokenizer import Tokenizer
from stillroom.training.data_order import rows_at

#: Stands behind a question that is asked for its rationale instead of its answer.
RATIONALE_MARK = "<Spatio>"


@dataclass(frozen=True, kw_only=True)
class TeachBatch:
    """Scenes of one micro-batch; ``weight`` is per answer token, row by row."""

    images: Float[Tensor, "s v 3 h w"]
    depths: Float[Tensor, "s v h w"]
    poses: Float[Tensor, "s v 4 4"]
    intrinsics: Float[Tensor, "s v 4 4"]
    # object_id at the pixel that places each patch, and the scenes' object tables.
    patch_object: Int[Tensor, "s p"]
    objects: Float[Tensor, "s m 8"]
    rows: tuple[tuple[tuple[list[int], list[int]], ...], ...]
    # Names in questions: row, place behind V, and the box meant: centre [m], log size.
    mention_at: Int[Tensor, "n 2"]
    mention_box: Float[Tensor, "n 6"]
    # Log metres to what the question named first and second, NaN where that is not asked.
    mention_apart: Float[Tensor, "n 2"]
    # Where answers begin whose number is known: row, place behind V; which number, and its target.
    measure_at: Int[Tensor, "q 2"]
    measure_kind: Int[Tensor, "q"]
    measure: Float[Tensor, "q 2"]
    weight: Float[Tensor, "a"]
    families: tuple[tuple[str, ...], ...]


class Rows:
    """Questions as ids and pictures as arrays, in any portion a step asks for."""

    def __init__(
        self,
        config: TeachConfig,
        pixels: PixelCache,
        questions: Mapping[str, Sequence[Question]],
        tokenizer: Tokenizer,
    ) -> None:
        self.config, self.pixels = config, pixels
        self.questions = [list(questions[scene_id]) for scene_id in pixels.scene_ids]
        self.ids = [
            [(tokenizer.encode(q.prompt), tokenizer.encode_answer(q.answer)) for q in asked]
            for asked in self.questions
        ]
        self.named = [
            [mentions(q.prompt, names, tokenizer) for q in asked]
            for asked, names in zip(self.questions, map(object_names, pixels.objects), strict=True)
        ]
        # The same questions, asked for their reasons: a mark behind the question says so.
        mark = tokenizer.token_id(RATIONALE_MARK)
        self.reasons = [
            [
                ([*ids, mark], tokenizer.encode_answer(q.rationale)) if q.rationale else None
                for q, (ids, _) in zip(asked, pairs, strict=True)
            ]
            for asked, pairs in zip(self.questions, self.ids, strict=True)
        ]

    def at(self, step: int, micro: int) -> TeachBatch:
        """A micro-batch of training."""
        config = self.config
        rows = rows_at(step, micro, config=config.train, rows=len(self.pixels))
        chosen, reasons = [], []
        for row in rows:
            rng = np.random.default_rng([config.train.seed, step, row])
            picked = choose_questions(
                self.questions[row],
                count=config.questions_per_scene,
                description_share=config.description_share,
                other_share=config.other_share,
                rng=rng,
            )
            chosen.append(picked)
            reasons.append(rng.permutation(picked)[: config.rationales_per_scene].tolist())
        return self.batch(rows, chosen, reasons)

    def batch(
        self,
        rows: Sequence[int],
        chosen: Sequence[Sequence[int]],
        reasons: Sequence[Sequence[int]] | None = None,
    ) -> TeachBatch:
        """Any scenes with any of their questions; ``reasons`` are asked for their rationale too."""
        pixels, order = self.pixels, list(rows)
        patch = self.config.sizes.patch_size
        instances = pixels.instances[order][..., ::patch, ::patch]
        reasons = [()] * len(order) if reasons is None else reasons
        pairs: list[tuple[tuple[list[int], list[int]], ...]] = []
        named = Named()
        for number, (row, picked, why) in enumerate(zip(order, chosen, reasons, strict=True)):
            asked = [(i, self.ids[row][i]) for i in picked]
            asked += [(i, pair) for i in why if (pair := self.reasons[row][i]) is not None]
            pairs.append(tuple(pair for _, pair in asked))
            starts = question_places(pairs[-1], start_id=Tokenizer.bos_id)
            table = np.asarray(pixels.objects[row])
            for start, (i, (question, _)) in zip(starts, asked, strict=True):
                named.add(
                    number,
                    self.questions[row][i],
                    self.named[row][i],
                    table,
                    start=start,
                    answer=len(question),
                )
        # Long answers count more than short ones, but not by their length.
        lengths = [len(answer) for row in pairs for _, answer in row]
        weight = np.concatenate([np.full(n, n**-0.5, np.float32) for n in lengths])
        return TeachBatch(
            images=torch.from_numpy(normalise(pixels.rgb[order])),
            depths=torch.from_numpy(pixels.depth[order].astype(np.float32)),
            poses=torch.from_numpy(pixels.c2w[order]),
            intrinsics=torch.from_numpy(whole_pixel_intrinsics(pixels.intrinsics[order])),
            patch_object=torch.from_numpy(instances.astype(np.int64)).flatten(1),
            objects=torch.from_numpy(pixels.objects[order]),
            rows=tuple(pairs),
            weight=torch.from_numpy(weight),
            families=tuple(
                tuple(self.questions[row][i].family for i in picked)
                for row, picked in zip(rows, chosen, strict=True)
            ),
            **named.arrays(),
        )


def check_views(config: TeachConfig, store: SceneStore, split: str) -> None:
    """Look at the first scene of a split, as all of a store are alike.

    Raises:
        BadInputError: no scene in the split, or views of another number or size.
    """
    ids = store.scene_ids(split)
    if not ids:
        raise BadInputError(
            f"{store.path} holds no scene of the split {split!r}, which teaching needs"
        )
    views = store.scene(ids[0]).views
    _require_size(config, store, (len(views), *views[0].rgb.shape[:2]))


def _require_size(config: TeachConfig, store: SceneStore, shape: tuple[int, int, int]) -> None:
    """``shape`` is [v h w]."""
    size = config.sizes
    if shape != (size.views, size.image_size, size.image_size):
        views, height, width = shape
        raise BadInputError(
            f"{store.path} has {views} views of {height} x {width}, the recipe reads {size.views} "
            f"of {size.image_size} x {size.image_size}; set --sizes.views and --sizes.image-size"
        )


def open_rows(
    config: TeachConfig, store: SceneStore, split: str, tokenizer: Tokenizer, out: Path
) -> Rows:
    """The rows of a split, its pictures decoded into a cache beside ``out``.

    Raises:
        BadInputError: no scene in the split, or views of another number or size.
    """
    pixels = cache_pixels(store, out.parent / "cache", split=split)
    views, _, height, width = pixels.rgb.shape[1:]
    _require_size(config, store, (views, height, width))
    asked = {scene_id: store.questions(scene_id) for scene_id in pixels.scene_ids}
    return Rows(config, pixels, asked, tokenizer)
