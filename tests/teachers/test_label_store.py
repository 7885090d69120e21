"""The label store: every signal comes back, and every fault in it is found."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.records import SIGNALS, BadInputError, SceneFeatures, TeacherLabel
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.teachers import label_store
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_check import problems, shown_bytes, status
from stillroom.teachers.label_rows import half
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.label_tensors import TensorFile
from stillroom.testing import FixedTeacher, tiny_questions, tiny_scene, tiny_store
from stillroom.text.tokenizer import load_tokenizer


def label(scenes: Path, out: Path, **more: object) -> None:
    given = {"teacher": {"name": "fixed"}, "signals": SIGNALS, "scenes_per_part": 2, **more}
    label_scenes(scenes, FixedTeacher, out, **given)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return tiny_store(tmp_path / "scenes", scenes=6)


@pytest.fixture
def labels(scenes: Path, tmp_path: Path) -> Path:
    label(scenes, tmp_path / "labels", vocabulary=load_tokenizer().vocabulary())
    return tmp_path / "labels"


def assert_same(one: object, other: object) -> None:
    for entry in fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, entry.name), getattr(other, entry.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=entry.name)
        elif entry.name == "reference" and a is not None:
            assert_same(a, b)
        else:
            assert a == b, entry.name


def given_by_the_teacher(scenes: Path, scene_id: str) -> tuple[list[TeacherLabel], SceneFeatures]:
    store = open_store(scenes)
    scene = store.scene(scene_id)
    teacher = FixedTeacher()
    return (
        teacher.label(scene, store.questions(scene_id), SIGNALS),
        teacher.scene_features(scene),
    )


def test_every_signal_comes_back_as_the_teacher_gave_it(
    scenes: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_store, "SHARDS_HELD", 1)
    store = open_labels(labels)
    for scene_id in (*store.scene_ids(), store.scene_ids()[0]):
        said, features = given_by_the_teacher(scenes, scene_id)
        kept = store.labels(scene_id)
        assert len(kept) == len(said) == 4
        for one, other in zip(said, kept, strict=True):
            assert all(getattr(one, entry.name) is not None for entry in fields(one))
            assert_same(one, other)
        found = store.scene_features(scene_id)
        assert found is not None
        assert_same(features, found)
    assert store.labels("unknown") == []
    assert store.scene_features("unknown") is None


def test_parts_of_one_shard_are_joined_in_order(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.teachers.label.SHARDS", 1)
    label(scenes, tmp_path / "labels")
    assert len(list((tmp_path / "labels" / "labels").iterdir())) == 1
    store = open_labels(tmp_path / "labels")
    assert store.scene_ids() == open_store(scenes).scene_ids()
    for scene_id in store.scene_ids():
        said, features = given_by_the_teacher(scenes, scene_id)
        for one, other in zip(said, store.labels(scene_id), strict=True):
            assert_same(one, other)
        assert_same(features, store.scene_features(scene_id))


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_signal_alone_makes_only_its_files(signal: str, scenes: Path, tmp_path: Path) -> None:
    label(scenes, tmp_path / "labels", signals=(signal,))
    store = open_labels(tmp_path / "labels")
    assert store.settings["signals"] == list(dict.fromkeys(["answers", signal]))
    one = store.labels(store.scene_ids()[0])[0]
    there = {
        "topk_logits": one.topk_ids,
        "reference_logits": one.reference,
        "last_hidden": one.last_hidden,
        "attention": one.attention,
        "scene_features": store.scene_features(store.scene_ids()[0]),
    }
    assert [name for name, value in there.items() if value is not None] == (
        [signal] if signal != "answers" else []
    )
    kinds = {path.name for path in (tmp_path / "labels").iterdir() if path.is_dir()} - {"ledger"}
    more = {"answers": set(), "scene_features": {"scenes"}}.get(signal, {"tensors"})
    assert kinds == {"labels"} | more
    assert problems(tmp_path / "labels", scenes=[scenes]) == []


def test_kinds_of_numbers_are_as_narrow_as_is_stated(labels: Path) -> None:
    tensors = TensorFile(labels / "tensors" / "00000.safetensors")
    assert {name: tensors.kind(name) for name in tensors.names} == {
        "topk_ids": "U16",
        "topk_logits": "F16",
        "logsumexp": "F32",
        "reference_topk_ids": "U16",
        "reference_topk_logits": "F16",
        "reference_logsumexp": "F32",
        "last_hidden": "F16",
        "attention": "F16",
        "attention_mass": "F32",
    }
    scenes = TensorFile(labels / "scenes" / "00000.safetensors")
    kinds = {name.split("/")[1]: scenes.kind(name) for name in scenes.names}
    assert kinds == {"pooled": "F16", "semantics": "F32", "points": "F32", "patch_token": "I16"}


def test_what_does_not_fit_into_16_bits_is_refused() -> None:
    assert half(np.array([65504.0, np.inf]), "x").tolist() == [65504.0, np.inf]
    with pytest.raises(BadInputError, match="last_hidden holds 7e"):
        half(np.array([7e4]), "last_hidden")


def test_answers_rows_and_the_vocabulary_are_read_by_others(scenes: Path, labels: Path) -> None:
    store = open_labels(labels)
    questions = {q.question_id: q for q in open_store(scenes).questions()}
    rows = list(store.iter_rows())
    assert len(rows) == len(store) == len(questions)
    assert all(row["prompt"] == questions[row["question_id"]].prompt for row in rows)
    assert all(row["family"] == questions[row["question_id"]].family for row in rows)
    assert store.answers() == {row["question_id"]: row["answer"] for row in rows}
    assert store.vocabulary == load_tokenizer().vocabulary()
    # Any Parquet reader sees the same.
    table = pa.concat_tables(pq.read_table(f) for f in sorted((labels / "labels").iterdir()))
    assert table.to_pylist() == rows


def test_status_counts_what_is_there(labels: Path) -> None:
    found = status(labels)
    assert (found["rows"], found["scenes"], found["shards"], found["done"]) == (24, 6, 3, 1.0)
    sizes = {
        kind: sum(f.stat().st_size for f in (labels / kind).iterdir())
        for kind in ("labels", "tensors", "scenes")
    }
    assert found["bytes"] == sizes


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_560, "1.6 kB"), (2.7e8, "270 MB"), (5e15, "5000 TB")],
)
def test_sizes_are_shown_with_their_unit(size: int | float, shown: str) -> None:
    assert shown_bytes(size) == shown


# Faults. ----------------------------------------------------------------------------------------


def rewritten(labels: Path, shard: int, rows: list[dict]) -> None:
    """Replace a shard's rows and its hash: a writer's mistake rather than a disk's."""
    from stillroom.teachers.label_ledger import sha256

    path = labels / "labels" / f"{shard:05d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    ledger = labels / "ledger" / f"{shard:05d}.jsonl"
    line = json.loads(ledger.read_text())
    line["files"]["labels"] = sha256(path)
    ledger.write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize("kind", ["labels", "tensors", "scenes"])
@pytest.mark.parametrize("where", [12, -3])
def test_a_flipped_byte_is_found(kind: str, where: int, labels: Path) -> None:
    victim = next(iter(sorted((labels / kind).iterdir())))
    data = bytearray(victim.read_bytes())
    data[where] ^= 1
    victim.write_bytes(bytes(data))
    assert any(f"{victim} is not as it was written" in p for p in problems(labels))


@pytest.mark.parametrize("kind", ["labels", "tensors", "scenes", "ledger"])
def test_a_missing_file_is_found(kind: str, labels: Path) -> None:
    victim = sorted((labels / kind).iterdir())[1]
    victim.unlink()
    said = "1 of 3 shards are not finished (first: 1)" if kind == "ledger" else f"{victim} is miss"
    assert any(said in problem for problem in problems(labels))


def test_a_doubled_row_and_a_lost_row_are_found(labels: Path) -> None:
    path = labels / "labels" / "00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rewritten(labels, 1, [rows[0], *rows[1:7], rows[6]])
    found = problems(labels)
    assert any("1 rows stand more than once" in problem for problem in found)
    rewritten(labels, 1, rows[:-1])
    found = problems(labels)
    assert any("holds 7 rows, its ledger names 8" in problem for problem in found)
    assert any("does not point at the whole of" in problem for problem in found)
    with pytest.raises(BadInputError, match="does not hold the rows that its ledger names"):
        open_labels(labels).labels(rows[-1]["scene_id"])


def test_a_doubled_scene_is_found(labels: Path) -> None:
    for kind, end in (("labels", "parquet"), ("tensors", "safetensors"), ("scenes", "safetensors")):
        data = (labels / kind / f"00000.{end}").read_bytes()
        (labels / kind / f"00001.{end}").write_bytes(data)
    line = (labels / "ledger" / "00000.jsonl").read_text()
    (labels / "ledger" / "00001.jsonl").write_text(line.replace('"shard": 0', '"shard": 1'))
    assert sum("stands more than once" in problem for problem in problems(labels)) == 2


def test_rows_that_point_beside_their_tensors_are_found(labels: Path) -> None:
    rows = pq.read_table(labels / "labels" / "00000.parquet").to_pylist()
    rows[2]["start"] += 1
    rewritten(labels, 0, rows)
    found = problems(labels)
    assert any("(start, stop)" in problem for problem in found)
    assert any("more or fewer tokens" in problem for problem in found)


def test_a_changed_vocabulary_is_found(labels: Path) -> None:
    file = labels / "vocabulary.json"
    file.write_text(file.read_text().replace("<eos>", "<end>"))
    assert problems(labels) == [f"{file} is not as it was written"]
    file.unlink()
    assert "vocabulary not found" in problems(labels)[0]


@pytest.mark.parametrize("change", ["pixel", "depth", "pose", "question", "new", "gone"])
def test_a_scene_store_that_changed_since_is_found(
    change: str, labels: Path, tmp_path: Path
) -> None:
    made = [tiny_scene(seed) for seed in range(6)]
    asked = {scene.scene_id: tiny_questions(scene) for scene in made}
    first, view = made[0], made[0].views[0]
    if change == "pixel":
        rgb = view.rgb.copy()
        rgb[0, 0, 0] ^= 1
        made[0] = replace(first, views=(replace(view, rgb=rgb), *first.views[1:]))
    elif change == "depth":
        deeper = replace(view, depth=view.depth + np.float32(0.25))
        made[0] = replace(first, views=(deeper, *first.views[1:]))
    elif change == "pose":
        moved = view.c2w.copy()
        moved[0, 3] += 0.1
        made[0] = replace(first, views=(replace(view, c2w=moved), *first.views[1:]))
    elif change == "question":
        one, *others = asked[first.scene_id]
        asked[first.scene_id] = [replace(one, answer="blue chair"), *others]
    elif change == "new":
        made.append(tiny_scene(9))
        asked[made[-1].scene_id] = tiny_questions(made[-1])
    else:
        made = made[1:]
    write_shard(tmp_path / "now", 0, made, [q for s in made for q in asked[s.scene_id]])
    write_manifest(tmp_path / "now", {})
    said = {"new": "1 scenes of", "gone": "1 labelled scenes are no longer"}
    found = problems(labels, scenes=[tmp_path / "now"])
    assert len(found) == 1
    assert found[0].startswith(f"stale: {said.get(change, '1 scenes of')}")
    assert problems(labels, scenes=[tmp_path / "scenes"]) == []


def test_a_folder_that_is_no_label_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="label folder not found"):
        open_labels(tmp_path / "none")
    with pytest.raises(BadInputError, match="holds no labels store"):
        problems(tmp_path)


def test_the_same_labels_are_the_same_bytes(scenes: Path, labels: Path, tmp_path: Path) -> None:
    label(scenes, tmp_path / "again", vocabulary=load_tokenizer().vocabulary())
    for path in (p for p in labels.rglob("*") if p.is_file()):
        again = tmp_path / "again" / path.relative_to(labels)
        assert path.read_bytes() == again.read_bytes(), path
    assert len(list(labels.rglob("*"))) == len(list((tmp_path / "again").rglob("*")))


def test_rows_of_other_settings_are_found(labels: Path) -> None:
    manifest = labels / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "fixed"', '"name": "else"'))
    found = problems(labels)
    assert len(found) == 3
    assert "was labelled with other settings than" in found[0]
