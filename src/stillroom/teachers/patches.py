"""From a teacher's visual tokens back to the patches of its views."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int


def attention_to_patches(
    attention: Float[np.ndarray, "*a n"], patch_token: Int[np.ndarray, "p"]
) -> Float32[np.ndarray, "*a p"]:
    """Attention over visual tokens, carried to the patches that were averaged in them.

    A token's attention is shared equally among its patches, so that sums stay what they were;
    a patch in no token (-1) gets none. ``patch_token`` is ``SceneFeatures.patch_token``: views in
    order, patches row by row, so that a reshape gives a map per view.
    """
    kept = patch_token >= 0
    counts = np.bincount(patch_token[kept], minlength=attention.shape[-1]).astype(np.float32)
    shared = attention.astype(np.float32) / np.maximum(counts, 1)
    return np.where(kept, shared[..., np.where(kept, patch_token, 0)], np.float32(0.0))
