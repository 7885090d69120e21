"""The training loop of encoder, teacher and student: one optimizer step after another, exactly.

The caller brings a model, its losses as *sums over what is labelled*, and counts of what is
labelled; the loop divides once by the counts of the whole step, over all its portions and all
processes (``portions.py``). So neither accumulation nor data parallelism can change the loss.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stillroom.training.checkpoint import load_weights, save_weights
from stillroom.training.config import TrainConfig
from stillroom.training.distributed import join
from stillroom.training.handed import (
    PlainSum,
    Progress,
    Sheltered,
    StepLosses,
    TrainingDiverged,
)
from stillroom.training.optim import (
    clip_gradients,
    gradient_norm,
    parameters_by_part,
    set_learning_rates,
)
from stillroom.training.portions import Workshop, counted, draws_of
from stillroom.training.precision import two_ways_back
from stillroom.training.runlog import TrainResult, open_run, read_log, step_line
from stillroom.training.sitting import Sitting, sit_down, training_mode

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


def train(
    *,
    config: TrainConfig,
    model: nn.Module,
    weighting: nn.Module | None = None,
    sheltered: Sheltered | None = None,
    step: Callable[[Batch], StepLosses],
    count: Callable[[Batch], Mapping[str, Tensor | float | int]],
    batch_at: Callable[[int, int], Batch],
    rows: int = 0,
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
        sheltered: parameters that learn from some terms alone; not under fsdp.
        step: forward pass of one micro-batch, with gradient, on the model's device, to which the
            loop moves it. Must draw only from torch, whose generators the loop seeds by (seed,
            step, micro-batch); with several workers it must draw nothing.
        count: how many positions are labelled, per name in ``step``'s answer, from labels only:
            it runs before the model does. A term that counts 0 over a step is off in it.
        batch_at: micro-batch ``(step, micro)``, both from 0, a pure function of the two; see
            ``data_order.rows_at``.
        rows: how many there are to draw from; with it the log gets the means of every epoch.
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
    with processes.main_first():
        folder = open_run(out, config=config, settings=settings)
    if folder.finished is not None:
        if processes.main:
            logger.info("%s is finished (%d steps): nothing to do", out, folder.finished.steps)
        load_weights(model, folder.weights)
        return folder.finished
    with ExitStack() as stack:
        if sheltered is not None:
            stack.enter_context(two_ways_back())
        run = sit_down(config, processes, model, weighting or PlainSum(), folder, stack)
        while not _done(run):
            row = _take_step(run, step, count, batch_at, sheltered)
            _end_epoch(run, rows)
            metrics = _evaluate(run, evaluate, best_by) if _evaluation_due(run) else None
            if run.position.step % config.save_every == 0 or _done(run):
                run.save()
            if progress is not None and processes.main:
                at = run.position.step
                progress(Progress(step=at, steps=config.steps, row=row, metrics=metrics))
        return _finish(run)


def _take_step(
    run: Sitting,
    step: Callable[[Batch], StepLosses],
    count: Callable[[Batch], Mapping[str, Tensor | float | int]],
    batch_at: Callable[[int, int], Batch],
    sheltered: Sheltered | None,
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
    workshop = Workshop(run.config, run.spread, run.weighting, run.parameters, sheltered)
    for portion in workshop.portions(index, batches, step, labelled):
        for parameter, gradient in zip(run.parameters, portion.gradients, strict=False):
            _accumulate(parameter, gradient)
        _add(sums["loss"], portion.loss)
        _add(sums["terms"], portion.terms)
        _add(sums["metrics"], portion.metrics)
    values = _over_all(run, sums)
    rates = set_learning_rates(run.optimizer, index, config=config)
    norms: dict[str, float] = {}
    if values["loss"]:
        norms = _update(run, {**values["loss"], **values["terms"]})
    else:
        # Nothing labelled in the whole step: no update, not even decay.
        run.optimizer.zero_grad()
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
        **rates,
        "scenes_per_s": config.scenes_per_step / (time.perf_counter() - began),
        "eta_s": _eta(run),
    }
    run.write(row)
    due = run.position.step % config.log_every == 0 or run.position.step == config.steps
    if due and run.processes.main:
        logger.info(step_line(row))
    return row


def _end_epoch(run: Sitting, rows: int) -> None:
    """After an epoch's last step, its means: each term over all that was labelled in it.

    A step belongs to the epoch that its first row is of. The means are taken from the log, so that
    a resumed run needs no memory of the steps before; an epoch of one step is that step's row.
    """
    each, done = run.config.scenes_per_step, run.position.step
    if rows <= each or run.log is None or done * each // rows == (done - 1) * each // rows:
        return
    epoch = (done - 1) * each // rows
    first = -(-epoch * rows // each)
    steps = [row for row in read_log(run.folder.log, kind="step") if row["step"] > first]
    row = {"kind": "epoch", "epoch": epoch + 1, "step": done, "steps": len(steps)}
    run.write(row | {part: _labelled_means(steps, part) for part in ("terms", "metrics")})


def _labelled_means(steps: Sequence[Mapping[str, Any]], part: str) -> dict[str, float]:
    """Means by name over the steps that have one, each weighed by how much was labelled in it."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for row in steps:
        for name, value in row[part].items():
            if value is None:  # it was not finite
                continue
            count = row["labelled"][name]
            sums[name] = sums.get(name, 0.0) + value * count
            counts[name] = counts.get(name, 0.0) + count
    return {name: total / counts[name] for name, total in sums.items()}


def _over_all(
    run: Sitting, sums: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """Values of the step over all processes, kind by kind; one wait for the device."""
    flat = {(kind, name): value for kind, part in sums.items() for name, value in part.items()}
    if not flat:
        return {kind: {} for kind in sums}
    numbers = torch.stack([value.double() for value in flat.values()]).tolist()
    named = {f"{kind}:{name}": n for (kind, name), n in zip(flat, numbers, strict=True)}
    totals = run.processes.totals(named)
    return {kind: {name: totals[f"{kind}:{name}"] for name in part} for kind, part in sums.items()}


def _accumulate(parameter: Tensor, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    if parameter.grad is None:
        # In the parameter's own layout, as ``backward`` would leave it: ``autograd.grad`` hands on
        # whatever strides a gradient has, and fused AdamW reads memory as it lies.
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    else:
        parameter.grad.add_(gradient)


def _update(run: Sitting, values: Mapping[str, float]) -> dict[str, float]:
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
    run.optimizer.step()
    run.optimizer.zero_grad()
    return dict(zip(["", *parts], lengths, strict=True))


def _evaluation_due(run: Sitting) -> bool:
    every = run.config.evaluate_every
    return run.position.step == run.config.steps or (every > 0 and run.position.step % every == 0)


def _evaluate(
    run: Sitting, evaluate: Callable[[], Mapping[str, float]] | None, best_by: str
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
    training_mode(run.model)
    if best_by not in metrics:
        raise ValueError(f"best_by is {best_by!r}, the evaluation gave {sorted(metrics)}")
    score = metrics[best_by]
    best = math.isfinite(score) and (position.best is None or score < position.best)
    if best:
        save_weights(run.model, run.folder.weights, write=run.processes.main)
        position.best, position.best_step, position.best_metrics = score, position.step, metrics
    position.stale = 0 if best else position.stale + 1
    row = {"kind": "eval", "step": position.step, "metrics": metrics, "best": best}
    run.write(row | {"seconds": time.perf_counter() - began})
    if run.processes.main:
        shown = " | ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info("eval %05d | %s%s", position.step, shown, " | best" if best else "")
    return metrics


def _stopped_early(run: Sitting) -> bool:
    patience = run.config.early_stop_patience
    return 0 < patience <= run.position.stale and run.position.step < run.config.steps


def _done(run: Sitting) -> bool:
    return run.position.step >= run.config.steps or _stopped_early(run)


def _finish(run: Sitting) -> TrainResult:
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


def _add(sums: dict[str, Tensor], parts: Mapping[str, Tensor]) -> None:
    for name, part in parts.items():
        sums[name] = sums[name] + part.detach() if name in sums else part.detach()


def _eta(run: Sitting) -> float:
    """Seconds to go, at the pace of this sitting."""
    done = run.position.step - run.began_step
    return (run.config.steps - run.position.step) * (time.perf_counter() - run.began) / done
