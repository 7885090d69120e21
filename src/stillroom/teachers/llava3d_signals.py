"""What a teacher knows beyond its answers: one teacher-forced reading behind the cached prefix.

The prompts are read with SDPA; only the answer tokens are read with eager attention, and each
layer's rows are reduced as they come, so that no map of length x length is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32
from torch import Tensor

from stillroom.engine.mask import Kind, attention_mask
from stillroom.engine.prefix import ScenePrefix, decoder_states
from stillroom.records import TopLogits
from stillroom.teachers.llava3d_model import LLaVA3D

#: Answer tokens that are read side by side: bounds the attention rows of one layer.
ANSWER_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Teacher-forced signals of one question; see ``TeacherLabel`` for what each is.

    ``hidden`` predicts the answer's tokens (``[a d]``, after the final norm). The rows of
    ``attention`` are those of the answer's tokens themselves, its end included, once they are said.
    """

    hidden: Float16[np.ndarray, "a d"] | None = None
    attention: Float16[np.ndarray, "g a n"] | None = None
    attention_mass: Float32[np.ndarray, "g a"] | None = None
    reference: TopLogits | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question to be read: its embeddings, what was answered, and the truth's ids if known."""

    prompt: Float[Tensor, "q d"]
    said: Sequence[int]
    reference: Sequence[int] | None = None


@torch.no_grad()
def read_answers(
    model: LLaVA3D,
    prefix: ScenePrefix,
    asked: Sequence[Asked],
    *,
    visual: slice,
    hidden: bool,
    layer_groups: Sequence[range],
    topk: int,
) -> list[Reading]:
    """Signals of every question of a scene, in order.

    ``visual`` are the places of the visual tokens in the prefix. Without ``layer_groups`` there
    is no attention. ``topk`` logits are kept where a question has a reference.
    """
    readings: list[Reading] = []
    for part in _parts(asked):
        readings += _read(
            model, prefix, part, visual=visual, hidden=hidden, layer_groups=layer_groups, topk=topk
        )
    return readings


def _parts(asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
    start, tokens = 0, 0
    for index, one in enumerate(asked):
        count = len(one.said) + len(one.reference or ())
        if index > start and tokens + count > ANSWER_TOKENS:
            yield asked[start:index]
            start, tokens = index, 0
        tokens += count
    if asked:
        yield asked[start:]


def _read(
    model: LLaVA3D,
    prefix: ScenePrefix,
    asked: Sequence[Asked],
    *,
    visual: slice,
    hidden: bool,
    layer_groups: Sequence[range],
    topk: int,
) -> list[Reading]:
    row = _PromptRow(model, prefix, [one.prompt for one in asked])
    # What was said first, so that its attention rows are the first ones.
    branches = [(i, one.said) for i, one in enumerate(asked)]
    branches += [(i, one.reference) for i, one in enumerate(asked) if one.reference]
    own = sum(len(one.said) for one in asked)
    with _attention_of(model, layer_groups, rows=own, visual=visual) as maps:
        predicting = row.read(branches)
    lengths = [len(one.said) for one in asked]
    attention = torch.stack(maps, dim=1).split(lengths) if maps else None  # [a g n] each
    references = {
        question: _top(model, states, topk)
        for (question, _), states in zip(branches[len(asked) :], predicting[len(asked) :])
    }
    readings = []
    for index in range(len(asked)):
        rows = None if attention is None else attention[index].transpose(0, 1)
        readings.append(
            Reading(
                hidden=_half(predicting[index]) if hidden else None,
                attention=None if rows is None else _half(rows),
                attention_mass=None if rows is None else rows.sum(dim=-1).cpu().numpy(),
                reference=references.get(index),
            )
        )
    return readings


class _PromptRow:
    """All prompts behind the scene, read once; answers follow side by side, each seeing its own."""

    def __init__(self, model: LLaVA3D, prefix: ScenePrefix, prompts: Sequence[Tensor]) -> None:
        self.model, self.cache = model, prefix.cache()
        device, n = prefix.embeds.device, prefix.length
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ends = self.lengths.cumsum(0)
        self.question = torch.repeat_interleave(
            torch.arange(len(prompts), device=device), self.lengths
        )
        within = torch.arange(len(self.question), device=device)
        within -= (ends - self.lengths)[self.question]
        scene = torch.arange(n, device=device)
        position = torch.cat([scene, n + within])
        kind = torch.full_like(position, int(Kind.Q))
        kind[:n] = int(Kind.V)
        segment = torch.cat([torch.zeros_like(scene), self.question + 1])
        mask = attention_mask(
            kind[None],
            segment[None],
            position[None],
            visibility=prefix.visibility,
            query_start=n,
        )
        states = decoder_states(
            model,
            torch.cat(list(prompts))[None],
            mask=mask,
            position=position[None, n:],
            cache=self.cache,
        )[0]
        self.scene_length = n
        #: The states that predict each answer's first token, [questions d].
        self.last = states[ends - 1]

    def read(self, branches: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """For each (question, answer ids) the states that predict its tokens, ``[a d]``."""
        device = self.last.device
        ids = torch.tensor([token for _, answer in branches for token in answer], device=device)
        counts = torch.tensor([len(answer) for _, answer in branches], device=device)
        branch = torch.repeat_interleave(torch.arange(len(branches), device=device), counts)
        question = torch.tensor([number for number, _ in branches], device=device)[branch]
        order = torch.arange(len(ids), device=device)
        within = order - (counts.cumsum(0) - counts)[branch]
        sees_answer = (branch[:, None] == branch[None, :]) & (order[None, :] <= order[:, None])
        mask = torch.cat(
            [
                torch.ones(len(ids), self.scene_length, dtype=torch.bool, device=device),
                question[:, None] == self.question[None, :],
                sees_answer,
            ],
            dim=1,
        )
        states = decoder_states(
            self.model,
            self.model.get_input_embeddings()(ids)[None],
            mask=mask[None, None],
            position=(self.scene_length + self.lengths[question] + within)[None],
            cache=self.cache,
        )[0]
        read = states.split(counts.tolist())
        return [
            torch.cat([self.last[number][None], part[:-1]])
            for (number, _), part in zip(branches, read, strict=True)
        ]


@contextmanager
def _attention_of(
    model: LLaVA3D, layer_groups: Sequence[range], *, rows: int, visual: slice
) -> Iterator[list[Tensor]]:
    """Mean attention of the first ``rows`` queries over heads and each group's layers, ``[a n]``.

    The list is filled when the block has run; it stays empty without groups. Inside, the language
    model attends eagerly.
    """
    maps: list[Tensor] = []
    if not layer_groups:
        yield maps
        return
    language = model.model
    sums: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor) -> None:
        mean = weights[0, :, :rows, visual].float().mean(dim=0)  # [a n]
        for number, group in enumerate(layer_groups):
            if layer in group:
                sums[number] = sums.get(number, 0.0) + mean / len(group)

    hooks = [
        block.self_attn.register_forward_hook(
            lambda _module, _given, output, layer=layer: keep(layer, output[1])
        )
        for layer, block in enumerate(language.layers)
        if any(layer in group for group in layer_groups)
    ]
    before = model.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield maps
    finally:
        language.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    maps += [sums[number] for number in range(len(layer_groups))]


@contextmanager
def last_layer_output(model: LLaVA3D) -> Iterator[list[Tensor]]:
    """What the last decoder layer gives to the final norm, ``[1 l d]`` for every reading inside."""
    seen: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _top(model: LLaVA3D, states: Float[Tensor, "a d"], k: int) -> TopLogits:
    logits = model.get_output_embeddings()(states).float()
    best = logits.topk(min(k, logits.shape[-1]))
    return TopLogits(
        ids=best.indices.cpu().numpy(),
        logits=best.values.cpu().numpy(),
        logsumexp=logits.logsumexp(dim=-1).cpu().numpy(),
    )


def _half(values: Tensor) -> Float16[np.ndarray, "..."]:
    return values.half().cpu().numpy()
