"""What a killed run goes on from, and the best weights; whole files or none.

Frozen parameters are in neither: they come from where the model came from, and a frozen 1 B
encoder would make every save a matter of gigabytes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stillroom.records import BadInputError

VERSION = 1


@dataclass
class Position:
    """How far a run has come; with weights and optimizer, all there is to know.

    Random draws and data order are arithmetic on (seed, step), so they need no saving.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    # Evaluations since the best one.
    stale: int = 0
    seconds: float = 0.0
    # Length of log.jsonl at this step.
    log_bytes: int = 0
    # Steps in which nothing was labelled.
    skipped: int = 0
    # Processes that shared the last step.
    processes: int = 1


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and buffers by name, each once: tied ones under their first name."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if not frozen and id(value) not in seen:
            seen.add(id(value))
            state[name] = value.detach()
    return state


def save_weights(model: nn.Module, path: Path, *, write: bool = True) -> None:
    """Write ``trained_state`` as safetensors. Where a model lies in shards, every process calls
    this, and one has ``write``."""
    state: dict[str, Tensor] = {}
    for name, value in trained_state(model).items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if write:
            state[name] = whole.cpu().contiguous()
    if write:
        _replace(path, lambda partial: save_file(state, partial))


def load_weights(model: nn.Module, path: Path) -> None:
    """Put saved weights into a model built as the saved one was.

    Raises:
        BadInputError: the file is missing, damaged or of another model.
    """
    try:
        state = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise BadInputError(f"{path} is missing or damaged: the run has to be redone") from error
    _fill(model, state, path)


def save_checkpoint(
    path: Path, *, trained: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """Write all that ``load_checkpoint`` needs."""
    record = {
        "version": VERSION,
        "weights": trained_state(trained),
        "optimizer": optimizer.state_dict(),
        "position": asdict(position),
    }
    _replace(path, lambda partial: torch.save(record, partial))


def load_checkpoint(
    path: Path, *, trained: nn.Module, optimizer: torch.optim.Optimizer
) -> Position | None:
    """Put everything back as it was saved; None if nothing was saved yet.

    Raises:
        BadInputError: the file is damaged or of another model.
    """
    if not path.exists():
        return None
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise BadInputError(f"{path} is damaged. Delete it to begin the run again.") from error
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise BadInputError(f"{path} is of another version of stillroom. Choose another --out.")
    _fill(trained, record["weights"], path)
    try:
        optimizer.load_state_dict(record["optimizer"])
    except ValueError as error:
        # Written before a weighting's parameters were a group of their own.
        raise BadInputError(
            f"{path} was written by a version of stillroom that trained otherwise (its optimizer "
            "has other groups of parameters). Choose another --out."
        ) from error
    return Position(**record["position"])


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = trained_state(model)
    refuse_strangers(
        {name: tuple(value.shape) for name, value in own.items()},
        {name: tuple(value.shape) for name, value in state.items()},
        path,
    )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def refuse_strangers(
    own: Mapping[str, tuple[int, ...]], saved: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise BadInputError unless names and shapes of the weights in ``path`` are ``own``."""
    strange = sorted(own.keys() ^ saved.keys())
    strange += sorted(name for name in own.keys() & saved.keys() if own[name] != saved[name])
    if strange:
        raise BadInputError(
            f"{path} is of another model: {strange[0]} and {len(strange) - 1} more do not fit. "
            "Choose another --out."
        )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path``, reach the disk, then take its place in one move."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, path)
