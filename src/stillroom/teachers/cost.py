"""What labelling with a LLaVA-3D costs: arithmetic on its config, before any weight is read.

A multiply-add counts as 2 FLOP. With ``d, L, f, v`` the language model's width, layers, inner
width and vocabulary, ``c, m, g`` the tower's width, layers run and inner width, ``p`` patches of a
view, ``V`` views, ``N`` visual tokens:

- tower: ``V m (2 (p + 1)(4 c^2 + 2 c g) + 4 (p + 1)^2 c)`` and the patch embedding;
- point embedding: ``2 V p (3 c + c^2)``; projector: ``2 N (c d + d^2)``;
- ``n`` tokens behind ``k`` cached ones: ``2 n L (2 d^2 + 2 d d_kv + 3 d f) + 4 n L d (k + n / 2)``;
- a decoded token: the same with n = 1, and ``2 d v`` for the head.

Norms, rotary angles, softmax and sampling are left out (under 1 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.records import BadInputError, Signal
from stillroom.teachers.label import layout_for
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.signals import SignalConfig

#: Tokens may be a mean.
Number = int | float

#: Parquet bytes of a row, prompt and answer with it: 57 to 67 on made worlds, zstd.
ROW_BYTES = 65
#: Ledger bytes of a scene in a finished shard: its id, its rows, what names its content.
LEDGER_BYTES = 48


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a teacher reads and says, on average; the defaults are a ScanQA question.

    Words before the scene, visual tokens of a scene, words after it, answer and reference tokens
    with their ends.
    """

    before: int = 35
    visual: int = 1300
    question: Number = 40
    answer: Number = 6
    reference: Number = 6

    @classmethod
    def of_photo(cls, config: LLaVA3DConfig) -> Load:
        """A single photo (vision 2d): every patch of it is a token, no cap holds."""
        return cls(visual=config.clip.grid**2)


def tower_flops(config: LLaVA3DConfig, views: int) -> float:
    """The vision tower on so many views."""
    clip = config.clip
    patches, c = clip.grid**2, clip.hidden_size
    n = patches + 1
    layer = 2.0 * n * (4 * c * c + 2 * c * clip.intermediate_size) + 4 * n * n * c
    return views * (config.clip_layers_run * layer + 2 * patches * 3 * clip.patch_size**2 * c)


def points_flops(config: LLaVA3DConfig, views: int) -> float:
    """The embedding of every patch's 3D point."""
    c = config.clip.hidden_size
    return 2.0 * views * config.clip.grid**2 * (3 * c + c * c)


def projector_flops(config: LLaVA3DConfig, tokens: Number) -> float:
    """From voxels to the language model's width."""
    c, d = config.clip.hidden_size, config.hidden_size
    return 2.0 * tokens * (c * d + d * d)


def read_flops(config: LLaVA3DConfig, tokens: Number, *, cached: Number = 0) -> float:
    """The language model on tokens that follow cached ones."""
    d, layers = config.hidden_size, config.num_hidden_layers
    narrow = d * config.num_key_value_heads // config.num_attention_heads
    weights = 2 * d * d + 2 * d * narrow + 3 * d * config.intermediate_size
    return 2.0 * tokens * layers * weights + 4 * tokens * layers * d * (cached + tokens / 2)


def say_flops(config: LLaVA3DConfig, tokens: Number, *, cached: Number) -> float:
    """Tokens that are decoded, or scored, behind cached ones, with the head."""
    head = 2.0 * tokens * config.hidden_size * config.vocab_size
    return read_flops(config, tokens, cached=cached) + head


def parameters(config: LLaVA3DConfig) -> int:
    """Numbers in a checkpoint of this config, the tower's unused layers with it."""
    d, f, clip = config.hidden_size, config.intermediate_size, config.clip
    c, g = clip.hidden_size, clip.intermediate_size
    narrow = d * config.num_key_value_heads // config.num_attention_heads
    language = config.num_hidden_layers * (2 * d * d + 2 * d * narrow + 3 * d * f + 2 * d) + d
    language += (1 if config.tie_word_embeddings else 2) * config.vocab_size * d
    tower = clip.num_hidden_layers * (4 * (c * c + c) + 2 * c * g + g + c + 4 * c)
    tower += c + 3 * c * clip.patch_size**2 + (clip.grid**2 + 1) * c + 4 * c
    projector = c * d + d + d * d + d
    points = sum(4 * width + 2 * width + width * width + width for width in (c, d))
    return language + tower + projector + points


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOP and bytes of a labelling; ``scene`` once a scene, ``question`` once a question."""

    scenes: int
    questions: int
    # Each scene is read once for all its questions, else anew for each.
    shared: bool
    views: int
    unshared_flop: float
    scene_flop: float
    question_flop: float
    # By signal.
    question_bytes: dict[str, float]
    scene_bytes: dict[str, float]
    files: int
    weights_bytes: int
    cache_bytes: float

    @property
    def flop(self) -> float:
        """All of it."""
        if self.shared:
            return self.scenes * self.scene_flop + self.questions * self.question_flop
        # Features are of one more reading.
        again = self.scenes * self.scene_flop if "scene_features" in self.scene_bytes else 0.0
        return again + self.questions * self.unshared_flop

    @property
    def bytes(self) -> float:
        """The finished store."""
        per_question, per_scene = sum(self.question_bytes.values()), sum(self.scene_bytes.values())
        return self.questions * per_question + self.scenes * per_scene

    def hours(self, tflops: float) -> float:
        """At so many TFLOP/s sustained."""
        return self.flop / (tflops * 1e12) / 3600


def cost(
    config: LLaVA3DConfig,
    load: Load,
    *,
    signals: Sequence[Signal],
    scenes: int,
    questions: int,
    topk: int,
    groups: int = 1,
    weight_bytes: int = 2,
    shared: bool = True,
    photo: bool = False,
) -> Cost:
    """What it costs to label so many scenes and questions; ``groups`` of attention maps.

    A scene that is not ``shared`` is read anew for each question, which costs ``unshared_flop``
    each time. A ``photo`` has no points, voxels or cap.
    """
    if scenes < 1 or questions < 1:
        raise BadInputError(f"nothing to label: {scenes} scenes, {questions} questions")
    asked = SignalConfig.of(signals)
    # A scene of fewer views is read with some of them repeated.
    views = 1 if photo else config.num_frames
    visual = load.visual if photo else min(load.visual, config.max_visual_tokens)
    seen = tower_flops(config, views) + projector_flops(config, visual)
    if not photo:
        seen += points_flops(config, views)
    prefix = load.before + visual
    whole = prefix + load.question
    said = say_flops(config, load.answer, cached=whole)
    extra = 0.0
    if "reference_logits" in asked.signals:
        extra += say_flops(config, load.reference, cached=whole)
    if "attention" in asked.signals:  # answer tokens once more, with their attention kept
        extra += read_flops(config, load.answer, cached=whole)
    heads = config.num_key_value_heads / config.num_attention_heads
    layout = layout_for(scenes)
    kinds = 2 + bool(asked.row_tensors) + asked.scene_features
    return Cost(
        scenes=scenes,
        questions=questions,
        shared=shared,
        views=views,
        unshared_flop=seen + read_flops(config, whole) + said + extra,
        scene_flop=seen + read_flops(config, prefix),
        question_flop=read_flops(config, load.question, cached=prefix) + said + extra,
        question_bytes=_question_bytes(config, load, visual, asked, topk=topk, groups=groups),
        scene_bytes=_scene_bytes(config, visual, views, asked, points=not photo),
        files=2 + kinds * layout.shards(scenes),  # and manifest and vocabulary
        weights_bytes=weight_bytes * parameters(config),
        cache_bytes=2.0 * 2 * config.num_hidden_layers * config.hidden_size * heads * whole,
    )


def _question_bytes(
    config: LLaVA3DConfig,
    load: Load,
    visual: Number,
    asked: SignalConfig,
    *,
    topk: int,
    groups: int,
) -> dict[str, float]:
    position = topk * (2 + (2 if config.vocab_size <= 1 << 16 else 4)) + 4
    sizes = {
        "answers": float(ROW_BYTES),
        "topk_logits": load.answer * position,
        "reference_logits": load.reference * position,
        "last_hidden": 2 * load.answer * config.hidden_size,
        "attention": groups * load.answer * (2 * visual + 4),
    }
    return {name: size for name, size in sizes.items() if name in asked.signals}


def _scene_bytes(
    config: LLaVA3DConfig, visual: Number, views: int, asked: SignalConfig, *, points: bool
) -> dict[str, float]:
    sizes: dict[str, float] = {"ledger": float(LEDGER_BYTES)}
    if asked.scene_features:
        patches = views * config.clip.grid**2
        sizes["scene_features"] = (
            2.0 * visual * config.clip.hidden_size  # pooled
            + 4 * config.hidden_size  # semantics
            + 12 * visual * points
            + 2 * patches  # patch_token
        )
    return sizes
