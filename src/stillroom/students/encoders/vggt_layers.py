"""The transformer of VGGT: blocks, rotary positions, and the image encoder (a DINOv2).

Submodules carry the names of the public checkpoint's keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cpu import attend

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
#: LayerNorm epsilon of the image encoder; everything else in VGGT uses PyTorch's 1e-5.
ENCODER_EPS = 1e-6
#: Tokens that a block works on at once on a CPU.
PORTION = 1024


class Attention(nn.Module):
    """Self-attention with a fused projection; ``qk_norm`` normalises and rotates q and k."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else None
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "n t d"],
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "n t d"]:
        q, k, v = self.project(x, rotary)
        mixed = attend(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def project(
        self, x: Float[Tensor, "n t d"], rotary: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[n heads t d]``; ``rotary`` is that of these tokens."""
        n, t, width = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            # The table is float32: a half-precision q is rotated in float32 and cast back.
            q, k = rotate(q, *rotary).to(v.dtype), rotate(k, *rotary).to(v.dtype)
        return q, k, v


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, inner: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width if out is None else out)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float,
        qk_norm: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = LayerScale(width, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "n t d"],
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "n t d"]:
        eager = not torch.compiler.is_compiling()
        large = x.shape[0] * x.shape[1] > PORTION
        if eager and large and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._in_portions(x, rotary)
        x = x + self.ls1(self.attn(self.norm1(x), rotary))
        return x + self.ls2(self.mlp(self.norm2(x)))

    def _in_portions(
        self, x: Float[Tensor, "n t d"], rotary: tuple[Tensor, Tensor] | None
    ) -> Float[Tensor, "n t d"]:
        """The same on a CPU without a gradient: all but the attention a few tokens at a time.

        What lies between two matrices then stays in the cache and is never as large as the scene;
        fresh memory of that size costs a CPU more than what is computed in it.
        """
        step = max(1, PORTION // x.shape[0])
        spans = [slice(start, start + step) for start in range(0, x.shape[1], step)]
        whole: list[Tensor] = []  # queries, keys, values
        for span in spans:
            table = None if rotary is None else (rotary[0][span], rotary[1][span])
            parts = self.attn.project(self.norm1(x[:, span]), table)
            if not whole:
                whole = [p.new_empty(*p.shape[:2], x.shape[1], p.shape[3]) for p in parts]
            for target, part in zip(whole, parts, strict=True):
                target[:, :, span] = part
        q, k, v = whole
        mixed = attend(q, k, v)  # [n heads t d]
        del q, k, v, whole
        out = torch.empty_like(x)
        for span in spans:
            own = self.attn.proj(mixed[:, :, span].transpose(1, 2).flatten(2))
            y = x[:, span] + self.ls1(own)
            out[:, span] = y + self.ls2(self.mlp(self.norm2(y)))
        return out


# Rotary positions. ---------------------------------------------------------------------------


def token_positions(rows: int, columns: int, special: int) -> Int[Tensor, "p 2"]:
    """(row, column) of every token of a view: (0, 0) for special ones, patches count from 1."""
    row = torch.arange(1, rows + 1).repeat_interleave(columns)
    column = torch.arange(1, columns + 1).repeat(rows)
    patches = torch.stack([row, column], dim=-1)
    return torch.cat([patches.new_zeros(special, 2), patches])


def rotary_table(
    positions: Int[Tensor, "p 2"], head_width: int, base: float
) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p d"]]:
    """Cosine and signed sine of every channel of a head, per token; float32 on purpose.

    The first half of the channels turns by row, the second by column; of each half the first part
    takes its partner with a minus. Angles in bf16 are off by up to 0.06 (specs/vggt.md, section 6).
    """
    quarter = head_width // 4
    frequencies = base ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
    angles = positions[..., None].float() * frequencies  # [p 2 q]
    cos, sin = angles.cos(), angles.sin()
    return (
        torch.stack([cos, cos], dim=2).flatten(1),
        torch.stack([-sin, sin], dim=2).flatten(1),
    )


def rotate(
    x: Float[Tensor, "n heads t d"], cos: Float[Tensor, "t d"], sin: Float[Tensor, "t d"]
) -> Float[Tensor, "n heads t d"]:
    """Rotate channel pairs (j, j + d/4) of each half: the first by row, the second by column."""
    q = x.shape[-1] // 4
    # One copy with the partners in place: views of the pairs cost several times as much.
    partner = torch.cat([x[..., q : 2 * q], x[..., :q], x[..., 3 * q :], x[..., 2 * q : 3 * q]], -1)
    return torch.addcmul(x * cos, partner, sin)


# Images. -------------------------------------------------------------------------------------

_PIXELS: dict[torch.device, tuple[Tensor, Tensor]] = {}


def pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that images are normalised with, [1 3 1 1]; made once."""
    if device not in _PIXELS:
        with torch.inference_mode(False):
            mean = torch.tensor(IMAGE_MEAN, device=device).view(1, 3, 1, 1)
            std = torch.tensor(IMAGE_STD, device=device).view(1, 3, 1, 1)
            _PIXELS[device] = (mean, std)
    return _PIXELS[device]


def normalised(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """RGB in 0..1 to what DINOv2 was trained on."""
    mean, std = pixel_statistics(images.device)
    return (images - mean) / std


# Image encoder. ------------------------------------------------------------------------------


class PatchEmbedding(nn.Module):
    """One token per patch, row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        return self.proj(images).flatten(2).transpose(1, 2)


class ImageEncoder(nn.Module):
    """DINOv2 with registers: normalised images to patch tokens."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        depth: int,
        registers: int,
        patch_size: int,
        image_size: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.grid = image_size // patch_size
        self.patch_size = patch_size
        self.patch_embed = PatchEmbedding(width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        # In the checkpoint, read by nothing.
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, layer_scale=1.0, eps=ENCODER_EPS)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=ENCODER_EPS)

    def position_table(self, rows: int, columns: int) -> Float[Tensor, "1 p d"]:
        """Class token's entry and the patch table resized, in float32, to the grid asked for."""
        table = self.pos_embed
        if rows == columns == self.grid:
            return table
        patches = table[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        resized = F.interpolate(
            patches, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False
        )
        return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p d"]:
        n, _, height, width = images.shape
        patches = self.patch_embed(images)
        table = self.position_table(height // self.patch_size, width // self.patch_size)
        # Registers come after positions are added: they have none.
        tokens = torch.cat(
            [
                (self.cls_token + table[:, :1]).expand(n, -1, -1),
                self.register_tokens.expand(n, -1, -1),
                patches + table[:, 1:],
            ],
            dim=1,
        )
        for block in self.blocks:
            tokens = block(tokens)
        # LayerNorm is per token: dropping first saves nothing but loses nothing either.
        return self.norm(tokens[:, 1 + self.register_tokens.shape[1] :])
