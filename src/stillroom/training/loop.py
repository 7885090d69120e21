"""The training loop of encoder, teacher and student: one optimizer step after another, exactly.

The caller brings a model, its losses as *sums over what is labelled*, and counts of what is
labelled; the loop divides once by the counts of the whole step, over all its portions and all
processes (``portions.py``). So neither accumulation nor data parallelism can change the loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from stillroom.training.distributed import Processes, join
from stillroom.training.handed import (
    PlainSum,
    Progress,
    StepLosses,
    TrainingDiverged,
    Weighting,
)
from stillroom.training.optim import (
    clip_gradients,
    gradient_norm,
    learning_rate_at,
    make_optimizer,
    parameters_by_part,
)
from stillroom.training.parallel import Spread, spread_over
from stillroom.training.portions import Workshop, counted, draws_of
from stillroom.training.precision import check_precision, lean_layers
from stillroom.training.runlog import RunFolder, RunLog, TrainResult, open_run, step_line
from stillroom.training.shards import load_shards, save_shards
from stillroom.training.trackers import Sink, open_tracker

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


@dataclass
class _Run:
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

    Under ``torchrun`` every process calls this with the same arguments; each works off its share
    of a step's micro-batches, and the first writes.

    Args:
        weighting: a ``Weighting`` (None: plain sum). Its parameters are trained and saved too.
        step: forward pass of one micro-batch, with gradient, on the model's device, to which the
            loop moves it. Must draw only from torch, whose generators the loop seeds by (seed,
            step, micro-batch); with several workers it must draw nothing.
        count: how many positions are labelled, per name in ``step``'s answer, from labels only:
            it runs before the model does. A term that counts 0 over a step is off in it.
        batch_at: micro-batch ``(step, micro)``, both from 0, a pure function of the two; see
            ``data_order.rows_at``.
        evaluate: metrics of the model as it stands; the loop puts it in eval mode without
            gradient. Every process calls it, on the same data. ``best_by`` names the metric,
            smaller is better, that picks the best.
        out: the run's folder, see ``runlog``.
        settings: JSON-able; all that shapes the run besides ``config``. It is the fingerprint by
            which a folder is known to hold this run.
        progress: called after every step, in the process that writes.

    Raises:
        BadInputError: ``out`` holds something else, or there is no such device, precision, tracker
            or way to share the work.
        TrainingDiverged: see there.
    """
    processes = join(config)
    check_precision(config.precision, processes.device)
    with processes.main_first():
        folder = open_run(out, config=config, settings=settings)
    if folder.finished is not None:
        logger.info("%s is finished (%d steps): nothing to do", out, folder.finished.steps)
        load_weights(model, folder.weights)
        return folder.finished
    with _own_randomness(processes), ExitStack() as stack:
        run = _prepare(config, processes, model, weighting or PlainSum(), folder, stack)
        while not _done(run):
            row = _take_step(run, step, count, batch_at)
            metrics = _evaluate(run, evaluate, best_by) if _evaluation_due(run) else None
            if run.position.step % config.save_every == 0 or _done(run):
                _save(run)
            if progress is not None and processes.main:
                at = run.position.step
                progress(Progress(step=at, steps=config.steps, row=row, metrics=metrics))
        return _finish(run)


def _prepare(
    config: TrainConfig,
    processes: Processes,
    model: nn.Module,
    weighting: nn.Module,
    folder: RunFolder,
    stack: ExitStack,
) -> _Run:
    trained = nn.ModuleDict({"model": model, "weighting": weighting}).to(processes.device)
    spread = spread_over(processes, trained, config)
    optimizer = make_optimizer(trained, config=config)
    position = _load(config, processes, folder, trained, optimizer)
    # What can be refused has been: files are opened, layers changed.
    with processes.main_first():
        log = RunLog(folder.log, keep_bytes=position.log_bytes) if processes.main else None
        if log is not None:
            stack.callback(log.close)
        track = config.track if processes.main else "none"
        tracker = open_tracker(track, folder.path, step=position.step)
    if tracker is not None:
        stack.callback(tracker.close)
    stack.enter_context(lean_layers(model, config))
    _training_mode(model)
    run = _Run(
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
        _tell_of_other_processes(run)
    return run


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
    logger.info("%s goes on after step %d", folder.path, position.step)
    return position


def _tell_of_other_processes(run: _Run) -> None:
    """Data, draws and learning rates stay as they are; only sums are added in another order."""
    before, now = run.position.processes, run.processes.world
    if run.processes.main:
        logger.warning(
            "%s was trained by %d processes up to step %d and goes on with %d: equal to an "
            "undisturbed run but for rounding, not bit for bit",
            run.folder.path,
            before,
            run.position.step,
            now,
        )
    _write(run, {"kind": "resume", "step": run.position.step, "before": before, "processes": now})
    run.position.processes = now


def _write(run: _Run, row: Mapping[str, Any]) -> None:
    for sink in (run.log, run.tracker):
        if sink is not None:
            sink.write(row)


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
    micros = run.spread.micros
    batches = [batch_at(index, micro) for micro in micros]
    labelled = run.processes.totals(counted([count(batch) for batch in batches]))
    sums: dict[str, dict[str, Tensor]] = {"loss": {}, "terms": {}, "metrics": {}}
    workshop = Workshop(run.config, run.spread, run.weighting, run.parameters)
    for portion in workshop.portions(index, batches, step, labelled):
        for parameter, gradient in zip(run.parameters, portion.gradients, strict=False):
            _accumulate(parameter, gradient)
        _add(sums["loss"], portion.loss)
        _add(sums["terms"], portion.terms)
        _add(sums["metrics"], portion.metrics)
    values = _over_all(run, sums)
    lr = learning_rate_at(index, config=config)
    norms: dict[str, float] = {}
    if values["loss"]:
        norms = _update(run, {**values["loss"], **values["terms"]}, lr)
    else:
        # Nothing labelled in the whole step: no update, not even decay.
        run.position.skipped += 1
        if run.processes.main:
            logger.warning(
                "step %d has no label: no weight changes (%d such steps so far)",
                index + 1,
                run.position.skipped,
            )
    run.position.step += 1
    row = {
        "kind": "step",
        "step": run.position.step,
        "steps": config.steps,
        "loss": values["loss"].get("loss"),
        "unweighted": sum(values["terms"].values()) if values["terms"] else None,
        "terms": values["terms"],
        "metrics": values["metrics"],
        "labelled": labelled,
        **weights,
        "grad_norm": norms.pop("", None),
        "grad_norms": norms,
        "lr": lr,
        "scenes_per_s": config.scenes_per_step / (time.perf_counter() - began),
        "eta_s": _eta(run),
    }
    _write(run, row)
    due = run.position.step % config.log_every == 0 or run.position.step == config.steps
    if due and run.processes.main:
        logger.info(step_line(row))
    return row


def _over_all(run: _Run, sums: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Values of the step over all processes, kind by kind; one wait for the device."""
    flat = {(kind, name): value for kind, part in sums.items() for name, value in part.items()}
    if not flat:
        return {kind: {} for kind in sums}
    numbers = torch.stack([value.double() for value in flat.values()]).tolist()
    named = {f"{kind}:{name}": n for (kind, name), n in zip(flat, numbers, strict=True)}
    totals = run.processes.totals(named)
    return {kind: {name: totals[f"{kind}:{name}"] for name in part} for kind, part in sums.items()}


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _update(run: _Run, values: Mapping[str, float], lr: float) -> dict[str, float]:
    """Clip, look at every number, and only then change the weights; the gradients' norms before
    clipping, by part of the model, and of all under ""."""
    run.spread.complete_gradients()
    norm = gradient_norm(run.parameters)
    parts = {name: gradient_norm(part) for name, part in parameters_by_part(run.trained).items()}
    lengths = torch.stack([norm, *parts.values()]).tolist()
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    bad += [] if math.isfinite(lengths[0]) else ["gradient"]
    if bad:
        run.optimizer.zero_grad()
        raise TrainingDiverged(run.position.step + 1, bad)
    clip_gradients(run.parameters, norm, run.config.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad()
    return dict(zip(["", *parts], lengths, strict=True))


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
    torch.manual_seed(draws_of(run.config.seed, position.step, run.config.micro_batches))
    run.model.eval()
    with torch.no_grad():
        found = run.spread.look(evaluate)
    # Every process goes on with the same numbers, though they may have rounded differently.
    metrics = run.processes.from_main({name: float(value) for name, value in found.items()})
    _training_mode(run.model)
    if best_by not in metrics:
        raise ValueError(f"best_by is {best_by!r}, the evaluation gave {sorted(metrics)}")
    score = metrics[best_by]
    best = math.isfinite(score) and (position.best is None or score < position.best)
    if best:
        save_weights(run.model, run.folder.weights, write=run.processes.main)
        position.best, position.best_step, position.best_metrics = score, position.step, metrics
    position.stale = 0 if best else position.stale + 1
    row = {"kind": "eval", "step": position.step, "metrics": metrics, "best": best}
    _write(run, row | {"seconds": time.perf_counter() - began})
    if run.processes.main:
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
    if run.log is not None:
        run.position.log_bytes = run.log.sync()
    state: dict[str, Any] = {
        "trained": run.trained,
        "optimizer": run.optimizer,
        "position": run.position,
    }
    if run.config.parallel == "fsdp":
        save_shards(run.folder.shards, processes=run.processes, **state)
    elif run.processes.main:
        save_checkpoint(run.folder.checkpoint, **state)


def _finish(run: _Run) -> TrainResult:
    """The best weights into the model, or the last where no evaluation gave a finite number."""
    position = run.position
    if position.best is None:
        save_weights(run.model, run.folder.weights, write=run.processes.main)
    run.processes.wait()
    run.spread.make_whole()
    load_weights(run.model, run.folder.weights)
    result = TrainResult(
        steps=position.step,
        stopped_early=_stopped_early(run),
        best=position.best,
        best_step=position.step if position.best is None else position.best_step,
        metrics=position.best_metrics,
        seconds=position.seconds,
        skipped=position.skipped,
    )
    if run.processes.main:
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
def _own_randomness(processes: Processes) -> Iterator[None]:
    """The caller's torch generators come out as they went in."""
    devices = [processes.device] if processes.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _add(sums: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        sums[name] = sums[name] + part.detach() if name in sums else part.detach()


def _eta(run: _Run) -> float:
    """Seconds to go, at the pace of this sitting."""
    done = run.position.step - run.began_step
    return (run.config.steps - run.position.step) * (time.perf_counter() - run.began) / done
