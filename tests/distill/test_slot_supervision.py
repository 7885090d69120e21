"""What slots learn from: the answer alone, or every term that reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import TINY, run
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stillroom import recipes
from stillroom.distill import prepare
from stillroom.distill.config import DistillConfig, LossConfig, SlotConfig
from stillroom.records import BadInputError

# Static weights, so that a gradient says which of them it was weighed by; unclipped.
WEIGHTS = {"text": 0.3, "grounding": 2.0, "apart": 3.0}
BESIDE = LossConfig(measures=True, weighting="static", weights=WEIGHTS)
ALONE = LossConfig(depth=False, grounding=False, weighting="static", weights={"text": 0.3})
ONE_STEP = replace(
    TINY,
    train=replace(
        TINY.train, steps=1, scenes_per_step=4, evaluate_every=0, clip_norm=0.0, device="cpu"
    ),
    # Two layers: the names of a question are read behind the first, which sees the slots.
    student=replace(TINY.student, layers=2),
)
SLOTS_SHAPE = (1, TINY.slots.count, TINY.student.hidden_size)


def config(losses: LossConfig, supervision: Any = "answer", **train: Any) -> DistillConfig:
    return replace(
        ONE_STEP,
        losses=losses,
        slots=replace(TINY.slots, supervision=supervision),
        train=replace(ONE_STEP.train, **train),
    )


@contextmanager
def watching(found: list[Tensor | None]) -> Iterator[None]:
    """The slots' gradient at every step of an optimizer."""

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        (slots,) = [value for value in parameters if value.shape == SLOTS_SHAPE]
        found.append(None if slots.grad is None else slots.grad.clone())

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def slot_gradient(world: Path, out: Path, asked: DistillConfig) -> Tensor:
    found: list[Tensor | None] = []
    with watching(found):
        run(world, out, asked)
    (gradient,) = found
    assert gradient is not None
    return gradient


@pytest.fixture(scope="module")
def of_text_alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    torch.set_num_threads(1)
    return slot_gradient(world, tmp_path_factory.mktemp("alone") / "run", config(ALONE))


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"micro_batches": 2},
        {"micro_batches": 2, "workers": 2},
        {"checkpoint_activations": True},
    ],
    ids=str,
)
def test_slots_learn_from_the_answer_alone_whatever_else_is_on(
    world: Path, tmp_path: Path, of_text_alone: Tensor, train: dict[str, Any]
) -> None:
    ours = slot_gradient(world, tmp_path / "run", config(BESIDE, **train))
    assert of_text_alone.abs().max() > 1e-4
    torch.testing.assert_close(ours, of_text_alone, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own insides
def test_compiled_layers_bear_the_second_way_back(
    world: Path, tmp_path: Path, of_text_alone: Tensor
) -> None:
    ours = slot_gradient(world, tmp_path / "run", config(BESIDE, compile=True))
    torch.testing.assert_close(ours, of_text_alone, atol=1e-5, rtol=0)


def test_in_half_precision_too_slots_learn_from_the_answer_alone(
    world: Path, tmp_path: Path
) -> None:
    ours, alone = (
        slot_gradient(world, tmp_path / name, config(losses, precision="bf16"))
        for name, losses in (("ours", BESIDE), ("alone", ALONE))
    )
    torch.testing.assert_close(ours, alone, atol=1e-6, rtol=0)


def test_with_extra_supervision_every_term_reaches_them(
    world: Path, tmp_path: Path, of_text_alone: Tensor
) -> None:
    ours = slot_gradient(world, tmp_path / "run", config(BESIDE, "extra"))
    assert (ours - of_text_alone).abs().max() > 1e-3


def test_what_reaches_no_slot_costs_nothing_more(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways_back: list[int] = []
    real = torch.autograd.grad

    def count(outputs: Tensor, inputs: Any, **options: Any) -> Any:
        ways_back.append(len(inputs))
        return real(outputs, inputs, **options)

    def steps(name: str, asked: DistillConfig) -> int:
        monkeypatch.setattr(prepare, "_check_terms", lambda *_: None)
        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "grad", count)
            ways_back.clear()
            run(world, tmp_path / name, asked)
        return len(ways_back)

    assert steps("plain", config(LossConfig(grounding=False, detection=True))) == 1
    # Blind, it has grounding on and no label for it.
    assert steps("blind", replace(config(BESIDE), vision=False)) == 1
    assert steps("beside", config(BESIDE)) == 2


def test_fsdp_cannot_and_says_so() -> None:
    with pytest.raises(BadInputError, match=r"beside grounding, apart, measure.*--train.parallel"):
        config(BESIDE, parallel="fsdp")
    assert config(BESIDE, "extra", parallel="fsdp").train.parallel == "fsdp"
    assert config(ALONE, parallel="fsdp").train.parallel == "fsdp"
    still = replace(TINY.slots, kind="frozen_random")
    assert replace(config(BESIDE), slots=still).shelters_slots is False


def test_recipes_say_what_their_slots_learn_from() -> None:
    table = recipes.table("distill")
    extra = {name for name, make in table.items() if make().slots.supervision == "extra"}
    rows = {f"{base}_every_term" for base in ("mini_cpu_paper", "tiny_10gb", "paper_h100")}
    assert extra == {"mini_cpu", "mini_cpu_long", "mini_cpu_blind", *rows}
    assert table["mini_cpu_paper"]().shelters_slots
    assert SlotConfig().supervision == "answer"


def test_a_run_begun_before_there_was_a_choice_goes_on_where_nothing_changed(
    world: Path, tmp_path: Path
) -> None:
    # Neither "extra" nor a run without other terms at the slots is another run than it was.
    for asked in (config(BESIDE, "extra"), config(ALONE)):
        out = tmp_path / asked.slots.supervision
        run(world, out, asked)
        assert "supervision" not in (out / "settings.json").read_text()
    with pytest.raises(BadInputError, match="other settings"):
        run(world, tmp_path / "extra", config(BESIDE))
