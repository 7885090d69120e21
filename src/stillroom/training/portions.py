"""A step's portions (micro-batches): what each adds to the gradient, whoever works it off.

Losses come as *sums over what is labelled* and are divided once, by the counts of the whole step
over all processes, so that neither portions nor processes can change the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from stillroom.training.config import TrainConfig
from stillroom.training.handed import Sheltered, StepLosses, Weighting
from stillroom.training.parallel import Spread
from stillroom.training.precision import moved

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one micro-batch adds to the step."""

    # By trained parameter, None where it has no part in the loss; or none at all, if they were
    # added to the parameters' own already.
    gradients: Sequence[Tensor | None]
    # Parts of means: "loss" (the weighted total), and by name.
    loss: dict[str, Tensor]
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Workshop:
    """All it takes to work off a portion of any step."""

    config: TrainConfig
    spread: Spread
    weighting: Weighting
    parameters: Sequence[nn.Parameter]
    sheltered: Sheltered | None

    def portions(
        self,
        index: int,
        batches: Sequence[Batch],
        step: Callable[[Batch], StepLosses],
        totals: Mapping[str, float],
    ) -> Iterator[Portion]:
        """This process's micro-batches of step ``index``, in order, whoever worked them off."""
        work = partial(self._work_off, index, step, totals)
        pairs = list(zip(self.spread.micros, batches, strict=True))
        if self.config.workers == 1 or self.spread.kind != "none":
            for micro, batch in pairs:
                yield work(micro, batch)
            return
        with _one_thread_each(min(self.config.workers, len(pairs))) as pool:
            for job in [pool.submit(work, micro, batch) for micro, batch in pairs]:
                yield job.result()

    def _work_off(
        self,
        index: int,
        step: Callable[[Batch], StepLosses],
        totals: Mapping[str, float],
        micro: int,
        batch: Batch,
    ) -> Portion:
        config, spread = self.config, self.spread
        if config.workers == 1:
            # Threads share one generator, so that a step of several must draw nothing.
            torch.manual_seed(draws_of(config.seed, index, micro))

        own: dict[nn.Parameter, Tensor | None] = {}

        def losses() -> tuple[Tensor | None, dict[str, Tensor], dict[str, Tensor]]:
            found = step(moved(batch, spread.device))
            parts = _part_of_means(found.terms, totals)
            # Before the total: its way back would let go of what this one needs.
            own.update(self._own_gradients(parts))
            total = self._weighted(parts)
            if total is None and spread.kind == "ddp":
                # Nothing is labelled, but DDP waits for a way back after every forward pass.
                total = torch.stack([0 * value.sum() for value in self.parameters]).sum()
            return total, parts, _part_of_means(found.metrics, totals)

        gradients: Sequence[Tensor | None] = ()
        with spread.portion(last=micro == spread.micros[-1]):
            total, parts, metrics = spread.run(losses)
            if total is not None and spread.kind == "none":
                every = torch.autograd.grad(total, self.parameters, allow_unused=True)
                gradients = [own.get(p, g) for p, g in zip(self.parameters, every, strict=True)]
            elif total is not None:
                with _replaced(own):
                    total.backward()
        return Portion(
            gradients=gradients,
            loss={"loss": total.detach()} if total is not None and parts else {},
            terms={name: value.detach() for name, value in parts.items()},
            metrics=metrics,
        )

    def _weighted(self, parts: Mapping[str, Tensor]) -> Tensor | None:
        return self.weighting(parts, share=1 / self.config.micro_batches) if parts else None

    def _own_gradients(self, parts: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor | None]:
        """Gradients of the sheltered parameters, where other terms would reach them; each None if
        nothing that they learn from is labelled in the whole step."""
        sheltered = self.sheltered
        if sheltered is None or not sheltered.others & parts.keys():
            return {}
        assert self.spread.kind != "fsdp", "its layers are there for one way back a forward pass"
        total = self._weighted({n: value for n, value in parts.items() if n in sheltered.terms})
        if total is None:
            return dict.fromkeys(sheltered.parameters)
        # A way back takes the precision of the way there by itself.
        with torch.autocast(self.spread.device.type, enabled=False):
            found = torch.autograd.grad(
                total,
                list(sheltered.parameters),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return dict(zip(sheltered.parameters, found, strict=True))


@contextmanager
def _replaced(own: Mapping[nn.Parameter, Tensor | None]) -> Iterator[None]:
    """A backward pass that gives these parameters these gradients, before DDP sums them up."""

    def instead(mine: Tensor | None, found: Tensor) -> Tensor:
        return torch.zeros_like(found) if mine is None else mine

    hooks = [value.register_hook(partial(instead, mine)) for value, mine in own.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for value, mine in own.items():
        if mine is None:
            # No gradient rather than zeros, as in one process: momentum must not move it.
            value.grad = None


@contextmanager
def _one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operations use one core each; a backward pass runs where it was begun."""
    before = torch.get_num_threads()
    try:
        # The number is each thread's own for some libraries and everybody's for others.
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def counted(counts: Sequence[Mapping[str, Tensor | float | int]]) -> dict[str, float]:
    """What is labelled in several micro-batches, by name."""
    totals: dict[str, float] = {}
    for one in counts:
        for name, value in one.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _part_of_means(sums: Mapping[str, Tensor], totals: Mapping[str, float]) -> dict[str, Tensor]:
    """Sums divided by the counts of the step; those that count nothing are off."""
    missing = sums.keys() - totals.keys()
    if missing:
        raise ValueError(f"the step function returned {sorted(missing)}, which nothing counts")
    return {name: value / totals[name] for name, value in sums.items() if totals[name] > 0}


def draws_of(seed: int, step: int, micro: int) -> int:
    """A seed of its own for each micro-batch, the same after a restart."""
    # Distinct for fewer than 1,000 micro-batches; torch takes 64 bits.
    return ((seed * 1_000_003 + step) * 1_009 + micro) % 2**63
