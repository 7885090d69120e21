"""How a vision-language model reads a scene once and its questions side by side.

Any transformers model with a key-value cache: the photos and what stands before them are
prefilled once, then questions are appended to copies of that cache, padded on the left. Models
whose prompt cannot be cut behind the photos (PaliGemma: its whole prompt sees itself) read photos
and question anew each time.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.prefix import contents
from stillroom.records import BadInputError, Question
from stillroom.teachers.vlm_processor import ScenePrompts, prefix_of, visual_places

logger = logging.getLogger(__name__)

#: Median difference of logits, in their standard deviation, up to which two ways of reading the
#: same question agree: rounding in float32, and in 16 bit.
AGREE = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the model makes of new tokens, ``m`` of each question."""

    logits: Float[Tensor, "b m v"]
    # What the output layer read: after the final norm.
    hidden: Float[Tensor, "b m d"]
    # One map a layer, over all tokens so far; only if asked for.
    attentions: tuple[Float[Tensor, "b h m l"], ...] = ()


@dataclass(kw_only=True)
class Reading:
    """Questions read up to their answers; grows by the tokens of these."""

    # Which of the session's questions these are.
    questions: list[int]
    cache: Any
    # Logits and state at the last token of every prompt.
    first: Step
    # Where the visual tokens stand.
    visual: Int[Tensor, "n"]
    # Real tokens so far, and the position of the next; None where the model counts itself.
    mask: Int[Tensor, "b l"] | None = None
    next: Int[Tensor, "b"] | None = None


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A scene read once."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    visual: Int[Tensor, "n"]
    # The position of the first token behind it.
    next: int


@dataclass(kw_only=True)
class Noted:
    """Inputs of some modules during the last prefill."""

    before_projector: list[Tensor] = field(default_factory=list)
    before_norm: list[Tensor] = field(default_factory=list)


class SceneReader:
    """Reads the questions of one scene with one model.

    ``at_once`` questions share a batch, each with its own copy of the scene's keys and values.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: ScenePrompts, *, image_token_id: int, at_once: int
    ) -> None:
        self.model, self.prompts = model, prompts
        self.image_token_id, self.at_once = image_token_id, at_once
        self.prefix: Prefix | None = None
        self.noted = Noted()
        self._opened = False

    @torch.no_grad()
    def open(self, question: Question, *, share: bool) -> None:
        """Read the scene, if its questions can share it; ``question`` shows what prompts are like.

        Raises:
            BadInputError: the question or the photos cannot be read.
        """
        if self._opened:
            return
        self._opened = True
        if not share or not _keeps_all(self.model) or self.prompts.tail(question) is None:
            return
        inputs = self._on_device(self.prompts.whole(question))
        ids = inputs["input_ids"][0]
        visual = visual_places(ids, self.image_token_id)
        length = int(visual[-1]) + 1
        cache = DynamicCache()
        with self._noting():
            self._forward(prefix_of(inputs, length), cache)
        layers = tuple(contents(layer) for layer in cache.layers)
        self.prefix = Prefix(
            length=length, layers=layers, visual=visual, next=length + _position_shift(self.model)
        )

    def read(self, questions: Sequence[Question]) -> Iterator[Reading]:
        """The questions in batches, each to be finished before the next is taken.

        Raises:
            BadInputError: a question does not fit into the model's positions.
        """
        if self.prefix is None:
            for number, question in enumerate(questions):
                yield self._whole(number, question)
            return
        for start in range(0, len(questions), self.at_once):
            yield self._shared(start, questions[start : start + self.at_once])

    @torch.no_grad()
    def _whole(self, number: int, question: Question) -> Reading:
        inputs = self._on_device(self.prompts.whole(question))
        ids = inputs["input_ids"][0]
        self._check_room(len(ids))
        with self._noting():
            first, cache = self._forward(inputs, None)
        visual = visual_places(ids, self.image_token_id)
        return Reading(questions=[number], cache=cache, first=first, visual=visual)

    @torch.no_grad()
    def _shared(self, start: int, questions: Sequence[Question]) -> Reading:
        assert self.prefix is not None
        prefix, device = self.prefix, self.model.device
        tails = [self.prompts.tail(question) or [] for question in questions]
        longest = max(map(len, tails))
        self._check_room(prefix.length + longest)
        ids = torch.zeros(len(tails), longest, dtype=torch.long)
        real = torch.zeros_like(ids)
        for row, tail in enumerate(tails):
            ids[row, longest - len(tail) :] = torch.tensor(tail)
            real[row, longest - len(tail) :] = 1
        ids, real = ids.to(device), real.to(device)
        mask = torch.cat([real.new_ones(len(tails), prefix.length), real], dim=1)
        cache = DynamicCache()
        for number, (keys, values) in enumerate(prefix.layers):
            shape = (len(tails), -1, -1, -1)
            cache.update(keys.expand(shape), values.expand(shape), number)
        position = prefix.next + (real.cumsum(dim=1) - 1).clamp(min=0)
        first, _ = self._forward(
            {"input_ids": ids, "attention_mask": mask, "position_ids": position}, cache
        )
        return Reading(
            questions=list(range(start, start + len(tails))),
            cache=cache,
            first=first,
            visual=prefix.visual,
            mask=mask,
            next=prefix.next + real.sum(dim=1),
        )

    @torch.no_grad()
    def extend(
        self, reading: Reading, tokens: Int[Tensor, "b m"], *, attentions: bool = False
    ) -> Step:
        """Append tokens to every question of a reading.

        With ``attentions`` this step alone runs on eager attention, which gives its weights.
        """
        inputs: dict[str, Any] = {"input_ids": tokens}
        if reading.mask is not None and reading.next is not None:
            reading.mask = torch.cat([reading.mask, torch.ones_like(tokens)], dim=1)
            steps = torch.arange(tokens.shape[1], device=tokens.device)
            inputs["attention_mask"] = reading.mask
            inputs["position_ids"] = reading.next[:, None] + steps
            reading.next = reading.next + tokens.shape[1]
        if not attentions:
            return self._forward(inputs, reading.cache, keep=tokens.shape[1])[0]
        with _eager(self.model):
            step, _ = self._forward(
                inputs | {"output_attentions": True}, reading.cache, keep=tokens.shape[1]
            )
        if not step.attentions or step.attentions[0] is None:
            raise BadInputError(
                "this teacher does not tell its attention; label without --signals attention"
            )
        return step

    def agrees(self, question: Question) -> bool:
        """Whether reading on the shared scene gives what reading everything anew gives."""
        if self.prefix is None:
            return True
        noted = self.noted
        shared = self._shared(0, [question]).first.logits[0, -1]
        whole = self._whole(0, question).first.logits[0, -1]
        self.noted = noted
        difference = float((shared - whole).abs().median() / whole.std().clamp(min=1e-9))
        if difference <= AGREE.get(self.model.dtype, 0.01):
            return True
        logger.warning(
            "this model reads a question differently behind a shared scene (%.2f standard "
            "deviations of its logits): every question is read with its photos",
            difference,
        )
        return False

    def _forward(self, inputs: dict[str, Any], cache: Any, *, keep: int = 1) -> tuple[Step, Any]:
        """The last ``keep`` positions of new tokens, and the grown cache."""
        kwargs = dict(inputs)
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            kwargs["logits_to_keep"] = keep
        output_layer = self.model.get_output_embeddings()
        states: list[Tensor] = []
        hook = output_layer.register_forward_pre_hook(lambda _, given: states.append(given[0]))
        try:
            out = self.model(**kwargs, past_key_values=cache, use_cache=True, return_dict=True)
        finally:
            hook.remove()
        step = Step(
            logits=out.logits[:, -keep:].float(),
            hidden=states[-1][:, -keep:],
            attentions=tuple(out.attentions or ()) if "output_attentions" in inputs else (),
        )
        return step, out.past_key_values

    def _on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        device, dtype = self.model.device, self.model.dtype
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }

    def _check_room(self, tokens: int) -> None:
        config = self.model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None)
        if room is not None and tokens > room:
            raise BadInputError(
                f"photos and question have {tokens} tokens, this teacher reads {room}; "
                "give it fewer views"
            )

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep what goes into the projector and into the final norm meanwhile."""
        self.noted = Noted()
        places = (
            (projector_of(self.model), self.noted.before_projector),
            (final_norm_of(self.model), self.noted.before_norm),
        )
        hooks = [
            module.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
            for module, kept in places
            if module is not None
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def projector_of(model: PreTrainedModel) -> nn.Module | None:
    """The module between the vision tower and the language model, where it is known."""
    base = model.base_model
    for name in ("multi_modal_projector", "mm_projector", "visual.merger"):
        try:
            return base.get_submodule(name)
        except AttributeError:
            continue
    return None


def final_norm_of(model: PreTrainedModel) -> nn.Module | None:
    """The norm behind the last decoder layer, where it is known."""
    base = model.base_model
    decoder = getattr(base, "language_model", base)
    norm = getattr(decoder, "norm", None)
    return norm if isinstance(norm, nn.Module) else None


def _keeps_all(model: PreTrainedModel) -> bool:
    """Whether every layer keeps keys and values of all tokens, which can be copied."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return set(kinds) <= {"full_attention", "sliding_attention"}


def _position_shift(model: PreTrainedModel) -> int:
    """How far positions run ahead of tokens after a prefill: Qwen's pictures take fewer."""
    deltas = getattr(model.base_model, "rope_deltas", None)
    return 0 if deltas is None else int(deltas.flatten()[0])


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention written out, so that its weights can be had."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def grouped_attention(
    attentions: Sequence[Float[Tensor, "b h m l"]],
    places: Int[Tensor, "n"],
    groups: Sequence[range],
) -> Float[np.ndarray, "b g m n"]:
    """Mean attention on some places over heads and over each group of layers."""
    heads = [layer[..., places].float().mean(dim=1) for layer in attentions]
    means = [torch.stack([heads[layer] for layer in group]).mean(dim=0) for group in groups]
    return torch.stack(means, dim=1).cpu().numpy()
