"""Labelling: whole, resumable, shared among workers, and the same rows whoever does it."""

import functools
import json
import multiprocessing
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.records import SIGNALS, BadInputError, Question, Scene, Signal, TeacherLabel
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.teachers import label, label_ledger
from stillroom.teachers.label import label_scenes, layout_for
from stillroom.teachers.label_check import problems, status
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.truth import TruthTeacher
from stillroom.testing import FixedTeacher, tiny_store
from stillroom.text.tokenizer import load_tokenizer

LOGITS = ("answers", "topk_logits")


def run(scenes: Path, out: Path, **more: object) -> int:
    given = {"teacher": {"name": "fixed"}, "signals": LOGITS, "scenes_per_part": 2, **more}
    teacher = given.pop("load_teacher", FixedTeacher)
    return label_scenes(scenes, teacher, out, **given)


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


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): data for file, data in files_of(folder).items()}


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return tiny_store(tmp_path / "scenes", scenes=5)


def test_every_question_of_every_scene_gets_one_row(scenes: Path, tmp_path: Path) -> None:
    assert run(scenes, tmp_path / "labels") == 5
    asked = {question.question_id for question in open_store(scenes).questions()}
    assert set(everything(tmp_path / "labels")) == asked
    assert problems(tmp_path / "labels", scenes=[scenes]) == []
    # Three shards of a part each, and nothing of the way there.
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == [
        "labels",
        "ledger",
        "manifest.json",
        "tensors",
    ]


def test_shards_are_many_in_a_small_store_and_never_large() -> None:
    assert [layout_for(n).scenes_per_shard for n in (1, 20, 500, 10_000, 10**6)] == [
        5,
        5,
        15,
        200,
        200,
    ]
    assert layout_for(10**6).shards(10**6) == 5_000


def test_a_finished_store_is_not_labelled_again(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    before = files_of(tmp_path / "labels")
    assert run(scenes, tmp_path / "labels") == 0
    assert before == files_of(tmp_path / "labels")


def test_two_processes_write_the_same_bytes_as_one(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "one", signals=SIGNALS)
    run(scenes, tmp_path / "two", signals=SIGNALS, workers=2)
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


def test_two_commands_on_one_store_share_the_work(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "calm")
    slow = functools.partial(FixedTeacher, pause_s=0.05)
    started = []
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        process = context.Process(
            target=functools.partial(
                label_scenes,
                scenes,
                slow,
                tmp_path / "shared",
                teacher={"name": "fixed"},
                signals=LOGITS,
                scenes_per_part=1,
            )
        )
        process.start()
        started.append(process)
    for process in started:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert problems(tmp_path / "shared", scenes=[scenes]) == []
    assert everything(tmp_path / "shared") == everything(tmp_path / "calm")


def test_another_teacher_is_refused_and_nothing_is_touched(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    before = files_of(tmp_path / "labels")
    with pytest.raises(BadInputError, match="other settings"):
        run(scenes, tmp_path / "labels", teacher={"name": "else"})
    with pytest.raises(BadInputError, match="other settings"):
        run(scenes, tmp_path / "labels", signals=("answers",))
    assert before == files_of(tmp_path / "labels")


def loading(scenes: Path, out: Path, name: str, meanwhile: Callable[[], None]) -> None:
    """Label; ``meanwhile`` is called while the teacher is loaded, before anything is labelled."""

    def load() -> FixedTeacher:
        meanwhile()
        return FixedTeacher()

    run(scenes, out, teacher={"name": name}, load_teacher=load)


def test_while_a_teacher_is_loaded_other_settings_are_refused(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"

    def second() -> None:
        with pytest.raises(BadInputError, match="being labelled with other settings"):
            run(scenes, out, teacher={"name": "second"})

    loading(scenes, out, "first", second)
    assert status(out)["teacher"] == {"name": "first"}
    assert problems(out, scenes=[scenes]) == []


def test_who_loses_the_manifest_before_the_first_lease_writes_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "labels", label.work

    def overtaken(job: label.Job, report: Callable[[], None]) -> None:
        monkeypatch.undo()
        run(scenes, out, teacher={"name": "second"}, vocabulary=load_tokenizer().vocabulary())
        real(job, report)

    monkeypatch.setattr("stillroom.teachers.label_run.work", overtaken)
    # Finished by the second: the first finds every shard whole, or other settings.
    with pytest.raises(BadInputError, match="made with other settings"):
        run(scenes, out, teacher={"name": "first"})
    assert status(out)["teacher"] == {"name": "second"}
    assert problems(out, scenes=[scenes]) == []


def test_two_commands_of_other_settings_at_once_leave_one_store(
    scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    words = [sys.executable, "-c", TWO, str(scenes), str(out)]
    started = [
        subprocess.Popen([*words, name], stderr=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    codes = sorted(process.returncode for process in started)
    assert codes == [0, 1, 1], said
    assert all("other settings" in text for text in said if text), said
    winner = ("one", "two", "three")[[process.returncode for process in started].index(0)]
    assert status(out)["teacher"] == {"name": winner}
    assert problems(out, scenes=[scenes]) == []


def changed(scenes: Path, into: Path, what: str) -> Path:
    """The store with the same ids, and other pixels in its last scene or another prompt there."""
    store = open_store(scenes)
    made = [store.scene(scene_id) for scene_id in store.scene_ids()]
    asked = {scene.scene_id: store.questions(scene.scene_id) for scene in made}
    last = made[-1]
    if what == "pixels":
        view = replace(last.views[0], rgb=255 - last.views[0].rgb)
        made[-1] = replace(last, views=(view, *last.views[1:]))
    else:
        one, *others = asked[last.scene_id]
        asked[last.scene_id] = [replace(one, question="How so?"), *others]
    write_shard(into, 0, made, [q for scene in made for q in asked[scene.scene_id]])
    write_manifest(into, {})
    return into


@pytest.mark.parametrize("what", ["pixels", "prompt"])
def test_other_content_under_the_same_ids_is_not_finished_already(
    what: str, scenes: Path, tmp_path: Path
) -> None:
    run(scenes, tmp_path / "labels")
    before = files_of(tmp_path / "labels")
    now = changed(scenes, tmp_path / "now", what)
    said = "has changed since it was labelled" if what == "pixels" else "other settings"
    with pytest.raises(BadInputError, match=said):
        run(now, tmp_path / "labels")
    assert before == files_of(tmp_path / "labels")


def test_a_shard_is_not_gone_on_with_when_its_scenes_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_large_shard(monkeypatch)
    scenes = tiny_store(tmp_path / "scenes", scenes=4)
    run(scenes, tmp_path / "calm")
    stopped_after(scenes, tmp_path / "labels", 1)
    store = open_store(scenes)
    made = [store.scene(scene_id) for scene_id in store.scene_ids()]
    made[0] = replace(made[0], views=made[0].views[::-1])
    write_shard(tmp_path / "now", 0, made, store.questions())
    write_manifest(tmp_path / "now", {})
    with pytest.raises(BadInputError, match="has changed since it was labelled"):
        run(tmp_path / "now", tmp_path / "labels")
    run(scenes, tmp_path / "labels")
    assert everything(tmp_path / "labels") == everything(tmp_path / "calm")


def test_a_folder_of_something_else_is_refused(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "thesis.txt").write_text("precious")
    with pytest.raises(BadInputError, match="holds no label store"):
        run(scenes, tmp_path / "labels")
    assert (tmp_path / "labels" / "thesis.txt").read_text() == "precious"


def test_a_store_of_an_older_version_is_refused(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    manifest = tmp_path / "labels" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 3', '"version": 2'))
    for use in (lambda: run(scenes, tmp_path / "labels"), lambda: open_labels(manifest.parent)):
        with pytest.raises(BadInputError, match="has version 2, this stillroom reads 3"):
            use()


def test_truth_answers_and_has_no_logits(scenes: Path, tmp_path: Path) -> None:
    truth = {"load_teacher": TruthTeacher, "teacher": {"name": "truth"}}
    with pytest.raises(BadInputError, match="answers alone, no topk_logits"):
        run(scenes, tmp_path / "truth", **truth)
    # What was refused left nothing behind: the right command takes the same folder.
    run(scenes, tmp_path / "truth", **truth, signals=("answers",))
    asked = {q.question_id: q.answer for q in open_store(scenes).questions()}
    assert open_labels(tmp_path / "truth").answers() == asked


class AnswersOnly:
    """A teacher that says nothing but answers, whatever it is asked for."""

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        return [
            TeacherLabel(
                scene_id=scene.scene_id,
                question_id=q.question_id,
                answer="no",
                answer_ids=np.array([300, 2]),
            )
            for q in questions
        ]


@pytest.mark.parametrize(
    "signal", ["topk_logits", "reference_logits", "last_hidden", "attention", "scene_features"]
)
def test_a_teacher_that_leaves_a_signal_out_is_refused(
    signal: Signal, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=f"the teacher fixed gives no {signal}; leave it out"):
        run(scenes, tmp_path / "labels", load_teacher=AnswersOnly, signals=(signal,))


def test_rows_say_whether_geometry_was_given_or_predicted(tmp_path: Path) -> None:
    from stillroom.testing import tiny_questions, tiny_scene

    given, guessed = tiny_scene(0), replace(tiny_scene(1), source="photos+predicted")
    asked = [*tiny_questions(given), *tiny_questions(guessed)]
    write_shard(tmp_path / "scenes", 0, [given, guessed], asked)
    write_manifest(tmp_path / "scenes", {})
    run(tmp_path / "scenes", tmp_path / "labels")
    store = open_labels(tmp_path / "labels")
    assert {row["geometry"] for row in store.rows(given.scene_id)} == {"given"}
    assert {row["geometry"] for row in store.rows(guessed.scene_id)} == {"predicted"}


def test_a_bad_out_is_one_sentence(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("precious")
    for out in (tmp_path / "afile", tmp_path / "afile" / "within", Path("/proc/nope")):
        with pytest.raises(BadInputError, match=f"cannot write to {out}"):
            run(scenes, out)


class Unreadable(FixedTeacher):
    """Meets a disk that fails while a scene is read."""

    def label(self, *given: object) -> list[TeacherLabel]:
        raise OSError(5, "Input/output error", "scenes/00000.parquet")


def test_an_error_in_reading_is_not_blamed_on_out(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"scenes/00000\.parquet"):
        run(scenes, tmp_path / "labels", load_teacher=Unreadable)


# A disk that is full. ---------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenes, tmp_path / "calm")
    whole = everything(tmp_path / "calm")
    real, writes = label_ledger.write_atomically, []

    def full(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == 7:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(label_ledger, "write_atomically", full)
    with pytest.raises(BadInputError, match=r"cannot write to .* \(No space left on device\)"):
        run(scenes, tmp_path / "labels")
    monkeypatch.undo()
    kept = status(tmp_path / "labels")["scenes"]
    assert 0 < kept < 5
    assert run(scenes, tmp_path / "labels") == 5 - kept
    assert everything(tmp_path / "labels") == whole
    assert problems(tmp_path / "labels") == []


QUOTA = """
import resource, sys
from pathlib import Path
from stillroom.records import BadInputError
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    label_scenes(Path(sys.argv[1]), FixedTeacher, Path(sys.argv[2]), teacher={"name": "fixed"},
                 signals=("answers", "topk_logits"), scenes_per_part=2)
except BadInputError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_quota_stops_the_real_command_and_leaves_no_torn_file(
    scenes: Path, tmp_path: Path
) -> None:
    assert resource.RLIMIT_FSIZE  # the system that is tested knows quotas
    words = [sys.executable, "-c", QUOTA, str(scenes), str(tmp_path / "labels")]
    stopped = subprocess.run([*words, "1500"], capture_output=True, text=True)
    assert stopped.stderr.startswith("refused: cannot write to"), stopped.stderr
    assert "File too large" in stopped.stderr
    left = [p.name for p in (tmp_path / "labels").rglob("*") if p.name.startswith(".")]
    assert left == []
    subprocess.run([*words, "1000000"], check=True)
    assert problems(tmp_path / "labels", scenes=[scenes]) == []
    run(scenes, tmp_path / "calm")
    assert everything(tmp_path / "labels") == everything(tmp_path / "calm")


TWO = """
import functools, sys
from pathlib import Path
from stillroom.records import BadInputError
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher

try:
    label_scenes(Path(sys.argv[1]), functools.partial(FixedTeacher, pause_s=0.3),
                 Path(sys.argv[2]), teacher={"name": sys.argv[3]},
                 signals=("answers", "topk_logits"), scenes_per_part=2)
except BadInputError as error:
    sys.exit(f"refused: {error}")
"""


# Parts and torn ledgers. ------------------------------------------------------------------------


def stopped_after(scenes: Path, out: Path, parts: int, **more: object) -> None:
    """Label until so many parts are durable, then stop as an exception would."""

    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done >= 2 * parts:
            raise Stop

    with pytest.raises(Stop):
        run(scenes, out, progress=progress, **more)


def one_large_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.teachers.label.SHARDS", 1)


def test_parts_are_gone_on_with_and_the_teacher_is_asked_only_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_large_shard(monkeypatch)
    scenes = tiny_store(tmp_path / "scenes", scenes=8)
    run(scenes, tmp_path / "calm", signals=SIGNALS)
    stopped_after(scenes, tmp_path / "labels", 2, signals=SIGNALS)
    assert len(list((tmp_path / "labels" / "parts" / "00000").iterdir())) == 6
    assert status(tmp_path / "labels")["scenes"] == 4
    assert any("1 of 1 shards are not finished" in p for p in problems(tmp_path / "labels"))
    teacher = FixedTeacher()
    assert run(scenes, tmp_path / "labels", load_teacher=lambda: teacher, signals=SIGNALS) == 4
    assert teacher.scenes_labelled == 4
    assert problems(tmp_path / "labels", scenes=[scenes]) == []
    assert contents_of(tmp_path / "calm") == contents_of(tmp_path / "labels")
    assert not (tmp_path / "labels" / "parts").exists()


@pytest.mark.parametrize("damage", ["torn line", "flipped byte", "missing file", "stray file"])
def test_a_damaged_part_is_done_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_large_shard(monkeypatch)
    scenes = tiny_store(tmp_path / "scenes", scenes=6)
    run(scenes, tmp_path / "calm")
    stopped_after(scenes, tmp_path / "labels", 2)
    ledger = tmp_path / "labels" / "ledger" / "00000.jsonl"
    file = tmp_path / "labels" / "parts" / "00000" / "00001.tensors.safetensors"
    if damage == "torn line":
        ledger.write_text(ledger.read_text()[:-30])
    elif damage == "flipped byte":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    elif damage == "missing file":
        file.unlink()
    else:
        (file.parent / ".00002.labels.parquet.999").write_bytes(b"half")
    teacher = FixedTeacher()
    run(scenes, tmp_path / "labels", load_teacher=lambda: teacher)
    assert teacher.scenes_labelled == (2 if damage == "stray file" else 4)
    assert files_of(tmp_path / "calm").keys() == {
        tmp_path / "calm" / p.relative_to(tmp_path / "labels")
        for p in files_of(tmp_path / "labels")
    }
    assert everything(tmp_path / "labels") == everything(tmp_path / "calm")


def test_a_broken_shard_that_is_deleted_is_made_again(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "labels")
    before = files_of(tmp_path / "labels")
    (tmp_path / "labels" / "tensors" / "00001.safetensors").unlink()
    assert run(scenes, tmp_path / "labels") == 2
    assert files_of(tmp_path / "labels") == before


# Workers that fail. -----------------------------------------------------------------------------


class Refusing(FixedTeacher):
    """Refuses its third scene."""

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        if self.scenes_labelled == 2:
            raise BadInputError("the third scene has no depth")
        return super().label(scene, questions, signals)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_teacher_refuses_is_one_sentence_whoever_asks(workers: int, tmp_path: Path) -> None:
    scenes = tiny_store(tmp_path / "scenes", scenes=12)
    with pytest.raises(BadInputError, match="the third scene has no depth"):
        run(scenes, tmp_path / "labels", load_teacher=Refusing, workers=workers, scenes_per_part=1)
    assert run(scenes, tmp_path / "labels", scenes_per_part=1) > 0
    assert problems(tmp_path / "labels", scenes=[scenes]) == []


class Dying(FixedTeacher):
    """A teacher that runs out of memory: its process is killed with the first scene."""

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_workers_that_are_all_killed_are_reported(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="all 2 workers were killed"):
        run(scenes, tmp_path / "labels", load_teacher=Dying, workers=2)


def test_zero_workers_are_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--workers must be at least 1"):
        run(scenes, tmp_path / "labels", workers=0)
    assert not (tmp_path / "labels").exists()


def test_status_names_who_is_at_work_and_who_died_is_not_named(
    scenes: Path, tmp_path: Path
) -> None:
    from stillroom.teachers.leases import lease

    run(scenes, tmp_path / "labels")
    assert status(tmp_path / "labels")["running"] == []
    with lease(tmp_path / "labels" / "leases" / "00001.lock") as mine:
        assert mine
        assert len(status(tmp_path / "labels")["running"]) == 1
        with lease(tmp_path / "labels" / "leases" / "00001.lock") as again:
            assert not again
    # A lock file that a killed process left behind belongs to nobody.
    lock = tmp_path / "labels" / "leases" / "00002.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": 0.0}))
    assert status(tmp_path / "labels")["running"] == []
    with lease(lock) as mine:
        assert mine


def test_a_lease_goes_from_hand_to_hand_and_is_never_in_two(tmp_path: Path) -> None:
    from stillroom.teachers.leases import lease

    inside, most, taken = [0], [0], [0]
    guard = threading.Lock()

    def compete() -> None:
        for _ in range(200):
            with lease(tmp_path / "one.lock") as mine:
                if mine:
                    with guard:
                        inside[0] += 1
                        taken[0] += 1
                        most[0] = max(most[0], inside[0])
                    with guard:
                        inside[0] -= 1

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert taken[0] > 1
