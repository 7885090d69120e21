"""A tiny training that exercises everything the loop has: dropout, two terms, a learned weight.

Run as a script it trains in a folder, slowly, so that a test can kill it.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.training.config import TrainConfig
from stillroom.training.data_order import rows_at
from stillroom.training.handed import Progress, StepLosses
from stillroom.training.loop import train
from stillroom.training.runlog import TrainResult

ROWS = 10
CONFIG = TrainConfig(
    steps=12,
    scenes_per_step=4,
    learning_rate=0.05,
    seed=3,
    evaluate_every=3,
    save_every=2,
    device="cpu",
)


class TinyModel(nn.Module):
    """An embedding, a frozen layer, a norm, dropout and a tied output."""

    def __init__(self, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.norm = nn.LayerNorm(5)
        # Room for a layer of a language model.
        self.layer: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(5, 6, bias=False)
        self.out.weight = self.embed.weight
        self.depth = nn.Linear(5, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and depths of every id."""
        if self.training:
            self.seen += 1
        hidden = self.layer(self.dropout(self.norm(self.frozen(self.embed(ids)))))
        return self.out(hidden), self.depth(hidden)[..., 0]


class LearnedWeight(nn.Module):
    """A weighting with a parameter of its own, as uncertainty weighting has."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, terms: Mapping[str, Tensor], *, share: float) -> Tensor:
        """Half of exp(-scale) of the sum, plus half of scale."""
        return 0.5 * (-self.scale).exp() * sum(terms.values()) + 0.5 * share * self.scale

    def report(self) -> dict[str, dict[str, float]]:
        """The one weight."""
        return {"weights": {"all": self.scale.exp().item()}}


def make_model(*, dropout: float = 0.1) -> TinyModel:
    """The same weights each time."""
    torch.manual_seed(0)
    return TinyModel(dropout=dropout)


def make_batch(rows: list[int]) -> dict[str, Tensor]:
    """Scene ``r`` has four ids; even scenes have depth, and label r % 4 + 1 positions."""
    ids = torch.tensor([[(3 * row + column) % 6 for column in range(4)] for row in rows])
    labelled = torch.arange(4) < torch.tensor(rows)[:, None] % 4 + 1
    has_depth = (torch.tensor(rows) % 2 == 0)[:, None].expand(-1, 4)
    return {"ids": ids, "text_valid": labelled, "depth_valid": has_depth}


def count(batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
    """Labelled positions per term."""
    return {
        "text": batch["text_valid"].sum(),
        "depth": float(batch["depth_valid"].sum()),
        "accuracy": batch["text_valid"].sum(),
    }


def make_step(model: TinyModel) -> Callable[[dict[str, Tensor]], StepLosses]:
    """Sums of a made-up text and depth loss."""

    def step(batch: dict[str, Tensor]) -> StepLosses:
        logits, depth = model(batch["ids"])
        target = (batch["ids"] + 1) % 6
        text = nn.functional.cross_entropy(logits.mT, target, reduction="none")
        right = (logits.argmax(dim=-1) == target).float()
        return StepLosses(
            terms={
                "text": (text * batch["text_valid"]).sum(),
                "depth": ((depth - batch["ids"]).abs() * batch["depth_valid"]).sum(),
            },
            metrics={"accuracy": (right * batch["text_valid"]).sum()},
        )

    return step


def run(
    out: Path,
    *,
    config: TrainConfig = CONFIG,
    model: TinyModel | None = None,
    batch_at: Callable[[int, int], dict[str, Tensor]] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> tuple[TrainResult, TinyModel, LearnedWeight]:
    """Train from the start, or go on, in ``out``."""
    model = model or make_model()
    weighting = LearnedWeight()

    def evaluate() -> dict[str, float]:
        step = make_step(model)(make_batch(list(range(ROWS))))
        # A draw, as an evaluation may make: it must not shift the training's.
        return {"text_ce": step.terms["text"].item(), "noise": float(torch.rand(()))}

    def rows(step: int, micro: int) -> dict[str, Tensor]:
        return make_batch(rows_at(step, micro, config=config, rows=ROWS))

    given: dict[str, Any] = {
        "weighting": weighting,
        "step": make_step(model),
        "count": count,
        "rows": ROWS,
        "evaluate": evaluate,
        "best_by": "text_ce",
        "settings": {"recipe": "tiny"},
    }
    result = train(
        config=config,
        model=model,
        batch_at=batch_at or rows,
        out=out,
        progress=progress,
        **(given | changes),
    )
    return result, model, weighting


def arrays(out: Path) -> dict[str, np.ndarray]:
    """All that a checkpoint holds but times, flat, for comparing bit by bit."""
    record = torch.load(out / "checkpoint.pt", weights_only=True)
    flat = {name: value.numpy() for name, value in record["weights"].items()}
    for index, state in record["optimizer"]["state"].items():
        flat |= {f"optimizer.{index}.{name}": value.numpy() for name, value in state.items()}
    for name in ("step", "best", "best_step", "stale"):
        flat[name] = np.array(record["position"][name])
    return flat


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(
        Path(sys.argv[1]),
        config=replace(CONFIG, steps=int(sys.argv[3])),
        progress=lambda _: time.sleep(float(sys.argv[2])),
    )
