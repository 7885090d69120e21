"""From the encoder's patch tokens to vision tokens that heads and language model read alike.

That they read the same tokens is what lets a depth or detection loss reach the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

#: Frequencies of log depth and of the place in the photo, as powers of two.
DEPTH_FREQUENCIES = 8
PLACE_FREQUENCIES = 4
#: Depth sines and cosines; values in the encoder's unit; place sines and cosines; known depth and
#: first view.
CODE_WIDTH = 2 * DEPTH_FREQUENCIES + 3 + 4 * PLACE_FREQUENCIES + 2


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """What a frozen encoder says of a scene, pooled to a grid of cells: worth caching.

    ``tokens`` are normalised patch tokens, cells in row-major order. ``depth`` is the encoder's
    own depth per cell in its unit (``StillroomConfig.depth_unit``), 0 where unknown; ``depth_map``
    the same per pixel, None when it came from a cache.
    """

    tokens: Float[Tensor, "b v c e"]
    depth: Float[Tensor, "b v g g"]
    depth_map: Float[Tensor, "b v h w"] | None = None


def pool_features(
    tokens: Float[Tensor, "b v p e"],
    depth_map: Float[Tensor, "b v h w"] | None,
    *,
    rows: int,
    grid: int,
) -> VisionFeatures:
    """Patch tokens of ``rows`` patch rows and depth, averaged to ``grid`` x ``grid`` cells.

    Every patch token is normalised on its own first: the scale of an encoder's residual stream
    carries nothing, and half precision holds the result.
    """
    views = tokens.shape[:2]
    maps = F.layer_norm(tokens, tokens.shape[-1:]).flatten(0, 1).transpose(1, 2)
    cells = F.adaptive_avg_pool2d(maps.unflatten(2, (rows, -1)), grid)  # [b*v e g g]
    pooled = cells.flatten(2).transpose(1, 2).unflatten(0, views)
    if depth_map is None:
        depth = tokens.new_zeros(*views, grid, grid)
    else:
        depth = F.adaptive_avg_pool2d(depth_map.flatten(0, 1), grid).unflatten(0, views)
    return VisionFeatures(tokens=pooled, depth=depth, depth_map=depth_map)


def measured_cells(
    depth_map: Float[Tensor, "b v h w"], measured: Bool[Tensor, "b v h w"], *, grid: int
) -> Float[Tensor, "b v grid grid"]:
    """Mean depth per cell over the pixels that are measured, 0 where none is: what the mean of
    measured depth over the same pixels can be compared with."""
    kept = measured.to(depth_map.dtype)
    views = depth_map.shape[:2]
    share, held = (
        F.adaptive_avg_pool2d(maps.flatten(0, 1), grid).unflatten(0, views)
        for maps in (kept, depth_map * kept)
    )
    return held / share.clamp_min(1e-6)


def cell_code(depth: Float[Tensor, "b v g g"]) -> Float[Tensor, "b v c f"]:
    """Per cell: depth in sines and as it is, place in the photo, and whether it is the first view.

    Depth in sines tells near things finely apart; depth times place is how far a cell lies to the
    side, up to the unknown focal length.
    """
    grid = depth.shape[-1]
    known = (depth > 0).to(depth.dtype)[..., None]
    steps = (torch.arange(grid, device=depth.device, dtype=depth.dtype) + 0.5) / grid * 2 - 1
    place = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)  # [g g 2], row first
    place = place.expand(*depth.shape, 2)
    log_depth = depth.clamp_min(1e-3).log()[..., None]
    first = torch.zeros_like(known)
    first[:, 0] = 1
    code = torch.cat(
        [
            _waves(log_depth, DEPTH_FREQUENCIES, math.pi / 4) * known,
            depth[..., None] / 5,
            depth[..., None] * place / 5,
            _waves(place, PLACE_FREQUENCIES, math.pi / 2),
            known,
            first,
        ],
        dim=-1,
    )
    return code.flatten(2, 3)


def _waves(values: Tensor, count: int, lowest: float) -> Tensor:
    """Sines and cosines of ``values [... n]`` at doubling frequencies, ``[... 2 n count]``."""
    frequencies = lowest * 2.0 ** torch.arange(count, device=values.device, dtype=values.dtype)
    angles = (values[..., None] * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Connector(nn.Module):
    """Projected patch tokens plus a code of the student's own depth, one token per cell."""

    def __init__(self, token_width: int, hidden_size: int) -> None:
        super().__init__()
        self.projector = nn.Linear(token_width, hidden_size)
        self.depth_code = nn.Linear(CODE_WIDTH, hidden_size, bias=False)

    def forward(self, features: VisionFeatures) -> Float[Tensor, "b v c d"]:
        """One token per cell and view."""
        dtype = self.projector.weight.dtype
        # Sines of depth want full precision; only their result is cast.
        code = cell_code(features.depth.float()).to(dtype)
        return self.projector(features.tokens.to(dtype)) + self.depth_code(code)

    def reset_parameters(self) -> None:
        """Start values: what each part adds has about unit size."""
        for layer in (self.projector, self.depth_code):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.projector.bias)
