"""The label store: whole, resumable, and honest about what is wrong with it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stillroom.records import BadInputError
from stillroom.scenes.store import open_store
from stillroom.teachers import label as labelling
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_store import open_labels, problems
from stillroom.teachers.truth import TruthTeacher
from stillroom.testing import FixedTeacher, tiny_store

SIGNALS = ("answers", "topk_logits")


def run(scenes: Path, out: Path, **more: object) -> int:
    return label_scenes(
        scenes, FixedTeacher, out, teacher={"name": "fixed"}, signals=SIGNALS, **more
    )


def everything(out: Path) -> dict[str, tuple]:
    """All rows of a store with their tensors, by question id."""
    store = open_labels(out)
    return {
        label.question_id: (
            label.answer,
            label.answer_ids.tolist(),
            label.topk_ids.tolist(),
            label.topk_logits.tolist(),
            label.logsumexp.tolist(),
        )
        for scene_id in store.scene_ids()
        for label in store.labels(scene_id)
    }


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(labelling, "SCENES_PER_SHARD", 2)
    return tiny_store(tmp_path / "scenes", scenes=5)


def test_every_question_of_every_scene_gets_one_row(scenes: Path, tmp_path: Path) -> None:
    assert run(scenes, tmp_path / "labels") == 5
    asked = {question.question_id for question in open_store(scenes).questions()}
    assert set(everything(tmp_path / "labels")) == asked
    assert problems(tmp_path / "labels") == []


def test_tensors_come_back_as_the_teacher_gave_them(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    store = open_store(scenes)
    scene = store.scene(store.scene_ids()[3])
    given = FixedTeacher().label(scene, store.questions(scene.scene_id), SIGNALS)
    kept = open_labels(tmp_path / "labels").labels(scene.scene_id)
    for before, after in zip(given, kept, strict=True):
        np.testing.assert_array_equal(before.topk_ids, after.topk_ids)
        np.testing.assert_array_equal(before.topk_logits, after.topk_logits)
        np.testing.assert_array_equal(before.logsumexp, after.logsumexp)


def test_a_finished_store_is_not_labelled_again(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    before = {f: f.read_bytes() for f in (tmp_path / "labels").rglob("*") if f.is_file()}
    assert run(scenes, tmp_path / "labels") == 0
    assert before == {f: f.read_bytes() for f in (tmp_path / "labels").rglob("*") if f.is_file()}


def test_two_processes_write_the_same_rows_as_one(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "one")
    run(scenes, tmp_path / "two", workers=2)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_another_teacher_is_refused_and_nothing_is_touched(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    before = {f: f.read_bytes() for f in (tmp_path / "labels").rglob("*") if f.is_file()}
    with pytest.raises(BadInputError, match="other settings"):
        label_scenes(
            scenes, FixedTeacher, tmp_path / "labels", teacher={"name": "else"}, signals=SIGNALS
        )
    assert before == {f: f.read_bytes() for f in (tmp_path / "labels").rglob("*") if f.is_file()}


def test_a_folder_of_something_else_is_refused(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "thesis.txt").write_text("precious")
    with pytest.raises(BadInputError, match="holds no label store"):
        run(scenes, tmp_path / "labels")
    assert (tmp_path / "labels" / "thesis.txt").read_text() == "precious"


def test_a_shard_without_its_ledger_line_is_written_again(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    whole = everything(tmp_path / "labels")
    ledger = tmp_path / "labels" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]) + lines[-1][:10])  # torn in the middle of a line
    assert run(scenes, tmp_path / "labels") == 1
    assert everything(tmp_path / "labels") == whole
    assert problems(tmp_path / "labels") == []


def test_verify_finds_a_flipped_byte_and_a_missing_file(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    victim = tmp_path / "labels" / "tensors" / "00001.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(bytes(data))
    assert any("00001.safetensors" in problem for problem in problems(tmp_path / "labels"))
    victim.unlink()
    assert any("missing" in problem for problem in problems(tmp_path / "labels"))


def test_truth_answers_and_has_no_logits(scenes: Path, tmp_path: Path) -> None:
    label_scenes(
        scenes, TruthTeacher, tmp_path / "truth", teacher={"name": "truth"}, signals=("answers",)
    )
    truth = {q.question_id: q.answer for q in open_store(scenes).questions()}
    assert open_labels(tmp_path / "truth").answers() == truth
    with pytest.raises(BadInputError, match="no logits"):
        label_scenes(
            scenes, TruthTeacher, tmp_path / "more", teacher={"name": "truth"}, signals=SIGNALS
        )


SLOW_LABELLING = """
import sys, time
from pathlib import Path
from stillroom.teachers import label as labelling
from stillroom.testing import FixedTeacher
labelling.SCENES_PER_SHARD = 2

class Slow(FixedTeacher):
    def label(self, *given):
        time.sleep(0.05)
        return super().label(*given)

labelling.label_scenes(Path(sys.argv[1]), Slow, Path(sys.argv[2]), teacher={"name": "fixed"},
                       signals=("answers", "topk_logits"))
"""


def test_killed_at_five_moments_it_ends_with_the_same_rows(tmp_path: Path) -> None:
    scenes = tiny_store(tmp_path / "scenes", scenes=20)
    command = [sys.executable, "-c", SLOW_LABELLING, str(scenes)]
    subprocess.run([*command, str(tmp_path / "calm")], check=True)
    seen = []
    for shards_before in (1, 3, 5, 7, 9):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        ledger = tmp_path / "killed" / "ledger.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            done = len(ledger.read_text().splitlines()) if ledger.exists() else 0
            if done >= shards_before:
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        seen.append(len(ledger.read_text().splitlines()))
    print(f"shards done at each kill: {seen}")
    assert seen == sorted(seen)
    assert seen[0] < 10, "the first kill came after the end"
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert everything(tmp_path / "killed") == everything(tmp_path / "calm")
    ledger_lines = (tmp_path / "killed" / "ledger.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in ledger_lines]
    assert sorted(line["shard"] for line in lines) == list(range(10))
