"""The training loop of encoder, teacher and student: one optimizer step after another, exactly.

The caller brings a model, its losses as *sums over what is labelled*, and counts of what is
labelled; the loop divides once by the counts of the whole step. So neither accumulation nor (in
``_totals``, the one place that would have to ask other processes) data parallelism can change it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stillroom.training.checkpoint import (
    Position,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from stillroom.training.config import TrainConfig
from stillroom.training.handed import (
    PlainSum,
    Progress,
    StepLosses,
    TrainingDiverged,
    Weighting,
)
from stillroom.training.optim import learning_rate_at, make_optimizer
from stillroom.training.runlog import RunFolder, RunLog, TrainResult, open_run, step_line

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


@dataclass
class _Run:
    """What the parts of the loop share."""

    config: TrainConfig
    model: nn.Module
    weighting: Weighting
    # Model and weighting as one module: what is optimised, clipped and saved.
    trained: nn.Module
    # Of it, what has a gradient.
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    folder: RunFolder
    position: Position
    log: RunLog
    # Step and time at which this sitting began, for the forecast.
    began_step: int
    began: float
    # When position.seconds was last brought up to date.
    clock: float


def train(
    *,
    config: TrainConfig,
    model: nn.Module,
    weighting: nn.Module | None = None,
    step: Callable[[Batch], StepLosses],
    count: Callable[[Batch], Mapping[str, Tensor | float | int]],
    batch_at: Callable[[int, int], Batch],
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    best_by: str = "",
    out: Path,
    settings: Mapping[str, Any],
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place; it ends up with the best weights. Goes on where it was killed.

    Args:
        weighting: a ``Weighting`` (None: plain sum). Its parameters are trained and saved too.
        step: forward pass of one micro-batch, with gradient. Must draw only from torch, whose
            generators the loop seeds by (seed, step, micro-batch); with several workers it must
            draw nothing.
        count: how many positions are labelled, per name in ``step``'s answer, from labels only:
            it runs before the model does. A term that counts 0 over a step is off in it.
        batch_at: micro-batch ``(step, micro)``, both from 0, a pure function of the two; see
            ``data_order.rows_at``.
        evaluate: metrics of the model as it stands; the loop puts it in eval mode without
            gradient. ``best_by`` names the metric, smaller is better, that picks the best.
        out: the run's folder, see ``runlog``.
        settings: JSON-able; all that shapes the run besides ``config``. It is the fingerprint by
            which a folder is known to hold this run.
        progress: called after every step.

    Raises:
        BadInputError: ``out`` holds something else.
        TrainingDiverged: see there.
    """
    folder = open_run(out, config=config, settings=settings)
    if folder.finished is not None:
        logger.info("%s is finished (%d steps): nothing to do", out, folder.finished.steps)
        load_weights(model, folder.weights)
        return folder.finished
    with _own_randomness(model):
        run = _prepare(config, model, weighting or PlainSum(), folder)
        with closing(run.log):
            while not _done(run):
                row = _take_step(run, step, count, batch_at)
                metrics = _evaluate(run, evaluate, best_by) if _evaluation_due(run) else None
                if run.position.step % config.save_every == 0 or _done(run):
                    _save(run)
                if progress is not None:
                    at = run.position.step
                    progress(Progress(step=at, steps=config.steps, row=row, metrics=metrics))
            return _finish(run)


def _prepare(
    config: TrainConfig, model: nn.Module, weighting: nn.Module, folder: RunFolder
) -> _Run:
    trained = nn.ModuleDict({"model": model, "weighting": weighting})
    optimizer = make_optimizer(trained, config=config)
    position = load_checkpoint(folder.checkpoint, trained=trained, optimizer=optimizer)
    if position is not None:
        logger.info("%s goes on after step %d", folder.path, position.step)
    position = position or Position()
    _training_mode(model)
    return _Run(
        config=config,
        model=model,
        weighting=weighting,  # type: ignore[arg-type]
        trained=trained,
        parameters=[value for value in trained.parameters() if value.requires_grad],
        optimizer=optimizer,
        folder=folder,
        position=position,
        log=RunLog(folder.log, keep_bytes=position.log_bytes),
        began_step=position.step,
        began=time.perf_counter(),
        clock=time.perf_counter(),
    )


def _take_step(
    run: _Run,
    step: Callable[[Batch], StepLosses],
    count: Callable[[Batch], Mapping[str, Tensor | float | int]],
    batch_at: Callable[[int, int], Batch],
) -> dict[str, Any]:
    """One optimizer step and its row in the log."""
    began = time.perf_counter()
    config, index = run.config, run.position.step
    weights = run.weighting.report()
    # All of the step's micro-batches are counted before the first is worked off.
    batches = [batch_at(index, micro) for micro in range(config.micro_batches)]
    totals = _totals([count(batch) for batch in batches])
    loss: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    for portion in _portions(run, batches, step, totals):
        for parameter, gradient in zip(run.parameters, portion.gradients, strict=True):
            _accumulate(parameter, gradient)
        _add(loss, portion.loss)
        _add(terms, portion.terms)
        _add(metrics, portion.metrics)
    lr = learning_rate_at(index, config=config)
    # Nothing labelled in the whole step: no update, not even decay.
    norm = _update(run, {**loss, **terms}, lr) if loss else None
    run.position.step += 1
    row = {
        "kind": "step",
        "step": run.position.step,
        "steps": config.steps,
        "loss": loss["loss"].item() if loss else None,
        "unweighted": sum(value.item() for value in terms.values()) if terms else None,
        "terms": {name: value.item() for name, value in terms.items()},
        "metrics": {name: value.item() for name, value in metrics.items()},
        **weights,
        "grad_norm": norm,
        "lr": lr,
        "scenes_per_s": config.scenes_per_step / (time.perf_counter() - began),
        "eta_s": _eta(run),
    }
    run.log.write(row)
    if run.position.step % config.log_every == 0 or run.position.step == config.steps:
        logger.info(step_line(row))
    return row


@dataclass(frozen=True, kw_only=True)
class _Portion:
    """What one micro-batch adds to the step."""

    # By trained parameter; None where it has no part in the loss.
    gradients: Sequence[Tensor | None]
    loss: dict[str, Tensor]
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


def _portions(
    run: _Run,
    batches: Sequence[Batch],
    step: Callable[[Batch], StepLosses],
    totals: dict[str, float],
) -> Iterator[_Portion]:
    """Every micro-batch's part, in their order, whoever worked it off."""
    if run.config.workers == 1:
        for micro, batch in enumerate(batches):
            yield _work_off(run, micro, batch, step, totals)
        return
    with _one_thread_each(min(run.config.workers, len(batches))) as pool:
        jobs = [
            pool.submit(_work_off, run, micro, batch, step, totals)
            for micro, batch in enumerate(batches)
        ]
        for job in jobs:
            yield job.result()


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


def _work_off(
    run: _Run,
    micro: int,
    batch: Batch,
    step: Callable[[Batch], StepLosses],
    totals: dict[str, float],
) -> _Portion:
    if run.config.workers == 1:
        # Threads share one generator, so that a step of several must draw nothing.
        torch.manual_seed(_draws_of(run.config.seed, run.position.step, micro))
    losses = step(batch)
    parts = _part_of_means(losses.terms, totals)
    loss: dict[str, Tensor] = {}
    gradients: Sequence[Tensor | None] = [None] * len(run.parameters)
    if parts:
        total = run.weighting(parts, share=1 / run.config.micro_batches)
        gradients = torch.autograd.grad(total, run.parameters, allow_unused=True)
        loss["loss"] = total.detach()
    return _Portion(
        gradients=gradients,
        loss=loss,
        terms={name: value.detach() for name, value in parts.items()},
        metrics=_part_of_means(losses.metrics, totals),
    )


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _update(run: _Run, values: Mapping[str, Tensor], lr: float) -> float:
    """Clip, look at every number, and only then change the weights; the gradient's norm."""
    norm = nn.utils.clip_grad_norm_(run.trained.parameters(), run.config.clip_norm or math.inf)
    watched = {**values, "gradient": norm}
    # One wait for the device, however many terms there are.
    finite = torch.stack([value.isfinite() for value in watched.values()]).tolist()
    if not all(finite):
        run.optimizer.zero_grad()
        bad = [name for name, fine in zip(watched, finite, strict=True) if not fine]
        raise TrainingDiverged(run.position.step + 1, bad)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad()
    return norm.item()


def _totals(counts: list[Mapping[str, Tensor | float | int]]) -> dict[str, float]:
    """What is labelled in the whole step, by name."""
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


def _evaluation_due(run: _Run) -> bool:
    every = run.config.evaluate_every
    return run.position.step == run.config.steps or (every > 0 and run.position.step % every == 0)


def _evaluate(
    run: _Run, evaluate: Callable[[], Mapping[str, float]] | None, best_by: str
) -> dict[str, float] | None:
    """Metrics of the model as it stands; a new best is written out."""
    if evaluate is None:
        return None
    began = time.perf_counter()
    position = run.position
    torch.manual_seed(_draws_of(run.config.seed, position.step, run.config.micro_batches))
    run.model.eval()
    with torch.no_grad():
        metrics = {name: float(value) for name, value in evaluate().items()}
    _training_mode(run.model)
    if best_by not in metrics:
        raise ValueError(f"best_by is {best_by!r}, the evaluation gave {sorted(metrics)}")
    score = metrics[best_by]
    best = math.isfinite(score) and (position.best is None or score < position.best)
    if best:
        save_weights(run.model, run.folder.weights)
        position.best, position.best_step, position.best_metrics = score, position.step, metrics
    position.stale = 0 if best else position.stale + 1
    row = {"kind": "eval", "step": position.step, "metrics": metrics, "best": best}
    run.log.write(row | {"seconds": time.perf_counter() - began})
    shown = " | ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    logger.info("eval %05d | %s%s", position.step, shown, " | best" if best else "")
    return metrics


def _stopped_early(run: _Run) -> bool:
    patience = run.config.early_stop_patience
    return 0 < patience <= run.position.stale and run.position.step < run.config.steps


def _done(run: _Run) -> bool:
    return run.position.step >= run.config.steps or _stopped_early(run)


def _save(run: _Run) -> None:
    now = time.perf_counter()
    run.position.seconds += now - run.clock
    run.clock = now
    run.position.log_bytes = run.log.sync()
    save_checkpoint(
        run.folder.checkpoint,
        trained=run.trained,
        optimizer=run.optimizer,
        position=run.position,
    )


def _finish(run: _Run) -> TrainResult:
    """The best weights into the model, or the last where no evaluation gave a finite number."""
    position = run.position
    if position.best is None:
        save_weights(run.model, run.folder.weights)
    load_weights(run.model, run.folder.weights)
    result = TrainResult(
        steps=position.step,
        stopped_early=_stopped_early(run),
        best=position.best,
        best_step=position.step if position.best is None else position.best_step,
        metrics=position.best_metrics,
        seconds=position.seconds,
    )
    run.folder.finish(result)
    return result


def _training_mode(model: nn.Module) -> None:
    """Train mode, but parts that are frozen as a whole stay as they are used: in eval mode."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def _own_randomness(model: nn.Module) -> Iterator[None]:
    """The caller's torch generators come out as they went in."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def _draws_of(seed: int, step: int, micro: int) -> int:
    """A seed of its own for each micro-batch, the same after a restart."""
    # Distinct for fewer than 1,000 micro-batches; torch takes 64 bits.
    return ((seed * 1_000_003 + step) * 1_009 + micro) % 2**63


def _add(sums: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        sums[name] = sums[name] + part.detach() if name in sums else part.detach()


def _eta(run: _Run) -> float:
    """Seconds to go, at the pace of this sitting."""
    done = run.position.step - run.began_step
    return (run.config.steps - run.position.step) * (time.perf_counter() - run.began) / done
