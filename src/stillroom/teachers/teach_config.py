"""What there is to choose in teaching a miniature teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from stillroom.records import BadInputError
from stillroom.teachers.llava3d_config import ClipSize, LLaVA3DConfig
from stillroom.text.tokenizer import Tokenizer
from stillroom.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TeacherSizes:
    """A LLaVA-3D small enough for two cores."""

    # CLIP: width, layers, heads and patch edge in pixels.
    clip_width: int = 128
    clip_layers: int = 4
    clip_heads: int = 4
    patch_size: int = 14
    # Edge of the pictures in pixels.
    image_size: int = 112
    # Llama: width, layers, heads and inner width.
    hidden_size: int = 192
    layers: int = 8
    heads: int = 4
    intermediate_size: int = 640
    # Base of the rotary frequencies. With Llama's 10,000 most channels of so narrow a head have
    # turned several times between a word and the voxels, and nothing is like anything any more.
    rope_theta: float = 1e7
    # One matrix for token embedding and output: names are copied into answers sooner.
    tie_embeddings: bool = True
    # Edge of a voxel in metres.
    voxel_size: float = 0.3
    # Views of a scene.
    views: int = 6


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """One training of a miniature teacher from truth."""

    train: TrainConfig
    sizes: TeacherSizes = field(default_factory=TeacherSizes)
    # Questions of a scene that share one row.
    questions_per_scene: int = 20
    # Chance that the scene's description joins its row.
    description_share: float = 0.05
    # Chance that each question of VSI-Bench's tasks joins its row.
    other_share: float = 0.05
    # Questions of a row that are also asked for their rationale: an extra text target, which
    # names, places and relates the objects before it concludes.
    rationales_per_scene: int = 0
    # Weight of the object targets at the voxels; 0 leaves them out.
    object_weight: float = 1.0
    # Weight of the box targets at the names in questions; 0 leaves them out.
    grounding_weight: float = 2.0
    # Weight of the numbers behind the answers: distances between the things named, and the one
    # that decides; 0 leaves them out.
    measure_weight: float = 1.0
    # Layers of the language model below the heads for voxels, for names, for distances between
    # names and for what decides the answer.
    object_level: int = 2
    grounding_level: int = 4
    apart_level: int = 5
    measure_level: int = 6
    # At most so many validation scenes per evaluation.
    validation_scenes: int = 100
    # Go on from this teacher (a shipped name, a folder or a hub id); empty is from scratch.
    start_from: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in ("object_level", "grounding_level", "apart_level", "measure_level"):
            if not 0 <= getattr(self, name) <= self.sizes.layers:
                raise BadInputError(
                    f"{name} must lie in 0..{self.sizes.layers}, the layers of the language model, "
                    f"got {getattr(self, name)}"
                )

    def llava3d(self, tokenizer: Tokenizer) -> LLaVA3DConfig:
        """The same in the layout of the release."""
        size = self.sizes
        return LLaVA3DConfig(
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=2048,
            rope_theta=size.rope_theta,
            tie_word_embeddings=size.tie_embeddings,
            clip=ClipSize(
                hidden_size=size.clip_width,
                num_hidden_layers=size.clip_layers,
                num_attention_heads=size.clip_heads,
                intermediate_size=4 * size.clip_width,
                image_size=size.image_size,
                patch_size=size.patch_size,
                projection_dim=size.clip_width,
            ),
            mm_vision_tower="",
            # The last layer's output: none is carried without being run.
            mm_vision_select_layer=-1,
            num_frames=size.views,
            tokenizer_model_max_length=2048,
            voxel_size=size.voxel_size,
            frame="view0",
            prompt="mini",
            visibility="prefix",
        )
