"""The encoder as a class: sizes, rounds, laws between views, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.records import BadInputError
from stillroom.students.encoders import vggt, vggt_layers
from stillroom.students.encoders.vggt import VGGT, VGGTConfig, VGGTOutput, mini_config

TINY = VGGTConfig(
    width=16,
    heads=2,
    encoder_heads=2,
    encoder_depth=1,
    rounds=5,
    registers=2,
    image_size=56,
    levels=(0, 1, 2, 3),
    dpt_features=8,
    dpt_channels=(4, 4, 8, 8),
    camera_depth=1,
    camera_heads=2,
    layer_scale=0.5,
    token_std=0.5,
)


@pytest.fixture
def model() -> VGGT:
    torch.set_num_threads(1)
    return VGGT(TINY, seed=3).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(1, 3, 3, 42, 56, generator=torch.Generator().manual_seed(5))


def test_the_public_size_has_the_public_count_of_parameters_and_tensors() -> None:
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    # specs/vggt.md, section 5, without the track head.
    assert sum(p.numel() for p in model.parameters()) == 1_256_537_516 - 65_941_396
    assert len(model.state_dict()) == 1_797 - 394


def test_the_miniature_fits_into_its_budget() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in VGGT(mini_config()).parameters())
        bare = mini_config(camera_head=False, point_head=False)
        student = sum(p.numel() for p in VGGT(bare).parameters())
    assert count == 1_708_936
    assert student == 915_402


@torch.no_grad()
def test_one_pass_gives_every_output_in_the_image_size(model: VGGT, images: torch.Tensor) -> None:
    output = model(images, rounds=(1, 4))
    assert set(output.tokens) == {1, 4}
    assert output.tokens[4].shape == (1, 3, 12, 32)
    assert output.depth is not None
    assert output.depth.shape == (1, 3, 42, 56)
    assert output.points is not None
    assert output.points.shape == (1, 3, 42, 56, 3)
    assert output.pose_enc is not None
    assert output.pose_enc.shape == (1, 3, 9)
    assert (output.depth > 0).all()


@torch.no_grad()
def test_special_tokens_come_first_when_all_are_asked_for(
    model: VGGT, images: torch.Tensor
) -> None:
    whole = model.encode(images, (2,), tokens="all").tokens[2]
    patches = model.encode(images, (2,)).tokens[2]
    assert whole.shape[2] == TINY.special_tokens + patches.shape[2]
    assert torch.equal(whole[:, :, TINY.special_tokens :], patches)


@torch.no_grad()
def test_nothing_runs_after_the_last_round_needed(model: VGGT, images: torch.Tensor) -> None:
    ran = []
    for index, block in enumerate(model.aggregator.global_blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.encode(images, (1,))
    assert ran == [0, 1]
    ran.clear()
    model.encode(images, (), heads=("depth",))
    assert ran == [0, 1, 2, 3]


@torch.no_grad()
def test_early_stop_changes_no_number(model: VGGT, images: torch.Tensor) -> None:
    alone = model.encode(images, (2,)).tokens[2]
    among = model.encode(images, range(5), heads=("camera", "points")).tokens[2]
    assert torch.equal(alone, among)


def per_view(output: VGGTOutput) -> dict[str, Tensor]:
    """Everything a pass gave, [b v ...] each."""
    found = {f"tokens {index}": tokens for index, tokens in output.tokens.items()}
    for name in ("depth", "depth_conf", "points", "points_conf", "pose_enc"):
        found[name] = getattr(output, name)
    return found


@torch.no_grad()
def test_later_views_may_change_places_but_the_first_may_not(model: VGGT) -> None:
    views = torch.rand(1, 4, 3, 42, 56, generator=torch.Generator().manual_seed(5))
    order = [0, 3, 1, 2]
    plain = per_view(model(views, rounds=range(5)))
    swapped = per_view(model(views[:, order], rounds=range(5)))
    assert len(plain) == 10
    for name, value in plain.items():
        torch.testing.assert_close(swapped[name], value[:, order], atol=1e-5, rtol=1e-5, msg=name)
    moved = per_view(model(views[:, [1, 0, 2, 3]], rounds=range(5)))
    for name, value in plain.items():
        assert (moved[name] - value[:, [1, 0, 2, 3]]).abs().max() > 1e-4, name


@torch.no_grad()
def test_a_block_in_portions_is_the_block_in_one_piece(
    model: VGGT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vggt_layers, "PORTION", 7)
    portions = per_view(model(images, rounds=range(5)))
    with torch.enable_grad():
        whole = per_view(model(images, rounds=range(5)))
    for name, value in whole.items():
        torch.testing.assert_close(portions[name], value.detach(), msg=name)


@torch.no_grad()
def test_a_round_that_nobody_asked_for_is_not_kept(model: VGGT, images: Tensor) -> None:
    assert set(model.aggregator(images, {1, 3})) == {1, 3}
    assert set(model.encode(images, (4,), heads=("depth",)).tokens) == {4}


@torch.no_grad()
def test_tables_are_made_once_per_grid(
    model: VGGT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*given: Any) -> tuple[Tensor, Tensor]:
        made.append(given)
        return vggt_layers.rotary_table(*given)

    monkeypatch.setattr(vggt, "rotary_table", counted)
    for _ in range(2):
        model.encode(images)
    assert len(made) == 1
    model.encode(images[..., :28, :])
    assert len(made) == 2


class NoWaiting(TorchDispatchMode):
    """Raises where a number leaves the device: there a GPU would stop and wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(wait) for wait in self.WAITS), f"{name} waits"
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_pass_waits_for_no_device(model: VGGT, images: Tensor) -> None:
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        images.max().item()
    with NoWaiting():
        model(images, rounds=(1, 4))
    # On the meta device there are no numbers that could be waited for.
    with torch.device("meta"):
        nowhere = VGGT(TINY).eval()
    assert nowhere.encode(images.to("meta"), (4,)).tokens[4].shape == (1, 3, 12, 32)


def test_the_public_size_gives_the_public_tokens() -> None:
    with torch.device("meta"):
        model = VGGT(VGGTConfig(camera_head=False, depth_head=False, point_head=False)).eval()
    images = torch.empty(1, 8, 3, 518, 518, device="meta")
    assert model.encode(images, (22,)).tokens[22].shape == (1, 8, 1369, 2048)


def test_angles_stay_single_precision_in_a_half_precision_model(model: VGGT) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    for got, want in zip(
        half.aggregator.rotary(37, 37, torch.device("cpu")),
        model.aggregator.rotary(37, 37, torch.device("cpu")),
        strict=True,
    ):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


@torch.no_grad()
def test_autocast_stays_near_single_and_keeps_the_heads_out(model: VGGT, images: Tensor) -> None:
    want = model(images, rounds=(4,))
    with torch.autocast("cpu", torch.bfloat16):
        got = model(images, rounds=(4,))
    # The residual stream stays float32: LayerScale multiplies by float32 weights.
    assert got.tokens[4].dtype == torch.float32
    assert (got.tokens[4] - want.tokens[4]).norm() / want.tokens[4].norm() < 0.02
    assert got.depth is not None
    assert want.depth is not None
    assert got.depth.dtype == torch.float32


@torch.no_grad()
def test_a_batch_of_scenes_equals_scenes_one_by_one(model: VGGT) -> None:
    both = torch.rand(2, 2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    together = model(both, rounds=(4,))
    for index in range(2):
        alone = model(both[index : index + 1], rounds=(4,))
        torch.testing.assert_close(together.tokens[4][index], alone.tokens[4][0])
        assert together.pose_enc is not None
        assert alone.pose_enc is not None
        torch.testing.assert_close(together.pose_enc[index], alone.pose_enc[0])


@torch.no_grad()
def test_many_views_go_through_the_heads_in_chunks_with_the_same_result(model: VGGT) -> None:
    many = torch.rand(1, 11, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    chunked = model.encode(many, (), heads=("depth",)).depth
    with torch.enable_grad():
        whole = model.encode(many, (), heads=("depth",)).depth
    assert chunked is not None
    assert whole is not None
    torch.testing.assert_close(chunked, whole.detach())


def test_a_pass_in_inference_mode_does_not_spoil_later_training(images: torch.Tensor) -> None:
    model = VGGT(TINY, seed=0)
    with torch.inference_mode():
        model(images)
    output = model(images, rounds=(4,))
    assert output.depth is not None
    (output.depth.mean() + output.tokens[4].mean()).backward()
    assert model.aggregator.camera_token.grad is not None


def test_a_model_built_on_the_meta_device_works_once_filled(images: torch.Tensor) -> None:
    source = VGGT(TINY, seed=2).eval()
    with torch.device("meta"):
        filled = VGGT(TINY).eval()
    filled.load_state_dict(source.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(filled.encode(images).tokens[4], source.encode(images).tokens[4])


@torch.no_grad()
def test_half_precision_stays_near_single(model: VGGT, images: torch.Tensor) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    want, got = model(images).depth, half(images).depth
    assert want is not None
    assert got is not None
    assert got.dtype == torch.float32
    assert ((got - want).abs() / want).max() < 0.1


def test_a_seed_makes_weights_repeatable_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second = VGGT(TINY, seed=7), VGGT(TINY, seed=7)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refusals_are_sentences(model: VGGT, images: torch.Tensor) -> None:
    with pytest.raises(BadInputError, match="multiples of 14 pixels, got 40 x 56"):
        model.encode(images[..., :40, :])
    with pytest.raises(BadInputError, match=r"rounds must lie in 0\.\.4, got \[7\]"):
        model.encode(images, (7,))
    bare = VGGT(VGGTConfig.from_dict(TINY.to_dict() | {"camera_head": False}))
    with pytest.raises(BadInputError, match="asked for camera"):
        bare.encode(images, heads=("camera",))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "must be heads"),
        ({"levels": (0, 1, 2, 5)}, "four rising rounds"),
        ({"levels": (0, 2, 1, 3)}, "four rising rounds"),
        ({"image_size": 50}, "no multiple of patch_size"),
        ({"dpt_channels": (4, 4, 8, 6)}, "multiples of 4"),
        ({"depth": 3}, "unknown settings depth"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        VGGTConfig.from_dict(TINY.to_dict() | change)
