"""Greedy answers to many questions about a scene, all in one packed row.

The questions stand side by side behind the shared prefix instead of in a batch, so that the keys
and values of V exist once whatever the number of questions, and prompts need no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from stillroom.engine.cache import side_by_side
from stillroom.engine.choosing import Choices as Choices
from stillroom.engine.choosing import Chooser
from stillroom.engine.decoder import LeanDecoder, decoder_of
from stillroom.engine.graphs import MOST_ROOM, step_graph
from stillroom.engine.mask import Kind, Visibility, attention_mask
from stillroom.engine.prefix import ScenePrefix

#: Cached tokens of rows that are decoded side by side: several small scenes, one of the 7B's.
JOINED_TOKENS = 8_192
#: Tokens of prompts that are read at once: on CPU 192 to 384 are alike, and all of 45 questions in
#: one piece take a fifth longer.
PIECE_TOKENS = 256
#: Tokens of an answer that room is taken for at once; longer ones get more as they grow.
ANSWER_ROOM = 16
#: Off a CPU the host looks only so often which questions have ended, so that it never holds up the
#: device; what is said behind an end is thrown away.
LOOK_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One answer. ``ids`` end with the end-of-sequence id if the model produced it in time.

    ``logprob`` is the log-probability of all of them (nats) over the whole vocabulary, also where
    choices were given; 0 where nobody asked for it. With ``topk`` > 0: for every answer position
    the k largest logits, their ids, and the logsumexp over the whole vocabulary (nats).
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
    scored: bool = True,
    chunk: int = 64,
    choices: Sequence[Choices] = (),
    plain: bool = False,
) -> list[Decoded]:
    """The most probable continuation of each prompt, token by token, in the order of the prompts.

    A prompt is the embeddings of all that stands between V and the answer. At most ``chunk``
    questions share a row; an answer does not depend on its neighbours. Where a question has
    ``choices``, its answer is one of them: the likeliest token, again and again, that goes on
    with one. The logits that are kept are those over all tokens. Without ``scored`` there is no
    log-probability, and nothing is read for an answer that only one choice is left to. ``plain``
    reads with the model's own ``forward`` (``decoder.py``).

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
        scored=scored,
        chunk=chunk,
        joined_tokens=0,
        plain=plain,
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
    scored: bool = True,
    chunk: int = 64,
    joined_tokens: int = JOINED_TOKENS,
    plain: bool = False,
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
    ends = _Ends(most=max_new_tokens, eos_id=eos_id, topk=topk, scored=scored)
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
            held = sum(row.cache.length for row in rows)
            if rows and held + prefix.length + sum(map(len, part)) > joined_tokens:
                decoded += _decode(_joined(rows), ends)
            rows.append(_Row(lm, prefix, part, allowed[start : start + step], ends, plain=plain))
    if rows:
        decoded += _decode(_joined(rows), ends)
    if max_new_tokens < 1:
        decoded = [Decoded(ids=[]) for _ in range(sum(counts))]
    behind = np.cumsum(counts).tolist()
    return [decoded[end - count : end] for count, end in zip(counts, behind, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """When an answer ends, and what is kept of its tokens."""

    most: int
    eos_id: int
    topk: int
    scored: bool

    def only_one_left(self, said: Sequence[int], allowed: Choices) -> list[int] | None:
        """The whole answer where what has been said leaves a single choice, and no more is kept."""
        if self.scored or self.topk or not allowed:
            return None
        begun = list(said)
        left = [list(ids) for ids in allowed if list(ids[: len(begun)]) == begun]
        alike = left and all(ids == left[0] for ids in left)
        return left[0][: self.most] if alike else None

    def cut(self, said: Sequence[int], allowed: Choices) -> tuple[list[int], bool]:
        """What has been said up to its end, and whether that is the whole answer."""
        for count in range(1, len(said) + 1):
            if said[count - 1] == self.eos_id:
                return list(said[:count]), True
            whole = self.only_one_left(said[:count], allowed)
            if whole is not None:
                return whole, True
        return list(said), False


@torch.inference_mode()
def _decode(row: _Row, ends: _Ends) -> list[Decoded]:
    """Go on from the logits of each question's first answer position until all have ended."""
    if _recordable(row, ends):
        return _replay(row, ends)
    logits, chooser = row.first, Chooser(row.choices, row.first.device)
    answers = [_Answer(allowed) for allowed in row.choices]
    alive, taken = list(range(len(answers))), list[_Step]()
    every = 1 if logits.device.type == "cpu" else LOOK_EVERY
    for step in range(ends.most):
        chosen = chooser.pick(logits, step)
        taken.append(_Step(logits, chosen, ends))
        last = step + 1 == ends.most
        if len(taken) == every or last:
            going = _note(taken, [answers[question] for question in alive], ends)
            taken = []
            if last or not going:
                break
            if len(going) < len(alive):
                alive = [alive[where] for where in going]
                index = torch.tensor(going, device=logits.device)
                chosen = chosen[index]
                chooser.keep(index)
                row.keep(index)
        logits = row.extend(chosen)
    return [answer.finish() for answer in answers]


def _recordable(row: _Row, ends: _Ends) -> bool:
    """Whether the steps can run as a recorded graph: on a GPU, with nothing kept but the ids."""
    room = row.cache.length + len(row.choices) * ends.most
    if ends.scored or ends.topk or ends.most < 2 or room > MOST_ROOM:
        return False
    return isinstance(row.decoder, LeanDecoder) and row.first.is_cuda


def _replay(row: _Row, ends: _Ends) -> list[Decoded]:
    """``_decode`` by recorded steps; the host looks now and then which questions have ended."""
    assert isinstance(row.decoder, LeanDecoder)
    graph, chooser = step_graph(row.decoder, row.embed, row.cache, row.choices, most=ends.most)
    graph.load(row.cache, row.mask, row.next, chooser.pick(row.first, 0), chooser)
    done = 1
    while True:
        answers = [
            ends.cut(ids, allowed)
            for ids, allowed in zip(graph.said[:done].T.tolist(), row.choices, strict=True)
        ]
        if done == ends.most or all(whole for _, whole in answers):
            return [Decoded(ids=ids) for ids, _ in answers]
        steps = min(LOOK_EVERY, ends.most - done)
        graph.advance(steps)
        done += steps


class _Step:
    """What one step said of every question; stays on the device until somebody looks."""

    def __init__(self, logits: Tensor, chosen: Tensor, ends: _Ends) -> None:
        self.ids, self.logprob, self.top = chosen, None, None
        if ends.scored or ends.topk:
            self.logsumexp = logits.logsumexp(dim=-1)
            self.logprob = logits.gather(1, chosen[:, None])[:, 0] - self.logsumexp
        if ends.topk:
            self.top = logits.topk(min(ends.topk, logits.shape[-1]))


def _note(steps: Sequence[_Step], answers: Sequence[_Answer], ends: _Ends) -> list[int]:
    """Write steps into the answers, up to the end of each; which of them go on."""
    ids = torch.stack([step.ids for step in steps]).tolist()  # the one host sync: who has ended?
    scores: list[list[float]] | None = None
    if steps[0].logprob is not None:
        scores = torch.stack([s.logprob for s in steps if s.logprob is not None]).tolist()
    going = []
    for where, answer in enumerate(answers):
        for number, step in enumerate(steps):
            answer.ids.append(ids[number][where])
            answer.logprob += scores[number][where] if scores is not None else 0.0
            if step.top is not None:
                top = (step.top.indices[where], step.top.values[where], step.logsumexp[where])
                answer.top.append(top)
            if ids[number][where] == ends.eos_id:
                break
        else:
            whole = ends.only_one_left(answer.ids, answer.allowed)
            if whole is None:
                going.append(where)
            else:
                answer.ids = whole
    return going


class _Answer:
    def __init__(self, allowed: Choices) -> None:
        self.allowed = allowed
        self.ids: list[int] = []
        self.logprob = 0.0
        self.top: list[tuple[Tensor, Tensor, Tensor]] = []

    def finish(self) -> Decoded:
        if not self.top:
            return Decoded(ids=self.ids, logprob=self.logprob)
        indices, values, logsumexp = (
            torch.stack(part).cpu().numpy() for part in zip(*self.top, strict=True)
        )
        return Decoded(
            ids=self.ids,
            logprob=self.logprob,
            topk_ids=indices,
            topk_logits=values,
            logsumexp=logsumexp,
        )


class _Row:
    """A packed row that grows: V, then all prompts, then one answer token per living question.

    Rows of several scenes may have been joined into one. ``mask`` (added to attention, 0 or minus
    infinity) says what each question looks at; without it, all of the row.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        prefix: ScenePrefix,
        prompts: Sequence[Tensor],
        choices: Sequence[Choices],
        ends: _Ends,
        *,
        plain: bool = False,
    ) -> None:
        self.decoder = decoder_of(lm, plain=plain)
        self.embed = lm.get_input_embeddings()
        self.choices = list(choices)
        device, n = prefix.embeds.device, prefix.length
        lengths = [len(prompt) for prompt in prompts]
        count = len(prompts)
        self.cache = prefix.row(sum(lengths) + count * min(ends.most, ANSWER_ROOM))
        # Questions do not see each other: read a few at a time, they do not even look past each
        # other, which costs the square of all their tokens.
        states = torch.cat([self._read(prefix, part) for part in _pieces(prompts, PIECE_TOKENS)])
        if not prefix.is_read:
            states = states[n:]
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        #: Logits at each prompt's last token, [questions vocabulary].
        self.first = self.decoder.logits(states[last])
        #: Position of each question's next token.
        self.next: Tensor = torch.tensor([n + length for length in lengths], device=device)
        self.mask: Tensor | None = None
        if count > 1:
            whose = torch.repeat_interleave(torch.tensor(lengths, device=device))
            own = whose[None, :] == torch.arange(count, device=device)[:, None]
            seen = torch.cat([own.new_ones(count, n), own], dim=1)
            self.mask = _hidden(seen, prefix.embeds.dtype)

    def _read(self, prefix: ScenePrefix, prompts: Sequence[Tensor]) -> Float[Tensor, "t d"]:
        """Some prompts behind V: the states of their tokens."""
        n, device = prefix.length, prefix.embeds.device
        lengths = [len(prompt) for prompt in prompts]
        # Nothing of V is cached under full_prefix: it is read along with the question.
        start = n if prefix.is_read else 0
        places = [torch.arange(n, device=device)]
        places += [torch.arange(n, n + length, device=device) for length in lengths]
        position = torch.cat(places)
        embeds = torch.cat(list(prompts))[None]
        embeds = embeds if start else torch.cat([prefix.embeds, embeds], dim=1)
        mask = None
        # A single question sees all there is, unless only what stands before it.
        if len(prompts) > 1 or prefix.visibility == "causal":
            of_v = torch.zeros(n, dtype=torch.long, device=device)
            numbers = torch.arange(1, len(prompts) + 1, device=device)
            segment = numbers.repeat_interleave(torch.tensor(lengths, device=device))
            kind = torch.cat([of_v + int(Kind.V), torch.full_like(segment, int(Kind.Q))])
            mask = attention_mask(
                kind[None],
                torch.cat([of_v, segment])[None],
                position[None],
                visibility=prefix.visibility,
                query_start=start,
            )[0, 0]
        return self.decoder.read(
            embeds, position=position[start:], cache=self.cache, mask=mask, seen=start
        )

    def extend(self, tokens: Int[Tensor, "b"]) -> Float[Tensor, "b v"]:
        """Logits after one more answer token of each living question."""
        count, start = len(tokens), self.cache.length
        if self.mask is not None:
            # An answer's newest token sees V of its scene and all of its own question.
            own = torch.eye(count, dtype=torch.bool, device=tokens.device)
            self.mask = torch.cat([self.mask, _hidden(own, self.mask.dtype)], dim=1)
            assert self.mask.shape[1] == start + count
        states = self.decoder.read(
            self.embed(tokens)[None], position=self.next, cache=self.cache, mask=self.mask
        )
        self.next = self.next + 1
        return self.decoder.logits(states)

    def keep(self, questions: Int[Tensor, "k"]) -> None:
        """Go on with these questions alone; what nobody sees any more goes once it is most."""
        self.next = self.next[questions]
        if self.mask is None:
            return
        self.mask = self.mask[questions]
        seen = (self.mask == 0).any(dim=0)
        if 2 * int(seen.sum()) > len(seen):
            return
        places = seen.nonzero()[:, 0]
        self.cache = self.cache.select(places)
        self.mask = self.mask[:, places] if len(questions) > 1 else None


def _hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added: 0 where something is seen, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


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


def _joined(rows: list[_Row]) -> _Row:
    """One row of all, which are taken out of the list."""
    if len(rows) == 1:
        return rows.pop()
    first = rows[0]
    masks = [
        torch.zeros(1, row.cache.length, dtype=row.first.dtype, device=row.first.device)
        if row.mask is None
        else row.mask
        for row in rows
    ]
    # Nobody sees another scene.
    seen = torch.block_diag(*((mask == 0) for mask in masks))
    first.mask = _hidden(seen, first.cache.keys[0].dtype)
    first.next = torch.cat([row.next for row in rows])
    first.first = torch.cat([row.first for row in rows])
    first.choices = [allowed for row in rows for allowed in row.choices]
    room = sum(row.cache.length for row in rows) + len(first.choices) * ANSWER_ROOM
    first.cache = side_by_side([row.cache for row in rows], room)
    rows.clear()
    return first
