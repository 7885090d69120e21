"""Greedy answers to many questions about one scene, all in one packed row.

The questions stand side by side behind the shared prefix instead of in a batch, so that the keys
and values of V exist once whatever the number of questions, and prompts need no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.mask import Kind, Visibility, attention_mask
from stillroom.engine.prefix import ScenePrefix, decoder_states


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One answer. ``ids`` end with the end-of-sequence id if the model produced it in time.

    With ``topk`` > 0: for every answer position the k largest logits, their ids, and the
    logsumexp over the whole vocabulary (nats).
    """

    ids: list[int]
    topk_ids: Int[np.ndarray, "a k"] | None = None
    topk_logits: Float[np.ndarray, "a k"] | None = None
    logsumexp: Float[np.ndarray, "a"] | None = None


@torch.no_grad()
def greedy(
    lm: PreTrainedModel,
    prefix: ScenePrefix,
    prompts: Sequence[Float[Tensor, "_ d"]],
    *,
    visibility: Visibility,
    max_new_tokens: int,
    eos_id: int,
    topk: int = 0,
    chunk: int = 64,
) -> list[Decoded]:
    """The most probable continuation of each prompt, token by token, in the order of the prompts.

    A prompt is the embeddings of all that stands between V and the answer. At most ``chunk``
    questions share a row; an answer does not depend on its neighbours.

    Raises:
        ValueError: the prefix was made under another visibility, or a prompt is empty.
    """
    if prefix.visibility != visibility:
        raise ValueError(f"the prefix was made for {prefix.visibility}, not for {visibility}")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty; give it at least one embedding")
    if max_new_tokens < 1:
        return [Decoded(ids=[]) for _ in prompts]
    # Under full_prefix V depends on the question, so that a row holds one question only.
    step = 1 if visibility == "full_prefix" else chunk
    decoded: list[Decoded] = []
    for start in range(0, len(prompts), step):
        row = _Row(lm, prefix)
        logits = row.read(prompts[start : start + step])
        decoded += _decode(row, logits, max_new_tokens, eos_id, topk)
    return decoded


def _decode(
    row: _Row, logits: Tensor, max_new_tokens: int, eos_id: int, topk: int
) -> list[Decoded]:
    """Go on from the logits of each question's first answer position until all have ended."""
    alive = list(range(len(logits)))
    answers = [_Answer() for _ in alive]
    for step in range(max_new_tokens):
        chosen = logits.argmax(dim=-1)
        best = logits.topk(min(topk, logits.shape[-1])) if topk else None
        logsumexp = logits.logsumexp(dim=-1) if topk else None
        ids = chosen.tolist()  # the one host sync of the step: who has ended?
        for where, question in enumerate(alive):
            answers[question].ids.append(ids[where])
            if best is not None and logsumexp is not None:
                answers[question].best.append(
                    (best.indices[where], best.values[where], logsumexp[where])
                )
        kept = [where for where, token in enumerate(ids) if token != eos_id]
        alive = [alive[where] for where in kept]
        if not alive or step + 1 == max_new_tokens:
            break
        if len(kept) < len(ids):
            chosen = chosen[torch.tensor(kept, device=chosen.device)]
        logits = row.extend(alive, chosen)
    return [answer.finish() for answer in answers]


@dataclass
class _Answer:
    ids: list[int] = field(default_factory=list)
    best: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def finish(self) -> Decoded:
        if not self.best:
            return Decoded(ids=self.ids)
        indices, values, logsumexp = (
            torch.stack(part).cpu().numpy() for part in zip(*self.best, strict=True)
        )
        return Decoded(ids=self.ids, topk_ids=indices, topk_logits=values, logsumexp=logsumexp)


class _Row:
    """A packed row that grows: V, then all prompts, then one answer token per living question."""

    def __init__(self, lm: PreTrainedModel, prefix: ScenePrefix) -> None:
        self.lm, self.prefix = lm, prefix
        self.cache: DynamicCache = prefix.cache()
        device = prefix.embeds.device
        self.position = torch.arange(prefix.length, device=device)
        self.kind = torch.full_like(self.position, int(Kind.V))
        self.segment = torch.zeros_like(self.position)
        # Position of the next token of each question.
        self.next: Tensor = torch.empty(0, dtype=torch.long, device=device)

    def read(self, prompts: Sequence[Tensor]) -> Tensor:
        """Logits at each prompt's last token, ``[questions vocabulary]``."""
        device, n = self.kind.device, self.prefix.length
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ends = lengths.cumsum(0)
        segment = torch.repeat_interleave(torch.arange(len(prompts)), lengths)
        within = torch.arange(int(ends[-1])) - (ends - lengths)[segment]
        self.next = (n + lengths).to(device)
        embeds = torch.cat(list(prompts))[None]
        # Nothing of V is cached under full_prefix: it is read along with the question.
        cached = bool(self.prefix.layers)
        start = n if cached else 0
        self._append(Kind.Q, segment.to(device) + 1, (n + within).to(device))
        embeds = embeds if cached else torch.cat([self.prefix.embeds, embeds], dim=1)
        states = self._states(embeds, start)
        return self._logits(states[n - start :][(ends - 1).to(device)])

    def extend(self, alive: Sequence[int], tokens: Tensor) -> Tensor:
        """Logits after one more answer token of each living question."""
        index = torch.tensor(alive, device=tokens.device)
        start = len(self.kind)
        self._append(Kind.A, index + 1, self.next[index])
        self.next[index] += 1
        embeds = self.lm.get_input_embeddings()(tokens)[None]
        return self._logits(self._states(embeds, start))

    def _append(self, kind: Kind, segment: Tensor, position: Tensor) -> None:
        self.kind = torch.cat([self.kind, torch.full_like(segment, int(kind))])
        self.segment = torch.cat([self.segment, segment])
        self.position = torch.cat([self.position, position])

    def _states(self, embeds: Tensor, start: int) -> Tensor:
        mask = attention_mask(
            self.kind[None],
            self.segment[None],
            self.position[None],
            visibility=self.prefix.visibility,
            query_start=start,
        )
        position = self.position[None, start:]
        return decoder_states(self.lm, embeds, mask=mask, position=position, cache=self.cache)[0]

    def _logits(self, states: Tensor) -> Tensor:
        return self.lm.get_output_embeddings()(states).float()
