"""Captures in foreign layouts become scenes of ours, or one clear sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.cli import main
from stillroom.geometry.cameras import pinhole
from stillroom.geometry.poses import is_rigid, rotation_z
from stillroom.records import BadInputError
from stillroom.scenes.capture_questions import capture_questions
from stillroom.scenes.importers import import_capture, write_import
from stillroom.scenes.importers.images import (
    evenly,
    sample_bilinear,
    sample_nearest,
    undistort,
)
from stillroom.scenes.store import open_store

CAPTURES = Path(__file__).parents[1] / "fixtures" / "captures"


@pytest.fixture
def cabinet(tmp_path: Path) -> Path:
    """Three frames of the cabinet, to be spoilt."""
    folder = tmp_path / "cabinet"
    for name in ("color", "depth", "pose"):
        (folder / name).mkdir(parents=True)
        for file in (CAPTURES / "tum_fr3_cabinet" / name).iterdir():
            if file.stem in ("0", "1", "2"):
                shutil.copy(file, folder / name)
    shutil.copytree(CAPTURES / "tum_fr3_cabinet" / "intrinsic", folder / "intrinsic")
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The desk in TUM's layout, to be spoilt."""
    return Path(shutil.copytree(CAPTURES / "tum_fr1_rpy", tmp_path / "desk"))


@pytest.fixture
def transforms(cabinet: Path) -> Path:
    """The same three frames by transforms.json alone."""
    shutil.rmtree(cabinet / "pose")
    record = json.loads((CAPTURES / "tum_fr3_cabinet" / "transforms.json").read_text())
    record["frames"] = record["frames"][:3]
    (cabinet / "transforms.json").write_text(json.dumps(record))
    return cabinet


def edit(folder: Path, **changes: object) -> None:
    """Set (or with None remove) entries at the top of transforms.json."""
    file = folder / "transforms.json"
    record = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def refusal(source: Path, layout: str = "auto") -> str:
    with pytest.raises(BadInputError) as caught:
        import_capture(source, layout=layout)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# What comes out. -------------------------------------------------------------------------------


def test_a_folder_of_several_layouts_says_which_is_taken_and_layout_chooses() -> None:
    taken = import_capture(CAPTURES / "tum_fr3_cabinet")
    assert (taken.layout, taken.scene.source) == ("scannet", "capture:scannet")
    assert any("read as scannet, also there: transforms" in note for note in taken.notes)
    chosen = import_capture(CAPTURES / "tum_fr3_cabinet", layout="transforms")
    assert (chosen.layout, chosen.notes) == ("transforms", ())


def test_two_layouts_of_one_capture_give_the_same_views_up_to_their_half_pixel() -> None:
    scannet = import_capture(CAPTURES / "tum_fr3_cabinet", layout="scannet").scene
    other = import_capture(CAPTURES / "tum_fr3_cabinet", layout="transforms").scene
    assert [view.name for view in scannet.views] == [f"color/{i}.jpg" for i in range(10)]
    for a, b in zip(scannet.views, other.views, strict=True):
        assert np.array_equal(a.rgb, b.rgb)
        np.testing.assert_allclose(a.depth, b.depth, atol=1e-6)
        np.testing.assert_allclose(a.c2w, b.c2w, atol=1e-5)
        assert a.intrinsics is not None
        assert b.intrinsics is not None
        np.testing.assert_allclose(a.intrinsics[:2, 2], [320.6, 248.1])
        np.testing.assert_allclose(b.intrinsics[:2, 2], [320.1, 247.6])


@pytest.mark.parametrize(("name", "views"), [("tum_fr3_cabinet", 10), ("tum_fr1_rpy", 4)])
def test_a_capture_is_metric_posed_and_stands_on_its_floor(name: str, views: int) -> None:
    scene = import_capture(CAPTURES / name).scene
    assert len(scene.views) == views
    assert scene.floor_z == pytest.approx(0.0, abs=0.05)
    for view in scene.views:
        assert view.c2w is not None
        assert is_rigid(view.c2w, tolerance=1e-9)
        assert view.depth is not None
        assert 0.5 < np.median(view.depth[view.depth_valid]) < 3.0


def test_frames_are_sorted_by_number_not_by_name(cabinet: Path) -> None:
    for kind, suffix in (("color", "jpg"), ("depth", "png"), ("pose", "txt")):
        (cabinet / kind / f"0.{suffix}").rename(cabinet / kind / f"10.{suffix}")
    names = [view.name for view in import_capture(cabinet).scene.views]
    assert names == ["color/1.jpg", "color/2.jpg", "color/10.jpg"]


def test_a_larger_colour_picture_is_resampled_to_the_depths_pixels(cabinet: Path) -> None:
    plain = import_capture(cabinet).scene.views[0]
    for file in (cabinet / "color").iterdir():
        with Image.open(file) as image:
            larger = image.resize((1280, 960), Image.Resampling.BICUBIC)
        larger.save(file, quality=95)
    k = np.loadtxt(cabinet / "intrinsic" / "intrinsic_color.txt")
    # Centres at integers: c' = (c + 0.5) * 2 - 0.5.
    k[:2, :2] *= 2
    k[:2, 2] = (k[:2, 2] + 0.5) * 2 - 0.5
    np.savetxt(cabinet / "intrinsic" / "intrinsic_color.txt", k)
    imported = import_capture(cabinet)
    view = imported.scene.views[0]
    assert any("resampled" in note for note in imported.notes)
    assert view.rgb.shape == plain.rgb.shape
    np.testing.assert_allclose(view.intrinsics, plain.intrinsics)
    inside = (slice(2, -2), slice(2, -2))
    moved = np.roll(plain.rgb, 2, axis=1)
    error = np.abs(view.rgb[inside].astype(float) - plain.rgb[inside]).mean()
    assert error < 1.5
    assert error < 0.5 * np.abs(view.rgb[inside].astype(float) - moved[inside]).mean()


def test_colour_is_carried_over_at_the_pixels_own_depth_when_the_cameras_stand_apart(
    cabinet: Path,
) -> None:
    plain = import_capture(cabinet).scene.views[0]
    apart = np.eye(4)
    apart[0, 3] = 0.05
    np.savetxt(cabinet / "intrinsic" / "extrinsic_color.txt", apart)
    view = import_capture(cabinet).scene.views[0]
    # The colour camera stands 5 cm to the right: it saw a point at depth z fx * 0.05 / z further
    # left in its picture.
    assert plain.depth is not None
    y, x = 300, 330
    shift = 535.4 * 0.05 / plain.depth[y, x]
    assert 10 < shift < 30
    where = np.array([[[x + 0.5 - shift, y + 0.5]]])
    assert np.array_equal(view.rgb[y, x], sample_bilinear(plain.rgb, where)[0, 0])


def test_frames_that_lost_tracking_are_left_out_and_counted(cabinet: Path) -> None:
    (cabinet / "pose" / "1.txt").write_text("-inf -inf -inf -inf\n" * 4)
    imported = import_capture(cabinet)
    assert [view.name for view in imported.scene.views] == ["color/0.jpg", "color/2.jpg"]
    assert "left out 1 of 3 frames: no pose" in imported.notes


def test_the_flat_layout_of_detection_toolboxes_is_read(cabinet: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for kind in ("color", "depth", "pose"):
        for file in (cabinet / kind).iterdir():
            shutil.copy(file, flat / f"{int(file.stem):05d}{file.suffix}")
    for kind, name in (("color", "intrinsic"), ("depth", "depth_intrinsic")):
        shutil.copy(cabinet / "intrinsic" / f"intrinsic_{kind}.txt", flat / f"{name}.txt")
    flat_views = import_capture(flat, layout="scannet").scene.views
    for a, b in zip(flat_views, import_capture(cabinet).scene.views, strict=True):
        assert np.array_equal(a.rgb, b.rgb)
        assert np.array_equal(a.c2w, b.c2w)


# TUM. ------------------------------------------------------------------------------------------


def test_tum_pose_is_interpolated_at_the_colour_time(desk: Path) -> None:
    rows = (desk / "associations.txt").read_text().splitlines()
    time = float(rows[0].split()[0])
    (desk / "associations.txt").write_text(rows[0] + "\n")
    quarter = np.sin(np.pi / 4), np.cos(np.pi / 4)
    (desk / "groundtruth.txt").write_text(
        f"# time tx ty tz qx qy qz qw\n{time - 0.03:.6f} 1 2 3 0 0 0 1\n"
        f"{time + 0.03:.6f} 2 2 5 0 0 {quarter[0]} {quarter[1]}\n"
    )
    pose = import_capture(desk).scene.views[0].c2w
    assert pose is not None
    np.testing.assert_allclose(pose[:3, 3], [1.5, 2, 4], atol=1e-4)
    np.testing.assert_allclose(pose[:3, :3], rotation_z(np.pi / 4), atol=1e-4)


def test_tum_lists_are_joined_by_nearest_time_when_nothing_did_it_already(desk: Path) -> None:
    joined = import_capture(desk)
    (desk / "associations.txt").unlink()
    again = import_capture(desk)
    assert again.scene.scene_id == joined.scene.scene_id
    lines = (desk / "depth.txt").read_text().splitlines()
    (desk / "depth.txt").write_text("\n".join(lines[:-1]) + "\n")
    fewer = import_capture(desk)
    assert len(fewer.scene.views) == 3
    assert "left out 1 of 4 pictures: no depth at their time" in fewer.notes


def test_tum_frames_outside_the_trajectory_are_left_out_and_counted(desk: Path) -> None:
    lines = (desk / "groundtruth.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("1305031247")]
    (desk / "groundtruth.txt").write_text("\n".join(kept))
    imported = import_capture(desk)
    assert len(imported.scene.views) == 3
    assert any(note.startswith("left out 1 of 4 frames") for note in imported.notes)


def test_tum_intrinsics_come_from_the_folders_name_or_are_asked_for(
    desk: Path, tmp_path: Path
) -> None:
    stated = import_capture(desk).scene
    (desk / "camera.json").unlink()
    assert "add camera.json with fx, fy, cx, cy" in refusal(desk)
    named = desk.rename(tmp_path / "rgbd_dataset_freiburg1_rpy")
    imported = import_capture(named)
    assert any("freiburg1" in note for note in imported.notes)
    assert imported.scene.scene_id == stated.scene_id


def test_a_straightened_point_lies_where_a_pinhole_would_have_put_it() -> None:
    k = pinhole(100.0, 100.0, 50.0, 40.0)
    coefficients = (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)
    x, y = 0.305, -0.255
    r2 = x * x + y * y
    k1, k2, p1, p2, k3 = coefficients
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    depth = np.zeros((80, 100), dtype=np.float32)
    depth[int(100 * bent_y + 40), int(100 * bent_x + 50)] = 2.0
    rgb = np.zeros((80, 100, 3), dtype=np.uint8)
    _, straight = undistort(rgb, depth, k, coefficients)
    assert straight is not None
    # Pixel (80, 14) has its centre at x = 0.305, y = -0.255.
    assert straight[14, 80] == 2.0
    assert (straight > 0).sum() <= 4


def test_no_distortion_leaves_every_pixel_as_it_was() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    depth = rng.random((30, 40)).astype(np.float32)
    same_rgb, same_depth = undistort(rgb, depth, pinhole(30.0, 31.0, 19.7, 15.2), (0.0,) * 5)
    assert np.array_equal(same_rgb, rgb)
    assert np.array_equal(same_depth, depth)


def test_samples_outside_an_image_are_black_and_without_depth() -> None:
    depth = np.ones((2, 3), dtype=np.float32)
    rgb = np.full((2, 3, 3), 200, dtype=np.uint8)
    pixels = np.array([[[-0.1, 0.5], [3.1, 0.5], [0.5, 2.1], [2.9, 1.9]]])
    assert sample_nearest(depth, pixels).tolist() == [[0, 0, 0, 1]]
    assert sample_bilinear(rgb, pixels)[0, :, 0].tolist() == [0, 0, 0, 200]


# transforms.json. ------------------------------------------------------------------------------


def test_old_transforms_have_an_angle_and_names_without_ending(transforms: Path) -> None:
    record = json.loads((transforms / "transforms.json").read_text())
    frames = [
        {"file_path": f"color/{i}", "transform_matrix": frame["transform_matrix"]}
        for i, frame in enumerate(record["frames"])
    ]
    (transforms / "transforms.json").write_text(
        json.dumps({"camera_angle_x": 2 * np.arctan(0.5), "frames": frames})
    )
    imported = import_capture(transforms)
    view = imported.scene.views[0]
    np.testing.assert_allclose(view.intrinsics, pinhole(640.0, 640.0, 320.0, 240.0))
    assert view.depth is None
    assert "3 of 3 frames have no depth" in imported.notes


def test_a_frames_own_intrinsics_and_depth_unit_count(transforms: Path) -> None:
    plain = import_capture(transforms).scene
    record = json.loads((transforms / "transforms.json").read_text())
    record["frames"][1] |= {"fl_x": 500.0, "cx": 300.0}
    record["depth_unit_scale_factor"] = 0.002
    (transforms / "transforms.json").write_text(json.dumps(record))
    scene = import_capture(transforms).scene
    np.testing.assert_allclose(scene.views[1].intrinsics, pinhole(500.0, 539.2, 300.0, 247.6))
    np.testing.assert_allclose(scene.views[0].intrinsics, plain.views[0].intrinsics)
    assert plain.views[0].depth is not None
    np.testing.assert_allclose(scene.views[0].depth, 2 * plain.views[0].depth, atol=1e-6)


def test_intrinsics_for_a_larger_size_are_scaled_but_not_for_another_shape(
    transforms: Path,
) -> None:
    edit(transforms, w=1280, h=960, fl_x=1070.8, fl_y=1078.4, cx=640.2, cy=495.2)
    imported = import_capture(transforms)
    k = imported.scene.views[0].intrinsics
    np.testing.assert_allclose(k, pinhole(535.4, 539.2, 320.1, 247.6))
    assert any("intrinsics scaled from 1280x960" in note for note in imported.notes)
    edit(transforms, w=1280, h=720)
    assert "a cropped picture needs its own intrinsics" in refusal(transforms)


def test_coarser_depth_of_the_same_shape_brings_the_colour_down_to_it(transforms: Path) -> None:
    for file in (transforms / "depth").iterdir():
        with Image.open(file) as image:
            coarse = image.resize((320, 240), Image.Resampling.NEAREST)
        coarse.save(file)
    imported = import_capture(transforms)
    view = imported.scene.views[0]
    assert view.rgb.shape == (240, 320, 3)
    np.testing.assert_allclose(view.intrinsics, pinhole(267.7, 269.6, 160.05, 123.8))
    assert any("shrunk to the depth's 320x240" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "only pinholes"),
        ({"fl_x": None}, "has no camera_angle_x; give fl_x"),
        ({"fl_x": "wide"}, "fl_x must be a number, got 'wide'"),
        ({"fl_x": -500.0}, "positive focal lengths"),
        ({"frames": []}, "at least one frame"),
        ({"frames": [{"file_path": "color/0.jpg"}]}, "transform_matrix must be 4x4"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor must be above 0"),
    ],
)
def test_a_transforms_file_that_cannot_be_right_is_refused(
    transforms: Path, changes: dict[str, object], said: str
) -> None:
    edit(transforms, **changes)
    assert said in refusal(transforms)


# Plain photos. ---------------------------------------------------------------------------------


def test_photos_come_by_number_upright_and_not_larger_than_needed(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "img10.jpg", exif=upright)
    Image.new("RGBA", (60, 40), "blue").save(tmp_path / "img2.png")
    Image.new("RGB", (50, 40), "green").save(tmp_path / "IMG3.WEBP")
    (tmp_path / "._img2.png").write_bytes(b"left by another system")
    imported = import_capture(tmp_path)
    assert (imported.layout, imported.scene.source) == ("photos", "photos")
    assert [view.name for view in imported.scene.views] == ["img2.png", "IMG3.WEBP", "img10.jpg"]
    assert imported.scene.views[2].rgb.shape == (1024, 768, 3)
    assert all(view.c2w is None and view.depth is None for view in imported.scene.views)


def test_a_damaged_exif_note_does_not_cost_the_photo(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "a maker"
    file = tmp_path / "a.jpg"
    Image.new("RGB", (60, 40), "red").save(file, exif=turned)
    whole = bytearray(file.read_bytes())
    note = whole.index(b"Exif")
    for place in range(note + 14, note + 30):
        whole[place] = 0xEE
    file.write_bytes(whole)
    assert import_capture(tmp_path).scene.views[0].rgb.shape == (40, 60, 3)


def test_one_photo_is_a_scene_too(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "one.jpg")
    assert len(import_capture(tmp_path / "one.jpg").scene.views) == 1


def test_a_long_capture_is_thinned_evenly(tmp_path: Path) -> None:
    for number in range(70):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    imported = import_capture(tmp_path)
    names = [view.name for view in imported.scene.views]
    assert (len(names), names[0], names[-1]) == (64, "0.png", "69.png")
    assert "took 64 of 70 photos, evenly spaced" in imported.notes
    assert evenly(3) == [0, 1, 2]


# Bad input: one sentence, exit 2, nothing written. ---------------------------------------------


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _text_as_jpg(folder: Path) -> None:
    (folder / "color" / "1.jpg").write_text("this is a letter, not a picture")


def _truncated(folder: Path) -> None:
    file = folder / "color" / "1.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _truncated_depth(folder: Path) -> None:
    file = folder / "depth" / "2.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _one_depth_smaller(folder: Path) -> None:
    Image.fromarray(np.full((240, 320), 900, dtype=np.uint16)).save(folder / "depth" / "1.png")


def _all_depth_smaller(folder: Path) -> None:
    for file in (folder / "depth").iterdir():
        Image.fromarray(np.full((240, 320), 900, dtype=np.uint16)).save(file)


def _smaller_without_intrinsics(folder: Path) -> None:
    _all_depth_smaller(folder)
    (folder / "intrinsic" / "intrinsic_depth.txt").unlink()


def _eight_bit_depth(folder: Path) -> None:
    Image.fromarray(np.full((480, 640), 90, dtype=np.uint8)).save(folder / "depth" / "0.png")


def _nan_pose(folder: Path) -> None:
    pose = np.loadtxt(folder / "pose" / "1.txt")
    pose[0, 3] = np.nan
    np.savetxt(folder / "pose" / "1.txt", pose)


def _all_nan_pose(folder: Path) -> None:
    np.savetxt(folder / "pose" / "1.txt", np.full((4, 4), np.nan))


def _all_lost(folder: Path) -> None:
    for file in (folder / "pose").iterdir():
        file.write_text("-inf -inf -inf -inf\n" * 4)


def _transposed_pose(folder: Path) -> None:
    np.savetxt(folder / "pose" / "0.txt", np.loadtxt(folder / "pose" / "0.txt").T)


def _short_pose(folder: Path) -> None:
    (folder / "pose" / "0.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")


def _no_intrinsics(folder: Path) -> None:
    shutil.rmtree(folder / "intrinsic")


def _no_pose(folder: Path) -> None:
    (folder / "pose" / "2.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_empty, "holds no photo; put some in it"),
        (_text_as_jpg, "1.jpg is not an image although its name says so"),
        (_truncated, "1.jpg is truncated or damaged"),
        (_truncated_depth, "2.png is truncated or damaged"),
        (_one_depth_smaller, "1.png has 320x240 pixels, "),
        (_all_depth_smaller, "but the intrinsics of both are the same"),
        (_smaller_without_intrinsics, "no depth intrinsics say how they relate"),
        (_eight_bit_depth, "0.png is a picture of mode L; depth must be one channel of 16 bits"),
        (_nan_pose, "1.txt holds a pose with NaN or infinite entries"),
        (_all_nan_pose, "1.txt holds a pose with NaN or infinite entries"),
        (_all_lost, "none with a pose (all lost tracking)"),
        (_transposed_pose, "0.txt must hold a rigid 4x4 transform"),
        (_short_pose, "0.txt must hold a camera-to-world pose as 4x4 numbers, it holds 9"),
        (_no_intrinsics, "lacks the color camera's intrinsics"),
        (_no_pose, "has no 2.txt for"),
    ],
)
def test_a_spoilt_capture_ends_in_one_sentence_exit_2_and_nothing_written(
    cabinet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    said: str,
) -> None:
    spoil(cabinet)
    out = tmp_path / "store"
    with pytest.raises(SystemExit) as stopped:
        main(["scenes", "import", str(cabinet), "--out", str(out)])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        ("1.2766", "nan", "holds a pose with NaN, infinite or no rotation at time 1305031233.8031"),
        ("0.6765 0.6511 -0.2621 -0.2230", "0 0 0 0", "no rotation at time 1305031233.8031"),
        ("1.2766 0.6144", "1.2766", "expected 'time tx ty tz qx qy qz qw'"),
        ("1.2766", "here", "expected numbers"),
    ],
)
def test_a_trajectory_with_a_bad_line_names_it(desk: Path, find: str, put: str, said: str) -> None:
    file = desk / "groundtruth.txt"
    text = file.read_text()
    assert find in text
    file.write_text(text.replace(find, put, 1))
    assert said in refusal(desk)


def test_tum_depth_of_another_size_than_its_colour_is_refused(desk: Path) -> None:
    file = next((desk / "depth").iterdir())
    Image.fromarray(np.full((240, 320), 5000, dtype=np.uint16)).save(file)
    assert "has 320x240 pixels, its colour picture has 640x480" in refusal(desk)


def test_a_transforms_pose_with_nan_names_its_frame(transforms: Path) -> None:
    record = json.loads((transforms / "transforms.json").read_text())
    record["frames"][2]["transform_matrix"][0][0] = float("nan")
    (transforms / "transforms.json").write_text(json.dumps(record))
    assert "frame 2 (color/2.jpg) holds a pose with NaN" in refusal(transforms)


def test_one_transforms_depth_of_another_size_is_refused(transforms: Path) -> None:
    _one_depth_smaller(transforms)
    assert "depth images of several sizes (320x240, 640x480)" in refusal(transforms)


def test_photos_in_a_format_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    assert "1 .heic" in refusal(tmp_path)
    assert "capture not found" in refusal(tmp_path / "nowhere")
    assert "is not of the layout tum" in refusal(tmp_path, "tum")


# Stored. ---------------------------------------------------------------------------------------


def test_an_import_is_stored_once_and_never_over_something_else(
    cabinet: Path, tmp_path: Path
) -> None:
    imported = import_capture(cabinet)
    questions = capture_questions(imported.scene)
    out, second = tmp_path / "store", tmp_path / "again"
    assert write_import(imported, out, questions=questions)
    assert write_import(imported, second, questions=questions)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert all((out / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert len(files) == 3
    assert not write_import(imported, out, questions=questions)
    with pytest.raises(BadInputError, match="holds something else than this capture"):
        write_import(import_capture(CAPTURES / "tum_fr1_rpy"), out)
    assert all((out / name).read_bytes() == (second / name).read_bytes() for name in files)
    with pytest.raises(BadInputError, match="manifest"):
        write_import(imported, cabinet)
    store = open_store(out)
    (scene,) = store.iter_scenes()
    assert (scene.scene_id, scene.split) == (imported.scene.scene_id, "test")
    np.testing.assert_allclose(scene.views[1].depth, imported.scene.views[1].depth, atol=0.0002)
    assert [question.question for question in store.questions()] == [q.question for q in questions]


def test_an_import_killed_before_its_shard_goes_on(cabinet: Path, tmp_path: Path) -> None:
    imported = import_capture(cabinet)
    out = tmp_path / "store"
    write_import(imported, out)
    whole = (out / "scenes" / "00000.parquet").read_bytes()
    (out / "scenes" / "00000.parquet").unlink()
    assert write_import(imported, out)
    assert (out / "scenes" / "00000.parquet").read_bytes() == whole


def test_capture_questions_are_few_asked_and_about_what_is_named() -> None:
    scene = import_capture(CAPTURES / "tum_fr3_cabinet").scene
    plain = capture_questions(scene)
    assert plain[0].question == "Describe the room."
    assert {question.family for question in plain} == {"asked"}
    assert all(question.answer == "" for question in plain)
    named = capture_questions(scene, things=("cabinet", "monitor"))
    assert any(q.question == "Which is bigger, the cabinet or the monitor?" for q in named)
    assert len({question.question_id for question in named}) == len(named) < 12
