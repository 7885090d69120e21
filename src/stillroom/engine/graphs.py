"""A step of decoding as one CUDA graph: the host starts it and is not needed again.

All that a step changes (tokens, positions, where keys go, who sees what, what has been said) lies
in tensors that stay where they are, so that the same recorded step serves every scene and question
of its shape. On a CPU the same step runs unrecorded, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stillroom.engine.cache import KeyValues
from stillroom.engine.choosing import Choices, Chooser
from stillroom.engine.decoder import LeanDecoder

#: Rows are rounded up to so many positions, and choices to so many of so many tokens, so that few
#: shapes occur.
ROOM_STEP, CHOICES_STEP, TOKENS_STEP = 256, 4, 16
#: A longer row is decoded unrecorded: it does not take at once what its last token might need.
MOST_ROOM = 8_192
#: Recorded steps that a model keeps; each holds a row's keys and values.
KEPT = 2


class StepGraph:
    """Decodes so many questions of one row, up to ``most`` tokens each."""

    def __init__(
        self,
        decoder: LeanDecoder,
        embed: Callable[[Tensor], Tensor],
        like: KeyValues,
        chooser: Chooser,
        *,
        questions: int,
        room: int,
        most: int,
    ) -> None:
        self.decoder, self.embed, self.chooser = decoder, embed, chooser
        device, dtype = like.keys[0].device, like.keys[0].dtype
        # A table of its own: the decoder's is replaced when a longer row comes, and a recorded step
        # would go on reading where it lay.
        self.table = decoder.table(room + 1, embed(torch.zeros(1, dtype=torch.long, device=device)))
        empty = [(keys[:, :, :0], values[:, :, :0]) for keys, values in like.layers()]
        self.cache = KeyValues.of(empty, room)
        self.tokens = torch.zeros(questions, dtype=torch.long, device=device)
        self.position = torch.zeros_like(self.tokens)
        self.at = torch.arange(questions, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.mask = torch.full((questions, room), -torch.inf, dtype=dtype, device=device)
        self.said = torch.zeros(most, questions, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._record()

    def load(
        self, row: KeyValues, mask: Tensor | None, position: Tensor, first: Tensor, chooser: Chooser
    ) -> None:
        """Begin behind a row that has been read; ``first`` are the first tokens said."""
        length, count = row.length, len(position)
        for number, (keys, values) in enumerate(row.layers()):
            self.cache.keys[number][:, :, :length] = keys
            self.cache.values[number][:, :, :length] = values
        self.mask.fill_(-torch.inf)
        self.mask[:, :length] = 0.0 if mask is None else mask
        self.chooser.take(chooser)
        self.position.copy_(position)
        self.tokens.copy_(first)
        self.said[0] = first
        self.step.zero_()
        torch.arange(length, length + count, out=self.at)

    def advance(self, steps: int) -> None:
        """So many more tokens of every question; nothing waits for the host."""
        for _ in range(steps):
            if self.graph is None:
                self._advance()
            else:
                self.graph.replay()

    def _advance(self) -> None:
        self.mask.scatter_(1, self.at[:, None], 0.0)
        states = self.decoder.read(
            self.embed(self.tokens)[None],
            position=self.position,
            cache=self.cache,
            mask=self.mask,
            at=self.at,
            table=self.table,
        )
        self.step += 1
        self.tokens.copy_(self.chooser.pick(self.decoder.logits(states), self.step))
        self.said.index_copy_(0, self.step, self.tokens[None])
        self.position += 1
        self.at += len(self.at)

    def _record(self) -> None:
        """Run a step on a side stream until everything is warm, then record it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step.zero_()
                torch.arange(len(self.at), out=self.at)
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        self.step.zero_()
        torch.arange(len(self.at), out=self.at)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self.graph = graph


def step_graph(
    decoder: LeanDecoder,
    embed: Callable[[Tensor], Tensor],
    row: KeyValues,
    choices: Sequence[Choices],
    *,
    most: int,
) -> tuple[StepGraph, Chooser]:
    """A recorded step that fits this row, made now or before, and a chooser of its shape."""
    count = len(choices)
    room = _rounded(row.length + count * most, ROOM_STEP)
    options = _rounded(max(map(len, choices), default=0), CHOICES_STEP)
    longest = max((len(ids) for allowed in choices for ids in allowed), default=0)
    longest = _rounded(longest, TOKENS_STEP)
    device = row.keys[0].device
    chooser = Chooser(choices, device, most=options, longest=longest)
    held = decoder.graphs
    shape = (
        count,
        room,
        most,
        *((options, longest, int(chooser.all_ask)) if chooser.bound else ()),
    )
    if shape not in held:
        while len(held) >= KEPT:
            held.popitem(last=False)
        own = Chooser(choices, device, most=options, longest=longest)
        held[shape] = StepGraph(decoder, embed, row, own, questions=count, room=room, most=most)
    held.move_to_end(shape)
    graph: StepGraph = held[shape]
    return graph, chooser


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step
