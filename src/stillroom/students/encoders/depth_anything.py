"""Depth Anything 3 (arXiv 2511.10647): photos of one scene to patch tokens, by one DINOv2 trunk.

From block ``alternate_from`` on, q and k are normalised and turned by position, and every second
block looks across all views; before it, each view is looked at alone. What is read is the stream
after a block that looked within views beside that after the next, which looked across them.

Small and Base are the pretrained encoders of a student's size that everybody may use (Apache-2.0).
Only the trunk is here: the depth and ray heads are neither built nor read. Submodules carry the
names of the checkpoint's keys. specs/vggt.md, section 11, gives the design; details that it leaves
open are marked "open" below and wait for a comparison with published weights (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import Head, VGGTOutput
from stillroom.students.encoders.vggt_layers import (
    ENCODER_EPS,
    Block,
    PatchEmbedding,
    normalised,
    rotary_table,
    token_positions,
)

KIND = "depth_anything"


@dataclass(frozen=True, kw_only=True)
class DepthAnythingConfig:
    """The sizes of a trunk; the defaults are those of Small."""

    # Channels of the trunk; patch tokens have twice as many.
    width: int = 384
    # Attention heads; a head's width must be a multiple of 4.
    heads: int = 6
    # Blocks in all, and the first of those that turn by position and look across views in turn.
    depth: int = 12
    alternate_from: int = 4
    # Pixels along a patch's edge, and along the image whose position table is stored.
    patch_size: int = 14
    image_size: int = 518
    # Inner width of an MLP over its width, and the base of the rotary frequencies.
    mlp_ratio: float = 4.0
    rope_base: float = 100.0
    # Start value of LayerScale.
    layer_scale: float = 1.0

    def __post_init__(self) -> None:
        complaint = ""
        if self.width % self.heads or (self.width // self.heads) % 4:
            complaint = f"width {self.width} must be heads ({self.heads}) times a multiple of 4"
        elif self.image_size % self.patch_size:
            complaint = (
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        elif not 0 <= self.alternate_from < self.depth:
            complaint = f"alternate_from {self.alternate_from} is none of the {self.depth} blocks"
        if complaint:
            raise BadInputError(f"Depth Anything config: {complaint}")

    @property
    def rounds(self) -> int:
        """Blocks whose tokens may be asked for."""
        return self.depth

    @property
    def token_width(self) -> int:
        """Channels of a patch token that ``encode`` returns."""
        return 2 * self.width

    @property
    def depth_head(self) -> bool:
        """There is none: the student gets no depth of its own."""
        return False

    def looks_across(self, block: int) -> bool:
        """Whether a block looks at all views: the odd ones (levels 5, 7, 9, 11 of twelve)."""
        return block >= self.alternate_from and block % 2 == 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DepthAnythingConfig:
        """The config that ``to_dict`` wrote; a name it does not know is an error."""
        known: dict[str, Any] = {entry.name: type(entry.default) for entry in fields(cls)}
        given = {key: value for key, value in values.items() if key != "kind"}
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            raise BadInputError(f"Depth Anything config: unknown settings {', '.join(unknown)}")
        return cls(**{key: known[key](value) for key, value in given.items()})


#: Checkpoints by hub id: their sizes are known before anything is fetched.
PUBLISHED: Mapping[str, DepthAnythingConfig] = {
    "depth-anything/DA3-SMALL": DepthAnythingConfig(),
    "depth-anything/DA3-BASE": DepthAnythingConfig(width=768, heads=12),
}


class DepthAnything(nn.Module):
    """The trunk."""

    def __init__(self, config: DepthAnythingConfig, *, seed: int | None = None) -> None:
        """Fresh weights; ``seed`` makes them repeatable without touching the global generator."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self._build(config)
        # Tables by grid and device, made when first needed; ``vggt.py`` says why no buffers.
        self._rotary: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def _build(self, config: DepthAnythingConfig) -> None:
        width, grid = config.width, config.image_size // config.patch_size
        self.patch_embed = PatchEmbedding(width, config.patch_size)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + grid**2, width))
        # Open: takes the place of the class token where views begin to see each other; entry 0 is
        # for the first view, entry 1 for all others.
        self.camera_token = nn.Parameter(torch.randn(1, 2, width))
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                qk_norm=index >= config.alternate_from,
                eps=ENCODER_EPS,
            )
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=ENCODER_EPS)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def position_table(self, rows: int, columns: int) -> Float[Tensor, "1 p d"]:
        """Class token's entry and the patch table, resized in float32 to the grid asked for.

        Open: DINOv2's own way, bicubic by a scale that is a tenth of a patch too large.
        """
        table = self.pos_embed
        grid = self.config.image_size // self.config.patch_size
        if rows == columns == grid:
            return table
        patches = table[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        resized = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        assert resized.shape[-2:] == (rows, columns)
        return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

    def rotary(
        self, rows: int, columns: int, device: torch.device, *, apart: bool
    ) -> tuple[Tensor, Tensor]:
        """Rotary table of one view.

        Open: across views (not ``apart``) all patches have one and the same position.
        """
        key = (rows, columns, device, apart)
        if key not in self._rotary:
            with torch.inference_mode(False):
                positions = token_positions(rows, columns, 1)
                positions = positions if apart else positions.clamp(max=1)
                head_width = self.config.width // self.config.heads
                cos, sin = rotary_table(positions, head_width, self.config.rope_base)
                self._rotary[key] = (cos.to(device), sin.to(device))
        return self._rotary[key]

    def encode(
        self,
        images: Float[Tensor, "b v 3 h w"],
        rounds: Collection[int] | None = None,
        *,
        heads: Collection[Head] = (),
        tokens: Literal["patch", "all"] = "patch",
    ) -> VGGTOutput:
        """Tokens of the chosen blocks (default: the last), each beside those of the last block
        before it that looked within views; only the second half is normalised.

        ``images`` are RGB in 0..1, not normalised, sides multiples of the patch. ``tokens="all"``
        keeps the class or camera token before the patches. Nothing runs after the last block asked
        for.

        Raises:
            BadInputError: a block or head the model does not have, or an image size it cannot cut.
        """
        config = self.config
        wanted = {config.depth - 1} if rounds is None else set(rounds)
        self._check(images, wanted, heads)
        scenes, views = images.shape[:2]
        rows, columns = (side // config.patch_size for side in images.shape[-2:])
        x = self._embedded(images, rows, columns)
        own = self.rotary(rows, columns, images.device, apart=True)
        cos, sin = self.rotary(rows, columns, images.device, apart=False)
        across = (cos.repeat(views, 1), sin.repeat(views, 1))
        within, kept = x, {}
        for index in range(1 + max(wanted, default=-1)):
            block, turning = self.blocks[index], index >= config.alternate_from
            if index == config.alternate_from:
                first, others = self.camera_token[:, :1], self.camera_token[:, 1:]
                cameras = torch.cat([first, others.expand(-1, views - 1, -1)], dim=1)
                x = torch.cat(
                    [cameras.repeat(scenes, 1, 1).flatten(0, 1)[:, None], x[:, 1:]], dim=1
                )
            if config.looks_across(index):
                x = block(x.view(scenes, -1, x.shape[-1]), across).view_as(x)
            else:
                x = within = block(x, own if turning else None)
            if index in wanted:
                both = torch.cat([within, self.norm(x)], dim=-1)
                both = both if tokens == "all" else both[:, 1:]
                kept[index] = both.unflatten(0, (scenes, views))
        return VGGTOutput(tokens=kept)

    def _embedded(self, images: Tensor, rows: int, columns: int) -> Float[Tensor, "n t d"]:
        patches = self.patch_embed(normalised(images.flatten(0, 1)).to(self.cls_token.dtype))
        table = self.position_table(rows, columns)
        start = (self.cls_token + table[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([start, patches + table[:, 1:]], dim=1)

    def _check(self, images: Tensor, rounds: set[int], heads: Collection[Head]) -> None:
        config = self.config
        height, width = images.shape[-2:]
        if height % config.patch_size or width % config.patch_size:
            raise BadInputError(
                f"images must have sides that are multiples of {config.patch_size} pixels, got "
                f"{height} x {width}; resize or pad them first"
            )
        if rounds and not 0 <= min(rounds) <= max(rounds) < config.depth:
            raise BadInputError(f"rounds must lie in 0..{config.depth - 1}, got {sorted(rounds)}")
        if heads:
            raise BadInputError(f"this encoder has no heads, asked for {', '.join(sorted(heads))}")
