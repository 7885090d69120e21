"""``stillroom ask --boxes --depth``: numbers for machines, tables and pictures for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom import cli, registry
from stillroom.asking import Reply, box_lines, box_rows, depth_lines, write_depth
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, SlotConfig
from stillroom.geometry.poses import rotation_z
from stillroom.recipes.mini import mini_cpu_long
from stillroom.records import OrientedBox, SceneGeometry
from stillroom.training.config import TrainConfig

CAPTURE = Path(__file__).parent / "fixtures" / "captures" / "tum_fr3_cabinet"
QUESTION = "Is the cabinet in the room?"


@pytest.fixture(scope="module")
def detecting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped student with a detector that is sure of a cabinet, half a turn from nothing."""
    shipped = mini_cpu_long()
    config = replace(
        shipped,
        losses=replace(shipped.losses, detection=True),
        start_from=str(registry.MODELS / "student_mini"),
    )
    student, processor = build_student(config, "")
    detector, kinds = student.detector, student.config.detection_kinds
    with torch.no_grad():
        detector.kind.weight.zero_()
        detector.kind.bias.zero_()
        detector.kind.bias[1 + kinds.index("cabinet")] = 8.0
        detector.box.weight.zero_()
    home = tmp_path_factory.mktemp("detecting")
    student.save_pretrained(home)
    processor.save_pretrained(home)
    return str(home)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    shown = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), shown.out, shown.err


def test_boxes_and_depth_as_json(
    detecting: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "maps"
    words = ("--boxes", "--depth", "--out", str(out), "--json")
    code, shown, error = run(capsys, "ask", detecting, str(CAPTURE), QUESTION, *words)
    assert code == 0, error
    said = json.loads(shown)
    assert said["question"] == QUESTION
    assert said["answer"]
    assert said["frame"] == "view0"
    assert len(said["boxes"]) == 16
    box = said["boxes"][0]
    assert box["name"] == "cabinet"
    assert 0.9 < box["score"] <= 1
    assert box["center_m"] == pytest.approx([0.0, 2.5, 0.5], abs=1e-3)
    assert box["size_m"] == pytest.approx([0.4966] * 3, abs=1e-3)
    assert len(said["depth"]) >= 2
    for row in said["depth"]:
        depth = np.load(row["npy"])
        assert depth.dtype == np.float32
        assert depth.shape == (112, 112)
        assert [row["near_m"], row["far_m"]] == pytest.approx([depth.min(), depth.max()], abs=1e-3)
        with Image.open(row["png"]) as picture:
            assert picture.size == (112, 112)
            assert picture.mode == "RGB"
    written = {Path(row[kind]) for row in said["depth"] for kind in ("npy", "png")}
    assert set(out.iterdir()) == written


def test_without_the_flags_nothing_is_said_or_written_but_the_answer(
    detecting: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, error = run(capsys, "ask", detecting, str(CAPTURE), QUESTION, "--json")
    assert code == 0, error
    assert set(json.loads(shown)) == {"question", "answer"}
    assert list(tmp_path.iterdir()) == []


def test_a_student_without_a_detector_and_a_teacher_say_that_they_have_no_boxes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model, reason in (
        ("student_mini", "has no detector"),
        ("teacher_mini", "is a teacher and gives no boxes"),
    ):
        code, out, error = run(capsys, "ask", model, str(CAPTURE), QUESTION, "--boxes")
        assert code == 2
        assert out == ""
        # transformers may have drawn a bar of its own before.
        assert error.splitlines()[-1].startswith(f"stillroom: {model!r} {reason}")
        assert "Traceback" not in error


def test_a_diagnosis_reads_every_slot_beside_its_two_controls(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("ask", "student_mini", str(CAPTURE), QUESTION, "--diagnose")
    code, shown, error = run(capsys, *words, "--json")
    assert code == 0, error
    found = json.loads(shown)["diagnosis"]
    assert found["note"].startswith("A probe, not an explanation")
    assert found["no_idea_nats"] == pytest.approx(np.log(1024), abs=1e-3)
    assert found["control_photos"] == "made:plain"
    for name in ("slots", "random_slots", "other_photos"):
        assert len(found[name]) == 8
        for word in found[name]:
            assert 1 / 1024 < word["probability"] <= 1
            assert 0 <= word["entropy_nats"] <= found["no_idea_nats"]
    assert found["slots"] != found["random_slots"]
    assert found["slots"] != found["other_photos"]
    # The same photos as their own control give the same.
    code, shown, error = run(capsys, *words, "--control-photos", str(CAPTURE), "--json")
    assert code == 0, error
    again = json.loads(shown)["diagnosis"]
    assert again["other_photos"] == again["slots"] == found["slots"]
    assert again["random_slots"] == found["random_slots"]
    code, shown, _ = run(capsys, *words, "--control-photos", str(CAPTURE))
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[2:10]] == [str(n) for n in range(1, 9)]
    assert lines[-1] == found["note"]


def test_a_teacher_and_a_student_without_slots_have_nothing_to_diagnose(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    student, processor = build_student(
        DistillConfig(train=TrainConfig(steps=1, scenes_per_step=1), slots=SlotConfig(kind="none")),
        registry.MODELS / "encoder_mini",
    )
    student.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for model, reason in ((str(tmp_path), "has no slots"), ("teacher_mini", "is a teacher and")):
        code, out, error = run(capsys, "ask", model, str(CAPTURE), QUESTION, "--diagnose")
        assert (code, out) == (2, "")
        assert reason in error.splitlines()[-1]


def geometry() -> SceneGeometry:
    size = np.array([0.5, 1.0, 2.0])
    first = OrientedBox(center=np.array([1.0, 2.0, 0.25]), size=size, rotation=rotation_z(0.5))
    other = OrientedBox(center=np.array([-1.0, 3.0, 0.5]), size=size, rotation=rotation_z(-0.1))
    depth = np.stack([np.full((4, 4), 2.0), np.linspace(1, 3, 16).reshape(4, 4)])
    return SceneGeometry(
        depth=depth.astype(np.float32),
        boxes=(("armchair", first), ("mug", other)),
        box_scores=(0.91, 0.4),
    )


def test_a_table_has_a_line_for_every_box() -> None:
    head, first, other = box_lines(geometry())
    assert "forward" in head
    assert first.split() == [
        *("armchair", "0.91", "1.00", "2.00", "0.25", "0.50", "1.00", "2.00", "29", "deg")
    ]
    assert other.split()[:2] == ["mug", "0.40"]
    assert len(first) == len(other)
    assert box_rows(geometry())[1]["yaw_deg"] == pytest.approx(-5.73)
    assert box_lines(SceneGeometry()) == ["no thing was found with enough certainty to be shown"]


def test_pictures_of_depth_share_one_scale_and_photos_of_one_name_stay_apart(
    tmp_path: Path,
) -> None:
    said = Reply(question="q", answer="a", geometry=geometry(), views=("left/1.png", "right/1.png"))
    rows = write_depth(said, tmp_path)
    assert [Path(row["npy"]).name for row in rows] == ["000_1.npy", "001_1.npy"]
    np.testing.assert_array_equal(np.load(rows[1]["npy"]), geometry().depth[1])
    flat, slope = (np.asarray(Image.open(row["png"])).astype(int) for row in rows)
    assert (flat == flat[0, 0]).all()
    # 2 m has one colour in both; 1 m is redder than 3 m.
    middle = np.abs(geometry().depth[1] - 2.0).argmin()
    assert np.abs(slope.reshape(-1, 3)[middle] - flat[0, 0]).max() < 40
    near, far = slope[0, 0], slope[-1, -1]
    assert near[0] > near[2]
    assert far[2] >= far[0] - 10


def test_depth_without_a_scale_is_not_called_metres(tmp_path: Path) -> None:
    views = ("left.png", "right.png")
    metric, free = (
        write_depth(Reply(question="q", answer="a", geometry=told, views=views), tmp_path / name)
        for name, told in (
            ("metre", geometry()),
            ("scene", replace(geometry(), depth_unit="scene")),
        )
    )
    assert {row["unit"] for row in metric} == {"metre"}
    assert metric[1].keys() - free[1].keys() == {"near_m", "median_m", "far_m"}
    assert (free[1]["unit"], free[1]["near"], free[1]["far"]) == ("scene", 1.0, 3.0)
    assert "1.00 to 3.00 m," in depth_lines(metric)[-1]
    *maps, note = depth_lines(free)
    assert "1.00 to 3.00 units of the scene," in maps[-1]
    assert " m," not in maps[-1]
    assert "neither is metres" in note
