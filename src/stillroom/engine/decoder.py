"""How the engine reads with a language model: its layers over a row's keys and values.

GPT-NeoX, Llama and Qwen2 are read by plain tensor code on the model's own weights, because what
transformers does around them (masks, caches, rotary angles anew in every call) costs more than a
small model itself. Every other model, and one that is trained, quantised in a way of its own or
offloaded, is read by its own ``forward``. Both say the same (tests).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from stillroom.engine.cache import KeyValues
from stillroom.engine.layers import LlamaLayer, NeoXLayer, Reading, layer_norm
from stillroom.engine.mask import for_attention
from stillroom.engine.packed import identity, pack_anew

#: Whose hooks on layers only count while hidden states are being asked for.
IDLE_HOOKS = "transformers.utils.output_capturing"


@runtime_checkable
class Decoder(Protocol):
    """Reads tokens behind what a row has cached."""

    def read(
        self,
        embeds: Float[Tensor, "1 q d"],
        *,
        position: Int[Tensor, "q"],
        cache: KeyValues,
        mask: Bool[Tensor, "q l"] | Float[Tensor, "q l"] | None = None,
        seen: int | None = None,
        at: Int[Tensor, "q"] | None = None,
    ) -> Float[Tensor, "q d"]:
        """Last hidden states, after the final norm; the cache grows by what was read.

        Without a ``mask`` every token sees all that ``KeyValues.put`` gives back for ``seen`` and
        ``at``; with ``at`` the cache does not grow by itself.
        """
        ...

    def logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Logits over the vocabulary, float32."""
        ...


def decoder_of(lm: PreTrainedModel, *, plain: bool = False) -> Decoder:
    """The fastest way to read with a model as it is now; ``plain`` always asks its ``forward``."""
    if plain or not _readable(lm):
        return PlainDecoder(lm)
    held = _DECODERS.get(lm)
    if held is None or not held.fits(lm):
        held = _DECODERS[lm] = LeanDecoder(lm)
    return held


def forget_weights(lm: PreTrainedModel) -> None:
    """Drop all that was made of a model's weights, for after a write that cannot be noticed.

    That is one through ``weight.data``, which PyTorch does not count. Weights that were trained,
    loaded, replaced, moved or cast are noticed.
    """
    _DECODERS.pop(lm, None)
    pack_anew(lm)


class PlainDecoder:
    """A language model read by its own ``forward``."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm = lm

    def read(
        self,
        embeds: Float[Tensor, "1 q d"],
        *,
        position: Int[Tensor, "q"],
        cache: KeyValues,
        mask: Bool[Tensor, "q l"] | Float[Tensor, "q l"] | None = None,
        seen: int | None = None,
        at: Int[Tensor, "q"] | None = None,
    ) -> Float[Tensor, "q d"]:
        """As the protocol says."""
        count = embeds.shape[1]
        if mask is None:
            known = cache.room if at is not None else (cache.length if seen is None else seen)
            width = known if at is not None else known + count
            mask = torch.ones(count, width, dtype=torch.bool, device=embeds.device)
        if mask.dtype == torch.bool:
            mask = for_attention(self.lm, mask[None, None], embeds.dtype)
        else:
            mask = mask[None, None]
        states: Tensor = self.lm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position[None],
            past_key_values=_Into(cache, seen, at),
            use_cache=True,
        ).last_hidden_state
        if at is None:
            cache.grow(count)
        return states[0]

    def logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """As the protocol says."""
        said: Tensor = self.lm.get_output_embeddings()(states)
        return said.float()


class _Into(DynamicCache):
    """What transformers takes for a cache: new keys and values go into a row's own."""

    def __init__(self, cache: KeyValues, seen: int | None, at: Tensor | None) -> None:
        super().__init__()
        self._cache, self._seen, self._at = cache, seen, at

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Everything that the new positions may look at."""
        return self._cache.put(layer_idx, key_states, value_states, seen=self._seen, at=self._at)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the new ones."""
        return self._cache.length


class LeanDecoder:
    """A GPT-NeoX, Llama or Qwen2 read by tensor code.

    Not ``fused`` it calls the model's own linear layers, one by one: an export finds every weight
    under its own name.
    """

    def __init__(self, lm: PreTrainedModel, *, fused: bool = True) -> None:
        base: Any = lm.base_model
        self.head: Any = lm.get_output_embeddings()
        self.rotary = base.rotary_emb
        neox = lm.config.model_type == "gpt_neox"
        self.norm = base.final_layer_norm if neox else base.norm
        kind = NeoXLayer if neox else LlamaLayer
        self.layers = [kind(layer, fused) for layer in base.layers]
        #: Recorded steps by shape (``graphs.py``).
        self.graphs: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._beside = _beside_layers(lm)
        self._angles: tuple[Tensor, Tensor] | None = None

    def fits(self, lm: PreTrainedModel) -> bool:
        """Whether the model still has the weights that this was made of."""
        return self._beside == _beside_layers(lm) and all(layer.fits() for layer in self.layers)

    def read(
        self,
        embeds: Float[Tensor, "1 q d"],
        *,
        position: Int[Tensor, "q"],
        cache: KeyValues,
        mask: Bool[Tensor, "q l"] | Float[Tensor, "q l"] | None = None,
        seen: int | None = None,
        at: Int[Tensor, "q"] | None = None,
        table: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "q d"]:
        """As the protocol says; ``table`` in place of the decoder's own, which grows with rows."""
        if mask is not None and mask.dtype == torch.bool:  # once instead of in every layer
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill_(
                ~mask, -torch.inf
            )
        table = table or self._table(embeds, cache.room + embeds.shape[1])
        turns = (table[0].index_select(0, position), table[1].index_select(0, position))
        states = self.through(embeds[0], turns, mask=mask, cache=cache, seen=seen, at=at)
        if at is None:
            cache.grow(embeds.shape[1])
        return states

    def through(
        self,
        x: Float[Tensor, "q d"],
        turns: tuple[Tensor, Tensor],
        *,
        mask: Float[Tensor, "q l"] | None,
        cache: Any,
        seen: int | None = None,
        at: Int[Tensor, "q"] | None = None,
    ) -> Float[Tensor, "q d"]:
        """All layers and the final norm; ``turns`` are rows of ``table``, ``cache`` has ``put``."""
        single = at is None and _is_single(x, cache, seen)
        reading = Reading(*turns, mask=mask, cache=cache, seen=seen, places=at, single=single)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, reading)
        # With the leading dimension of the model's own: who wants its input hooks onto it.
        return layer_norm(self.norm, x[None])[0]

    def logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """As the protocol says."""
        said: Tensor = self.head(states)
        return said.float()

    def table(self, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of the first positions, ``[count 1 r]``, as ``like`` is."""
        places = torch.arange(count, device=like.device)[None]
        with torch.inference_mode(False):
            cos, sin = self.rotary(like.new_empty(1), places)
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            return cos[0, :, None].clone(), signed[:, None]

    def _table(self, embeds: Tensor, most: int) -> tuple[Tensor, Tensor]:
        held = self._angles
        if (
            held is None
            or held[0].dtype != embeds.dtype
            or held[0].device != embeds.device
            or len(held[0]) < most
        ):
            count = max(most, self.rotary.config.max_position_embeddings)
            held = self._angles = self.table(count, embeds)
        return held


def _is_single(x: Tensor, cache: Any, seen: int | None) -> bool:
    """Whether this is one token in float32 on a CPU, behind all that a row holds."""
    return (
        isinstance(cache, KeyValues)  # an export has another, and no number of tokens
        and not torch.compiler.is_compiling()
        and len(x) == 1
        and x.is_cpu
        and x.dtype == torch.float32
        and 0 < cache.length == (cache.length if seen is None else seen)
    )


def _beside_layers(lm: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What identifies the embeddings and the final norm, which recorded steps read too."""
    base: Any = lm.base_model
    norm = base.final_layer_norm if lm.config.model_type == "gpt_neox" else base.norm
    modules = (lm.get_input_embeddings(), lm.get_output_embeddings(), norm)
    return [
        (id(module), *(identity(one) for one in module.parameters(recurse=False)))
        for module in modules
    ]


# Which models can be read so. --------------------------------------------------------------------

_DECODERS: WeakKeyDictionary[PreTrainedModel, LeanDecoder] = WeakKeyDictionary()


def _readable(lm: PreTrainedModel) -> bool:
    """Whether ``LeanDecoder`` knows this model and may read it now."""
    config = lm.config
    return (
        config.model_type in ("gpt_neox", "llama", "qwen2")
        and not lm.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(lm.device.type)
        and config._attn_implementation == "sdpa"
        and config.rope_parameters["rope_type"] in ("default", "linear", "llama3")
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not _intercepted(lm)
    )


def _intercepted(lm: PreTrainedModel) -> bool:
    """Whether something stands between a caller and the layers: offloading, adapters, observers."""
    base: Any = lm.base_model
    for layer in base.layers:
        hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        # Those that transformers leaves once it was asked for hidden states do nothing here.
        watched = any(getattr(hook, "__module__", "") != IDLE_HOOKS for hook in hooks)
        if watched or hasattr(layer, "_hf_hook"):
            return True
    inside = base.layers[0].modules() if len(base.layers) else ()
    return any(hasattr(module, "_hf_hook") or hasattr(module, "lora_A") for module in inside)
