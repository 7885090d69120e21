"""One model over several processes: whole in each (DDP), or in shards (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from stillroom.training.config import TrainConfig
from stillroom.training.distributed import Processes
from stillroom.training.precision import computing_in, decoder_layers

T = TypeVar("T")


class Body(nn.Module):
    """Model and weighting, and a forward pass that is whatever work they are put to.

    DDP and FSDP2 act where a module's forward begins and ends; a step function calls methods.
    """

    def __init__(self, trained: nn.ModuleDict, precision: str, device: torch.device) -> None:
        super().__init__()
        self.trained = trained
        self._precision = precision
        self._device = device

    def forward(self, work: Callable[[], T]) -> T:
        """The result of ``work``: tensors in tuples and dicts, or none."""
        with computing_in(self._precision, self._device):
            return work()


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a model lies over the processes."""

    kind: Literal["none", "ddp", "fsdp"]
    device: torch.device
    # The portions of a step that are this process's.
    micros: range
    body: Body
    # The body as it is trained.
    module: nn.Module
    # What FSDP cuts and gathers as one: the layers of language models, and all the rest.
    units: tuple[FSDPModule, ...] = ()
    # What FSDP leaves whole: single numbers, which it cannot cut.
    uncut: tuple[nn.Parameter, ...] = ()
    # The model as it was before FSDP, without memory of its own.
    twin: nn.Module | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Work that may be followed by a backward pass."""
        found: T = self.module(work)
        return found

    def look(self, work: Callable[[], T]) -> T:
        """Work without gradient; every process does the same."""
        with self.portion(last=True):
            found: T = (self.module if self.kind == "fsdp" else self.body)(work)
        return found

    @contextmanager
    def portion(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a portion: DDP talks once a step, after the last; FSDP
        gathers weights when they are first used, and lets go of them here."""
        quiet = isinstance(self.module, DistributedDataParallel) and not last
        with self.module.no_sync() if quiet else nullcontext():  # type: ignore[operator]
            yield
        for unit in self.units:
            unit.reshard()

    def complete_gradients(self) -> None:
        """After a step's last portion: sum what neither DDP nor FSDP has summed."""
        gradients = [value.grad for value in self.uncut if value.grad is not None]
        if gradients:
            sums = torch.stack(gradients)
            dist.all_reduce(sums)
            for gradient, total in zip(gradients, sums, strict=True):
                gradient.copy_(total)

    def make_whole(self) -> None:
        """Undo FSDP: the model has all its weights in every process, as before the training."""
        if self.twin is None:
            return
        model = self.body.trained["model"]
        whole: dict[int, nn.Parameter] = {}
        for cut, empty in zip(model.parameters(), self.twin.parameters(), strict=True):
            if isinstance(cut, DTensor):
                whole[id(empty)] = nn.Parameter(cut.full_tensor().detach())
        for module in self.twin.modules():
            for name, value in module._parameters.items():
                module._parameters[name] = whole.get(id(value), value)
        for part in ("_parameters", "_buffers", "_modules"):
            setattr(model, part, getattr(self.twin, part))


def spread_over(processes: Processes, trained: nn.ModuleDict, config: TrainConfig) -> Spread:
    """Put ``trained`` (model and weighting, on their device) where ``config.parallel`` says."""
    body = Body(trained, config.precision, processes.device)
    micros = processes.share(config.micro_batches)
    kind = config.parallel if processes.control is not None else "none"
    common: dict[str, Any] = {"device": processes.device, "micros": micros, "body": body}
    if kind == "ddp":
        # A term without labels leaves parameters without gradient, and they must stay so.
        module = DistributedDataParallel(body, find_unused_parameters=True)
        module.register_comm_hook(None, lambda state, bucket: _summed(bucket))
        return Spread(kind="ddp", module=module, **common)
    if kind == "fsdp":
        model = trained["model"]
        uncut = {value for value in body.parameters() if value.dim() == 0}
        frozen = {value for value in body.parameters() if not value.requires_grad}
        twin = _without_memory(model, keep=uncut | frozen)
        mesh = init_device_mesh(processes.device.type, (processes.world,))
        units: list[FSDPModule] = []
        for part in (*decoder_layers(model), body):
            # A layer reads scene and questions apart, and the latter reach into it past its end,
            # by keys and values: its weights have to stay until the way back is over.
            fully_shard(part, mesh=mesh, reshard_after_forward=False, ignored_params=uncut | frozen)
            assert isinstance(part, FSDPModule)
            part.set_reshard_after_backward(False)
            # Losses are divided by the counts of all processes, so that gradients are summed.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            units.append(part)
        trainable = tuple(v for v in body.parameters() if v in uncut and v.requires_grad)
        return Spread(
            kind="fsdp", module=body, units=tuple(units), uncut=trainable, twin=twin, **common
        )
    return Spread(kind="none", module=body, **common)


def _summed(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own way is the mean over processes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _without_memory(model: nn.Module, keep: set[nn.Parameter]) -> nn.Module:
    """A copy whose parameters have shapes only, but for those of ``keep``, which it shares."""
    memo: dict[int, Any] = {id(value): value for value in (*keep, *model.buffers())}
    for value in model.parameters():
        if id(value) not in memo:
            empty = torch.empty_like(value, device="meta")
            memo[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad)
    return copy.deepcopy(model, memo)
