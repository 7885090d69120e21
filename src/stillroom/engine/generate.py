"""Greedy answers to many questions about a scene, all in one packed row.

The questions stand side by side behind the shared prefix instead of in a batch, so that the keys
and values of V exist once whatever the number of questions, and prompts need no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.mask import Kind, Visibility, attention_mask
from stillroom.engine.prefix import ScenePrefix, contents, decoder_states

#: Cached tokens of rows that are decoded side by side: several small scenes, one of the 7B's.
JOINED_TOKENS = 8_192
#: Tokens of prompts that are read at once: on CPU 192 to 384 are alike, and all of 45 questions in
#: one piece take a fifth longer.
PIECE_TOKENS = 256


#: Ids of every answer that is allowed, each with its end; none: any text.
Choices = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One answer. ``ids`` end with the end-of-sequence id if the model produced it in time.

    ``logprob`` is the log-probability of all of them (nats) over the whole vocabulary, also where
    choices were given. With ``topk`` > 0: for every answer position the k largest logits, their
    ids, and the logsumexp over the whole vocabulary (nats).
    """

    ids: list[int]
    logprob: float = 0.0
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
    choices: Sequence[Choices] = (),
) -> list[Decoded]:
    """The most probable continuation of each prompt, token by token, in the order of the prompts.

    A prompt is the embeddings of all that stands between V and the answer. At most ``chunk``
    questions share a row; an answer does not depend on its neighbours. Where a question has
    ``choices``, its answer is one of them: the likeliest token, again and again, that goes on
    with one. The logits that are kept are those over all tokens.

    Raises:
        ValueError: the prefix was made under another visibility, or a prompt is empty.
    """
    return greedy_scenes(
        lm,
        [(prefix, prompts, choices)],
        visibility=visibility,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        topk=topk,
        chunk=chunk,
        joined_tokens=0,
    )[0]


@torch.no_grad()
def greedy_scenes(
    lm: PreTrainedModel,
    asked: Iterable[tuple[ScenePrefix, Sequence[Float[Tensor, "_ d"]], Sequence[Choices]]],
    *,
    visibility: Visibility,
    max_new_tokens: int,
    eos_id: int,
    topk: int = 0,
    chunk: int = 64,
    joined_tokens: int = JOINED_TOKENS,
) -> list[list[Decoded]]:
    """``greedy`` for several scenes with their prompts and choices, long answers side by side.

    Every scene is read by itself, when ``asked`` comes to it; then rows of at most
    ``joined_tokens`` in all (a single row may be longer) go on together, so that one step of the
    model serves all of them.

    Raises:
        ValueError: a prefix was made under another visibility, or a prompt is empty.
    """
    # Under full_prefix V depends on the question, so that a row holds one question only.
    step = 1 if visibility == "full_prefix" else chunk
    ends = {"max_new_tokens": max_new_tokens, "eos_id": eos_id, "topk": topk}
    decoded: list[Decoded] = []
    counts: list[int] = []
    rows: list[_Row] = []
    for prefix, prompts, choices in asked:
        if prefix.visibility != visibility:
            raise ValueError(f"the prefix was made for {prefix.visibility}, not for {visibility}")
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("a prompt is empty; give it at least one embedding")
        counts.append(len(prompts))
        allowed = list(choices) or [()] * len(prompts)
        for start in range(0, len(prompts) if max_new_tokens > 0 else 0, step):
            part = prompts[start : start + step]
            held = sum(len(row.kind) for row in rows)
            if rows and held + prefix.length + sum(map(len, part)) > joined_tokens:
                decoded += _decode(_joined(rows), **ends)
            rows.append(_Row(lm, prefix, part, allowed[start : start + step]))
    if rows:
        decoded += _decode(_joined(rows), **ends)
    if max_new_tokens < 1:
        decoded = [Decoded(ids=[]) for _ in range(sum(counts))]
    behind = np.cumsum(counts).tolist()
    return [decoded[end - count : end] for count, end in zip(counts, behind, strict=True)]


def _decode(row: _Row, *, max_new_tokens: int, eos_id: int, topk: int) -> list[Decoded]:
    """Go on from the logits of each question's first answer position until all have ended."""
    logits = row.first
    alive = list(range(len(logits)))
    answers = [_Answer() for _ in alive]
    logprobs = torch.zeros(len(alive), device=logits.device)
    for step in range(max_new_tokens):
        said = [answers[question].ids for question in alive]
        chosen = (logits + _bans(logits, said, [row.choices[q] for q in alive])).argmax(dim=-1)
        best = logits.topk(min(topk, logits.shape[-1])) if topk else None
        logsumexp = logits.logsumexp(dim=-1)
        index = torch.tensor(alive, device=logits.device)
        logprobs[index] += logits.gather(1, chosen[:, None])[:, 0] - logsumexp
        ids = chosen.tolist()  # the one host sync of the step: who has ended?
        for where, question in enumerate(alive):
            answers[question].ids.append(ids[where])
            if best is not None:
                answers[question].best.append(
                    (best.indices[where], best.values[where], logsumexp[where])
                )
        kept = [where for where, token in enumerate(ids) if token != eos_id]
        alive = [alive[where] for where in kept]
        if not alive or step + 1 == max_new_tokens:
            break
        if len(kept) < len(ids):
            chosen = chosen[torch.tensor(kept, device=chosen.device)]
        row.forget(alive)
        logits = row.extend(alive, chosen)
    totals = logprobs.tolist()
    return [answer.finish(total) for answer, total in zip(answers, totals, strict=True)]


def _bans(
    logits: Tensor, said: Sequence[Sequence[int]], choices: Sequence[Choices]
) -> Tensor | float:
    """Minus infinity on every token with which no choice goes on; 0 where any text is allowed."""
    bound = [where for where, allowed in enumerate(choices) if allowed]
    if not bound:
        return 0.0
    bans = torch.zeros_like(logits)
    bans[bound] = -torch.inf
    for where in bound:
        begun, count = list(said[where]), len(said[where])
        bans[where, [ids[count] for ids in choices[where] if list(ids[:count]) == begun]] = 0.0
    return bans


@dataclass
class _Answer:
    ids: list[int] = field(default_factory=list)
    best: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def finish(self, logprob: float) -> Decoded:
        if not self.best:
            return Decoded(ids=self.ids, logprob=logprob)
        indices, values, logsumexp = (
            torch.stack(part).cpu().numpy() for part in zip(*self.best, strict=True)
        )
        return Decoded(
            ids=self.ids,
            logprob=logprob,
            topk_ids=indices,
            topk_logits=values,
            logsumexp=logsumexp,
        )


class _Row:
    """A packed row that grows: V, then all prompts, then one answer token per living question.

    Rows of several scenes may have been joined into one: ``scene`` tells whose each position is.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        prefix: ScenePrefix,
        prompts: Sequence[Tensor],
        choices: Sequence[Choices],
    ) -> None:
        self.lm = lm
        self.choices = list(choices)
        device, n = prefix.embeds.device, prefix.length
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ends = lengths.cumsum(0)
        segment = torch.repeat_interleave(torch.arange(len(prompts)), lengths)
        within = torch.arange(int(ends[-1])) - (ends - lengths)[segment]
        self.position = torch.arange(n, device=device)
        self.kind = torch.full_like(self.position, int(Kind.V))
        self.segment = torch.zeros_like(self.position)
        self.scene = torch.zeros_like(self.position)
        # By question: position of its next token, and its scene.
        self.next: Tensor = (n + lengths).to(device)
        self.of_scene = torch.zeros_like(self.next)
        self._append(Kind.Q, segment.to(device) + 1, (n + within).to(device))
        # Questions do not see each other: read a few at a time, they do not even look past each
        # other, which costs the square of all their tokens.
        pieces = [self._read(prefix, part) for part in _pieces(prompts, PIECE_TOKENS)]
        self.cache = _behind_each_other([cache for _, cache in pieces], n)
        states = torch.cat([states for states, _ in pieces])
        #: Logits at each prompt's last token, [questions vocabulary].
        self.first = self._logits(states[(ends - 1).to(device)])

    def _read(
        self, prefix: ScenePrefix, prompts: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "t d"], DynamicCache]:
        """Some prompts behind V: the states of their tokens, and a cache of V and of them."""
        n, device = prefix.length, prefix.embeds.device
        lengths = [len(prompt) for prompt in prompts]
        of_v = torch.zeros(n, dtype=torch.long, device=device)
        segment = torch.arange(1, len(prompts) + 1).repeat_interleave(torch.tensor(lengths))
        position = torch.cat([torch.arange(n, n + length) for length in lengths])
        kind = torch.cat([of_v + int(Kind.V), torch.full_like(segment, int(Kind.Q)).to(device)])
        segment = torch.cat([of_v, segment.to(device)])
        position = torch.cat([torch.arange(n, device=device), position.to(device)])
        # Nothing of V is cached under full_prefix: it is read along with the question.
        start = n if prefix.layers else 0
        embeds = torch.cat(list(prompts))[None]
        embeds = embeds if start else torch.cat([prefix.embeds, embeds], dim=1)
        mask = attention_mask(
            kind[None],
            segment[None],
            position[None],
            visibility=prefix.visibility,
            query_start=start,
        )
        cache = prefix.cache()
        states = decoder_states(
            self.lm, embeds, mask=mask, position=position[None, start:], cache=cache
        )[0]
        return states[n - start :], cache

    def forget(self, alive: Sequence[int]) -> None:
        """Drop what ended questions have cached, once that is most of it."""
        kept = self.kind == Kind.V
        kept |= torch.isin(self.segment, torch.tensor(alive, device=kept.device) + 1)
        if 2 * int(kept.sum()) > len(kept):
            return
        index = kept.nonzero()[:, 0]
        smaller = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            keys, values = contents(layer)
            smaller.update(keys[:, :, index], values[:, :, index], number)
        self.cache = smaller
        self.kind, self.segment, self.position, self.scene = (
            x[index] for x in (self.kind, self.segment, self.position, self.scene)
        )

    def extend(self, alive: Sequence[int], tokens: Tensor) -> Tensor:
        """Logits after one more answer token of each living question."""
        index = torch.tensor(alive, device=tokens.device)
        start = len(self.kind)
        self._append(Kind.A, index + 1, self.next[index])
        self.next[index] += 1
        embeds = self.lm.get_input_embeddings()(tokens)[None]
        # An answer's newest token sees V of its scene and all of its own question.
        whose = self.scene[start:, None] == self.scene[None, :]
        own = self.segment[start:, None] == self.segment[None, :]
        mask = whose & (own | (self.kind == Kind.V)[None, :])
        return self._logits(self._states(embeds, mask[None, None], start))

    def _append(self, kind: Kind, segment: Tensor, position: Tensor) -> None:
        self.kind = torch.cat([self.kind, torch.full_like(segment, int(kind))])
        self.segment = torch.cat([self.segment, segment])
        self.position = torch.cat([self.position, position])
        self.scene = torch.cat([self.scene, self.of_scene[segment - 1]])

    def _states(self, embeds: Tensor, mask: Tensor, start: int) -> Tensor:
        position = self.position[None, start:]
        return decoder_states(self.lm, embeds, mask=mask, position=position, cache=self.cache)[0]

    def _logits(self, states: Tensor) -> Tensor:
        return self.lm.get_output_embeddings()(states).float()


def _pieces(prompts: Sequence[Tensor], most: int) -> list[Sequence[Tensor]]:
    """Prompts in runs of at most ``most`` tokens; a longer prompt is a run of its own."""
    runs: list[list[Tensor]] = []
    held = 0
    for prompt in prompts:
        if not runs or held + len(prompt) > most:
            runs.append([])
            held = 0
        runs[-1].append(prompt)
        held += len(prompt)
    return list(runs)


def _behind_each_other(caches: Sequence[DynamicCache], shared: int) -> DynamicCache:
    """One cache of several that begin with the same ``shared`` positions."""
    if len(caches) == 1:
        return caches[0]
    joined = DynamicCache()
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        (keys, values), *others = map(contents, layers)
        keys = torch.cat([keys, *(more[:, :, shared:] for more, _ in others)], dim=2)
        values = torch.cat([values, *(more[:, :, shared:] for _, more in others)], dim=2)
        joined.update(keys, values, number)
    return joined


def _joined(rows: list[_Row]) -> _Row:
    """One row of all, which are taken out of the list; questions and scenes are counted on."""
    if len(rows) == 1:
        return rows.pop()
    first = rows[0]
    questions = np.cumsum([0, *(len(row.next) for row in rows)])
    for number, row in enumerate(rows):
        row.segment = torch.where(row.segment > 0, row.segment + int(questions[number]), 0)
        row.scene, row.of_scene = row.scene + number, row.of_scene + number
    for name in ("position", "kind", "segment", "scene", "next", "of_scene", "first"):
        setattr(first, name, torch.cat([getattr(row, name) for row in rows]))
    first.choices = [allowed for row in rows for allowed in row.choices]
    cache = DynamicCache()
    for number, layers in enumerate(zip(*(row.cache.layers for row in rows), strict=True)):
        keys, values = zip(*map(contents, layers), strict=True)
        cache.update(torch.cat(keys, dim=2), torch.cat(values, dim=2), number)
    first.cache = cache
    rows.clear()
    return first
