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
