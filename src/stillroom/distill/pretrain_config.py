"""What a pretraining of the miniature encoder is; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stillroom.records import BadInputError
from stillroom.students.encoders.vggt_config import VGGTConfig, mini_config
from stillroom.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainWeights:
    """What each term counts for. 0 leaves a term out."""

    # Mean |log depth - log truth| over the pixels of the dense views.
    depth: float = 1.0
    # The same of differences between neighbouring pixels: keeps edges sharp.
    depth_edges: float = 2.0
    # Mean absolute error of the point map in logits, sign(p) log(1 + |p|).
    points: float = 1.0
    # Confidences of both maps, from errors that they do not change.
    confidence: float = 0.05
    # Translation [m], quaternion and fields of view, later refinements counting more.
    camera: float = 0.5
    # Cross-entropy of what covers a cell, background included.
    category: float = 0.5
    # Cross-entropy of the colour of what covers a cell.
    colour: float = 0.3
    # Smooth L1 of its box's centre [m] in view0, and of the logarithm of its edge lengths.
    center: float = 1.0
    size: float = 1.0
    # The same four from an early round, the centre in the view's own camera: what one photo
    # tells. Later rounds then match views by it.
    early: float = 0.5


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One pretraining run of a VGGT on rooms whose geometry is known."""

    train: TrainConfig
    # Sizes of the encoder.
    encoder: VGGTConfig = field(default_factory=mini_config)
    # Weights of the terms.
    weights: PretrainWeights = field(default_factory=PretrainWeights)
    # Per-cell object targets from a linear head on the patch tokens; False is the ablation.
    object_targets: bool = True
    # Cells along a patch's edge in which objects are told apart.
    cells_per_patch: int = 2
    # Smallest share of a cell that an object must cover to be the cell's.
    smallest_cover: float = 0.25
    # What a background cell counts for beside an object's cell.
    background_weight: float = 0.25
    # Round, counted from 0, whose patch tokens the object head reads: the student's.
    feature_round: int = 3
    # An earlier round that is taught what each view shows by itself; -1 teaches none.
    early_round: int = -1
    # Views per scene whose depth and points are computed and scored; all are attended to.
    dense_views: int = 1
    # Chance that a scene is seen in a mirror.
    mirror: float = 0.5
    # Chance that the views of a scene are shuffled, so that another camera sets the frame.
    reorder: float = 0.5
    # Brightness is multiplied by up to this much more or less.
    brightness: float = 0.1
    # Go on from this encoder (a shipped name, a folder or a hub id); empty is from scratch.
    start_from: str = ""
    # Scenes trained on.
    train_split: Literal["train", "val", "test", "shifted"] = "train"
    # Scenes whose loss picks the best checkpoint.
    validation_split: Literal["train", "val", "test", "shifted"] = "val"
    # At most so many validation scenes per evaluation.
    validation_scenes: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        if set(self.encoder.heads_present) != {"camera", "depth", "points"}:
            raise BadInputError(
                "pretraining teaches the camera, depth and point heads; the encoder needs all three"
            )
        if not 0 <= self.feature_round < self.encoder.rounds:
            raise BadInputError(
                f"feature_round must lie in 0..{self.encoder.rounds - 1}, got {self.feature_round}"
            )
        if not -1 <= self.early_round < self.encoder.rounds:
            raise BadInputError(
                f"early_round must lie in -1..{self.encoder.rounds - 1}, got {self.early_round}"
            )
        if self.cells_per_patch < 1 or self.encoder.patch_size % self.cells_per_patch:
            raise BadInputError(
                f"cells_per_patch must divide the patch of {self.encoder.patch_size} pixels, got "
                f"{self.cells_per_patch}"
            )
        for name in ("smallest_cover", "mirror", "reorder", "brightness"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadInputError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        if self.dense_views < 1 or self.validation_scenes < 1:
            raise BadInputError("dense_views and validation_scenes must be at least 1")
