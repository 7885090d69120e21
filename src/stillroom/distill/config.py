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
    # Photos become squares of this many pixels, a multiple of the encoder's patch; 0 is the size
    # that the encoder was trained with. Time and tokens of the encoder grow with the area.
    image_size: int = 0
    # The detector, where losses.detection asks for one: how many guesses (more than things in any
    # scene), its width (a multiple of 32), its layers.
    detection_queries: int = 16
    detection_width: int = 64
    detection_layers: int = 2
    # Of scenes with other things than made rooms have: the detector tells the kinds apart of which
    # there are at least so many things, at most so many kinds. Of others it learns the boxes.
    detection_least: int = 5
    detection_kinds: int = 100
    # Inner width of the head that relates things, where losses.spatial asks for one.
    relation_width: int = 64
    # Width of the teacher's features, where losses.spatial or losses.feature ask for them; 0 takes
    # what the labels have.
    feature_width: int = 0
    # Layers below the heads at the names of a question, and below the one where an answer begins;
    # none is all but the last, and all of them. Layers above can reason with what was found.
    mention_level: int | None = None
    measure_level: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in (
            "detection_queries",
            "detection_layers",
            "detection_least",
            "detection_kinds",
            "relation_width",
        ):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.heads < 1 or self.hidden_size % self.heads:
            raise BadInputError(
                f"hidden_size {self.hidden_size} must be a multiple of heads, got {self.heads}; "
                "change --student.heads or --student.hidden-size"
            )
        if self.feature_width < 0:
            raise BadInputError(f"feature_width must not be negative, got {self.feature_width}")
        if self.detection_width < 1 or self.detection_width % 32:
            raise BadInputError(
                f"detection_width must be a multiple of 32, got {self.detection_width}"
            )


#: Terms whose heads read the language model's states behind the slots, and so reach these.
BEHIND_SLOTS = ("grounding", "apart", "measure")


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """The latent thinking slots."""

    # learned (Hidden CoT), frozen_random, filler (one embedding and positions), or none.
    kind: Literal["learned", "frozen_random", "filler", "none"] = "learned"
    # How many; 0 is none, and none has none.
    count: int = 8
    # Before the question (the paper) or after it.
    position: Literal["before", "after"] = "before"
    # What they learn from: the answer (the term text) alone, as Hidden CoT has it, or every term
    # that reaches them.
    supervision: Literal["answer", "extra"] = "answer"

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
    # Train the encoder's depth head too: on measured depth (a term, depth_map) and on whatever
    # reads its depth. The encoder then sees the photos in every step: what the head reads is too
    # large to be kept.
    depth_head: bool = False
    # Two terms where a scene knows its objects: naming (what each vision token shows) and grounding
    # (the box of each thing that a question names).
    grounding: bool = True
    # Two terms where a made question knows the numbers behind its answer: apart (how far the things
    # it names are from each other) and measure (the number that decides), see docs/losses.md.
    measures: bool = False
    # Detection: the things of a scene as a set of boxes, guessed from the connector's tokens.
    detection: bool = False
    # Share of the generalised IoU of the boxes beside class and box; 0 leaves it out.
    detection_iou: float = 0.0
    # Eq. 1 of the paper at points that two photos share, and how things lie to each other.
    spatial: bool = False
    # Weight of Eq. 1's likeness across views (its lambda); 0 leaves it out.
    cross_view: float = 0.1
    # corrected draws a point's features in two views together; paper keeps the printed sign, which
    # pushes them apart: for comparison only.
    sign: Literal["corrected", "paper"] = "corrected"
    # The depth that two views predict of one point agrees.
    multi_view: bool = False
    # Vision tokens, projected, are like the teacher's features of the same place; off where the
    # label store has no scene_features.
    feature: bool = False
    # What brings the cells of two views together: measured depth, or the encoder's own.
    pairs_from: Literal["measured", "own"] = "measured"
    # uncertainty: learned bounded weights (the paper's Eq. 2); static: fixed ones.
    weighting: Literal["uncertainty", "static"] = "uncertainty"
    # Static weights by term; 1 where not named.
    weights: dict[str, float] = field(default_factory=dict)
    # Terms that may teach their head alone. Of any other, one that reaches no parameter that the
    # answer is made from (connector, slots, language model) is an error.
    reach_nothing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in ("kl_alpha", "detection_iou", "cross_view"):
            if getattr(self, name) < 0:
                raise BadInputError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise BadInputError(f"temperature must be positive, got {self.temperature}")
        if self.weights and self.weighting != "static":
            raise BadInputError(
                "losses.weights are fixed weights: they need losses.weighting static (uncertainty "
                "weighting learns its own)"
            )
        unknown = sorted(self.weights.keys() - set(self.terms))
        if unknown:
            raise BadInputError(
                f"losses.weights names {unknown[0]!r}, which is no term that is on; those are "
                f"{', '.join(self.terms)}"
            )
        known = {*self.terms, *(part for parts in self.parts.values() for part in parts)}
        strange = [name for name in self.reach_nothing if name not in known]
        if strange:
            raise BadInputError(
                f"losses.reach_nothing names {strange[0]!r}, which is no term or part that is on; "
                f"those are {', '.join(sorted(known))}"
            )
        if any(weight < 0 for weight in self.weights.values()):
            raise BadInputError(f"losses.weights must not be negative, got {self.weights}")

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that are on, each with one weight, under the names of ``docs/losses.md``."""
        depth = ("depth_ce", "depth_reg", "depth_kl") if self.depth else ()
        own = ("depth_map",) if self.depth_head else ()
        grounding = ("naming", "grounding") if self.grounding else ()
        measures = ("apart", "measure") if self.measures else ()
        others = ("detection", "spatial", "multi_view", "feature")
        asked = (name for name in others if getattr(self, name))
        return ("text", *depth, *own, *grounding, *measures, *asked)

    @property
    def parts(self) -> dict[str, dict[str, float]]:
        """Terms that are sums of several means: what each is made of, with fixed weights."""
        found: dict[str, dict[str, float]] = {}
        if self.detection:
            found["detection"] = {"detection_class": 1.0, "detection_box": 1.0}
            if self.detection_iou:
                found["detection"]["detection_iou"] = self.detection_iou
        if self.spatial:
            found["spatial"] = {"spatial_feature": 1.0, "spatial_relation": 1.0}
            if self.cross_view:
                found["spatial"]["spatial_views"] = self.cross_view
        return found


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
    # Scenes that share a pass of the frozen encoder while its features are made; more need more of
    # the device's memory.
    scenes_per_pass: int = 1
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
    # So many of the scenes trained on, always the same, are evaluated beside them; 0 is none.
    training_scenes: int = 20

    @property
    def shelters_slots(self) -> bool:
        """Whether slots learn from the answer alone while other terms that are on reach them."""
        trained = self.slots.used > 0 and self.slots.kind != "frozen_random"
        others = set(self.losses.terms) & set(BEHIND_SLOTS)
        return trained and self.slots.supervision == "answer" and bool(others)

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        if self.shelters_slots and self.train.parallel == "fsdp":
            raise BadInputError(
                "slots that learn from the answer alone beside "
                f"{', '.join(name for name in BEHIND_SLOTS if name in self.losses.terms)} need two "
                "ways back through the model, for which fsdp does not keep it; take "
                "--train.parallel ddp, --slots.supervision extra or turn these terms off"
            )
        for name in ("questions_per_scene", "scenes_per_pass", "validation_scenes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lora.rank and not (self.language_model or self.start_from):
            raise BadInputError(
                "lora needs a pretrained language_model to update; name one, or set lora.rank 0"
            )
        if self.lora.rank and self.lora.dropout and self.train.workers > 1:
            raise BadInputError(
                f"lora.dropout {self.lora.dropout} is drawn at random, and train.workers "
                f"{self.train.workers} would draw from one generator in no fixed order; set "
                "--train.workers 1 or --lora.dropout 0"
            )
        if self.training_scenes < 0:
            raise BadInputError(f"training_scenes must not be negative, got {self.training_scenes}")
        for name in ("description_share", "other_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInputError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
