"""The encoder as a class: sizes, rounds, laws between views, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import VGGT, VGGTConfig, mini_config

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


@torch.no_grad()
def test_later_views_may_change_places_but_the_first_may_not(
    model: VGGT, images: torch.Tensor
) -> None:
    order = [0, 2, 1]
    plain, swapped = model(images), model(images[:, order])
    assert plain.depth is not None
    assert swapped.depth is not None
    torch.testing.assert_close(swapped.depth, plain.depth[:, order], atol=1e-5, rtol=1e-5)
    tokens = model.encode(images).tokens[4]
    moved = model.encode(images[:, [1, 0, 2]]).tokens[4]
    assert (moved - tokens[:, [1, 0, 2]]).abs().max() > 1e-2


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
