"""Laws of the small parts: rotary positions, position codes, cameras, photos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.records import BadInputError
from stillroom.students.encoders.preprocess import prepare, prepare_square
from stillroom.students.encoders.vggt_camera import (
    decode_pose,
    encode_pose,
    invert_w2c,
    points_from_depth,
    rotation_from_xyzw,
    xyzw_from_rotation,
)
from stillroom.students.encoders.vggt_heads import ResidualUnit, activate_points, position_code
from stillroom.students.encoders.vggt_layers import rotary_table, rotate, token_positions


def _draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_special_tokens_are_not_rotated_and_patches_count_from_one() -> None:
    positions = token_positions(2, 3, 3)
    assert positions.tolist()[2:] == [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    x = torch.randn(1, 2, 9, 16, generator=_draws(0))
    rotated = rotate(x, *rotary_table(positions, 16, 100.0))
    assert torch.equal(rotated[:, :, :3], x[:, :, :3])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_rotated_products_depend_on_the_offset_between_patches_only() -> None:
    q, k = torch.randn(2, 16, generator=_draws(1))
    cos, sin = rotary_table(token_positions(4, 4, 0), 16, 100.0)
    turned_q = rotate(q.expand(1, 1, 16, 16), cos, sin)[0, 0]
    turned_k = rotate(k.expand(1, 1, 16, 16), cos, sin)[0, 0]
    # Patch (r, c) is token 4 r + c: both pairs are one row down and two columns right.
    torch.testing.assert_close(turned_q[0] @ turned_k[6], turned_q[9] @ turned_k[15])
    assert (turned_q[0] @ turned_k[6] - turned_q[0] @ turned_k[9]).abs() > 1e-3


def test_the_first_half_of_a_head_is_turned_by_the_row() -> None:
    x = torch.zeros(1, 1, 4, 8)
    x[..., 0] = 1.0
    x[..., 4] = 1.0
    turned = rotate(x, *rotary_table(token_positions(2, 2, 0), 8, 100.0))[0, 0]
    # Token 1 is (row 1, column 2): channel 0 pairs with 2, channel 4 with 6.
    expected = [math.cos(1), 0, math.sin(1), 0, math.cos(2), 0, math.sin(2), 0]
    torch.testing.assert_close(turned[1], torch.tensor(expected))


def test_a_residual_unit_carries_the_rectified_input() -> None:
    unit = ResidualUnit(4)
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 3, 3, generator=_draws(2))
    assert torch.equal(unit(x), x.relu())


def test_the_position_code_is_odd_in_each_axis() -> None:
    code = position_code(16, 4, 6, aspect=1.5)
    # sin u changes its sign from left to right, cos u does not; the v half ignores columns.
    torch.testing.assert_close(code[:4], -code[:4].flip(-1))
    torch.testing.assert_close(code[4:8], code[4:8].flip(-1))
    assert torch.equal(code[8:, :, 0], code[8:, :, 5])


def test_points_are_odd_in_their_logits() -> None:
    logits = torch.randn(2, 4, 3, 3, generator=_draws(3))
    mirrored = torch.cat([-logits[:, :3], logits[:, 3:]], dim=1)
    torch.testing.assert_close(activate_points(mirrored)[0], -activate_points(logits)[0])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_poses_survive_the_code_and_back(shape: tuple[int, ...]) -> None:
    xyzw = torch.randn(*shape, 4, generator=_draws(4), dtype=torch.float64)
    rotation = rotation_from_xyzw(xyzw)
    shift = torch.randn(*shape, 3, 1, generator=_draws(5), dtype=torch.float64)
    w2c = torch.cat([rotation, shift], dim=-1)
    intrinsics = torch.tensor([[90.0, 0, 56], [0, 80.0, 42], [0, 0, 1]], dtype=torch.float64)
    code = encode_pose(w2c, intrinsics.expand(*shape, 3, 3), (84, 112))
    assert (code[..., 6] >= 0).all()
    got_w2c, got_intrinsics = decode_pose(code, (84, 112))
    torch.testing.assert_close(got_w2c, w2c)
    torch.testing.assert_close(got_intrinsics, intrinsics.expand(*shape, 3, 3))
    full = torch.cat([w2c, torch.tensor([[0.0, 0, 0, 1]]).double().expand(*shape, 1, 4)], dim=-2)
    eye = torch.eye(4, dtype=torch.float64).expand(*shape, 4, 4)
    torch.testing.assert_close(invert_w2c(w2c) @ full, eye, atol=1e-9, rtol=0)


def test_half_turns_have_a_quaternion_too() -> None:
    for axis in range(3):
        signs = -torch.ones(3)
        signs[axis] = 1.0
        xyzw = xyzw_from_rotation(torch.diag(signs))
        torch.testing.assert_close(rotation_from_xyzw(xyzw), torch.diag(signs))


def test_unprojected_depth_projects_to_its_own_pixel() -> None:
    rotation = rotation_from_xyzw(torch.tensor([0.1, -0.3, 0.2, 0.9]))
    w2c = torch.cat([rotation, torch.tensor([[0.4], [0.1], [-0.2]])], dim=1)
    intrinsics = torch.tensor([[20.0, 0, 5], [0, 25.0, 4], [0, 0, 1]])
    depth = 1 + torch.rand(6, 8, generator=_draws(6))
    points = points_from_depth(depth, w2c, intrinsics, pixel_center=0.5)
    camera = points @ rotation.T + w2c[:, 3]
    torch.testing.assert_close(camera[..., 2], depth)
    pixels = camera / camera[..., 2:] @ intrinsics.T
    torch.testing.assert_close(pixels[2, 3, :2], torch.tensor([3.5, 2.5]), atol=1e-4, rtol=0)


# Photos. -------------------------------------------------------------------------------------


def _photo(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "mode", "expected"),
    [
        (80, 60, "crop", (392, 518)),
        (60, 80, "crop", (518, 518)),
        (80, 60, "pad", (518, 518)),
        (8000, 30, "crop", (14, 518)),
    ],
)
def test_photos_get_sides_that_are_multiples_of_the_patch(
    width: int, height: int, mode: str, expected: tuple[int, int]
) -> None:
    got = prepare([_photo(width, height)], mode=mode)  # type: ignore[arg-type]
    assert got.shape == (1, 3, *expected)
    assert got.min() >= 0
    assert got.max() <= 1


def test_photos_come_from_files_too(tmp_path: Path) -> None:
    photo = _photo(40, 30)
    Image.fromarray(photo).save(tmp_path / "a.png")
    from_file = prepare([tmp_path / "a.png"], target=56)
    assert np.array_equal(from_file, prepare([photo], target=56))


def test_a_square_is_padded_with_black_and_knows_where_the_photo_lies() -> None:
    square, places = prepare_square([_photo(20, 40)], target=80)
    assert square.shape == (1, 3, 80, 80)
    assert places.tolist() == [[20, 0, 60, 80, 20, 40]]
    assert (square[0, :, :, :15] == 0).all()


def test_no_photo_and_no_picture_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no photos"):
        prepare([])
    fake = tmp_path / "notes.jpg"
    fake.write_text("hello")
    with pytest.raises(BadInputError, match=r"notes\.jpg is not a readable picture"):
        prepare([fake])
