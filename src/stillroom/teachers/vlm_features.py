"""Visual tokens before the projector, one row for each token that the language model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from stillroom.records import BadInputError


def tokens_before_projector(
    model: PreTrainedModel,
    noted: Sequence[Tensor],
    inputs: Mapping[str, Tensor],
    *,
    count: int,
) -> Float[np.ndarray, "n c"]:
    """What went into the projector for each of ``count`` visual tokens, in reading order.

    Where a projector merges neighbours (Qwen: 2 x 2 patches), their features stand side by side.

    Raises:
        BadInputError: the model's projector is not known here, or merges in another way.
    """
    if not noted:
        raise BadInputError(
            f"where the projector of a {model.config.model_type!r} lies is not known here; "
            "label without --signals scene_features"
        )
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in noted])
    merged, rest = divmod(len(rows), count)
    if rest or (merged > 1 and not _merges_runs(model)):
        raise BadInputError(
            f"the projector of this {model.config.model_type!r} makes {count} tokens of "
            f"{len(rows)} patches in a way not known here; label without --signals scene_features"
        )
    tokens = rows.reshape(count, -1)
    order = _window_order(model, inputs)
    if order is not None:
        tokens = tokens[torch.argsort(order.to(tokens.device))]
    return tokens.float().cpu().numpy()


def _merges_runs(model: PreTrainedModel) -> bool:
    """Whether the projector merges patches that stand next to each other in the sequence."""
    return hasattr(getattr(model.base_model, "visual", None), "merger")


def _window_order(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Qwen2.5-VL's towers read tokens window by window; which token stands at each place."""
    vision = model.config.vision_config if hasattr(model.config, "vision_config") else None
    if vision is None or not hasattr(vision, "window_size") or not _merges_runs(model):
        return None
    from transformers.vision_utils import get_vision_window_index

    order, _ = get_vision_window_index(
        inputs["image_grid_thw"],
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    return order
