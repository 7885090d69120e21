"""VGGT (arXiv 2503.11651): photos of one scene to patch tokens, depth, points and cameras.

Any size from a config; submodules carry the names of the public checkpoint's keys, so that
``facebook/VGGT-1B`` loads by key (``vggt_load.py``). Views of a call share one image size. The
first view is special: its camera is the world frame of points and poses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.records import BadInputError
from stillroom.students.encoders.vggt_config import Head
from stillroom.students.encoders.vggt_config import VGGTConfig as VGGTConfig
from stillroom.students.encoders.vggt_config import mini_config as mini_config
from stillroom.students.encoders.vggt_heads import (
    CameraHead,
    DenseHead,
    activate_depth,
    activate_points,
)
from stillroom.students.encoders.vggt_layers import (
    Block,
    ImageEncoder,
    normalised,
    rotary_table,
    token_positions,
)

#: Views that go through a dense head at once when no gradient is kept.
VIEWS_PER_CHUNK = 8


@dataclass(frozen=True, kw_only=True)
class VGGTOutput:
    """What one pass gave; a head that was not asked for leaves None.

    ``tokens`` holds the rounds asked for. Depth is along the optical axis; points are in the
    first camera's frame (OpenCV axes); both in the unit the weights were trained in (metres for
    ours, normalised for the public checkpoint). Confidences are above 1. ``pose_enc`` is the pose
    code of ``vggt_camera.py``, ``pose_steps`` the same after every refinement.
    """

    tokens: dict[int, Float[Tensor, "b v _ c"]]
    depth: Float[Tensor, "b v h w"] | None = None
    depth_conf: Float[Tensor, "b v h w"] | None = None
    points: Float[Tensor, "b v h w 3"] | None = None
    points_conf: Float[Tensor, "b v h w"] | None = None
    pose_enc: Float[Tensor, "b v 9"] | None = None
    pose_steps: list[Float[Tensor, "b v 9"]] = field(default_factory=list)


class Aggregator(nn.Module):
    """Image encoder and alternating attention: images to tokens of every round asked for."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = ImageEncoder(
            width=config.width,
            heads=config.encoder_heads,
            depth=config.encoder_depth,
            registers=config.registers,
            patch_size=config.patch_size,
            image_size=config.image_size,
            mlp_ratio=config.mlp_ratio,
        )
        # Entry 0 is for the first view, entry 1 for all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, config.width))
        self.frame_blocks = nn.ModuleList(self._block() for _ in range(config.rounds))
        self.global_blocks = nn.ModuleList(self._block() for _ in range(config.rounds))
        # Constants by grid and device, made when first needed. Not buffers: those would be empty
        # in a model that was built on the meta device and then filled from a checkpoint.
        self._rotary: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def _block(self) -> Block:
        config = self.config
        return Block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            layer_scale=config.layer_scale,
            qk_norm=True,
        )

    def patch_tokens(self, images: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "n p d"]:
        """The image encoder's patch tokens, views of all scenes in one batch."""
        return self.patch_embed(normalised(images.flatten(0, 1)).to(self.camera_token.dtype))

    def with_special(self, patches: Float[Tensor, "n p d"], views: int) -> Float[Tensor, "n t d"]:
        """Camera and register tokens put before the patches of every view."""
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0]  # [2 s d]
        # By index: a number of views that is not known yet can be exported so.
        per_scene = special[torch.arange(views, device=special.device).clamp(max=1)]  # [v s d]
        return torch.cat([per_scene.repeat(patches.shape[0] // views, 1, 1), patches], dim=1)

    def rotary(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotary table of one view, made once per grid: no device sync in a pass."""
        key = (rows, columns, device)
        if key not in self._rotary:
            # A table made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                positions = token_positions(rows, columns, self.config.special_tokens)
                head_width = self.config.width // self.config.heads
                cos, sin = rotary_table(positions, head_width, self.config.rope_base)
                self._rotary[key] = (cos.to(device), sin.to(device))
        return self._rotary[key]

    def forward(
        self, images: Float[Tensor, "b v 3 h w"], rounds: Collection[int]
    ) -> dict[int, Float[Tensor, "b v t c"]]:
        """Tokens of the rounds asked for, special ones first; nothing runs after the last."""
        scenes, views = images.shape[:2]
        rows, columns = (side // self.config.patch_size for side in images.shape[-2:])
        cos, sin = self.rotary(rows, columns, images.device)
        # The same positions in every view: nothing encodes which view a token is from.
        across = (cos.repeat(views, 1), sin.repeat(views, 1))
        x = self.with_special(self.patch_tokens(images), views)
        kept = {}
        for index in range(1 + max(rounds, default=-1)):
            x = self.frame_blocks[index](x, (cos, sin))
            within = x
            x = self.global_blocks[index](x.view(scenes, -1, x.shape[-1]), across).view_as(x)
            if index in rounds:
                kept[index] = torch.cat([within, x], dim=-1).unflatten(0, (scenes, views))
        return kept


class VGGT(nn.Module):
    """Aggregator and the heads its config names."""

    def __init__(self, config: VGGTConfig, *, seed: int | None = None) -> None:
        """Fresh weights; ``seed`` makes them repeatable without touching the global generator."""
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self._build(config)
            self._initialise()

    def _build(self, config: VGGTConfig) -> None:
        def dense(outputs: int) -> DenseHead:
            return DenseHead(
                config.token_width,
                features=config.dpt_features,
                channels=config.dpt_channels,
                outputs=outputs,
                patch_size=config.patch_size,
            )

        self.aggregator = Aggregator(config)
        if config.camera_head:
            self.camera_head = CameraHead(
                config.token_width,
                config.camera_heads,
                config.camera_depth,
                iterations=config.camera_iterations,
                layer_scale=config.layer_scale,
            )
        if config.depth_head:
            self.depth_head = dense(2)
        if config.point_head:
            self.point_head = dense(4)

    def _initialise(self) -> None:
        """The release's start values where they are not PyTorch's."""
        encoder = self.aggregator.patch_embed
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
        for token in (encoder.cls_token, encoder.register_tokens):
            nn.init.normal_(token, std=1e-6)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for block in (*self.aggregator.frame_blocks, *self.aggregator.global_blocks):
            for norm in (block.attn.q_norm, block.attn.k_norm):
                nn.init.constant_(norm.weight, self.config.qk_gain)
        for token in (self.aggregator.camera_token, self.aggregator.register_token):
            nn.init.normal_(token, std=self.config.token_std)

    def forward(
        self, images: Float[Tensor, "b v 3 h w"], rounds: Collection[int] = ()
    ) -> VGGTOutput:
        """Everything the model has heads for, and the tokens of ``rounds``."""
        return self.encode(images, rounds, heads=self.config.heads_present)

    def encode(
        self,
        images: Float[Tensor, "b v 3 h w"],
        rounds: Collection[int] | None = None,
        *,
        heads: Collection[Head] = (),
        tokens: Literal["patch", "all"] = "patch",
    ) -> VGGTOutput:
        """Tokens of the chosen rounds (default: the last) and the outputs of the chosen heads.

        ``images`` are RGB in 0..1, not normalised, sides multiples of the patch. ``tokens="all"``
        keeps the camera and register tokens before the patches. Rounds that neither you nor a
        head need are not kept, and nothing runs after the last needed one.

        Raises:
            BadInputError: a round or head the model does not have, or an image size it cannot cut.
        """
        wanted = {self.config.rounds - 1} if rounds is None else set(rounds)
        self._check(images, wanted, heads)
        kept = self.aggregator(images, wanted | self._rounds_for(heads))
        first = self.config.special_tokens
        start = first if tokens == "patch" else 0
        outputs: dict[str, Any] = {"tokens": {r: kept[r][:, :, start:] for r in sorted(wanted)}}
        if "camera" in heads:
            steps = self.camera_head(kept[self.config.rounds - 1][:, :, 0])
            outputs |= {"pose_enc": steps[-1], "pose_steps": steps}
        patches = {r: kept[r][:, :, first:] for r in self.config.levels if r in kept}
        if "depth" in heads:
            outputs["depth"], outputs["depth_conf"] = self.depth_of(patches, images)
        if "points" in heads:
            outputs["points"], outputs["points_conf"] = self.points_of(patches, images)
        return VGGTOutput(**outputs)

    def depth_of(
        self, tokens: Mapping[int, Tensor], images: Float[Tensor, "b v 3 h w"]
    ) -> tuple[Float[Tensor, "b v h w"], Float[Tensor, "b v h w"]]:
        """Depth and confidence from the patch tokens of ``config.levels``."""
        depth, confidence = activate_depth(self._dense(self.depth_head, tokens, images))
        views = tuple(images.shape[:2])
        return depth.unflatten(0, views), confidence.unflatten(0, views)

    def points_of(
        self, tokens: Mapping[int, Tensor], images: Float[Tensor, "b v 3 h w"]
    ) -> tuple[Float[Tensor, "b v h w 3"], Float[Tensor, "b v h w"]]:
        """Points in the first camera's frame and confidence, from the same patch tokens."""
        points, confidence = activate_points(self._dense(self.point_head, tokens, images))
        views = tuple(images.shape[:2])
        return points.unflatten(0, views), confidence.unflatten(0, views)

    def _dense(self, head: DenseHead, tokens: Mapping[int, Tensor], images: Tensor) -> Tensor:
        levels = [tokens[level].flatten(0, 1) for level in self.config.levels]
        size = (images.shape[-2], images.shape[-1])
        # An exported graph takes any number of views, all at once.
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if whole or levels[0].shape[0] <= VIEWS_PER_CHUNK:
            return head.logits(levels, size)
        chunks = zip(*(level.split(VIEWS_PER_CHUNK) for level in levels), strict=True)
        return torch.cat([head.logits(chunk, size) for chunk in chunks])

    def _rounds_for(self, heads: Collection[Head]) -> set[int]:
        needed = set(self.config.levels) if {"depth", "points"} & set(heads) else set()
        return needed | ({self.config.rounds - 1} if "camera" in heads else set())

    def _check(self, images: Tensor, rounds: set[int], heads: Collection[Head]) -> None:
        config = self.config
        height, width = images.shape[-2:]
        if height % config.patch_size or width % config.patch_size:
            raise BadInputError(
                f"images must have sides that are multiples of {config.patch_size} pixels, got "
                f"{height} x {width}; resize or pad them first"
            )
        if rounds and not 0 <= min(rounds) <= max(rounds) < config.rounds:
            raise BadInputError(f"rounds must lie in 0..{config.rounds - 1}, got {sorted(rounds)}")
        missing = set(heads) - set(config.heads_present)
        if missing:
            raise BadInputError(
                f"this VGGT has heads {', '.join(config.heads_present) or 'none'}, asked for "
                f"{', '.join(sorted(missing))}"
            )
