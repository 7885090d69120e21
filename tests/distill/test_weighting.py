import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillroom.distill.config import LossConfig
from stillroom.distill.weighting import (
    BOUND,
    BoundedUncertainty,
    Composite,
    StaticWeights,
    make_weighting,
)
from stillroom.recipes import table
from stillroom.training.config import TrainConfig
from stillroom.training.handed import StepLosses, Weighting
from stillroom.training.loop import train
from stillroom.training.optim import make_optimizer, parameter_groups, set_learning_rates
from stillroom.training.runlog import read_log

#: Everything of the recipes' schedules that a weighting could notice, once each.
SCHEDULES = sorted(
    {
        replace(make().train, learning_rate=1.0, save_every=1, evaluate_every=1)
        for make in table("distill").values()
    },
    key=str,
)


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_at_the_start_every_term_weighs_a_half() -> None:
    weighting = BoundedUncertainty(["text", "depth_ce"])
    assert weighting(scalars(text=3.0, depth_ce=1.0)).item() == 2.0
    assert weighting.report() == {
        "weights": {"text": 0.5, "depth_ce": 0.5},
        "sigmas": {"text": 1.0, "depth_ce": 1.0},
    }


def test_a_case_worked_by_hand() -> None:
    weighting = BoundedUncertainty(["text"])
    with torch.no_grad():
        weighting.log_variance["text"].fill_(math.log(4.0))
    # Half of 6 / 4, plus half of ln 4.
    assert weighting(scalars(text=6.0)).item() == pytest.approx(0.75 + math.log(2.0))
    report = weighting.report()
    assert report["weights"]["text"] == pytest.approx(1 / 8)
    assert report["sigmas"]["text"] == pytest.approx(2.0)


@pytest.mark.parametrize("loss", [0.01, 0.4, 1.0, 7.0, 200.0])
def test_the_best_variance_is_the_loss_itself(loss: float) -> None:
    weighting = BoundedUncertainty(["text"])
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = weighting(scalars(text=loss))
        total.backward()
        return total

    for _ in range(5):
        optimizer.step(closure)
    variance = weighting.log_variance["text"].exp().item()
    assert variance == pytest.approx(loss, rel=1e-3)
    assert weighting.report()["weights"]["text"] == pytest.approx(1 / (2 * loss), rel=1e-3)
    total = weighting(scalars(text=loss)).item()
    assert total == pytest.approx(0.5 + 0.5 * math.log(loss), abs=1e-5)


def test_the_total_of_small_losses_is_negative() -> None:
    weighting = BoundedUncertainty(["text"])
    with torch.no_grad():
        weighting.log_variance["text"].fill_(math.log(0.01))
    assert weighting(scalars(text=0.01)).item() == pytest.approx(0.5 + 0.5 * math.log(0.01))


def test_an_absent_term_adds_neither_loss_nor_log_sigma_and_does_not_move() -> None:
    weighting = BoundedUncertainty(["text", "depth_ce"])
    with torch.no_grad():
        weighting.log_variance["depth_ce"].fill_(3.0)
    optimizer = torch.optim.AdamW(weighting.parameters(), lr=0.1, weight_decay=0.0)
    # Momentum from a step in which the term was there must not carry on either.
    weighting(scalars(text=3.0, depth_ce=1.0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = weighting.log_variance["depth_ce"].item()
    assert weighting(scalars(text=0.0)).item() == pytest.approx(
        0.5 * weighting.log_variance["text"].item()
    )
    weighting(scalars(text=3.0)).backward()
    optimizer.step()
    assert weighting.log_variance["depth_ce"].item() == before


@pytest.mark.parametrize(("loss", "end"), [(0.0, -BOUND), (1e9, BOUND)])
def test_the_variance_stays_within_its_bound_and_can_come_back(loss: float, end: float) -> None:
    weighting = BoundedUncertainty(["text"])
    optimizer = torch.optim.SGD(weighting.parameters(), lr=1.0)
    for _ in range(40):
        optimizer.zero_grad()
        weighting(scalars(text=loss)).backward()
        optimizer.step()
    weights = weighting.report()["weights"]
    assert weights["text"] == pytest.approx(0.5 * math.exp(-end))
    # A loss of 1 asks for variance 1: from either bound the way back is open.
    for _ in range(60):
        optimizer.zero_grad()
        weighting(scalars(text=1.0)).backward()
        nn.utils.clip_grad_norm_(weighting.parameters(), 0.3)
        optimizer.step()
    assert abs(weighting.log_variance["text"].item()) < 0.5


def test_gradients_agree_with_finite_differences() -> None:
    weighting = BoundedUncertainty(["text", "depth_reg"]).double()
    with torch.no_grad():
        weighting.log_variance["text"].fill_(0.7)
    losses = {"text": torch.tensor(2.0).double(), "depth_reg": torch.tensor(0.3).double()}
    for value in losses.values():
        value.requires_grad_()
    weighting(losses).backward()
    for tensor in (*losses.values(), *weighting.parameters()):
        totals = []
        for sign in (1, -2):
            with torch.no_grad():
                tensor += sign * 1e-5
                totals.append(weighting(losses).item())
        with torch.no_grad():
            tensor += 1e-5
        assert tensor.grad.item() == pytest.approx((totals[0] - totals[1]) / 2e-5, rel=1e-6)


def test_shares_of_micro_batches_add_up_to_the_step() -> None:
    weighting = BoundedUncertainty(["text"])
    with torch.no_grad():
        weighting.log_variance["text"].fill_(1.3)
    whole = weighting(scalars(text=3.0), share=1.0)
    parts = weighting(scalars(text=1.0), share=0.5) + weighting(scalars(text=2.0), share=0.5)
    torch.testing.assert_close(parts, whole)


def test_uncertainty_parameters_do_not_decay() -> None:
    decayed, rest = parameter_groups(BoundedUncertainty(["text", "depth_ce"]), weight_decay=0.05)
    assert (len(decayed["params"]), len(rest["params"])) == (0, 2)


def test_static_weights_multiply() -> None:
    weighting = StaticWeights({"text": 1.0, "depth_ce": 0.1})
    assert weighting(scalars(text=2.0, depth_ce=30.0)).item() == pytest.approx(5.0)
    assert weighting(scalars(depth_ce=30.0), share=0.5).item() == pytest.approx(3.0)
    assert weighting.report() == {"weights": {"text": 1.0, "depth_ce": 0.1}}


@pytest.mark.parametrize(
    "weighting", [BoundedUncertainty(["text"]), StaticWeights({"text": 1.0})], ids=["bu", "static"]
)
def test_a_term_without_a_weight_is_an_error(weighting: nn.Module) -> None:
    assert isinstance(weighting, Weighting)
    with pytest.raises(ValueError, match="'feature' has no weight; known: \\['text'\\]"):
        weighting(scalars(text=1.0, feature=1.0))


def test_accumulation_does_not_change_a_training_under_uncertainty(tmp_path: Path) -> None:
    ends = []
    for micro_batches in (1, 4):
        weighting = BoundedUncertainty(["text", "depth_ce"])
        model = nn.ParameterDict({"x": torch.tensor([0.3, -0.2])})
        config = TrainConfig(
            steps=6, scenes_per_step=8, micro_batches=micro_batches, learning_rate=0.05
        )
        size = 8 // micro_batches

        def step(values: Tensor, x: nn.Parameter = model["x"]) -> StepLosses:
            depth = (x[1] - values).abs() * (values > 4)
            return StepLosses(terms={"text": ((x[0] - values) ** 2).sum(), "depth_ce": depth.sum()})

        out = tmp_path / str(micro_batches)
        train(
            config=config,
            model=model,
            weighting=weighting,
            step=step,
            count=lambda values: {"text": len(values), "depth_ce": (values > 4).sum()},
            batch_at=lambda step, micro, size=size: torch.arange(8.0)[
                micro * size : (micro + 1) * size
            ],
            out=out,
            settings={},
        )
        row = read_log(out)[-1]
        ends.append([*model["x"].tolist(), row["loss"], *row["sigmas"].values()])
    assert ends[1] == pytest.approx(ends[0], rel=1e-5)
    assert ends[0][3:] != [1.0, 1.0]


PARTS = {"spatial": {"spatial_views": 0.1, "spatial_feature": 1.0}}


def test_a_term_of_parts_has_one_weight_and_its_parts_fixed_shares() -> None:
    weighting = Composite(StaticWeights({"text": 1.0, "spatial": 3.0}), PARTS)
    total = weighting(scalars(text=2.0, spatial_views=5.0, spatial_feature=0.5))
    assert total.item() == pytest.approx(2.0 + 3.0 * (0.5 + 0.5))
    assert isinstance(weighting, Weighting)
    assert weighting.report() == {"weights": {"text": 1.0, "spatial": 3.0}}


def test_a_part_without_labels_is_absent_and_a_term_without_parts_too() -> None:
    weighting = Composite(BoundedUncertainty(["text", "spatial"]), PARTS)
    with torch.no_grad():
        weighting.weighting.log_variance["spatial"].fill_(2.0)
    alone = weighting(scalars(text=2.0, spatial_feature=4.0)).item()
    assert alone == pytest.approx(1.0 + 0.5 * math.exp(-2.0) * 4.0 + 1.0)
    assert weighting(scalars(text=2.0)).item() == pytest.approx(1.0)


@pytest.mark.parametrize("views", [0.3, 20.0])
def test_the_best_variance_of_a_term_of_parts_is_their_sum(views: float) -> None:
    weighting = Composite(BoundedUncertainty(["spatial"]), PARTS)
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = weighting(scalars(spatial_views=views, spatial_feature=0.7))
        total.backward()
        return total

    for _ in range(5):
        optimizer.step(closure)
    variance = weighting.weighting.log_variance["spatial"].exp().item()
    assert variance == pytest.approx(0.1 * views + 0.7, rel=1e-3)


def test_only_terms_of_parts_are_joined() -> None:
    assert isinstance(make_weighting(LossConfig()), BoundedUncertainty)
    both = make_weighting(LossConfig(detection=True, weighting="static", weights={"text": 0.5}))
    assert both.report()["weights"]["text"] == 0.5
    assert both.report()["weights"]["detection"] == 1.0


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: f"{config.steps} steps")
def test_within_the_budget_of_every_recipe_weights_reach_their_optimum(config: TrainConfig) -> None:
    # The last is below what the bound allows a variance to be.
    losses = {"depth_reg": 0.15, "text": 1.0, "naming": 3.0, "multi_view": 1e-4}
    weighting = BoundedUncertainty(list(losses))
    optimizer = make_optimizer(nn.Linear(1, 1), config=config, weighting=weighting)
    for step in range(config.steps):
        weighting(scalars(**losses)).backward()
        set_learning_rates(optimizer, step, config=config)
        optimizer.step()
        optimizer.zero_grad()
    weights = weighting.report()["weights"]
    for name in ("depth_reg", "text", "naming"):
        assert weights[name] == pytest.approx(1 / (2 * losses[name]), rel=0.1), name
    # So far it is only on its way in the shortest: a number a step.
    least = max(-BOUND, -config.weighting_learning_rate * config.steps)
    assert weights["multi_view"] == pytest.approx(0.5 * math.exp(-least), rel=0.1)
