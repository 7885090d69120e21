"""Label stores joined, and written for other trainers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stillroom.records import SIGNALS, BadInputError, Scene, TeacherLabel
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.students.processor import StillroomProcessor
from stillroom.teachers import label_export
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_check import problems
from stillroom.teachers.label_export import export
from stillroom.teachers.label_merge import alike, merge
from stillroom.teachers.label_store import open_labels
from stillroom.testing import FixedTeacher, tiny_questions, tiny_scene
from stillroom.text.tokenizer import load_tokenizer
from stillroom.text.vocabulary import Vocabulary

OWN = load_tokenizer().vocabulary()


def a_store(folder: Path, seeds: range, *, size: int = 28) -> Path:
    made: list[Scene] = [tiny_scene(seed, size=size) for seed in seeds]
    write_shard(folder, 0, made, [q for scene in made for q in tiny_questions(scene)])
    write_manifest(folder, {"seeds": list(seeds)})
    return folder


def label(scenes: Path, out: Path, **more: object) -> Path:
    given = {"teacher": {"name": "fixed"}, "signals": SIGNALS, "scenes_per_part": 3, **more}
    load = given.pop("load", FixedTeacher)
    label_scenes(scenes, load, out, **{"vocabulary": OWN, **given})
    return out


def flat(store_path: Path) -> dict[str, list[object]]:
    """All there is to know of every row, by question id."""
    store = open_labels(store_path)
    return {
        one.question_id: [
            one.answer,
            one.topk_logits.tolist(),
            one.reference.logits.tolist(),
            one.attention.tolist(),
            store.scene_features(scene_id).pooled.tolist(),
        ]
        for scene_id in store.scene_ids()
        for one in store.labels(scene_id)
    }


def test_stores_of_different_scenes_become_one(tmp_path: Path) -> None:
    first = a_store(tmp_path / "s1", range(0, 4))
    second = a_store(tmp_path / "s2", range(4, 9))
    one, two = label(first, tmp_path / "a"), label(second, tmp_path / "b")
    assert merge([one, two], tmp_path / "c") == 36
    assert flat(tmp_path / "c") == flat(one) | flat(two)
    assert problems(tmp_path / "c", scenes=[first, second]) == []
    assert problems(tmp_path / "c", scenes=[first])  # five scenes are of nowhere now
    assert open_labels(tmp_path / "c").vocabulary == OWN
    # Again is the same.
    assert merge([one, two], tmp_path / "c") == 36
    assert problems(tmp_path / "c", scenes=[first, second]) == []


def test_scenes_in_both_with_equal_labels_are_taken_once(tmp_path: Path) -> None:
    one = label(a_store(tmp_path / "s1", range(0, 5)), tmp_path / "a")
    two = label(a_store(tmp_path / "s2", range(4, 9)), tmp_path / "b")
    assert merge([one, two], tmp_path / "c") == 36
    assert flat(tmp_path / "c") == flat(one) | flat(two)
    whole = a_store(tmp_path / "whole", range(0, 9))
    assert problems(tmp_path / "c", scenes=[whole]) == []
    assert sorted(open_labels(tmp_path / "c").scene_ids()) == sorted(open_store(whole).scene_ids())


class Rounded(FixedTeacher):
    """Rounds otherwise: the smallest logit of every position is a step off."""

    def _label(self, *given: object) -> object:
        made = super()._label(*given)
        step = np.spacing(made.topk_logits.max(axis=1).astype(np.float16))
        made.topk_logits[:, -1] -= step
        return made


def test_labels_that_differ_by_rounding_are_equal(tmp_path: Path) -> None:
    one = label(a_store(tmp_path / "s1", range(0, 3)), tmp_path / "a")
    two = label(a_store(tmp_path / "s2", range(2, 5)), tmp_path / "b", load=Rounded)
    assert merge([one, two], tmp_path / "c") == 20


def test_logits_a_step_apart_may_swap_and_no_more() -> None:
    def said(*pairs: tuple[int, float]) -> TeacherLabel:
        ids, logits = zip(*pairs)
        return TeacherLabel(
            scene_id="s",
            question_id="q",
            answer="no",
            answer_ids=np.array([7]),
            topk_ids=np.array([ids]),
            topk_logits=np.array([logits], np.float16),
            logsumexp=np.array([20.0], np.float32),
        )

    step = float(np.spacing(np.float16(16.0)))
    base = said((7, 16.0), (3, 12.0), (5, 10.0))
    assert alike(base, base)
    assert alike(base, said((7, 16.0), (3, 12.0 - step), (5, 10.0)))
    assert alike(base, said((7, 16.0), (3, 12.0), (9, 10.0 + step)))
    assert not alike(base, said((7, 16.0), (3, 12.0 - 2 * step), (5, 10.0)))
    assert not alike(base, said((7, 16.0), (5, 12.0), (3, 10.0)))
    assert not alike(base, replace(base, answer_ids=np.array([8])))


class Other(FixedTeacher):
    """Gives other logits under the same name."""

    def _label(self, *given: object) -> object:
        made = super()._label(*given)
        made.topk_logits[0, 0] += 1
        return made


def test_scenes_in_both_with_other_labels_are_refused(tmp_path: Path) -> None:
    one = label(a_store(tmp_path / "s1", range(0, 3)), tmp_path / "a")
    two = label(a_store(tmp_path / "s2", range(2, 5)), tmp_path / "b", load=Other)
    with pytest.raises(BadInputError, match="has other labels in"):
        merge([one, two], tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"teacher": {"name": "else"}}, "teacher"),
        ({"signals": ("answers", "topk_logits")}, "signals"),
        ({"vocabulary": None}, "vocabulary"),
    ],
)
def test_stores_labelled_otherwise_are_refused(
    more: dict[str, object], named: str, tmp_path: Path
) -> None:
    one = label(a_store(tmp_path / "s1", range(0, 2)), tmp_path / "a")
    two = label(a_store(tmp_path / "s2", range(2, 4)), tmp_path / "b", **more)
    with pytest.raises(BadInputError, match=f"not labelled alike: they differ in .*{named}"):
        merge([one, two], tmp_path / "c")


def test_a_damaged_or_a_single_store_is_not_merged(tmp_path: Path) -> None:
    one = label(a_store(tmp_path / "s1", range(0, 2)), tmp_path / "a")
    two = label(a_store(tmp_path / "s2", range(2, 4)), tmp_path / "b")
    with pytest.raises(BadInputError, match="two label stores or more"):
        merge([one], tmp_path / "c")
    tensors = two / "tensors" / "00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BadInputError, match="missing or not as it was written"):
        merge([one, two], tmp_path / "c")


# Export. ----------------------------------------------------------------------------------------


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return label(a_store(tmp_path / "scenes", range(0, 3)), tmp_path / "labels")


def test_exported_targets_are_normalised_and_stand_at_the_answers_tokens(
    labels: Path, tmp_path: Path
) -> None:
    assert export(labels, tmp_path / "out") == 12
    rows = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    store = open_labels(labels)
    said = {one.question_id: one for s in store.scene_ids() for one in store.labels(s)}
    for row in rows:
        one = said[row["question_id"]]
        assert row["completion_ids"] == one.answer_ids.tolist()
        assert row["messages"] == [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": one.answer},
        ]
        np.testing.assert_array_equal(row["target_token_ids"], one.topk_ids)
        expected = one.topk_logits.astype(np.float32) - one.logsumexp[:, None]
        np.testing.assert_allclose(row["target_logprobs"], expected, atol=1e-6)
        # The rest of the vocabulary has what these leave of 1.
        assert (np.exp(row["target_logprobs"]).sum(axis=1) < 1.002).all()
        np.testing.assert_array_equal(row["target_mask"], np.ones_like(one.topk_ids))
        # The fixed teacher's likeliest token is the one it said.
        assert [ids[0] for ids in row["target_token_ids"]] == row["completion_ids"]


def test_an_export_is_cut_into_files_and_no_row_is_lost(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_export, "ROWS_PER_FILE", 5)
    monkeypatch.setattr(label_export, "ROWS_PER_GROUP", 2)
    assert export(labels, tmp_path / "out") == 12
    tables = [pq.read_table(file) for file in sorted((tmp_path / "out").iterdir())]
    assert [len(table) for table in tables] == [5, 5, 2]
    ids = [row["question_id"] for table in tables for row in table.to_pylist()]
    assert ids == [row["question_id"] for row in open_labels(labels).iter_rows()]


def test_an_export_that_a_full_disk_ended_is_repeated_as_told(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_export, "ROWS_PER_FILE", 5)
    monkeypatch.setattr(label_export, "ROWS_PER_GROUP", 5)
    real, written = pq.ParquetWriter.write_table, []

    def full(self: pq.ParquetWriter, table: object) -> None:
        written.append(table)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(self, table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(BadInputError, match=r"cannot export to .* \(No space left on device\)"):
        export(labels, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels", "scenes"]
    assert export(labels, tmp_path / "out") == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels", "out", "scenes"]


def a_student(folder: Path) -> Path:
    StillroomProcessor(image_size=28, max_views=2).save_pretrained(folder)
    return folder


def test_with_a_student_rows_are_tokenised_and_the_prompt_is_masked(
    labels: Path, tmp_path: Path
) -> None:
    export(labels, tmp_path / "out", student=a_student(tmp_path / "student"))
    for row in pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist():
        before = load_tokenizer().encode(row["prompt"])
        length = len(before) + len(row["completion_ids"])
        assert row["input_ids"] == before + row["completion_ids"]
        assert row["labels"] == [-100] * len(before) + row["completion_ids"]
        assert row["attention_mask"] == [1] * length
        for name in ("target_logprobs", "target_token_ids", "target_mask"):
            assert len(row[name]) == length, name
        assert [sum(mask) for mask in row["target_mask"]] == [0] * len(before) + [4] * (
            length - len(before)
        )
        assert all(ids[0] == own for ids, own in _scored(row))


def _scored(row: dict) -> list[tuple[list[int], int]]:
    pairs = zip(row["target_token_ids"], row["labels"], strict=True)
    return [(ids, own) for ids, own in pairs if own != -100]


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (Vocabulary(tokens=(*OWN.tokens, "more"), rows=1025), "are subset"),
        (Vocabulary(tokens=(*OWN.tokens[:-1], "other"), rows=1024), "are different"),
        (None, "does not say what its teacher's ids mean"),
    ],
)
def test_a_student_of_another_vocabulary_gets_no_export(
    vocabulary: Vocabulary | None, reason: str, tmp_path: Path
) -> None:
    scenes = a_store(tmp_path / "scenes", range(0, 1))
    labels = label(scenes, tmp_path / "labels", vocabulary=vocabulary)
    with pytest.raises(BadInputError, match=reason):
        export(labels, tmp_path / "out", student=a_student(tmp_path / "student"))
    assert not (tmp_path / "out").exists()


def test_a_store_without_logits_or_a_full_folder_is_refused(labels: Path, tmp_path: Path) -> None:
    bare = label(tmp_path / "scenes", tmp_path / "bare", signals=("answers",))
    with pytest.raises(BadInputError, match="holds no topk_logits to export"):
        export(bare, tmp_path / "out")
    for taken in (tmp_path / "scenes", tmp_path / "scenes" / "manifest.json"):
        with pytest.raises(BadInputError, match="is no empty folder"):
            export(labels, taken)
