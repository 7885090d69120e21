"""The way of docs/teachers.md: a ScanNet export, its questions, a released checkpoint, labels."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from released import write_released

from stillroom.cli import main
from stillroom.records import BadInputError
from stillroom.scenes.importers import import_capture
from stillroom.scenes.store import open_store
from stillroom.teachers.label_store import open_labels

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples" / "04_scannet_questions.py"
TURN = np.array([[0.0, -1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 0.5], [0, 0, 0, 1]])
ROWS = [
    {
        "scene_id": "scene0011_00",
        "question_id": "val-scene0011-0",
        "question": "What is behind the chair?",
        "answers": ["cabinet", "a cabinet"],
    },
    {
        "scene_id": "scene0011_00",
        "question_id": 220602000001,
        "situation": "I am facing the cabinet.",
        "question": "What is on my left?",
        "answers": ["wall"],
    },
    {"scene_id": "scene0999_00", "question_id": "x", "question": "?", "answers": ["none"]},
]


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    scan = tmp_path / "scans" / "scene0011_00"
    shutil.copytree(TESTS / "fixtures" / "captures" / "tum_fr3_cabinet", scan)
    (scan / "transforms.json").unlink()
    numbers = " ".join(f"{value:.6f}" for value in TURN.ravel())
    (scan / "scene0011_00.txt").write_text(
        f"appVersionId = com.x\naxisAlignment = {numbers} \ncolorHeight = 480\n"
    )
    return tmp_path / "scans"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_a_scannet_subset_is_labelled_from_export_to_verified_store(
    exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    store, labels = tmp_path / "store", tmp_path / "labels"
    runpy.run_path(str(EXAMPLE))["main"](exports, tmp_path / "rows.json", store, 20)
    asked = open_store(store).questions()
    assert [(q.question_id, q.family) for q in asked] == [
        ("val-scene0011-0", "scanqa"),
        ("220602000001", "sqa3d"),
    ]
    assert asked[1].question == "I am facing the cabinet. What is on my left?"
    assert asked[0].renderings == ("a cabinet",)
    write_released(tmp_path / "ck")
    words = ["label", str(store), "--teacher", f"llava3d:{tmp_path / 'ck'}", "--out", str(labels)]
    assert run(*words, "--options.max-new-tokens", "3") == 0
    assert run("labels", "verify", str(labels)) == 0
    assert set(open_labels(labels).answers()) == {"val-scene0011-0", "220602000001"}


def test_the_scan_s_own_alignment_turns_the_world(exports: Path) -> None:
    scan = exports / "scene0011_00"
    aligned = import_capture(scan, layout="scannet")
    assert any("axisAlignment" in note for note in aligned.notes)
    (scan / "scene0011_00.txt").unlink()
    plain = import_capture(scan, layout="scannet")
    assert any("the world is the scan's own" in note for note in plain.notes)
    for one, other in zip(aligned.scene.views, plain.scene.views, strict=True):
        np.testing.assert_allclose(one.c2w, TURN @ other.c2w, atol=1e-5)
    assert aligned.scene.scene_id != plain.scene.scene_id
    assert aligned.scene.floor_z == pytest.approx(plain.scene.floor_z + 0.5, abs=0.02)


def test_an_alignment_that_is_none_is_refused(exports: Path) -> None:
    file = exports / "scene0011_00" / "scene0011_00.txt"
    file.write_text("axisAlignment = 1 0 0\n")
    with pytest.raises(BadInputError, match="as 16 numbers, it holds 3"):
        import_capture(file.parent, layout="scannet")
    file.write_text("axisAlignment = " + "2 " * 16)
    with pytest.raises(BadInputError, match="axisAlignment in"):
        import_capture(file.parent, layout="scannet")
