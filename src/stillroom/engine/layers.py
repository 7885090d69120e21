"""The layers of GPT-NeoX, Llama and Qwen2 as plain tensor code on the model's own weights.

Where weights are small, what a token costs is the number of operations: products that read the same
are joined, and a single token has a shorter way through attention (``_OneToken``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import GELUActivation

from stillroom.cpu import attend, is_large, linear, packed_weight
from stillroom.engine.cache import KeyValues
from stillroom.engine.packed import PackedLinear, identity, is_plain

#: Layers that read the same input are made one where their weights together are this small; for
#: larger ones a second copy costs more than a second call.
FUSED_BYTES = 4 << 20


class Reading(NamedTuple):
    """What every layer of one reading needs."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    cache: KeyValues
    seen: int | None
    places: Tensor | None
    #: Whether it is one token behind all that there is, and ``_OneToken`` may read it.
    single: bool = False


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels (j, j + r/2) of each head turned, the first r of them; ``x [q heads d]``."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([_turned(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    half = width // 2
    other = torch.cat([x[..., half:], x[..., :half]], dim=-1)
    return (x * cos).add_(other.mul_(sin))


def _attend(q: Tensor, k: Tensor, v: Tensor, number: int, at: Reading) -> Tensor:
    """New positions look at the row; all of ``[q heads d]``, result ``[q heads*d]``."""
    heads, shared, mask = q.shape[1], k.shape[1], at.mask
    keys, values = at.cache.put(number, _by_head(k), _by_head(v), seen=at.seen, at=at.places)
    queries = _by_head(q)
    if heads == shared:
        if mask is None:
            mixed = attend(queries, keys, values)
        else:
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


class _OneToken:
    """Attention of a single token in few operations, for small float32 weights on a CPU.

    ``layers`` are the linear ones and ``weight``, ``bias`` their rows in the order queries, keys,
    values. Those of queries and keys stand in the product a second time with the two parts of each
    head changed over, so that a turn is ``x cos + changed sin`` with nothing cut and put together.
    """

    def __init__(
        self,
        weight: Float[Tensor, "n c"],
        bias: Float[Tensor, "n"] | None,
        width: int,
        heads: int,
    ) -> None:
        self.width, self.heads = width, heads
        shared = (len(weight) // width - heads) // 2
        self._turned, self._straight = (heads + shared) * width, len(weight)
        rows = [weight, _changed(weight[: self._turned], width)]
        self._weight = torch.cat(rows).t()
        if bias is None:
            bias = weight.new_zeros(len(weight))
        self._bias = torch.cat([bias, _changed(bias[: self._turned], width)])

    @classmethod
    def of(cls, layers: Sequence[Any], width: int, heads: int) -> _OneToken | None:
        """Of one linear layer with a head's queries, keys and values side by side, or of three."""
        weights = [layer.weight for layer in layers if is_plain(layer)]
        if (
            len(weights) < len(layers)
            or sum(weight.nbytes for weight in weights) > FUSED_BYTES
            or any(weight.dtype != torch.float32 or not weight.is_cpu for weight in weights)
        ):
            return None
        biases = [layer.bias for layer in layers if layer.bias is not None]
        if len(biases) not in (0, len(layers)):
            return None
        weight, bias = (
            torch.cat([part.detach() for part in parts]) if parts else None
            for parts in (weights, biases)
        )
        if len(layers) == 1:  # a head's queries, keys and values side by side
            weight, bias = (
                None
                if part is None
                else part.unflatten(0, (-1, 3, width)).transpose(0, 1).flatten(0, 2)
                for part in (weight, bias)
            )
        assert weight is not None
        return cls(weight, bias, width, heads)

    def __call__(self, x: Float[Tensor, "1 c"], number: int, at: Reading) -> Tensor:
        """What the token sees of the row, itself behind it; ``[1 heads*d]``."""
        d, own = self.width, self.heads * self.width
        said = torch.addmm(self._bias, x, self._weight)
        changed = said[:, self._straight :].view(1, -1, d)
        said[:, : self._turned].view(1, -1, d).mul_(at.cos).addcmul_(changed, at.sin)
        held = said[:, own : self._straight].view(1, -1, 1, d)
        keys, values = at.cache.append(number, held)
        # Heads that share keys stand as more queries of one head: no key is repeated.
        queries = said[:, :own].view(1, keys.shape[1], -1, d)
        return F.scaled_dot_product_attention(queries, keys, values, at.mask).reshape(1, own)


def _changed(rows: Tensor, width: int) -> Tensor:
    """The two parts of each head in each other's place."""
    return rows.unflatten(0, (-1, width)).roll(width // 2, 1).flatten(0, 1)


class NeoXLayer:
    """GPT-NeoX's, whose halves stand one behind the other or side by side."""

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
        heads = attention.query_key_value.out_features // (3 * self.width)
        self.one = _OneToken.of(self.qkv.layers, self.width, heads) if fused else None

    def fits(self) -> bool:
        """Whether the layer has the weights that this was made of."""
        return all(part.fits() for part in (self.qkv, self.out, self.inner, self.down))

    def __call__(self, x: Tensor, number: int, at: Reading) -> Tensor:
        (said,) = self.out(self._mixed(layer_norm(self.before, x), number, at))
        if self.parallel:
            return self._think(layer_norm(self.after, x)) + said + x
        x = said + x
        return self._think(layer_norm(self.after, x)) + x

    def _mixed(self, x: Tensor, number: int, at: Reading) -> Tensor:
        if at.single and self.one is not None and at.cos.shape[-1] == self.width:
            return self.one(x, number, at)
        (qkv,) = self.qkv(x)
        qkv = qkv.view(x.shape[0], -1, 3, self.width)  # [q heads 3 d]
        turned = _turned(qkv[:, :, :2], at.cos[:, None], at.sin[:, None])
        return _attend(turned[:, :, 0], turned[:, :, 1], qkv[:, :, 2], number, at)

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


class LlamaLayer:
    """Llama's, and Qwen2's, which has biases besides."""

    def __init__(self, layer: Any, fused: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.width = attention.head_dim
        self.qkv = _Together(attention.q_proj, attention.k_proj, attention.v_proj, fused=fused)
        self.out = _Together(attention.o_proj, fused=fused)
        self.inner = _Together(mlp.gate_proj, mlp.up_proj, fused=fused)
        self.down, self.act = _Together(mlp.down_proj, fused=fused), mlp.act_fn
        heads = attention.q_proj.out_features // self.width
        self.one = _OneToken.of(self.qkv.layers, self.width, heads) if fused else None

    def fits(self) -> bool:
        """Whether the layer has the weights that this was made of."""
        return all(part.fits() for part in (self.qkv, self.out, self.inner, self.down))

    def __call__(self, x: Tensor, number: int, at: Reading) -> Tensor:
        (said,) = self.out(self._mixed(_rms(self.before, x), number, at))
        x = x + said
        gate, up = self.inner(_rms(self.after, x))
        (thought,) = self.down(self.act(gate) * up)
        return x + thought

    def _mixed(self, x: Tensor, number: int, at: Reading) -> Tensor:
        if at.single and self.one is not None and at.cos.shape[-1] == self.width:
            return self.one(x, number, at)
        q, k, v = (part.unflatten(-1, (-1, self.width)) for part in self.qkv(x))
        q, k = _turned(q, at.cos, at.sin), _turned(k, at.cos, at.sin)
        return _attend(q, k, v, number, at)


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
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
