"""MobileVLM's two light downsample projectors, 24 x 24 patches to 12 x 12 tokens.

V1 (arXiv 2312.16886, figure 3) and V2 (2402.03766, figure 2). Attribute names repeat the released
checkpoints' keys; V1's blocks are the inverted residuals of MobileNetV3 without their expansion.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.records import BadInputError

#: Edge of the square of tokens that V2 leaves of a picture.
TOKEN_GRID = 12


def light_projector(kind: str, wide: int, inner: int) -> LightProjectorV1 | LightProjectorV2:
    """The projector that ``mm_projector_type`` names, from ``wide`` to ``inner`` channels.

    Raises:
        BadInputError: it names neither.
    """
    if kind.startswith("ldpnetv2"):
        return LightProjectorV2(wide, inner)
    if kind.startswith("ldpnet"):
        return LightProjectorV1(wide, inner)
    raise BadInputError(f"mm_projector_type {kind!r} is not MobileVLM's ldpnet or ldpnetv2")


class LightProjectorV1(nn.Module):
    """Two linear layers, then two depthwise blocks, the second of which halves the grid."""

    def __init__(self, wide: int, inner: int) -> None:
        super().__init__()
        # Where the release has an identity, the count of the keys starts at 1.
        self.model = nn.ModuleDict(
            {
                "mlp": nn.Sequential(
                    nn.Identity(), nn.Linear(wide, inner), nn.GELU(), nn.Linear(inner, inner)
                ),
                "mb_block": nn.Sequential(
                    nn.Identity(),
                    _DepthwiseBlock(inner, stride=1),
                    _DepthwiseBlock(inner, stride=2),
                ),
            }
        )

    def tokens(self, grid: int) -> int:
        """Tokens of a picture of ``grid`` x ``grid`` patches."""
        return ((grid + 1) // 2) ** 2

    def forward(self, patches: Float[Tensor, "v p c"]) -> Float[Tensor, "v n d"]:
        """Tokens of each picture, row by row."""
        return _to_tokens(self.model["mb_block"](_to_grid(self.model["mlp"](patches))))


class LightProjectorV2(nn.Module):
    """Two linear layers, a mean over neighbours, and a convolution that tells tokens' places."""

    def __init__(self, wide: int, inner: int) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(wide, inner), nn.GELU(), nn.Linear(inner, inner))}
        )
        self.peg = nn.ModuleDict(
            {"peg": nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner))}
        )

    def tokens(self, grid: int) -> int:
        """Tokens of a picture, whatever its patches."""
        return TOKEN_GRID**2

    def forward(self, patches: Float[Tensor, "v p c"]) -> Float[Tensor, "v 144 d"]:
        """Tokens of each picture, row by row."""
        grid = _to_grid(self.mlp["mlp"](patches))
        grid = F.adaptive_avg_pool2d(grid, (TOKEN_GRID, TOKEN_GRID))
        return _to_tokens(self.peg["peg"](grid) + grid)


class _DepthwiseBlock(nn.Module):
    """Depthwise convolution, squeeze and excitation, pointwise convolution."""

    def __init__(self, width: int, *, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(width), nn.Hardswish()),
            _SqueezeExcite(width, squeezed=_multiple_of_8(width // 4)),
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), _ChannelNorm(width)),
        )
        self.residual = stride == 1

    def forward(self, x: Float[Tensor, "v d h w"]) -> Float[Tensor, "v d h2 w2"]:
        y = self.block(x)
        return x + y if self.residual else y


class _SqueezeExcite(nn.Module):
    """Every channel scaled by what two linear layers make of all channels' means."""

    def __init__(self, width: int, *, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Float[Tensor, "v d h w"]) -> Float[Tensor, "v d h w"]:
        means = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(means))))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a picture."""

    def forward(self, x: Float[Tensor, "v d h w"]) -> Float[Tensor, "v d h w"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _multiple_of_8(width: int) -> int:
    """MobileNet's rounding: to the nearest multiple of 8, but never down by more than a tenth."""
    rounded = max(8, (width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _to_grid(tokens: Float[Tensor, "v p d"]) -> Float[Tensor, "v d g g"]:
    edge = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (edge, edge))


def _to_tokens(grid: Float[Tensor, "v d h w"]) -> Float[Tensor, "v n d"]:
    return grid.flatten(2).transpose(1, 2)
