"""A scene read once: its keys and values are shared by all its questions, in training too."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.cache import KeyValues
from stillroom.engine.decoder import decoder_of
from stillroom.engine.mask import Kind, Visibility, attention_mask, for_attention
from stillroom.engine.packing import Packed

#: Positions behind V that a scene has room for from the start: a question and a short answer.
ROOM = 128


class ScenePrefix:
    """What the questions of a scene share. Never changed by a question.

    ``layers`` holds the (keys, values) of each layer, ``[1 heads n d]``. It is empty under
    ``full_prefix``, where V depends on the question and only ``embeds`` can be shared. Behind them
    is room for questions: one row at a time is written there, so that V is not copied for it.
    """

    def __init__(
        self, *, embeds: Float[Tensor, "1 n d"], memory: KeyValues, visibility: Visibility
    ) -> None:
        self.embeds, self.visibility = embeds, visibility
        #: Whether V has been read; else it is read along with every question.
        self.is_read = memory.length > 0
        self._memory = memory
        self._lent: weakref.ref[KeyValues] | None = None

    @property
    def layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of V by layer."""
        return tuple(self._memory.layers())

    @property
    def length(self) -> int:
        """Number of vision tokens."""
        return self.embeds.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that it holds, the room for questions with it."""
        return self.embeds.nbytes + self._memory.nbytes

    def cache(self) -> DynamicCache:
        """A cache of its own for one reading, filled with V."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache

    def row(self, room: int) -> KeyValues:
        """A row that begins with V and has room for ``room`` positions behind it.

        It is written into this prefix's own memory unless another row still is, or many questions
        at once need more than there is: their row is let go with them, so that an open scene takes
        no more than when it was opened.
        """
        known = self._memory.length
        taken = self._lent is not None and self._lent() is not None
        if taken or known + room > self._memory.room:
            return KeyValues.of(self.layers, known + room)
        row = self._memory.lend()
        self._lent = weakref.ref(row)
        return row


def decoder_states(
    lm: PreTrainedModel,
    embeds: Float[Tensor, "b q d"],
    *,
    mask: Tensor,
    position: Tensor,
    cache: DynamicCache | None = None,
) -> Float[Tensor, "b q d"]:
    """Last hidden states (after the final norm) of new positions; ``cache`` grows by them."""
    return all_states(lm, embeds, mask=mask, position=position, cache=cache).last_hidden_state


def all_states(
    lm: PreTrainedModel,
    embeds: Float[Tensor, "b q d"],
    *,
    mask: Tensor,
    position: Tensor,
    cache: DynamicCache | None,
    every_layer: bool = False,
    attentions: bool = False,
) -> Any:
    """What the decoder itself returns: ``last_hidden_state``, and ``hidden_states`` of every layer
    or ``attentions`` (of eager attention alone) where they are asked for."""
    return lm.base_model(
        inputs_embeds=embeds,
        attention_mask=for_attention(lm, mask, embeds.dtype),
        position_ids=position,
        past_key_values=cache,
        use_cache=cache is not None,
        output_hidden_states=every_layer,
        **({"output_attentions": True} if attentions else {}),
    )


@dataclass(frozen=True, kw_only=True)
class PackedStates:
    """Hidden states of packed rows: the last ones, and those after some of the layers.

    ``text`` is behind V and after the final norm; padding has states without meaning. ``levels``
    has, by the number of layers passed, the states of V and of what stands behind it.
    """

    text: Float[Tensor, "b t d"]
    levels: Mapping[int, tuple[Float[Tensor, "b n d"], Float[Tensor, "b t d"]]]


def read_packed(
    lm: PreTrainedModel,
    vision: Float[Tensor, "b n d"],
    text: Float[Tensor, "b t d"],
    packed: Packed,
    *,
    visibility: Visibility,
    levels: Sequence[int] = (),
) -> PackedStates:
    """Hidden states of packed rows, for training; ``levels`` asks for some layers' own.

    V is read once and its keys and values are shared by groups of questions, as in a session;
    gradients flow through them. Where V depends on the question (``full_prefix``) the row is read
    in one piece, as the mask is drawn.
    """
    n = packed.prefix_length
    layout = (packed.kind, packed.segment, packed.position)
    if visibility == "full_prefix" or packed.groups is None:
        mask = attention_mask(*layout, visibility=visibility)
        embeds = torch.cat([vision, text], dim=1)
        whole = all_states(
            lm,
            embeds,
            mask=mask,
            position=packed.position,
            cache=None,
            every_layer=bool(levels),
        )
        parts = {k: whole.hidden_states[k] for k in levels}
        return PackedStates(
            text=whole.last_hidden_state[:, n:],
            levels={k: (states[:, :n], states[:, n:]) for k, states in parts.items()},
        )
    cache = _KeptPrefix()
    seen = attention_mask(*(values[:, :n] for values in layout), visibility=visibility)
    scene = all_states(
        lm,
        vision,
        mask=seen,
        position=packed.position[:, :n],
        cache=cache,
        every_layer=bool(levels),
    )
    rows, groups, length = packed.groups.shape
    index = packed.groups.flatten(1)  # [b g*m]
    kind, segment, position = (
        torch.cat([values[:, :n].repeat_interleave(groups, 0), part], dim=1)
        for values, part in zip(layout, _grouped(packed), strict=True)
    )
    mask = attention_mask(kind, segment, position, visibility=visibility, query_start=n)
    questions = all_states(
        lm,
        _take(F.pad(text, (0, 0, 0, 1)), index).view(rows * groups, length, -1),
        mask=mask,
        position=position[:, n:],
        cache=_SharedPrefix(cache, groups),
        every_layer=bool(levels),
    )
    # Back to the places the groups were taken from.
    places = torch.zeros(rows, text.shape[1] + 1, dtype=torch.long, device=text.device)
    places.scatter_(1, index, torch.arange(index.shape[1], device=text.device).expand_as(index))

    def back(states: Tensor) -> Tensor:
        return _take(states.view(rows, groups * length, -1), places[:, :-1])

    return PackedStates(
        text=back(questions.last_hidden_state),
        levels={k: (scene.hidden_states[k], back(questions.hidden_states[k])) for k in levels},
    )


def _grouped(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Kind, segment and position of each group, ``[b*g m]``."""
    assert packed.groups is not None
    n, index = packed.prefix_length, packed.groups.flatten(1)
    fills = ((packed.kind, int(Kind.PAD)), (packed.segment, 0), (packed.position, 0))
    kind, segment, position = (
        F.pad(values[:, n:], (0, 1), value=fill).gather(1, index).view(-1, packed.groups.shape[2])
        for values, fill in fills
    )
    return kind, segment, position


def _take(values: Float[Tensor, "b t d"], index: Int[Tensor, "b i"]) -> Float[Tensor, "b i d"]:
    """``values[row, index[row]]`` for every row."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


class _KeptPrefix(DynamicCache):
    """Keys and values of V by layer. A layer that is computed again, on the way back, finds its
    own kept already, so that checkpointed activations leave the cache as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """V's own keys and values: nothing stands before them."""
        self.kept.setdefault(layer_idx, (key_states, value_states))
        return key_states, value_states


class _SharedPrefix(DynamicCache):
    """Keys and values of V read by ``groups`` rows each, without a copy per row kept."""

    def __init__(self, prefix: _KeptPrefix, groups: int) -> None:
        super().__init__()
        self._prefix = prefix.kept
        self._groups = groups

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """All that a group may look at: V, then its own new keys and values."""
        keys, values = self._prefix[layer_idx]
        return self._join(keys, key_states), self._join(values, value_states)

    def _join(self, shared: Tensor, own: Tensor) -> Tensor:
        own = own.unflatten(0, (-1, self._groups))  # [b g heads m d]
        shared = shared[:, None].expand(-1, self._groups, -1, -1, -1)
        return torch.cat([shared, own], dim=3).flatten(0, 1)


@torch.no_grad()
def prefill(
    lm: PreTrainedModel,
    embeds: Float[Tensor, "1 n d"],
    *,
    visibility: Visibility,
    plain: bool = False,
) -> ScenePrefix:
    """Read the vision tokens of one scene, before any question is known.

    ``plain`` reads with the model's own ``forward`` (``decoder.py``).
    """
    memory = KeyValues(embeds.shape[1] + ROOM)
    if visibility == "full_prefix":
        return ScenePrefix(embeds=embeds, memory=KeyValues(0), visibility=visibility)
    position = torch.arange(embeds.shape[1], device=embeds.device)
    mask = None
    if visibility == "causal":
        mask = position[None, :] <= position[:, None]
    decoder_of(lm, plain=plain).read(embeds, position=position, cache=memory, mask=mask)
    return ScenePrefix(embeds=embeds, memory=memory, visibility=visibility)


def contents(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer of a transformers cache, ``[b heads n d]`` each."""
    return layer.keys, layer.values
