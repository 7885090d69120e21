"""The settings every training shares, whatever it trains. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillroom.records import BadInputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and in what portions a model is trained."""

    # Optimizer steps of the whole run.
    steps: int
    # Scenes in one optimizer step, over all micro-batches.
    scenes_per_step: int
    # Portions a step's scenes are cut into, to save memory or to be shared by the processes of
    # torchrun; the loss does not change.
    micro_batches: int = 1
    # Portions worked off side by side, one CPU core each; the result is the same. Small models use
    # two cores far better so than two threads within every operation (docs/distil.md). Where the
    # processes of torchrun share the portions, each works its own off one after the other.
    workers: int = 1
    # What processes started by torchrun share: ddp the portions of a step, every process having
    # the whole model; fsdp the model, its gradients and the optimizer's memory too.
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    # Where the model lives; auto is cuda where there is one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # bf16 multiplies matrices in bfloat16 (autocast); weights and optimizer stay in 32 bits.
    precision: Literal["fp32", "bf16"] = "fp32"
    # Keep only what enters each layer of a language model and compute the rest again on the way
    # back: less memory, about a third more arithmetic.
    checkpoint_activations: bool = False
    # Let torch.compile make kernels for the layers of a language model.
    compile: bool = False
    # Peak learning rate of AdamW.
    learning_rate: float = 1e-3
    # After the warm-up: "cosine" falls to min_lr_fraction, "constant" stays.
    schedule: Literal["cosine", "constant"] = "cosine"
    # Share of the steps in which the learning rate rises linearly from zero.
    warmup_fraction: float = 0.03
    # Learning rate at the last step, as a share of the peak.
    min_lr_fraction: float = 0.05
    # The same of a weighting that learns (losses.weighting uncertainty): a number a term, which has
    # some way to go however small the model's own steps are. "constant" follows losses that fall.
    weighting_learning_rate: float = 1e-2
    weighting_schedule: Literal["cosine", "constant"] = "constant"
    # Decay of AdamW on weight matrices; norms, biases and embeddings have none.
    weight_decay: float = 0.05
    # Memory of AdamW for the gradient and for its square.
    betas: tuple[float, float] = (0.9, 0.95)
    # Longest gradient, as a Euclidean norm over all parameters; 0 clips nothing.
    clip_norm: float = 1.0
    # Order of the data and every random draw of the run.
    seed: int = 0
    # Evaluate after every so many steps, and after the last; 0 evaluates only then.
    evaluate_every: int = 500
    # Save after every so many steps, and after the last; a killed run goes on from there.
    save_every: int = 100
    # Stop after so many evaluations in a row without a new best; 0 never stops early.
    early_stop_patience: int = 0
    # Write every so many steps to the terminal's log; the file log.jsonl has them all.
    log_every: int = 10
    # Who else gets the rows of log.jsonl as curves; needs the extra stillroom[track].
    track: Literal["none", "tensorboard", "trackio"] = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in (
            "steps",
            "scenes_per_step",
            "micro_batches",
            "workers",
            "save_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "evaluate_every", "early_stop_patience", "clip_norm", "weight_decay"):
            if getattr(self, name) < 0:
                raise BadInputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("warmup_fraction", "min_lr_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInputError(f"{name} must be within 0 and 1, got {getattr(self, name)}")
        for name in ("learning_rate", "weighting_learning_rate"):
            if getattr(self, name) <= 0:
                raise BadInputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.compile and self.checkpoint_activations:
            raise BadInputError(
                "compile and checkpoint_activations exclude each other: a compiled layer may take "
                "another form when it is computed again; leave out one"
            )
        if self.scenes_per_step % self.micro_batches:
            raise BadInputError(
                f"scenes_per_step ({self.scenes_per_step}) must be a multiple of micro_batches "
                f"({self.micro_batches})"
            )
