"""Checkpoints that every process writes its part of, and that any number of them can read.

``checkpoint/step-00000120`` holds one position: torch.distributed.checkpoint's files and
``position.json``. It takes its place whole, in one move, and then its predecessor goes.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from stillroom.records import BadInputError
from stillroom.training.checkpoint import Position, refuse_strangers, trained_state
from stillroom.training.distributed import Processes

_DAMAGES = (CheckpointException, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


def save_shards(
    home: Path,
    *,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    processes: Processes,
) -> None:
    """Write all that ``load_shards`` needs; every process calls this."""
    final = home / f"step-{position.step:08d}"
    partial = home / f".{final.name}.partial"
    if processes.main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    processes.wait()
    with _among(processes) as those:
        dcp.save(_flat(trained, optimizer), checkpoint_id=partial, **those)
    if processes.main:
        with (partial / "position.json").open("w") as sink:
            sink.write(json.dumps(asdict(position)))
            sink.flush()
            os.fsync(sink.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in set(home.iterdir()) - {final}:
            shutil.rmtree(old)
    processes.wait()


def load_shards(
    home: Path, *, trained: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes
) -> Position | None:
    """Put everything back as it was saved, by however many; None if nothing was saved yet.

    Raises:
        BadInputError: the checkpoint is damaged or of another model.
    """
    saved = processes.from_main(max(home.glob("step-*"), default=None))
    if saved is None:
        return None
    try:
        record = json.loads((saved / "position.json").read_text())
        known = FileSystemReader(saved).read_metadata().state_dict_metadata
    except _DAMAGES as error:
        raise BadInputError(f"{saved} is damaged. Delete {home} to begin again.") from error
    shapes = {
        name: tuple(value.size)
        for name, value in known.items()
        if isinstance(value, TensorStorageMetadata)
    }
    weights = {f"weights.{name}": value for name, value in trained_state(trained).items()}
    refuse_strangers(
        {name: tuple(value.shape) for name, value in weights.items()},
        {name: shape for name, shape in shapes.items() if name.startswith("weights.")},
        saved,
    )
    # A parameter that no step has reached has nothing in the optimizer's memory.
    memory: dict[str, Tensor] = {}
    for name, parameter in trained.named_parameters():
        for key in (k for k in shapes if k.startswith(f"optimizer.{name}.")):
            part = key.removeprefix(f"optimizer.{name}.")
            if "." not in part:
                memory[key] = _room(parameter, shapes[key])
                optimizer.state[parameter][part] = memory[key]
    try:
        with _among(processes) as those:
            dcp.load({**weights, **memory}, checkpoint_id=saved, **those)
    except _DAMAGES as error:
        raise BadInputError(f"{saved} is damaged. Delete {home} to begin again.") from error
    return Position(**record)


def _flat(trained: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimizer's memory by name, each once."""
    state = {f"weights.{name}": value for name, value in trained_state(trained).items()}
    for name, parameter in trained.named_parameters():
        for part, value in optimizer.state.get(parameter, {}).items():
            state[f"optimizer.{name}.{part}"] = value
    return state


def _room(parameter: nn.Parameter, shape: tuple[int, ...]) -> Tensor:
    """Where a part of the optimizer's memory is read into: of the parameter's form, or a number."""
    if shape == tuple(parameter.shape) and shape:
        return torch.zeros_like(parameter, requires_grad=False)
    return torch.zeros(shape, device=parameter.device)


@contextmanager
def _among(processes: Processes) -> Iterator[dict[str, Any]]:
    """Who writes or reads, as torch wants to be told; it need not warn of what it was told."""
    if processes.control is not None:
        yield {"process_group": processes.control}
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield {"no_dist": True}
