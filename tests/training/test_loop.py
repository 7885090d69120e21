import copy
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch import nn

from stillroom.records import BadInputError
from stillroom.training.config import TrainConfig
from stillroom.training.data_order import rows_at
from stillroom.training.handed import StepLosses, TrainingDiverged
from stillroom.training.loop import _accumulate, _labelled_means, train
from stillroom.training.optim import make_optimizer
from stillroom.training.runlog import read_log


def test_training_lowers_the_loss_and_ends_with_the_best_weights(tmp_path: Path) -> None:
    result, model, _ = tiny_run.run(tmp_path, config=replace(tiny_run.CONFIG, steps=40))
    evals = read_log(tmp_path, kind="eval")
    scores = [row["metrics"]["text_ce"] for row in evals]
    assert result.steps == 40
    assert result.best == min(scores) < scores[0]
    assert result.metrics["text_ce"] == result.best
    assert [row["step"] for row in evals if row["best"]][-1] == result.best_step
    best = load_file(tmp_path / "best.safetensors")
    assert torch.equal(best["norm.weight"], model.norm.weight)


def test_two_accumulated_half_batches_equal_one_batch(tmp_path: Path) -> None:
    # The halves hold unequal numbers of labelled positions, so a mean of means would differ.
    weights = []
    for micro_batches in (1, 2):
        config = replace(tiny_run.CONFIG, steps=5, micro_batches=micro_batches, learning_rate=0.01)
        out = tmp_path / str(micro_batches)
        tiny_run.run(out, config=config, model=tiny_run.make_model(dropout=0.0))
        weights.append((tiny_run.arrays(out), read_log(out, kind="step")))
    (one, one_log), (two, two_log) = weights
    for name in one:
        if name not in ("model.seen", "best"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for first, second in zip(one_log, two_log, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["terms"] == pytest.approx(first["terms"], rel=1e-5)
        assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-5)


def test_gradients_take_the_layout_of_their_parameters_before_the_optimizer_reads_them() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "token": nn.Embedding(1, 6)})
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)

    def loss(of: nn.ModuleDict) -> torch.Tensor:
        weight = of["token"].weight.t().contiguous().t()  # its gradient comes back turned
        return of["conv"](images).square().sum() + (weight.expand(5, 6) * torch.arange(6.0)).sum()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model), parameters)
    # Else the test could not fail.
    assert any(g.stride() != p.stride() for g, p in zip(gradients, parameters, strict=True))
    for _ in range(2):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            _accumulate(parameter, gradient)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, 2 * gradient)
    config = TrainConfig(steps=1, scenes_per_step=1, learning_rate=1e-2, weight_decay=0.0)
    make_optimizer(model, config=config).step()
    (2 * loss(twin)).backward()
    torch.optim.AdamW(
        twin.parameters(), lr=1e-2, betas=config.betas, weight_decay=0.0, fused=False
    ).step()
    for mine, plain in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)


def test_workers_side_by_side_change_nothing(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    kept, logs = [], []
    for workers in (1, 2, 3):
        config = replace(tiny_run.CONFIG, scenes_per_step=4, micro_batches=4, workers=workers)
        out = tmp_path / str(workers)
        # One thread within operations: sums over threads may round differently.
        torch.set_num_threads(1)
        tiny_run.run(out, config=config, model=tiny_run.make_model(dropout=0.0))
        kept.append(tiny_run.arrays(out))
        logs.append([(row["loss"], row["grad_norm"]) for row in read_log(out, kind="step")])
    torch.set_num_threads(threads)
    assert logs[0] == logs[1] == logs[2]
    for other in kept[1:]:
        for name, value in kept[0].items():
            if name != "model.seen":  # counts calls, in whatever order the threads make them
                np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_a_worker_that_fails_stops_the_run(tmp_path: Path) -> None:
    def fail(batch: dict[str, torch.Tensor]) -> StepLosses:
        raise RuntimeError("a step that fails")

    config = replace(tiny_run.CONFIG, micro_batches=2, workers=2)
    with pytest.raises(RuntimeError, match="a step that fails"):
        train(
            config=config,
            model=tiny_run.make_model(),
            step=fail,
            count=tiny_run.count,
            batch_at=lambda step, micro: tiny_run.make_batch([0, 1]),
            out=tmp_path,
            settings={},
        )


def test_a_term_is_the_mean_over_all_labelled_positions_of_the_step(tmp_path: Path) -> None:
    sums = {0: (3.0, 1), 1: (5.0, 7)}
    weight = nn.Parameter(torch.ones(()))
    train(
        config=replace(tiny_run.CONFIG, steps=1, micro_batches=2),
        model=nn.ParameterDict({"weight": weight}),
        step=lambda micro: StepLosses(terms={"text": weight * sums[micro][0]}),
        count=lambda micro: {"text": sums[micro][1]},
        batch_at=lambda step, micro: micro,
        out=tmp_path,
        settings={},
    )
    [row] = read_log(tmp_path)
    assert row["terms"]["text"] == row["loss"] == row["grad_norm"] == 1.0


def test_the_log_holds_everything_a_curve_needs(tmp_path: Path) -> None:
    tiny_run.run(tmp_path)
    rows = read_log(tmp_path, kind="step")
    assert [row["step"] for row in rows] == list(range(1, 13))
    row = rows[-1]
    assert row["steps"] == 12
    assert row["terms"].keys() == {"text", "depth"}
    assert row["metrics"].keys() == {"accuracy"}
    assert row["unweighted"] == pytest.approx(sum(row["terms"].values()))
    assert row["weights"].keys() == {"all"}
    # 4 rows a step with 4 places each; r % 4 + 1 of them have text, those of even rows depth.
    rows_of_first = rows_at(0, 0, config=tiny_run.CONFIG, rows=tiny_run.ROWS)
    texts = float(sum(r % 4 + 1 for r in rows_of_first))
    depths = float(sum(4 for r in rows_of_first if r % 2 == 0))
    assert rows[0]["labelled"] == {"text": texts, "depth": depths, "accuracy": texts}
    assert row["grad_norms"].keys() == {"embed", "norm", "depth", "weighting"}
    assert math.hypot(*row["grad_norms"].values()) == pytest.approx(row["grad_norm"])
    assert row["eta_s"] == 0
    assert min(row["scenes_per_s"], row["grad_norm"], row["lr"]) > 0


def test_a_step_is_one_line_for_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="stillroom.training.loop"):
        tiny_run.run(tmp_path)
    assert [line.split(" | ")[0] for line in caplog.messages if line.startswith("step")] == [
        "step 00010/00012",
        "step 00012/00012",
    ]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_weights_change(
    tmp_path: Path, broken: str
) -> None:
    model = tiny_run.make_model()
    before: dict[str, torch.Tensor] = {}

    def batch_at(step: int, micro: int) -> dict[str, torch.Tensor]:
        before.update({name: value.clone() for name, value in model.named_parameters()})
        return tiny_run.make_batch([1, 2]) | {"poison": torch.tensor(step == 4)}

    def step(batch: dict[str, torch.Tensor]) -> StepLosses:
        losses = tiny_run.make_step(model)(batch)
        text = losses.terms["text"]
        if batch["poison"] and broken == "loss":
            text = text * math.nan
        if batch["poison"] and broken == "gradient":
            # Finite itself, but the root's slope at zero is infinite.
            text = text + (model.depth.bias * 0).sum().sqrt()
        return StepLosses(terms={**losses.terms, "text": text}, metrics=losses.metrics)

    with pytest.raises(TrainingDiverged, match="step 5") as caught:
        tiny_run.run(tmp_path, model=model, batch_at=batch_at, step=step)
    assert caught.value.step == 5
    assert broken in str(caught.value)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
    assert read_log(tmp_path)[-1]["step"] == 4


def test_a_step_in_which_nothing_is_labelled_changes_no_weight_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_run.make_model()
    start = model.depth.weight.clone()
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    with caplog.at_level(logging.WARNING, logger="stillroom.training.loop"):
        result, _, _ = tiny_run.run(
            tmp_path,
            model=model,
            config=replace(tiny_run.CONFIG, steps=2, scenes_per_step=1),
            batch_at=lambda step, micro: (
                tiny_run.make_batch([0]) | {"text_valid": nothing, "depth_valid": nothing}
            ),
        )
    assert torch.equal(model.depth.weight, start)
    rows = read_log(tmp_path, kind="step")
    assert [row["loss"] for row in rows] == [None, None]
    assert [row["labelled"]["text"] for row in rows] == [0.0, 0.0]
    assert result.skipped == 2
    assert "step 2 has no label: no weight changes (2 such steps so far)" in caplog.text


def test_where_every_text_label_is_masked_the_other_terms_go_on(tmp_path: Path) -> None:
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    result, _, _ = tiny_run.run(
        tmp_path,
        batch_at=lambda step, micro: tiny_run.make_batch([0, 2]) | {"text_valid": nothing},
    )
    rows = read_log(tmp_path, kind="step")
    assert {tuple(row["terms"]) for row in rows} == {("depth",)}
    assert {row["labelled"]["text"] for row in rows} == {0.0}
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.skipped == 0


def test_a_term_without_labels_is_off_in_that_step(tmp_path: Path) -> None:
    tiny_run.run(tmp_path, batch_at=lambda step, micro: tiny_run.make_batch([1, 3]))
    assert all(row["terms"].keys() == {"text"} for row in read_log(tmp_path, kind="step"))


def test_a_term_that_nothing_counts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depth"):
        tiny_run.run(tmp_path, count=lambda batch: {"text": 1.0, "accuracy": 1.0})


def test_early_stopping_waits_for_the_patience_and_keeps_the_best(tmp_path: Path) -> None:
    scores = iter([3.0, 2.0, math.nan, 2.5])
    config = replace(tiny_run.CONFIG, steps=50, evaluate_every=2, early_stop_patience=2)
    result, model, _ = tiny_run.run(
        tmp_path, config=config, evaluate=lambda: {"text_ce": next(scores)}
    )
    assert result.stopped_early
    assert (result.steps, result.best_step, result.best) == (8, 4, 2.0)
    again, other, _ = tiny_run.run(tmp_path, config=config)
    assert again == result
    assert torch.equal(other.norm.weight, model.norm.weight)


def test_without_an_evaluation_the_last_weights_are_kept(tmp_path: Path) -> None:
    result, model, _ = tiny_run.run(tmp_path, evaluate=None)
    assert (result.best, result.best_step) == (None, 12)
    assert np.array_equal(tiny_run.arrays(tmp_path)["model.norm.weight"], model.norm.weight.data)


def test_frozen_parts_run_in_eval_mode_and_do_not_change(tmp_path: Path) -> None:
    model = tiny_run.make_model()
    frozen = model.frozen.weight.clone()
    modes = []

    def step(batch: dict[str, torch.Tensor]) -> StepLosses:
        modes.append((model.dropout.training, model.frozen.training))
        return tiny_run.make_step(model)(batch)

    tiny_run.run(tmp_path, model=model, step=step)
    assert set(modes) == {(True, False)}
    assert torch.equal(model.frozen.weight, frozen)
    assert "frozen.weight" not in load_file(tmp_path / "best.safetensors")


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    model = tiny_run.make_model()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    tiny_run.run(tmp_path, model=model)
    assert torch.equal(torch.rand(3), expected)


def test_progress_hears_of_every_step_and_of_every_evaluation(tmp_path: Path) -> None:
    heard = []
    tiny_run.run(tmp_path, progress=heard.append)
    assert [one.step for one in heard] == list(range(1, 13))
    assert [one.step for one in heard if one.metrics is not None] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("micro_batches", 3), ("warmup_fraction", 1.5), ("learning_rate", 0.0)],
)
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(BadInputError, match=name):
        replace(tiny_run.CONFIG, **{name: value})


def test_the_log_has_the_means_of_every_whole_epoch(tmp_path: Path) -> None:
    tiny_run.run(tmp_path)
    steps, epochs = read_log(tmp_path, kind="step"), read_log(tmp_path, kind="epoch")
    # 12 steps of 4 out of 10 rows: a step belongs to the epoch of its first row.
    assert [(row["epoch"], row["step"], row["steps"]) for row in epochs] == [
        *((1, 3, 3), (2, 5, 2), (3, 8, 3), (4, 10, 2))
    ]
    for epoch, mine in zip(epochs[:2], (steps[:3], steps[3:5]), strict=True):
        for name in ("text", "depth"):
            counts = [row["labelled"][name] for row in mine]
            assert len(set(counts)) > 1
            mean = np.average([row["terms"][name] for row in mine], weights=counts)
            assert epoch["terms"][name] == pytest.approx(mean)
        assert epoch["metrics"].keys() == {"accuracy"}


@pytest.mark.parametrize("rows", [0, 3, 4])
def test_an_epoch_of_one_step_has_no_row_of_its_own(tmp_path: Path, rows: int) -> None:
    tiny_run.run(tmp_path, config=replace(tiny_run.CONFIG, steps=3), rows=rows)
    assert read_log(tmp_path, kind="epoch") == []


def test_a_figure_that_was_not_finite_is_left_out_of_an_epochs_mean() -> None:
    steps = [
        {"metrics": {"accuracy": value}, "labelled": {"accuracy": count}}
        for value, count in ((None, 4.0), (0.5, 2.0), (1.0, 6.0))
    ]
    assert _labelled_means(steps, "metrics") == {"accuracy": pytest.approx(7 / 8)}
