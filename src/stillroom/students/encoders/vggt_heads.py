"""The heads of VGGT: cameras from camera tokens, depth and points from patch tokens (DPT).

Submodules carry the names of the public checkpoint's keys. Heads run in the dtype of their own
weights, outside autocast: exp(depth), exp(confidence) and the pose feedback need float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.students.encoders.vggt_layers import Block, Mlp

POSE_NUMBERS = 9
#: Channels of the last hidden convolution of a dense head, at any size.
LAST_CHANNELS = 32


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Precision as the weights have it; where nothing is computed (meta) there is no autocast."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


# Cameras. ------------------------------------------------------------------------------------


class CameraHead(nn.Module):
    """Refines the pose code of every view of a scene, all views seeing each other."""

    def __init__(
        self, width: int, heads: int, depth: int, *, iterations: int, layer_scale: float
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.token_norm = nn.LayerNorm(width)
        self.trunk = nn.Sequential(
            *(Block(width, heads, mlp_ratio=4.0, layer_scale=layer_scale) for _ in range(depth))
        )
        self.trunk_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_NUMBERS))
        self.embed_pose = nn.Linear(POSE_NUMBERS, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, POSE_NUMBERS)

    def forward(self, camera_tokens: Float[Tensor, "b v d"]) -> list[Float[Tensor, "b v 9"]]:
        """The activated pose code after each refinement; the last one is the answer."""
        with without_autocast(camera_tokens.device):
            x = self.token_norm(camera_tokens.to(self.token_norm.weight.dtype))
            normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            raw = self.empty_pose_tokens.expand(*x.shape[:2], -1)
            poses = []
            for step in range(self.iterations):
                # What is fed back is the raw pose, cut from the graph.
                shift, scale, gate = self.poseLN_modulation(
                    self.embed_pose(raw if step == 0 else raw.detach())
                ).chunk(3, dim=-1)
                y = x + gate * (normed * (1 + scale) + shift)
                delta = self.pose_branch(self.trunk_norm(self.trunk(y)))
                raw = delta if step == 0 else raw.detach() + delta
                poses.append(activate_pose(raw))
        return poses


def activate_pose(raw: Float[Tensor, "*n 9"]) -> Float[Tensor, "*n 9"]:
    """Translation and quaternion as they are, fields of view [rad] rectified; float32."""
    raw = raw.float()
    return torch.cat([raw[..., :7], raw[..., 7:].relu()], dim=-1)


# Dense maps. ---------------------------------------------------------------------------------


class ResidualUnit(nn.Module):
    """Two convolutions whose skip carries relu(x), not x.

    The release rectifies its input in place before adding it back, and its weights were trained
    so; a clean unit is off by orders of magnitude (specs/vggt.md, section 4). Here too: its input,
    which nobody else reads, is overwritten, and takes no memory twice.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "n f h w"]) -> Float[Tensor, "n f h w"]:
        rectified = x.relu_()
        return rectified + self.conv2(self.conv1(rectified).relu_())


class Fusion(nn.Module):
    """Adds a level to what came from the coarser ones and refines.

    The release enlarges before ``out_conv``. A convolution of single cells and a bilinear resize
    may change places, and it then has a quarter of the cells.
    """

    def __init__(self, features: int, *, has_skip: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualUnit(features) if has_skip else None
        self.resConfUnit2 = ResidualUnit(features)

    def forward(
        self,
        coarse: Float[Tensor, "n f h w"],
        level: Float[Tensor, "n f h w"] | None = None,
    ) -> Float[Tensor, "n f h w"]:
        if self.resConfUnit1 is not None and level is not None:
            coarse = coarse + self.resConfUnit1(level)
        refined: Tensor = self.out_conv(self.resConfUnit2(coarse))
        return refined


class Scratch(nn.Module):
    """The fusion pyramid and the last convolutions of a dense head."""

    def __init__(self, features: int, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        for number, count in enumerate(channels, start=1):
            convolution = nn.Conv2d(count, features, 3, padding=1, bias=False)
            self.add_module(f"layer{number}_rn", convolution)
            self.add_module(f"refinenet{number}", Fusion(features, has_skip=number < 4))
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, LAST_CHANNELS, 3, padding=1),
            # A map as large as the photos: a second one costs a CPU more than the convolution.
            nn.ReLU(inplace=True),
            nn.Conv2d(LAST_CHANNELS, outputs, 1),
        )

    def fuse(self, levels: Sequence[Tensor]) -> Float[Tensor, "n f h w"]:
        """Four levels, fine to coarse, into one map of the finest one's size."""
        layers = [self.get_submodule(f"layer{k}_rn")(level) for k, level in enumerate(levels, 1)]
        fused: Tensor = self.get_submodule("refinenet4")(layers[3])
        for k in (3, 2, 1):
            level = layers[k - 1]
            fused = self.get_submodule(f"refinenet{k}")(resize(fused, level.shape[-2:]), level)
        return fused

    def enlarge(self, fused: Float[Tensor, "n f h w"]) -> Float[Tensor, "n f2 h2 w2"]:
        """The fused map at twice its size, after the first output convolution."""
        size = (2 * fused.shape[-2], 2 * fused.shape[-1])
        enlarged: Tensor = self.output_conv1(resize(fused, size))
        return enlarged


class DenseHead(nn.Module):
    """DPT: patch tokens of four rounds to ``outputs`` channels per pixel, confidence last."""

    def __init__(
        self,
        width: int,
        *,
        features: int,
        channels: Sequence[int],
        outputs: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = nn.LayerNorm(width)
        self.projects = nn.ModuleList(nn.Conv2d(width, count, 1) for count in channels)
        c0, c1, _, c3 = channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(c0, c0, kernel_size=4, stride=4),
                nn.ConvTranspose2d(c1, c1, kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(c3, c3, 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(features, channels, outputs)

    def fused(
        self, levels: Sequence[Float[Tensor, "n p d"]], image_hw: tuple[int, int]
    ) -> Float[Tensor, "n f h w"]:
        """The map after the pyramid and the first output convolution: a patch is 8 x 8 cells."""
        return self.scratch.enlarge(self._pyramid(levels, image_hw))

    def logits(
        self, levels: Sequence[Float[Tensor, "n p d"]], image_hw: tuple[int, int]
    ) -> Float[Tensor, "n o h w"]:
        """The last convolution at image size, before activation; float32."""
        with without_autocast(levels[0].device):
            fused = self._pyramid(levels, image_hw)
            # Large maps are held of one photo at a time where nothing keeps them: a CPU spends
            # longer on taking fresh memory than on the convolutions.
            whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or not fused.is_cpu
            if whole:
                return self._at_image_size(fused, image_hw)
            return torch.cat([self._at_image_size(part, image_hw) for part in fused.split(1)])

    def _pyramid(self, levels: Sequence[Tensor], image_hw: tuple[int, int]) -> Tensor:
        aspect = image_hw[1] / image_hw[0]
        grid = (image_hw[0] // self.patch_size, image_hw[1] // self.patch_size)
        maps = []
        for tokens, project, enlarge in zip(levels, self.projects, self.resize_layers, strict=True):
            normed = self.norm(tokens.to(self.norm.weight.dtype))
            patches = project(normed.transpose(1, 2).unflatten(2, grid))
            maps.append(enlarge(with_position_code(patches, aspect)))
        return self.scratch.fuse(maps)

    def _at_image_size(self, fused: Tensor, image_hw: tuple[int, int]) -> Tensor:
        enlarged = resize(self.scratch.enlarge(fused), image_hw)
        coded = with_position_code(enlarged, image_hw[1] / image_hw[0])
        logits: Tensor = self.scratch.output_conv2(coded).float()
        return logits


def resize(x: Float[Tensor, "n f h w"], size: Sequence[int]) -> Float[Tensor, "n f h2 w2"]:
    """Bilinear, corners aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def activate_depth(
    logits: Float[Tensor, "n 2 h w"],
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Depth exp(d) and confidence 1 + exp(c)."""
    return logits[:, 0].exp(), 1 + logits[:, 1].exp()


def activate_points(
    logits: Float[Tensor, "n 4 h w"],
) -> tuple[Float[Tensor, "n h w 3"], Float[Tensor, "n h w"]]:
    """Points sign(p)(exp|p| - 1) in the first camera's frame, and confidence 1 + exp(c)."""
    p = logits[:, :3].permute(0, 2, 3, 1)
    return p.sign() * p.abs().expm1(), 1 + logits[:, 3].exp()


# A handful of sizes ever occurs; the code depends on nothing learned.
_POSITION_CODES: dict[tuple[object, ...], Tensor] = {}


def with_position_code(x: Float[Tensor, "n c h w"], aspect: float) -> Float[Tensor, "n c h w"]:
    """``x`` plus a tenth of sinusoids of where each cell lies in an image of that aspect w/h."""
    key = (*x.shape[1:], aspect, x.dtype, x.device)
    if key not in _POSITION_CODES:
        # A table made in inference mode could not be used in training later.
        with torch.inference_mode(False):
            code = position_code(x.shape[1], x.shape[2], x.shape[3], aspect)
            _POSITION_CODES[key] = (0.1 * code).to(device=x.device, dtype=x.dtype)
    return x + _POSITION_CODES[key]


def position_code(channels: int, height: int, width: int, aspect: float) -> Float[Tensor, "c h w"]:
    """[sin u, cos u, sin v, cos v] over channels/4 frequencies of base 100, in float64 to float32.

    u and v are grid coordinates in the unit-diagonal rectangle of the image.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    quarter = channels // 4
    frequencies = 100.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def axis(span: float, count: int) -> Tensor:
        end = span * (count - 1) / count
        angles = torch.linspace(-end, end, count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # [count channels/2]

    u = axis(aspect / diagonal, width).T[:, None, :].expand(-1, height, -1)
    v = axis(1 / diagonal, height).T[:, :, None].expand(-1, -1, width)
    return torch.cat([u, v])
