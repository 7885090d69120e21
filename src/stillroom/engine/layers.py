"""The layers of GPT-NeoX, Llama and Qwen2 as plain tensor code on the model's own weights.

Where weights are small, what a token costs is the number of operations: products that read the same
are joined, and a single token has a shorter way through attention (``_attend_alone``).
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
    #: Whether it is one token behind all that there is, and ``_attend_alone`` may read it.
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


def _turn_in_place(x: Float[Tensor, "1 *h d"], at: Reading) -> None:
    """``_turned`` for whole heads of one token, where nobody else holds them."""
    cos, sin = (part.view(-1) for part in (at.cos, at.sin))
    other = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cos).addcmul_(other, sin)


def _attend_alone(
    q: Float[Tensor, "1 heads d"], held: Float[Tensor, "1 2 shared d"], number: int, at: Reading
) -> Float[Tensor, "1 _"]:
    """``_attend`` for one token behind all that there is; ``held`` are its key and value."""
    keys, values = at.cache.append(number, held.unsqueeze(3))
    # Heads that share keys stand as more queries of one head: no key is repeated.
    queries = q.reshape(1, keys.shape[1], -1, q.shape[-1])
    return F.scaled_dot_product_attention(queries, keys, values, at.mask).reshape(1, -1)


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
        self._transposed: Tensor
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
                self._plain, self._transposed = joined, weight.t()
        if packed and not self._packed and all(one.up_to_date for one in self.layers):
            self._packed = [(layer._packed, layer.bias) for layer in self.layers]
        self._sizes = [layer.out_features for layer in self.layers] if ordinary or packed else []

    def fits(self) -> bool:
        """Whether the layers have the weights that this was made of."""
        return self._of == self._now()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """The output of every layer."""
        said = self.whole(x)
        if said is not None:
            return [said] if len(self.layers) == 1 else said.split(self._sizes, dim=-1)
        if self._packed and x.dtype == self._packed[0][0].dtype:
            return [linear(x, *one) for one in self._packed]
        return [layer(x) for layer in self.layers]

    def whole(self, x: Tensor) -> Tensor | None:
        """All outputs side by side, where one product makes them; nobody else holds it."""
        if self._plain is not None:
            return self._product(x) if x.dtype == self._plain[0].dtype else None
        if len(self._packed) == 1 and x.dtype == self._packed[0][0].dtype:
            return linear(x, *self._packed[0])
        return None

    def _product(self, x: Tensor) -> Tensor:
        """``F.linear``; a single token goes straight to what that calls."""
        assert self._plain is not None
        weight, bias = self._plain
        if len(x) == 1:
            weight = self._transposed
            return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
        return (linear if is_large(x, weight) else F.linear)(x, weight, bias)

    def _now(self) -> list[tuple[Any, ...]]:
        return [
            (type(layer), *(identity(getattr(layer, name, None)) for name in ("weight", "bias")))
            for layer in self.layers
        ]


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
        said = self.qkv.whole(x) if at.single and at.cos.shape[-1] == self.width else None
        if said is not None:
            qkv = said.view(1, -1, 3, self.width)
            _turn_in_place(qkv[:, :, :2], at)
            return _attend_alone(qkv[:, :, 0], qkv[:, :, 1:].transpose(1, 2), number, at)
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
        self.heads = layer.self_attn.config.num_attention_heads

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
        said = self.qkv.whole(x) if at.single and at.cos.shape[-1] == self.width else None
        if said is not None:
            qkv = said.view(1, -1, self.width)
            shared = (qkv.shape[1] - self.heads) // 2
            _turn_in_place(qkv[:, : self.heads + shared], at)
            held = qkv[:, self.heads :].view(1, 2, shared, self.width)
            return _attend_alone(qkv[:, : self.heads], held, number, at)
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
