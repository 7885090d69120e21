"""Start values of small language models that are trained from scratch."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from stillroom.records import BadInputError


@torch.no_grad()
def match_queries(lm: PreTrainedModel) -> None:
    """Let every second head begin by looking at what is like itself: its queries are its keys.

    Attention that finds the chair in the picture from the word "chair" has to be learnt out of
    noise otherwise, and takes most of a small training (``docs/log.md``). Trained attention has
    this shape anyway (Trockman and Kolter 2023, "Mimetic initialization of self-attention layers").

    Raises:
        BadInputError: the model is neither a Llama nor a GPT-NeoX.
    """
    kind, heads = lm.config.model_type, lm.config.num_attention_heads
    layers: Any = lm.base_model.layers
    for layer in layers:
        if kind == "llama":
            own = layer.self_attn
            queries = own.q_proj.weight.unflatten(0, (heads, -1))
            keys = own.k_proj.weight.unflatten(0, (-1, queries.shape[1]))
            # Several query heads may share a key head.
            keys = keys.repeat_interleave(heads // keys.shape[0], dim=0)
        elif kind == "gpt_neox":
            fused = layer.attention.query_key_value.weight.unflatten(0, (heads, 3, -1))
            queries, keys = fused[:, 0], fused[:, 1]
        else:
            raise BadInputError(f"queries are matched in llama and gpt_neox, not in {kind!r}")
        queries[::2] = keys[::2]


#: Strength of the head that looks at the word before, for its fastest turning channels (logits).
_BEFORE = (8.0, 4.0, 2.0)
#: How much of what a copying head sees it hands on.
_HANDED_ON = 2.0


@torch.no_grad()
def begin_copying(lm: PreTrainedModel) -> None:
    """Let every second head of a GPT-NeoX hand on what it sees, and one look at the word before.

    An answer that repeats a name from the question needs both: the word before marks "chair" in
    "red chair", and after "red" a head that finds what is like it hands "chair" on. Found from
    noise, this alone outlasts a small training (``docs/log.md``). To be called after
    ``match_queries``; all channels of a head must be turned by position.

    Raises:
        BadInputError: the model is no GPT-NeoX, or only a share of its channels is turned.
    """
    config = lm.config
    heads, width = config.num_attention_heads, config.hidden_size
    if config.model_type != "gpt_neox":
        raise BadInputError(f"copying is begun in gpt_neox, not in {config.model_type!r}")
    model: Any = lm.base_model
    turns: torch.Tensor = model.rotary_emb.inv_freq
    half = width // heads // 2
    if len(turns) != half:
        raise BadInputError(
            f"copying needs all {2 * half} channels of a head turned by position, "
            f"{2 * len(turns)} are"
        )
    if heads < 2 or half < len(_BEFORE):
        raise BadInputError(
            f"copying needs at least 2 heads of at least {2 * len(_BEFORE)} channels, the language "
            f"model has {heads} of {2 * half}; take other --student.heads, or "
            "--student.no-mimetic-start"
        )
    layers: Any = lm.base_model.layers
    for layer in layers:
        values = layer.attention.query_key_value.weight.unflatten(0, (heads, 3, -1))[:, 2]
        out = layer.attention.dense.weight.unflatten(1, (heads, -1))  # [width heads head]
        out[:, ::2] = _HANDED_ON * values[::2].permute(2, 0, 1)
    first = layers[0].attention
    weight = first.query_key_value.weight.unflatten(0, (heads, 3, -1))
    bias = first.query_key_value.bias.unflatten(0, (heads, 3, -1))
    # The second head, which is free: it looks by position alone, and hands on what stands there.
    weight[1, :2] = 0.0
    bias[1, :2] = 0.0
    for i, logit in enumerate(_BEFORE):
        size = (logit * (2 * half) ** 0.5) ** 0.5
        bias[1, 0, i] = size
        bias[1, 1, i] = size * turns[i].cos()
        bias[1, 1, i + half] = size * turns[i].sin()
    first.dense.weight.unflatten(1, (heads, -1))[:, 1] = _HANDED_ON * weight[1, 2].T
