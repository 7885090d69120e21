"""How the engine reads with a language model: its layers over a row's keys and values.

GPT-NeoX, Llama and Qwen2 are read by plain tensor code on the model's own weights, because what
transformers does around them (masks, caches, rotary angles anew in every call) costs more than a
small model itself. Every other model, and one that is trained, quantised in a way of its own or
offloaded, is read by its own ``forward``. Both say the same (tests).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.activations import GELUActivation

from stillroom.engine.cache import KeyValues
from stillroom.engine.mask import for_attention
from stillroom.engine.packed import (
    PackedLinear,
    identity,
    is_plain,
    pack_anew,
)
from stillroom.onednn import is_large, linear, packed_weight

#: Layers that read the same input are made one where their weights together are this small; for
#: larger ones a second copy costs more than a second call.
FUSED_BYTES = 4 << 20
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
        kind = _NeoXLayer if neox else _LlamaLayer
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
        reading = _Reading(*turns, mask=mask, cache=cache, seen=seen, places=at)
        for number, layer in enumerate(self.layers):
            x = layer(x, number, reading)
        # The module itself: who wants its input hooks onto it.
        return self.norm(x[None])[0]

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


def _beside_layers(lm: PreTrainedModel) -> list[tuple[Any, ...]]:
    """What identifies the embeddings and the final norm, which recorded steps read too."""
    base: Any = lm.base_model
    norm = base.final_layer_norm if lm.config.model_type == "gpt_neox" else base.norm
    modules = (lm.get_input_embeddings(), lm.get_output_embeddings(), norm)
    return [
        (id(module), *(identity(one) for one in module.parameters(recurse=False)))
        for module in modules
    ]


class _Reading(NamedTuple):
    """What every layer of one reading needs."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KeyValues
    seen: int | None
    places: Tensor | None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels (j, j + r/2) of each head turned, the first r of them; ``x [q heads d]``."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([_turned(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    half = width // 2
    other = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return (x * cos).add_(other.mul_(sin))


def _attend(q: Tensor, k: Tensor, v: Tensor, number: int, at: _Reading) -> Tensor:
    """New positions look at the row; all of ``[q heads d]``, result ``[q heads*d]``."""
    heads, shared, mask = q.shape[1], k.shape[1], at.mask
    keys, values = at.cache.put(number, _by_head(k), _by_head(v), seen=at.seen, at=at.places)
    queries = _by_head(q)
    if heads == shared:
        mixed = F.scaled_dot_product_attention(queries, keys, values, mask)
    elif mask is None or (not torch.compiler.is_compiling() and q.shape[0] == 1):
        # Heads that share keys stand as more queries of one head: no key is repeated.
        flat = queries.reshape(1, shared, -1, queries.shape[-1])
        mixed = F.scaled_dot_product_attention(flat, keys, values, mask).reshape(queries.shape)
    else:
        mixed = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(heads // shared, 1),
            values.repeat_interleave(heads // shared, 1),
            mask,
        )
    return mixed.transpose(1, 2).reshape(q.shape[0], -1)


def _by_head(x: Float[Tensor, "q heads d"]) -> Float[Tensor, "1 heads q d"]:
    return x.unsqueeze(0).transpose(1, 2)


class _Together:
    """Linear layers that read the same input, as one where that pays."""

    def __init__(self, *layers: Any, fused: bool) -> None:
        self.layers = layers
        self._of = self._now()
        #: (weight, bias) of what is called: all layers joined, each packed one, or none.
        self._plain: tuple[Tensor, Tensor | None] | None = None
        self._packed: list[tuple[Tensor, Tensor | None]] = []
        #: The weight of ``_plain``, transposed.
        self._turned_weight: Tensor
        ordinary = all(is_plain(layer) for layer in self.layers)
        packed = all(type(layer) is PackedLinear for layer in self.layers)
        if not fused:
            packed = False
        elif ordinary and sum(layer.weight.nbytes for layer in self.layers) <= FUSED_BYTES:
            weights = [layer.weight.detach() for layer in self.layers]
            biases = [layer.bias.detach() for layer in self.layers if layer.bias is not None]
            # One alone is not copied.
            weight, *bias = (
                parts[0] if len(parts) == 1 else torch.cat(parts)
                for parts in (weights, biases)
                if parts
            )
            joined = (weight, bias[0] if bias else None)
            if packed:
                (only, *others) = self.layers
                done = not others and only.up_to_date
                self._packed = [(only._packed if done else packed_weight(weight), joined[1])]
            else:
                self._plain, self._turned_weight = joined, weight.t()
        if packed and not self._packed and all(one.up_to_date for one in self.layers):
            self._packed = [(layer._packed, layer.bias) for layer in self.layers]
        self._sizes = [layer.out_features for layer in self.layers] if ordinary or packed else []

    def fits(self) -> bool:
        """Whether the layers have the weights that this was made of."""
        return self._of == self._now()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The output of every layer."""
        weight = self._plain[0] if self._plain else self._packed[0][0] if self._packed else None
        if weight is None or x.dtype != weight.dtype:
            return [layer(x) for layer in self.layers]
        if self._plain:
            said = [self._product(x)]
        else:
            said = [linear(x, *one) for one in self._packed]
        return said if len(said) == len(self.layers) else said[0].split(self._sizes, dim=-1)

    def _product(self, x: Tensor) -> Tensor:
        """``F.linear``; a single token goes straight to what that calls."""
        assert self._plain is not None
        weight, bias = self._plain
        if len(x) == 1 and bias is not None:
            return torch.addmm(bias, x, self._turned_weight)
        return (linear if is_large(x, weight) else F.linear)(x, weight, bias)

    def _now(self) -> list[tuple[Any, ...]]:
        return [
            (type(layer), *(identity(getattr(layer, name, None)) for name in ("weight", "bias")))
            for layer in self.layers
        ]


class _NeoXLayer:
    def __init__(self, layer: Any, fused: bool) -> None:
        attention, mlp = layer.attention, layer.mlp
        self.qkv = _Together(attention.query_key_value, fused=fused)
        self.out = _Together(attention.dense, fused=fused)
        self.inner = _Together(mlp.dense_h_to_4h, fused=fused)
        self.down = _Together(mlp.dense_4h_to_h, fused=fused)
        self.act: Any = mlp.act
        self.exact_gelu = type(self.act) is GELUActivation and self.act.act is F.gelu
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.parallel = layer.use_parallel_residual
        self.width = layer.attention.head_size

    def fits(self) -> bool:
        """Whether the layer has the weights that this was made of."""
        return all(part.fits() for part in (self.qkv, self.out, self.inner, self.down))

    def __call__(self, x: Tensor, number: int, at: _Reading) -> Tensor:
        (qkv,) = self.qkv(_layer_norm(self.before, x))
        qkv = qkv.view(x.shape[0], -1, 3, self.width)  # [q heads 3 d]
        turned = _turned(qkv[:, :, :2], at.cos[:, None], at.sin[:, None])
        mixed = _attend(turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2], number, at)
        (said,) = self.out(mixed)
        if self.parallel:
            return self._think(_layer_norm(self.after, x)) + said + x
        x = said + x
        return self._think(_layer_norm(self.after, x)) + x

    def _think(self, x: Tensor) -> Tensor:
        (inner,) = self.inner(x)
        few = not torch.compiler.is_compiling() and len(inner) == 1 and inner.is_cpu
        if self.exact_gelu and few:
            # PyTorch leaves the GELU of contiguous numbers to oneDNN, which takes longer to start
            # than one token takes. Two rows that share memory are not contiguous.
            inner = F.gelu(inner.expand(2, -1))[:1]
        else:
            inner = self.act(inner)
        (thought,) = self.down(inner)
        return thought


class _LlamaLayer:
    """Llama's, and Qwen2's, which has biases besides."""

    def __init__(self, layer: Any, fused: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.width = attention.head_dim
        self.qkv = _Together(attention.q_proj, attention.k_proj, attention.v_proj, fused=fused)
        self.out = _Together(attention.o_proj, fused=fused)
        self.inner = _Together(mlp.gate_proj, mlp.up_proj, fused=fused)
        self.down, self.act = _Together(mlp.down_proj, fused=fused), mlp.act_fn

    def fits(self) -> bool:
        """Whether the layer has the weights that this was made of."""
        return all(part.fits() for part in (self.qkv, self.out, self.inner, self.down))

    def __call__(self, x: Tensor, number: int, at: _Reading) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in self.qkv(_rms(self.before, x)))
        q, k = _turned(q, at.cos, at.sin), _turned(k, at.cos, at.sin)
        (said,) = self.out(_attend(q, k, v, number, at))
        x = x + said
        gate, up = self.inner(_rms(self.after, x))
        (thought,) = self.down(self.act(gate) * up)
        return x + thought


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A layer norm, without what a call of a module costs."""
    parts: Any = norm
    if type(norm) is not nn.LayerNorm or norm._forward_hooks or norm._forward_pre_hooks:
        said: Tensor = norm(x)
        return said
    return torch.layer_norm(x, parts.normalized_shape, parts.weight, parts.bias, parts.eps)


def _rms(norm: nn.Module, x: Tensor) -> Tensor:
    """A root-mean-square norm; the model's own code in half precision, whose rounding it is."""
    if x.dtype == torch.float32:
        weight: Any = norm.weight
        return F.rms_norm(x, weight.shape, weight, norm.variance_epsilon)  # type: ignore[arg-type]
    normed: Tensor = norm(x)
    return normed


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
