"""Everything that makes a student this student and no other; saved beside its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from stillroom.records import BadInputError, DepthUnit
from stillroom.students.encoders.load import EncoderConfig, config_of
from stillroom.students.encoders.vggt_config import PUBLISHED, VGGTConfig, mini_config

#: Where the paper's recipes put the depth bins, in metres.
DEPTH_NEAR, DEPTH_FAR = 0.3, 10.0


class StillroomConfig(PretrainedConfig):
    """Encoder, connector, slots and language model of a student.

    ``encoder`` holds the settings of ``VGGTConfig`` or, with ``kind`` depth_anything, of
    ``DepthAnythingConfig``; ``text_config`` is the config of any
    transformers causal language model.
    """

    model_type = "stillroom"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012, transformers' own way to say it
    # A transformers config takes more names than its fields: the shape checks of our tests, which
    # would bind the fields' own signature, leave it alone.
    __no_type_check__ = True

    encoder: dict[str, Any] | None = None
    text_config: dict[str, Any] | PretrainedConfig | None = None
    # Round of the encoder whose patch tokens are read, counted from 0; None is the last.
    encoder_round: int | None = None
    # A blind student sees no photo, in training or later: the control that answers from words.
    blind: bool = False
    # Without a gradient the encoder's features can be cached.
    freeze_encoder: bool = True
    # A frozen encoder's depth head may learn all the same.
    train_depth_head: bool = False
    # What the encoder's own depth is told in. None (checkpoints from before there was this) is
    # metres, but of an encoder of the public VGGT-1B's sizes, whose depth has no scale.
    depth_unit: DepthUnit | None = None
    # Vision tokens per view: this many rows and columns.
    vision_grid: int = 8
    # grid: every cell is a token. mean: the whole scene is one token (the papers' literal reading).
    vision_pool: Literal["grid", "mean"] = "grid"
    # Bins of the depth head, log-spaced.
    depth_bins: int = 64
    depth_near: float = DEPTH_NEAR
    depth_far: float = DEPTH_FAR
    # Layers of the language model below the head that places the things a question names; the
    # layers above can reason with what it found. None is all but the last.
    mention_level: int | None = None
    # Kinds of numbers that a head predicts where an answer begins, and how many layers stand below
    # it (None is all); 0 kinds is a student without the head.
    measures: int = 0
    measure_level: int | None = None
    # Guesses of the detector; 0 is a student without one. Its width is a multiple of 32.
    detection_queries: int = 0
    detection_width: int = 64
    detection_layers: int = 2
    # The names of the kinds it tells apart, in the order of its logits behind "none".
    detection_kinds: list[str] | None = None
    # Inner width of the head that tells left, above and in front; 0 is a student without one.
    relation_width: int = 0
    # Width of the teacher's features that vision tokens are compared with; 0 where there are none.
    feature_width: int = 0
    # Latent thinking slots: kind, how many, and on which side of the question.
    slot_kind: Literal["learned", "frozen_random", "filler", "none"] = "learned"
    slot_count: int = 8
    slot_position: Literal["before", "after"] = "before"
    # Who sees whom: engine/mask.py.
    visibility: Literal["prefix", "full_prefix", "causal"] = "prefix"
    # Photos become squares of this many pixels; of more photos, so many are chosen evenly.
    image_size: int = 112
    max_views: int = 8
    # Longest answer, in tokens.
    max_answer_tokens: int = 128
    # What the weights are: numbers as trained, or whole numbers of 8 or 4 bits (quantised.py).
    weights: Literal["full", "int8", "int4"] = "full"
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    # Stands right before the answer: the first answer token is predicted from it.
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder = config_of(
            mini_config(point_head=False, camera_head=False).to_dict()
            if self.encoder is None
            else self.encoder
        ).to_dict()
        if self.text_config is None:
            self.text_config = neox_config()
        elif isinstance(self.text_config, dict):
            settings = dict(self.text_config)
            kind = settings.pop("model_type", "gpt_neox")
            if kind not in CONFIG_MAPPING:
                raise BadInputError(f"student config: unknown language model type {kind!r}")
            self.text_config = CONFIG_MAPPING[kind](**settings)
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        if self.slot_kind == "none" or self.slot_count == 0:
            self.slot_kind, self.slot_count = "none", 0
        if self.depth_unit is None:
            scaled = self.train_depth_head or not _as_published(self.encoder_sizes)
            self.depth_unit = "metre" if scaled else "scene"
        super().__post_init__(**kwargs)
        complaint = self._complaint()
        if complaint:
            raise BadInputError(f"student config: {complaint}")

    def _complaint(self) -> str:
        sizes = self.encoder_sizes
        if self.image_size % sizes.patch_size:
            return f"image_size {self.image_size} is no multiple of patch_size {sizes.patch_size}"
        if self.vision_grid < 1 or self.max_views < 1:
            return "vision_grid and max_views must be at least 1"
        cell = self.image_size // self.vision_grid
        if not cell or self.image_size // cell != self.vision_grid:
            return (
                f"a picture of {self.image_size} pixels cannot be cut into {self.vision_grid} x "
                f"{self.vision_grid} cells of whole pixels; take another vision_grid, for example "
                f"{self.image_size // sizes.patch_size}"
            )
        if self.train_depth_head and not sizes.depth_head:
            return "train_depth_head needs an encoder with a depth head"
        if self.depth_unit not in get_args(DepthUnit):
            return f"depth_unit must be metre or scene, got {self.depth_unit!r}"
        if self.slot_count < 0:
            return f"slot_count must not be negative, got {self.slot_count}"
        if not 0 <= self.round_read < sizes.rounds:
            return f"encoder_round {self.encoder_round} is none of the {sizes.rounds} rounds"
        if not 0 <= self.mention_layers <= self.language_model.num_hidden_layers:
            return (
                f"mention_level {self.mention_level} must lie in 0.."
                f"{self.language_model.num_hidden_layers}, the layers of the language model"
            )
        if not 0 <= self.measure_layers <= self.language_model.num_hidden_layers:
            return (
                f"measure_level {self.measure_level} must lie in 0.."
                f"{self.language_model.num_hidden_layers}, the layers of the language model"
            )
        if self.measures < 0:
            return f"measures must not be negative, got {self.measures}"
        if self.detection_queries < 0 or self.relation_width < 0 or self.feature_width < 0:
            return "detection_queries, relation_width and feature_width must not be negative"
        if self.detection_queries:
            if not self.detection_kinds:
                return "a detector needs detection_kinds, the names of what it tells apart"
            if self.detection_width < 1 or self.detection_width % 32 or self.detection_layers < 1:
                return (
                    "detection_width must be a multiple of 32 and detection_layers at least 1, got "
                    f"{self.detection_width} and {self.detection_layers}"
                )
        if self.weights not in ("full", "int8", "int4"):
            return f"weights must be full, int8 or int4, got {self.weights!r}"
        if self.depth_bins < 2 or not 0 < self.depth_near < self.depth_far:
            return "depth_bins must be at least 2 and 0 < depth_near < depth_far"
        return ""

    @property
    def encoder_sizes(self) -> EncoderConfig:
        """The encoder's settings."""
        assert self.encoder is not None
        return config_of(self.encoder)

    @property
    def language_model(self) -> PretrainedConfig:
        """The language model's settings."""
        assert isinstance(self.text_config, PretrainedConfig)
        return self.text_config

    @property
    def round_read(self) -> int:
        """The encoder round that the connector reads."""
        return self.encoder_sizes.rounds - 1 if self.encoder_round is None else self.encoder_round

    @property
    def mention_layers(self) -> int:
        """How many layers stand below the head for names."""
        layers = int(self.language_model.num_hidden_layers)
        return max(layers - 1, 0) if self.mention_level is None else self.mention_level

    @property
    def measure_layers(self) -> int:
        """How many layers stand below the head for numbers."""
        layers = int(self.language_model.num_hidden_layers)
        return layers if self.measure_level is None else self.measure_level

    @property
    def hidden_size(self) -> int:
        """Width of the language model, and so of vision tokens and slots."""
        return int(self.language_model.hidden_size)


def _as_published(sizes: EncoderConfig) -> bool:
    """Whether an encoder has the sizes of a published checkpoint, whichever heads it kept.

    Of Depth Anything we know published ones alone.
    """
    if not isinstance(sizes, VGGTConfig):
        return True
    whole = replace(sizes, camera_head=True, depth_head=True, point_head=True)
    return whole in PUBLISHED.values()


def neox_config(
    *,
    hidden_size: int = 128,
    layers: int = 3,
    heads: int = 4,
    intermediate_size: int | None = None,
    vocab_size: int = 1024,
    tie_embeddings: bool = True,
    max_positions: int = 4096,
    rotary_share: float = 0.25,
    rope_theta: float = 10_000.0,
) -> PretrainedConfig:
    """A GPT-NeoX from scratch; the defaults are the embedded student's.

    At 24 x 2048 with 16 heads, 32,000 entries and untied it has the paper's 1,339,674,624
    parameters (``use_parallel_residual=False`` gives the two LayerNorms their usual places).
    """
    neox: Any = CONFIG_MAPPING["gpt_neox"]
    config: PretrainedConfig = neox(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size if intermediate_size is None else intermediate_size,
        max_position_embeddings=max_positions,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": rope_theta,
            "partial_rotary_factor": rotary_share,
        },
        use_parallel_residual=False,
        tie_word_embeddings=tie_embeddings,
        # Unit gain at any width. The usual 0.02 is that only from about 2,000 channels on; it
        # leaves the attention of a narrow model flat for hundreds of steps (docs/log.md).
        initializer_range=hidden_size**-0.5,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return config
