"""The sizes of a VGGT; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from stillroom.records import BadInputError

Head = Literal["camera", "depth", "points"]


@dataclass(frozen=True, kw_only=True)
class VGGTConfig:
    """Every size of a VGGT; the defaults are those of ``facebook/VGGT-1B``."""

    # Channels of the image encoder and of the aggregator; patch tokens have twice as many.
    width: int = 1024
    # Attention heads of the aggregator; a head's width must be a multiple of 4.
    heads: int = 16
    # Attention heads of the image encoder.
    encoder_heads: int = 16
    # Blocks of the image encoder.
    encoder_depth: int = 24
    # Pairs of one frame block and one global block.
    rounds: int = 24
    # Register tokens per view, in the image encoder and in the aggregator.
    registers: int = 4
    # Pixels along a patch's edge.
    patch_size: int = 14
    # Pixels along the square image whose position table is stored; others are resampled.
    image_size: int = 518
    # Inner width of an MLP over its width.
    mlp_ratio: float = 4.0
    # Base of the rotary frequencies.
    rope_base: float = 100.0
    # Rounds, counted from 0, whose patch tokens the dense heads read.
    levels: tuple[int, int, int, int] = (4, 11, 17, 23)
    # Channels of the dense heads' fusion pyramid.
    dpt_features: int = 256
    # Channels of the four levels before the pyramid; multiples of 4.
    dpt_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    # Blocks and attention heads of the camera trunk, and how often the pose is refined.
    camera_depth: int = 4
    camera_heads: int = 16
    camera_iterations: int = 4
    # Which heads exist.
    camera_head: bool = True
    depth_head: bool = True
    point_head: bool = True
    # Start values of the aggregator's LayerScale and of its camera and register tokens.
    layer_scale: float = 0.01
    token_std: float = 1e-6
    # Start value of the gains that queries and keys are normalised with; a head of 16 channels
    # can single out one token among hundreds only with more than 1.
    qk_gain: float = 1.0

    def __post_init__(self) -> None:
        complaint = self._complaint()
        if complaint:
            raise BadInputError(f"VGGT config: {complaint}")

    def _complaint(self) -> str:
        if self.width % self.heads or (self.width // self.heads) % 4:
            return f"width {self.width} must be heads ({self.heads}) times a multiple of 4"
        if self.width % self.encoder_heads:
            return f"width {self.width} is no multiple of encoder_heads {self.encoder_heads}"
        if 2 * self.width % self.camera_heads:
            return f"2 x width {self.width} is no multiple of camera_heads {self.camera_heads}"
        if self.image_size % self.patch_size:
            return f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
        if (self.depth_head or self.point_head) and not self._levels_fit():
            return f"levels {self.levels} must be four rising rounds below rounds {self.rounds}"
        if any(count % 4 for count in (*self.dpt_channels, self.dpt_features // 2)):
            return "dpt_channels and half of dpt_features must be multiples of 4"
        return ""

    def _levels_fit(self) -> bool:
        rising = all(a < b for a, b in zip(self.levels[:-1], self.levels[1:], strict=True))
        return (
            len(self.levels) == 4
            and rising
            and 0 <= self.levels[0] < self.levels[-1] < (self.rounds)
        )

    @property
    def token_width(self) -> int:
        """Channels of a patch token that ``encode`` returns."""
        return 2 * self.width

    @property
    def special_tokens(self) -> int:
        """Tokens of a view before its patches: one camera token and the registers."""
        return 1 + self.registers

    @property
    def heads_present(self) -> tuple[Head, ...]:
        """The heads this model has."""
        present: dict[Head, bool] = {
            "camera": self.camera_head,
            "depth": self.depth_head,
            "points": self.point_head,
        }
        return tuple(head for head, there in present.items() if there)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VGGTConfig:
        """The config that ``to_dict`` wrote; a name it does not know is an error."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise BadInputError(f"VGGT config: unknown settings {', '.join(unknown)}")
        # JSON has no tuples, and writes 100.0 as 100 where it came from elsewhere.
        kinds: dict[str, Any] = {entry.name: type(entry.default) for entry in fields(cls)}
        cast = {key: v if kinds[key] is bool else kinds[key](v) for key, v in values.items()}
        return cls(**cast)


#: Published checkpoints by hub id: their sizes are known before anything is fetched.
PUBLISHED: Mapping[str, VGGTConfig] = {
    "facebook/VGGT-1B": VGGTConfig(),
    "facebook/VGGT-1B-Commercial": VGGTConfig(),
}


def mini_config(**changes: Any) -> VGGTConfig:
    """The embedded default's encoder: about 1.7 M parameters, 8 x 8 patches at 112 px."""
    settings: dict[str, Any] = {
        "width": 80,
        "heads": 5,
        "encoder_heads": 5,
        "encoder_depth": 2,
        "rounds": 4,
        "registers": 4,
        "image_size": 112,
        "levels": (0, 1, 2, 3),
        "dpt_features": 16,
        "dpt_channels": (16, 16, 32, 32),
        "camera_depth": 2,
        "camera_heads": 5,
        # At this depth there is nothing to damp, and small starts only cost steps.
        "layer_scale": 0.5,
        "token_std": 0.02,
    }
    return VGGTConfig(**(settings | changes))
