"""Questions of a scene in one row: ``[V] [T Q A]_1 [T Q A]_2 ...``, encoded and trained together.

Every question restarts its positions right after V, so that a packed question is computed exactly
as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from stillroom.engine.mask import Kind

#: Label of a position where nothing is scored.
IGNORE_INDEX = -100

#: Tokens of questions that are read side by side: measured on CPU, flat between 80 and 200.
GROUP_TOKENS = 96

SlotPosition = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One row, or a batch of rows, of ids with what the mask and the loss need to know of each.

    ``kind`` and ``segment`` as in ``mask.py``. ``ids`` mean nothing on V, T and padding.
    ``labels`` are already shifted: the position before an answer token carries that token.
    """

    kind: Int[Tensor, "*b l"]
    segment: Int[Tensor, "*b l"]
    ids: Int[Tensor, "*b l"]
    position: Int[Tensor, "*b l"]
    labels: Int[Tensor, "*b l"]
    # Length of V, the padding of shorter rows included.
    prefix_length: int
    # Whole questions side by side, as places behind V; one past the end is padding. A group reads
    # V and itself, so that attention stays far from the square of the row.
    groups: Int[Tensor, "*b g m"] | None = None

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(
            kind=self.kind.to(device, non_blocking=True),
            segment=self.segment.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            position=self.position.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            prefix_length=self.prefix_length,
            groups=None if self.groups is None else self.groups.to(device, non_blocking=True),
        )


def pack_questions(
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    prefix_length: int,
    slots: int = 0,
    slot_position: SlotPosition = "before",
    start_id: int | None = None,
    pad_to: int | None = None,
) -> Packed:
    """One row of (question ids, answer ids) pairs behind ``prefix_length`` vision tokens.

    ``start_id`` is put right before each answer, after slots that stand after the question: it is
    what the first answer token is predicted from, so that no slot ever carries a label. Without
    it, that is the last token of the prompt. Answers should end with the end-of-sequence id; an
    empty answer gives a prompt without labels.

    Raises:
        ValueError: a prompt is empty, or the row is longer than ``pad_to``.
    """
    kind, segment = [int(Kind.V)] * prefix_length, [0] * prefix_length
    ids, position = [0] * prefix_length, list(range(prefix_length))
    labels = [IGNORE_INDEX] * prefix_length
    for index, (question, answer) in enumerate(pairs, start=1):
        p_kind, p_ids = prompt_layout(
            question, slots=slots, slot_position=slot_position, start_id=start_id
        )
        if not p_kind:
            raise ValueError(f"question {index} of the row is empty; give it at least one id")
        count = len(p_kind) + len(answer)
        kind += p_kind + [int(Kind.A)] * len(answer)
        segment += [index] * count
        ids += p_ids + list(answer)
        position += range(prefix_length, prefix_length + count)
        labels += [IGNORE_INDEX] * (len(p_kind) - 1) + list(answer) + [IGNORE_INDEX]
    if pad_to is not None:
        missing = pad_to - len(kind)
        if missing < 0:
            raise ValueError(f"the row has {len(kind)} positions, more than pad_to={pad_to}")
        kind += [int(Kind.PAD)] * missing
        segment, ids, position = (x + [0] * missing for x in (segment, ids, position))
        labels += [IGNORE_INDEX] * missing
    return Packed(
        kind=torch.tensor(kind),
        segment=torch.tensor(segment),
        ids=torch.tensor(ids),
        position=torch.tensor(position),
        labels=torch.tensor(labels),
        prefix_length=prefix_length,
    )


def question_places(
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    slots: int = 0,
    slot_position: SlotPosition = "before",
    start_id: int | None = None,
) -> list[int]:
    """Where each question of ``pack_questions``' row has its first token, counted behind V."""
    places, start = [], 0
    for question, answer in pairs:
        kinds, _ = prompt_layout(question, slots=slots, slot_position=slot_position, start_id=None)
        places.append(start + kinds.index(int(Kind.Q)))
        start += len(kinds) + (start_id is not None) + len(answer)
    return places


def prompt_layout(
    question: Sequence[int], *, slots: int, slot_position: SlotPosition, start_id: int | None
) -> tuple[list[int], list[int]]:
    """Kinds and ids of all that stands between V and the answer; slots have id 0."""
    q_kind, t_kind = [int(Kind.Q)] * len(question), [int(Kind.T)] * slots
    q_ids, t_ids = list(question), [0] * slots
    start = [] if start_id is None else [start_id]
    if slot_position == "before":
        return t_kind + q_kind + [int(Kind.Q)] * len(start), t_ids + q_ids + start
    return q_kind + t_kind + [int(Kind.Q)] * len(start), q_ids + t_ids + start


def stack_rows(
    rows: Sequence[Packed], *, multiple_of: int = 1, group_tokens: int = GROUP_TOKENS
) -> Packed:
    """Single rows as one batch ``[b l]``, padded at the end of V and at the end of the row.

    Vision tokens of a row with fewer of them stand first; the padding behind them is seen by
    nobody. ``multiple_of`` rounds the length up, so that fewer different shapes occur.
    """
    prefix = max(row.prefix_length for row in rows)
    tail = max(row.kind.shape[-1] - row.prefix_length for row in rows)
    tail += -(prefix + tail) % multiple_of

    def stacked(name: str, fill: int) -> Tensor:
        out = torch.full((len(rows), prefix + tail), fill)
        for target, row in zip(out, rows, strict=True):
            values, n = getattr(row, name), row.prefix_length
            target[:n] = values[:n]
            target[prefix : prefix + len(values) - n] = values[n:]
        return out

    segment = stacked("segment", 0)
    return Packed(
        kind=stacked("kind", int(Kind.PAD)),
        segment=segment,
        ids=stacked("ids", 0),
        position=stacked("position", 0),
        labels=stacked("labels", IGNORE_INDEX),
        prefix_length=prefix,
        groups=_groups(segment[:, prefix:], group_tokens),
    )


def _groups(segment: Int[Tensor, "b t"], group_tokens: int) -> Int[Tensor, "b g m"]:
    """Places of whole questions, in groups of at most ``group_tokens`` or one long question."""
    padding = segment.shape[1]
    rows = [_fill_groups(row, group_tokens) for row in segment.tolist()]
    count = max(len(groups) for groups in rows)
    length = max((len(group) for groups in rows for group in groups), default=0)
    index = torch.full((len(rows), count, length), padding)
    for row, groups in zip(index, rows, strict=True):
        for target, group in zip(row, groups, strict=False):
            target[: len(group)] = torch.tensor(group)
    return index


def _fill_groups(segment: Sequence[int], group_tokens: int) -> list[list[int]]:
    """Longest question first, each into the first group that has room for it."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(segment):
        if number:
            places.setdefault(number, []).append(place)
    groups: list[list[int]] = []
    for question in sorted(places.values(), key=len, reverse=True):
        room = [group for group in groups if len(group) + len(question) <= group_tokens]
        if room:
            room[0].extend(question)
        else:
            groups.append(list(question))
    return groups
