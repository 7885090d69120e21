"""The connector: pooling, the code of depth and place, and the depth head that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stillroom.geometry.depth import log_bin_edges
from stillroom.students.connector import (
    CODE_WIDTH,
    Connector,
    cell_code,
    measured_cells,
    pool_features,
)
from stillroom.students.heads import DepthBins

Make = Callable[..., Any]


def test_a_cell_is_the_mean_of_its_normalised_patches() -> None:
    tokens = torch.randn(1, 1, 16, 8, generator=torch.Generator().manual_seed(0)) * 30 + 5
    pooled = pool_features(tokens, None, rows=4, grid=2).tokens
    normal = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, keepdim=True, correction=0)
    # Patches of the top-left cell in row-major order: rows 0, 1 and columns 0, 1.
    torch.testing.assert_close(
        pooled[0, 0, 0], normal[0, 0, [0, 1, 4, 5]].mean(0), rtol=1e-3, atol=1e-4
    )
    assert pooled.shape == (1, 1, 4, 8)


def test_photos_that_are_wider_than_high_keep_their_rows() -> None:
    tokens = torch.zeros(1, 1, 2 * 4, 2)
    tokens[0, 0, :4, 0] = 1.0  # the upper row of patches
    tokens[0, 0, 4:, 1] = 1.0
    cells = pool_features(tokens, None, rows=2, grid=2).tokens[0, 0]
    assert torch.equal(cells[:, 0] > 0, torch.tensor([True, True, False, False]))


def test_depth_of_a_cell_is_its_mean() -> None:
    depth = torch.arange(16.0).view(1, 1, 4, 4)
    features = pool_features(torch.zeros(1, 1, 4, 2), depth, rows=2, grid=2)
    assert features.depth[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert features.depth_map is depth


def test_the_code_tells_near_from_far_left_from_right_and_the_first_view() -> None:
    depth = torch.full((1, 2, 2, 2), 2.0)
    depth[0, 0, 0, 0] = 2.1
    code = cell_code(depth)
    assert code.shape == (1, 2, 4, CODE_WIDTH)
    cells = code.flatten(0, 2)
    distances = torch.cdist(cells, cells) + torch.eye(len(cells)) * 9
    assert distances.min() > 0.1


def test_unknown_depth_says_so_and_nothing_else() -> None:
    code = cell_code(torch.zeros(1, 1, 2, 2))
    assert code.isfinite().all()
    assert (code[..., -2] == 0).all()
    assert (cell_code(torch.ones(1, 1, 2, 2))[..., -2] == 1).all()


def test_the_projector_has_the_papers_parameters() -> None:
    projector = Connector(2048, 2048).projector
    assert sum(p.numel() for p in projector.parameters()) == 4_196_352


def test_the_depth_loss_reaches_the_connector_that_the_answer_reads(
    make_student: Make, make_images: Make
) -> None:
    student = make_student()
    features = student.features(make_images())
    student.depth_bins(student.cells(features)).square().sum().backward()
    for parameter in student.connector.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in student.encoder.parameters())


def test_one_vision_token_is_the_mean_of_the_cells(make_student: Make, make_images: Make) -> None:
    student = make_student(vision_pool="mean")
    cells = student.cells(student.features(make_images()))
    vision = student.pool_cells(cells)
    assert vision.shape == (1, 1, 32)
    assert student.vision_length(2) == 1
    torch.testing.assert_close(vision[0, 0], cells.mean(dim=(0, 1, 2)))


def bins() -> DepthBins:
    return DepthBins(16, bins=64, near=0.3, far=10.0)


def test_depth_bins_are_log_spaced_and_name_their_own_middles() -> None:
    head = bins()
    centers = head.centers()
    ratios = centers[1:] / centers[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))
    # The middles of the bins that the losses sort measured depth into.
    edges = torch.from_numpy(log_bin_edges(64, 0.3, 10.0)).float()
    torch.testing.assert_close(centers, (edges[1:] * edges[:-1]).sqrt())
    assert 0.3 < centers[0] < centers[-1] < 10.0


def test_expected_depth_of_a_sure_head_is_the_middle_of_its_bin() -> None:
    head = bins()
    logits = torch.full((1, 64), -100.0)
    logits[0, 20] = 100.0
    torch.testing.assert_close(head.expected(logits), head.centers()[20:21])


def test_a_cell_is_compared_over_the_pixels_that_are_measured() -> None:
    depth = torch.tensor([[1.0, 2.0, 5.0, 5.0], [3.0, 4.0, 5.0, 5.0]] * 2)[None, None]
    measured = torch.tensor([[True, False, True, True], [False, False, True, True]] * 2)
    measured[2:, 2:] = False
    found = measured_cells(depth, measured[None, None], grid=2)
    assert found.tolist() == [[[[1.0, 5.0], [1.0, 0.0]]]]
    # What is not measured has no gradient.
    depth.requires_grad_()
    measured_cells(depth, measured[None, None], grid=2).sum().backward()
    assert torch.equal(depth.grad[0, 0] != 0, measured)
