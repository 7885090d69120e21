"""One sitting of a run: what is put together when it begins or goes on, and how it is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stillroom.training.checkpoint import Position, load_checkpoint, save_checkpoint
from stillroom.training.config import TrainConfig
from stillroom.training.distributed import Processes
from stillroom.training.handed import Weighting
from stillroom.training.optim import make_optimizer
from stillroom.training.parallel import Spread, spread_over
from stillroom.training.precision import lean_layers, swift_layers
from stillroom.training.runlog import RunFolder, RunLog
from stillroom.training.shards import load_shards, save_shards
from stillroom.training.trackers import Sink, open_tracker

logger = logging.getLogger(__name__)


@dataclass
class Sitting:
    """What the parts of the loop share."""

    config: TrainConfig
    processes: Processes
    model: nn.Module
    weighting: Weighting
    # Model and weighting as one module: what is optimised, clipped and saved.
    trained: nn.Module
    spread: Spread
    # Of it, what has a gradient.
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    folder: RunFolder
    position: Position
    # None where another process writes it.
    log: RunLog | None
    # Who else gets the log's rows.
    tracker: Sink | None
    # Step and time at which this sitting began, for the forecast.
    began_step: int
    began: float
    # When position.seconds was last brought up to date.
    clock: float

    def write(self, row: Mapping[str, Any]) -> None:
        """A row for the log and the tracker, in the process that has them."""
        for sink in (self.log, self.tracker):
            if sink is not None:
                sink.write(row)

    def save(self) -> None:
        """Keep all that a killed run goes on from; every process calls this."""
        now = time.perf_counter()
        self.position.seconds += now - self.clock
        self.clock = now
        if self.log is not None:
            self.position.log_bytes = self.log.sync()
        state: dict[str, Any] = {
            "trained": self.trained,
            "optimizer": self.optimizer,
            "position": self.position,
        }
        if self.config.parallel == "fsdp":
            save_shards(self.folder.shards, processes=self.processes, **state)
        elif self.processes.main:
            save_checkpoint(self.folder.checkpoint, **state)


def sit_down(
    config: TrainConfig,
    processes: Processes,
    model: nn.Module,
    weighting: nn.Module,
    folder: RunFolder,
    stack: ExitStack,
) -> Sitting:
    """Put everything together, as the last checkpoint left it; ``stack`` undoes what must be."""
    stack.enter_context(_own_randomness(processes.device))
    trained = nn.ModuleDict({"model": model, "weighting": weighting}).to(processes.device)
    spread = spread_over(processes, trained, config)
    optimizer = make_optimizer(model, config=config, weighting=weighting)
    position = _load(config, processes, folder, trained, optimizer)
    stack.enter_context(swift_layers(model, config))
    stack.enter_context(lean_layers(model, config))
    with processes.main_first():
        log = RunLog(folder.log, keep_bytes=position.log_bytes) if processes.main else None
        if log is not None:
            stack.callback(log.close)
        track = config.track if processes.main else "none"
        tracker = open_tracker(track, folder.path, step=position.step)
        if tracker is not None:
            stack.callback(tracker.close)
    training_mode(model)
    sitting = Sitting(
        config=config,
        processes=processes,
        model=model,
        weighting=weighting,  # type: ignore[arg-type]
        trained=trained,
        spread=spread,
        parameters=[value for value in trained.parameters() if value.requires_grad],
        optimizer=optimizer,
        folder=folder,
        position=position,
        log=log,
        tracker=tracker,
        began_step=position.step,
        began=time.perf_counter(),
        clock=time.perf_counter(),
    )
    if position.step and position.processes != processes.world:
        _tell_of_other_processes(sitting)
    return sitting


def training_mode(model: nn.Module) -> None:
    """Train mode, but parts that are frozen as a whole stay as they are used: in eval mode."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _load(
    config: TrainConfig,
    processes: Processes,
    folder: RunFolder,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Position:
    if config.parallel == "fsdp":
        position = load_shards(
            folder.shards, trained=trained, optimizer=optimizer, processes=processes
        )
    else:
        position = load_checkpoint(folder.checkpoint, trained=trained, optimizer=optimizer)
    if position is None:
        return Position(processes=processes.world)
    if processes.main:
        logger.info("%s goes on after step %d", folder.path, position.step)
    return position


def _tell_of_other_processes(sitting: Sitting) -> None:
    """Data, draws and learning rates stay as they are; only sums are added in another order."""
    position, now = sitting.position, sitting.processes.world
    if sitting.processes.main:
        logger.warning(
            "%s was trained by %d processes up to step %d and goes on with %d: equal to an "
            "undisturbed run but for rounding, not bit for bit",
            sitting.folder.path,
            position.processes,
            position.step,
            now,
        )
    row = {"kind": "resume", "step": position.step, "before": position.processes, "processes": now}
    sitting.write(row)
    position.processes = now


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The caller's torch generators come out as they went in."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
