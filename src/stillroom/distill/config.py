"""What a distillation is: the student, what it learns from, and how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stillroom.records import BadInputError
from stillroom.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StudentSizes:
    """The trainable part of the student; the encoder brings its own sizes."""

    # Width of the language model.
    hidden_size: int = 128
    # Layers of the language model.
    layers: int = 3
    # Attention heads of the language model.
    heads: int = 4
    # Inner width of its feed-forward layers.
    intermediate_size: int = 512
    # Share of a head's channels that are turned by position, and the base of their frequencies. Of
    # 32 channels a quarter (Pythia) has one fast turn, too few to find the word before; with the
    # usual base of 10,000 nearly all would have turned between a word and the photos.
    rotary_share: float = 1.0
    rope_theta: float = 1e7
    # Whether a language model from scratch begins with attention that finds what is like itself and
    # hands it on (engine/initial.py), which saves a small training most of its steps.
    mimetic_start: bool = True
    # One matrix for token embedding and output.
    tie_embeddings: bool = True
    # Entries of the vocabulary; 0 is as many as the tokenizer has.
    vocab_size: int = 0
    # Vision tokens per view: this many rows and columns.
    vision_grid: int = 8
    # grid: every cell is a token. mean: the whole scene is one token (the papers' literal reading).
    vision_pool: Literal["grid", "mean"] = "grid"
    # Of more photos than this, so many are looked at, evenly spread.
    max_views: int = 8


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """The latent thinking slots."""

    # learned (Hidden CoT), frozen_random, filler (one embedding and positions), or none.
    kind: Literal["learned", "frozen_random", "filler", "none"] = "learned"
    # How many; 0 is none, and none has none.
    count: int = 8
    # Before the question (the paper) or after it.
    position: Literal["before", "after"] = "before"

    @property
    def used(self) -> int:
        """Slots in a row."""
        return 0 if self.kind == "none" else self.count


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which terms teach the student, and how they are weighed."""

    # Share of the KL to the teacher's top-k logits beside the cross-entropy of its answer.
    kl_alpha: float = 0.5
    # Softens both sides of the KL.
    temperature: float = 2.0
    # Depth terms on the connector's tokens: bins, regression, soft bins.
    depth: bool = True
    # Two terms where a scene knows its objects: naming (what each vision token shows) and grounding
    # (the box of each thing that a question names).
    grounding: bool = True
    # Detection: the things of a scene as a set of boxes, guessed from the connector's tokens.
    detection: bool = False
    # Eq. 1 of the paper at points that two photos share, and how things lie to each other.
    spatial: bool = False
    # The depth that two views predict of one point agrees.
    multi_view: bool = False
    # Vision tokens, projected, are like the teacher's features of the same place; off where the
    # label store has no scene_features.
    feature: bool = False
    # uncertainty: learned bounded weights (the paper's Eq. 2); static: all terms weigh 1.
    weighting: Literal["uncertainty", "static"] = "uncertainty"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of a pretrained language model, whose own weights then stay as they are.

    Needs peft (pip install 'stillroom[lora]'). The finished student has the updates added in.
    """

    # Rank of every update; 0 trains the whole language model instead.
    rank: int = 0
    # The updates count alpha / rank.
    alpha: int = 32
    # Share of the input that an update does not see in a step.
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise BadInputError(
                "lora needs rank >= 0, alpha > 0 and dropout within 0 and 1, got rank "
                f"{self.rank}, alpha {self.alpha}, dropout {self.dropout}"
            )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One distillation run: student, labels, losses, budget."""

    train: TrainConfig
    student: StudentSizes = field(default_factory=StudentSizes)
    slots: SlotConfig = field(default_factory=SlotConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    # Who sees whom: prefix shares V among questions; causal is the papers' literal reading.
    mask: Literal["prefix", "full_prefix", "causal"] = "prefix"
    # The geometry encoder: a shipped name, a folder, or a hub id. Frozen.
    encoder: str = "encoder_mini"
    # The language model to start from: a shipped name, a folder, or a hub id, of the sizes that
    # ``student`` says. Empty is from scratch.
    language_model: str = ""
    # Low-rank updates instead of all of a pretrained language model's weights.
    lora: LoraConfig = field(default_factory=LoraConfig)
    # The tokenizer: a folder or a hub id. Empty is that of the language model it starts from, or
    # the made worlds'.
    tokenizer: str = ""
    # Precision of the frozen encoder's pass; its heads and angles stay fp32 in both.
    encoder_precision: Literal["fp32", "bf16"] = "fp32"
    # Where the frozen encoder's features are kept. Empty is the run's own folder; runs that share
    # one run the encoder once for all of them.
    features: str = ""
    # False hides the pictures: the retrained blind student.
    vision: bool = True
    # Go on from this checkpoint instead of from scratch; empty is from scratch.
    start_from: str = ""
    # Questions of a scene that share one row.
    questions_per_scene: int = 16
    # Chance that the scene's description joins its row.
    description_share: float = 0.25
    # Chance that each question of VSI-Bench's tasks joins its row.
    other_share: float = 0.5
    # Scenes trained on.
    train_split: Literal["train", "val", "test", "shifted"] = "train"
    # Scenes whose answer cross-entropy picks the best checkpoint.
    validation_split: Literal["train", "val", "test", "shifted"] = "val"
    # At most so many validation scenes per evaluation.
    validation_scenes: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        if self.questions_per_scene < 1:
            raise BadInputError(
                f"questions_per_scene must be at least 1, got {self.questions_per_scene}"
            )
        if self.lora.rank and not (self.language_model or self.start_from):
            raise BadInputError(
                "lora needs a pretrained language_model to update; name one, or set lora.rank 0"
            )
        for name in ("description_share", "other_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInputError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
