"""The processes of one training: who they are, what they tell each other, who speaks for all.

``torchrun`` starts them. Gradients travel over NCCL between GPUs and over gloo between CPUs;
everything else (counts, values for the log, files that are ready) over gloo, which can wait long.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stillroom.records import BadInputError
from stillroom.training.config import TrainConfig
from stillroom.training.precision import check_precision
from stillroom.training.trackers import check_tracker

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The others wait so long while the first process makes a cache of features.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What one process knows of them all. ``control`` is None where there is only this one."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None

    @property
    def main(self) -> bool:
        """Whether this process writes, and speaks, for all."""
        return self.rank == 0

    def share(self, portions: int) -> range:
        """The portions of a step that are this process's, out of so many."""
        each = portions // self.world
        return range(self.rank * each, (self.rank + 1) * each)

    def totals(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, by name; every process gives the same names."""
        if self.control is None:
            return dict(values)
        names = sorted(values)
        sums = torch.tensor([float(values[name]) for name in names], dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        summed = dict(zip(names, sums.tolist(), strict=True))
        return {name: summed[name] for name in values}

    def from_main(self, value: T) -> T:
        """The main process's value of something small, in every process."""
        if self.control is None:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does what follows, then the others, who find its files made.

        Raises:
            BadInputError: in the others, where the main process could not do it.
        """
        if not self.main and not self.from_main(False):
            raise BadInputError("the first process stopped; what it said names the reason")
        done = False
        try:
            yield
            done = True
        finally:
            if self.main:
                self.from_main(done)


def join(config: TrainConfig) -> Processes:
    """This process among those that ``torchrun`` started, or alone; the same on every call.

    The first thing a training does, so that what cannot work is refused before a file is made.

    Raises:
        BadInputError: processes that would train one model each, portions that cannot be shared
            evenly, a device or a tracker that is not there, or a precision the device has not.
    """
    check_tracker(config.track)
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    if world > 1 and config.parallel == "none":
        raise BadInputError(
            f"{world} processes were started, each would train a model of its own; add "
            "--train.parallel ddp or fsdp"
        )
    if config.micro_batches % world:
        raise BadInputError(
            f"{world} processes cannot share {config.micro_batches} portions of a step evenly; "
            f"set --train.micro-batches to a multiple of {world}"
        )
    device = _device(config.device, local)
    check_precision(config.precision, device)
    if config.parallel == "none" or "RANK" not in os.environ:
        if config.parallel != "none":
            logger.info("no torchrun: this is the only process of parallel %s", config.parallel)
        return Processes(rank=0, world=1, device=device, control=None)
    return Processes(rank=rank, world=world, device=device, control=_control(device))


def _device(wanted: str, local_rank: int) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise BadInputError("no CUDA device is there; set --train.device to cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise BadInputError(
            f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; start "
            "no more processes than GPUs"
        )
    return torch.device("cuda", local_rank)


_groups: dict[str, Any] = {}


def _control(device: torch.device) -> dist.ProcessGroup:
    """The group for everything but gradients; made once, with the one for gradients."""
    if not _groups:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
        _groups["control"] = dist.new_group(backend="gloo", timeout=PATIENCE)
    group: dist.ProcessGroup = _groups["control"]
    return group
