from dataclasses import replace

import pytest
import tiny_run
import torch
from torch import nn

from stillroom.training.config import TrainConfig
from stillroom.training.optim import (
    learning_rate_at,
    make_optimizer,
    parameter_groups,
    set_learning_rates,
)

CONFIG = TrainConfig(steps=100, scenes_per_step=1, learning_rate=1.0, warmup_fraction=0.1)


class Everything(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.conv = nn.Conv2d(3, 3, 2)
        self.norm = nn.LayerNorm(3)
        self.embed = nn.Embedding(4, 3)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.embed.weight
        self.slots = nn.Parameter(torch.zeros(1, 8, 3))
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_only_weight_matrices_decay() -> None:
    model = Everything()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, rest = parameter_groups(model, weight_decay=0.05)
    assert [names[id(p)] for p in decayed["params"]] == ["linear.weight", "conv.weight"]
    assert {names[id(p)] for p in rest["params"]} == {
        *("linear.bias", "conv.bias", "norm.weight", "norm.bias"),
        *("embed.weight", "slots", "log_variance"),
    }
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)


def test_a_model_that_is_frozen_as_a_whole_is_an_error() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(tiny_run.make_model().requires_grad_(False), config=CONFIG)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_floor() -> None:
    rates = [learning_rate_at(step, config=CONFIG) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[99] == pytest.approx(0.05)
    assert rates[10:] == sorted(set(rates[10:]), reverse=True)


def test_a_constant_schedule_stays_at_the_peak() -> None:
    constant = replace(CONFIG, schedule="constant", warmup_fraction=0.0)
    assert {learning_rate_at(step, config=constant) for step in range(100)} == {1.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_learning_rate_of_the_shortest_runs_is_finite(steps: int) -> None:
    short = replace(CONFIG, steps=steps, warmup_fraction=1.0)
    assert all(0 < learning_rate_at(step, config=short) <= 1 for step in range(steps))


def test_a_weighting_that_learns_has_a_learning_rate_of_its_own_and_no_decay() -> None:
    weighting = tiny_run.LearnedWeight()
    optimizer = make_optimizer(Everything(), config=CONFIG, weighting=weighting)
    *_, last = optimizer.param_groups
    assert last["params"] == [weighting.scale]
    assert last["weight_decay"] == 0.0
    rates = [set_learning_rates(optimizer, step, config=CONFIG) for step in (0, 50, 99)]
    assert [rate["lr"] for rate in rates] == [
        learning_rate_at(s, config=CONFIG) for s in (0, 50, 99)
    ]
    # Rises with the model's, then stays.
    assert [rate["weighting_lr"] for rate in rates] == pytest.approx([1e-3, 1e-2, 1e-2])
    assert last["lr"] == rates[-1]["weighting_lr"]
    assert {group["lr"] for group in optimizer.param_groups[:-1]} == {rates[-1]["lr"]}


def test_a_weighting_may_follow_the_cosine_too() -> None:
    falling = replace(CONFIG, weighting_schedule="cosine", weighting_learning_rate=0.5)
    optimizer = make_optimizer(Everything(), config=falling, weighting=tiny_run.LearnedWeight())
    for step in (0, 50, 99):
        rates = set_learning_rates(optimizer, step, config=falling)
        assert rates["weighting_lr"] == pytest.approx(0.5 * rates["lr"])


def test_without_a_weighting_that_learns_there_is_no_rate_for_one() -> None:
    optimizer = make_optimizer(Everything(), config=CONFIG, weighting=nn.Identity())
    assert set_learning_rates(optimizer, 0, config=CONFIG).keys() == {"lr"}
