"""Pretraining the encoder: targets that stay true when a scene is varied, losses, a small run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom import api
from stillroom.distill.pretrain import (
    ObjectHead,
    PretrainConfig,
    Pretraining,
    PretrainWeights,
    new_model,
    pretrain_encoder,
)
from stillroom.distill.pretrain_batches import (
    PretrainBatch,
    PretrainRows,
    _mirrored,
    _reordered,
    _scene,
    cell_objects,
)
from stillroom.distill.pretrain_losses import (
    Prediction,
    _camera_error,
    figure_sums,
    label_counts,
    loss_sums,
)
from stillroom.geometry.depth import reproject
from stillroom.records import BadInputError
from stillroom.scenes.pixels import PixelCache, cache_pixels
from stillroom.scenes.rooms import make_room
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.students.encoders.vggt_config import mini_config
from stillroom.students.encoders.vggt_load import load_vggt
from stillroom.testing import tiny_scene, tiny_store
from stillroom.training.config import TrainConfig
from stillroom.training.runlog import read_log

TINY = mini_config(
    width=16,
    heads=2,
    encoder_heads=2,
    encoder_depth=1,
    image_size=28,
    dpt_features=8,
    dpt_channels=(4, 4, 8, 8),
    camera_depth=1,
    camera_heads=2,
)


def tiny_config(steps: int = 4, **changes: object) -> PretrainConfig:
    train = TrainConfig(steps=steps, scenes_per_step=2, evaluate_every=2, save_every=1)
    settings: dict = {
        "train": train,
        "encoder": TINY,
        "dense_views": 1,
        "validation_scenes": 2,
        "reorder": 0.0,
    }
    return PretrainConfig(**(settings | changes))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> PixelCache:
    """Two made rooms, decoded."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("rooms")
    made = [make_room(3, index, split="train") for index in range(2)]
    write_shard(folder / "store", 0, made, [])
    write_manifest(folder / "store", {})
    return cache_pixels(open_store(folder / "store"), folder / "cache", split="train")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return tiny_store(tmp_path / "store", scenes=6, splits=("train", "train", "val"))


def room_config(**changes: object) -> PretrainConfig:
    return PretrainConfig(train=TrainConfig(steps=1, scenes_per_step=2), **changes)  # type: ignore[arg-type]


# Targets. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variation", ["plain", "reordered", "mirrored", "both"])
def test_a_varied_scene_is_still_one_room(rooms: PixelCache, variation: str) -> None:
    scene = _scene(rooms, 0)
    order = np.array([2, 0, 1, 5, 4, 3])
    if variation in ("reordered", "both"):
        scene = _reordered(scene, order)
    if variation in ("mirrored", "both"):
        scene = _mirrored(scene)
    errors, overlaps = [], []
    for other in range(1, len(scene.rgb)):
        carried = reproject(
            scene.depth[0].astype(np.float64),
            scene.intrinsics[0].astype(np.float64),
            scene.c2w[0],
            scene.depth[other].astype(np.float64),
            scene.intrinsics[other].astype(np.float64),
            scene.c2w[other],
        )
        overlaps.append(carried.overlap)
        if carried.overlap > 0.1:
            errors.append(carried.median_abs_dz)
    assert max(overlaps) > 0.1
    assert np.median(errors) < 0.05
    # view0 stands below the first camera, which looks along y.
    np.testing.assert_allclose(scene.c2w[0][:2, 3], 0, atol=1e-5)
    assert abs(scene.c2w[0][0, 2]) < 1e-5
    assert scene.c2w[0][1, 2] > 0


@pytest.mark.parametrize("vary", [0.0, 1.0])
def test_points_of_an_object_lie_around_its_target_centre(rooms: PixelCache, vary: float) -> None:
    config = room_config(
        mirror=vary, reorder=vary, dense_views=6, cells_per_patch=14, smallest_cover=0.0
    )
    batch = PretrainRows(rooms, config).training_batch(0, 0)
    # One cell a pixel: the facts of every pixel's object beside the pixel's own point.
    things = (batch.cells > 0) & (batch.depth > 0)
    # Turn the target centres from view0 into the first camera's frame by height and tilt alone:
    # the height of the first camera and its tilt are in c2w, so compare distances between objects.
    points, centers = batch.points[things], batch.facts[things][:, 2:5]
    scene = torch.arange(2)[:, None, None, None].expand_as(batch.cells)[things]
    for index in range(2):
        ids = batch.cells[things][scene == index]
        mine, truth = points[scene == index], centers[scene == index]
        names = [k for k in ids.unique().tolist() if (ids == k).sum() > 400]
        assert len(names) >= 3
        seen = torch.stack([mine[ids == k].mean(dim=0) for k in names])
        told = torch.stack([truth[ids == k][0] for k in names])
        off = (torch.cdist(seen, seen) - torch.cdist(told, told)).abs()
        # What is seen of a thing is its near side: its middle is off by part of its size.
        assert off.max() < 0.8
        # Chirality: a mirrored scene with unmirrored targets would turn the other way round.
        right = torch.corrcoef(torch.stack([seen[:, 0], told[:, 0]]))[0, 1]
        assert right > 0.9


def test_the_first_camera_is_the_frame_of_points_and_poses(rooms: PixelCache) -> None:
    batch = PretrainRows(rooms, room_config()).plain_batch([0, 1])
    identity = torch.tensor([0.0, 0, 0, 0, 0, 0, 1]).expand(2, 7)
    torch.testing.assert_close(batch.pose_enc[:, 0, :7], identity, atol=1e-5, rtol=0)
    # In that frame the first view's points have their depth as z.
    torch.testing.assert_close(batch.points[:, 0, ..., 2], batch.depth[:, 0], atol=1e-4, rtol=0)


def test_a_batch_is_a_pure_function_of_its_numbers(rooms: PixelCache) -> None:
    rows = PretrainRows(rooms, room_config())
    first, again = rows.training_batch(3, 0), rows.training_batch(3, 0)
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(rows.training_batch(4, 0).images, first.images)


def test_a_cell_belongs_to_the_object_that_covers_most_of_it() -> None:
    ids = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    ids[0, 0, :, :2] = 3  # half of the first cell
    ids[0, 0, 0, 2] = 5  # a smaller part of it
    ids[0, 0, 3, 7] = 4  # a sixteenth of the second
    assert cell_objects(ids, 4, smallest_cover=0.25).tolist() == [[[[3, 0]]]]
    assert cell_objects(ids, 4, smallest_cover=0.05).tolist() == [[[[3, 4]]]]
    assert cell_objects(torch.zeros_like(ids), 4, smallest_cover=0.0).tolist() == [[[[0, 0]]]]


def test_the_object_head_lays_cells_out_as_the_targets_do() -> None:
    head = ObjectHead(8, 2)
    tokens = torch.zeros(1, 1, 6, 8)
    with torch.no_grad():
        head.read.weight.zero_()
        # Only the bias of cell (row 1, column 0) of every patch speaks, in its first number.
        head.read.bias.zero_()
        head.read.bias.view(2, 2, -1)[1, 0, 0] = 1.0
        guess = head(tokens, 2)
    assert guess.category.shape[:4] == (1, 1, 4, 6)
    expected = torch.zeros(4, 6)
    expected[1::2, 0::2] = 1.0
    assert torch.equal(guess.category[0, 0, ..., 0], expected)


# Losses. -------------------------------------------------------------------------------------


def _truth(batch: PretrainBatch) -> Prediction:
    """A prediction that is right everywhere."""
    return Prediction(
        depth=batch.depth.clamp_min(1e-3),
        depth_conf=torch.full_like(batch.depth, 2.0),
        points=batch.points,
        points_conf=torch.full_like(batch.depth, 2.0),
        pose_steps=[batch.pose_enc],
        objects=None,
    )


def test_the_truth_has_no_loss_and_perfect_figures(rooms: PixelCache) -> None:
    config = room_config(object_targets=False)
    batch = PretrainRows(rooms, config).plain_batch([0, 1])
    sums = loss_sums(_truth(batch), batch, config)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(
        {"depth": 0, "depth_edges": 0, "points": 0, "confidence": 0, "camera": 0}, abs=1e-3
    )
    figures = {name: float(s / n) for name, (s, n) in figure_sums(_truth(batch), batch).items()}
    assert figures["depth_abs_rel"] == 0
    assert figures["depth_delta1"] == 1
    assert figures["camera_m"] == pytest.approx(0, abs=1e-4)
    assert figures["camera_deg"] < 0.1


def test_depth_off_by_a_tenth_costs_its_logarithm(rooms: PixelCache) -> None:
    config = room_config(object_targets=False)
    batch = PretrainRows(rooms, config).plain_batch([0])
    off = replace(_truth(batch), depth=1.1 * batch.depth.clamp_min(1e-3))
    mean = loss_sums(off, batch, config)["depth"] / label_counts(batch, config)["depth"]
    assert float(mean) == pytest.approx(np.log(1.1), rel=1e-3)
    figures = figure_sums(off, batch)
    assert float(figures["depth_abs_rel"][0] / figures["depth_abs_rel"][1]) == pytest.approx(0.1)


def test_unmeasured_pixels_count_nothing(rooms: PixelCache) -> None:
    config = room_config(object_targets=False)
    batch = PretrainRows(rooms, config).plain_batch([0])
    holes = batch.depth.clone()
    holes[..., :50, :] = 0.0
    masked = replace(batch, depth=holes)
    said = replace(_truth(batch), depth=torch.where(holes > 0, batch.depth, 77.0))
    sums = loss_sums(said, masked, config)
    assert float(sums["depth"]) == pytest.approx(0, abs=1e-3)
    assert float(sums["depth_edges"]) == pytest.approx(0, abs=1e-3)
    assert label_counts(masked, config)["depth"] == float((holes > 0).sum())


def test_a_quaternion_and_its_negative_are_the_same_turn() -> None:
    truth = torch.tensor([[[0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0]]])
    flipped = truth.clone()
    flipped[..., 3:7] *= -1
    assert float(_camera_error([flipped], truth)) == 0
    off = truth.clone()
    off[..., 0] += 0.25
    assert float(_camera_error([off], truth)) == pytest.approx(0.25)
    # The last refinement counts most.
    assert float(_camera_error([off, truth], truth)) < float(_camera_error([truth, off], truth))


def test_a_weight_of_zero_leaves_its_term_out(rooms: PixelCache) -> None:
    config = room_config(object_targets=False, weights=PretrainWeights(points=0.0))
    batch = PretrainRows(rooms, config).plain_batch([0])
    assert "points" not in loss_sums(_truth(batch), batch, config)


def test_an_object_centre_stands_where_its_cells_see_it(rooms: PixelCache) -> None:
    config = room_config(mirror=1.0, reorder=1.0, cells_per_patch=1)
    batch = PretrainRows(rooms, config).training_batch(1, 0)
    thing = batch.cells > 0
    height = batch.images.shape[-2]
    focal = 0.5 * height / torch.tan(0.5 * batch.pose_enc[..., 7])[:, :, None, None]
    center = batch.center_cam
    pixel = focal[..., None] * center[..., :2] / center[..., 2:] + 0.5 * height
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    cell = 14 * torch.stack([columns, rows], dim=-1) + 7
    near = thing & (center[..., 2] > 0.5)
    off = (pixel - cell).norm(dim=-1)[near].median()
    flipped = torch.stack([height - pixel[..., 0], pixel[..., 1]], dim=-1)
    # Cells of a thing surround its projected centre; with a wrong sign of x they would not.
    assert off < 25
    assert off < 0.7 * (flipped - cell).norm(dim=-1)[near].median()


@pytest.mark.parametrize("early_round", [-1, 1])
def test_every_trained_parameter_gets_a_gradient(rooms: PixelCache, early_round: int) -> None:
    config = room_config(early_round=early_round)
    model = new_model(config)
    batch = PretrainRows(rooms, config).training_batch(0, 0)
    sums = loss_sums(model(batch), batch, config)
    assert ("early_center" in sums) == (early_round >= 0)
    assert set(sums) <= set(label_counts(batch, config))
    torch.stack(list(sums.values())).sum().backward()
    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }
    assert silent == set()


# The run. ------------------------------------------------------------------------------------


def test_a_run_leaves_an_encoder_that_loads_and_says_how_good_it_is(
    store: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "run"
    sentence = pretrain_encoder(
        tiny_config(), scenes=store, out=out, progress=lambda *at: seen.append(at)
    )
    assert sentence.startswith(str(out / "encoder"))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert load_vggt(out / "encoder").config == TINY
    figures = json.loads((out / "validation.json").read_text())
    assert {"depth_abs_rel", "camera_deg", "cell_accuracy", "center_m"} <= set(figures)
    assert [row["step"] for row in read_log(out, kind="step")] == [1, 2, 3, 4]
    again = pretrain_encoder(tiny_config(), scenes=store, out=out)
    assert again == sentence


def test_a_stopped_run_ends_as_an_undisturbed_one(store: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=5, reorder=1.0)

    def stop(step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    pretrain_encoder(config, scenes=store, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder(config, scenes=store, out=tmp_path / "cut", progress=stop)
    pretrain_encoder(config, scenes=store, out=tmp_path / "cut")
    files = ["encoder/model.safetensors", "validation.json"]
    for name in files:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_without_object_targets_nothing_of_objects_is_learned(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain_encoder(tiny_config(steps=2, object_targets=False), scenes=store, out=out)
    terms = read_log(out, kind="step")[0]["terms"]
    assert set(terms) == {"depth", "depth_edges", "points", "confidence", "camera"}


def test_a_run_can_start_from_an_encoder(store: Path, tmp_path: Path) -> None:
    pretrain_encoder(tiny_config(steps=2), scenes=store, out=tmp_path / "first")
    where = tmp_path / "first" / "encoder"
    config = tiny_config(start_from=str(where))
    model: Pretraining = new_model(config)
    want = load_vggt(where).state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, want[name]), name
    with pytest.raises(BadInputError, match="other sizes"):
        new_model(room_config(start_from=str(where)))


def test_another_setting_is_refused_and_nothing_touched(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain_encoder(tiny_config(steps=2), scenes=store, out=out)
    before = (out / "encoder" / "model.safetensors").read_bytes()
    with pytest.raises(BadInputError, match="other settings"):
        pretrain_encoder(tiny_config(steps=2, mirror=0.1), scenes=store, out=out)
    assert (out / "encoder" / "model.safetensors").read_bytes() == before


def test_a_store_without_validation_scenes_is_refused_before_the_folder_is_taken(
    tmp_path: Path,
) -> None:
    store = tiny_store(tmp_path / "store", scenes=2, splits=("train",))
    with pytest.raises(BadInputError, match="no scene of the split 'val'"):
        pretrain_encoder(tiny_config(), scenes=store, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start_from": "nowhere"}, "not found"),
        ({"start_from": "encoder_mini"}, "encoder_mini holds an encoder of other sizes"),
        ({"start_from": "teacher_mini"}, "teacher_mini"),
    ],
)
def test_an_encoder_that_cannot_be_started_from_is_refused_before_the_folder_is_taken(
    store: Path, tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(BadInputError, match=sentence):
        api.pretrain_encoder(tiny_config(**changes), scenes=store, out=out)
    assert not out.exists()
    api.pretrain_encoder(tiny_config(steps=1), scenes=store, out=out)


def test_views_of_no_whole_patches_are_refused_before_the_folder_is_taken(tmp_path: Path) -> None:
    scenes = [tiny_scene(k, size=30, split=s) for k, s in enumerate(("train", "val"))]
    write_shard(tmp_path / "store", 0, scenes, [])
    write_manifest(tmp_path / "store", {})
    with pytest.raises(BadInputError, match="views of 30 x 30; the encoder needs multiples of 14"):
        pretrain_encoder(tiny_config(), scenes=tmp_path / "store", out=tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder": mini_config(point_head=False)}, "needs all three"),
        ({"feature_round": 4}, "feature_round must lie in 0..3"),
        ({"early_round": 9}, "early_round must lie in -1..3"),
        ({"cells_per_patch": 4}, "must divide the patch of 14"),
        ({"mirror": 1.5}, "mirror must be within 0 and 1"),
        ({"dense_views": 0}, "at least 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        room_config(**changes)
