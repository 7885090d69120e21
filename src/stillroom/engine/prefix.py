"""A scene read once: the keys and values of its vision tokens, shared by all its questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.mask import Kind, Visibility, attention_mask, for_attention


@dataclass(frozen=True, kw_only=True)
class ScenePrefix:
    """What the questions of a scene share. Never changed by a question.

    ``layers`` holds the (keys, values) of each layer, ``[1 heads n d]``. It is empty under
    ``full_prefix``, where V depends on the question and only ``embeds`` can be shared.
    """

    embeds: Float[Tensor, "1 n d"]
    layers: tuple[tuple[Tensor, Tensor], ...]
    visibility: Visibility

    @property
    def length(self) -> int:
        """Number of vision tokens."""
        return self.embeds.shape[1]

    def cache(self) -> DynamicCache:
        """A cache of its own for one decoding, filled with V."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache


def decoder_states(
    lm: PreTrainedModel,
    embeds: Float[Tensor, "b q d"],
    *,
    mask: Tensor,
    position: Tensor,
    cache: DynamicCache | None = None,
) -> Float[Tensor, "b q d"]:
    """Last hidden states (after the final norm) of new positions; ``cache`` grows by them."""
    return lm.base_model(
        inputs_embeds=embeds,
        attention_mask=for_attention(lm, mask, embeds.dtype),
        position_ids=position,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


@torch.no_grad()
def prefill(
    lm: PreTrainedModel, embeds: Float[Tensor, "1 n d"], *, visibility: Visibility
) -> ScenePrefix:
    """Read the vision tokens of one scene, before any question is known."""
    if visibility == "full_prefix":
        return ScenePrefix(embeds=embeds, layers=(), visibility=visibility)
    position = torch.arange(embeds.shape[1], device=embeds.device)[None]
    kind = torch.full_like(position, int(Kind.V))
    mask = attention_mask(kind, torch.zeros_like(kind), position, visibility=visibility)
    cache = DynamicCache()
    decoder_states(lm, embeds, mask=mask, position=position, cache=cache)
    layers = tuple(_contents(layer) for layer in cache.layers)
    return ScenePrefix(embeds=embeds, layers=layers, visibility=visibility)


def _contents(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer of a cache, ``[1 heads n d]`` each."""
    return layer.keys, layer.values
