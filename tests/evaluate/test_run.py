import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_worlds import Seer, SeerSession, write_tiny_store

from stillroom.evaluate.baselines import RecordedAnswers, Shuffled, baseline
from stillroom.evaluate.box_metrics import Detection, average_precision, mean_ap
from stillroom.evaluate.box_precision import moved
from stillroom.evaluate.items import ItemStore
from stillroom.evaluate.report import write_report
from stillroom.evaluate.run import PLAIN_PROMPT, SCENES_PER_CHUNK, evaluate, shown_scenes
from stillroom.evaluate.tasks import SCORERS
from stillroom.geometry.poses import view0_from_world
from stillroom.records import FAMILIES, Answer, BadInputError, SceneGeometry
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.testing import tiny_questions, tiny_scene, tiny_store


def rows_of(store, split="test"):
    """The rows of a distillation's table, all made of tiny parts."""
    teacher, student = Seer(store, errs=0.1), Seer(store, errs=0.4, seed=1)
    return {
        "truth": baseline("truth", store, split=split),
        "teacher": lambda: teacher,
        "student": student,
        "majority": baseline("majority", store, split=split),
        "shuffled": Shuffled(student, store, split=split),
        "blind": baseline("blind", store, split=split),
    }


def run(store, out, rows=None, **more):
    settings = {
        "split": "test",
        "teacher_row": "teacher",
        "student_row": "student",
        "meta": {"commit": "c", "command": "x", "machine": "m", "parameters": {"student": 5}},
    } | more
    return evaluate(rows or rows_of(store), store, out=out, **settings)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, run(store, out)


def test_results_have_the_promised_form(finished, store):
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results) == {"rows", "meta"}
    assert list(results["rows"]) == [
        "truth", "teacher", "student", "majority", "shuffled", "blind"
    ]  # fmt: skip
    for row in results["rows"].values():
        assert set(row) >= {"overall", *FAMILIES, "description", "object_counting"}
        for name in ("overall", *FAMILIES):
            assert set(row[name]) == {"score", "low", "high", "n"}
            assert 0 <= row[name]["low"] <= row[name]["score"] <= row[name]["high"] <= 1
        assert {"metrics", "retention"} <= set(row)
    meta = results["meta"]
    assert meta["parameters"] == {"student": 5}
    assert {"commit", "command", "seeds", "machine", "seconds"} <= set(meta)


def test_overall_is_the_mean_over_the_items_of_the_four_families(finished, store):
    _, results = finished
    for row in results["rows"].values():
        count = sum(row[name]["n"] for name in FAMILIES)
        hits = sum(row[name]["n"] * row[name]["score"] for name in FAMILIES)
        assert row["overall"]["n"] == count == 12 * 12
        assert row["overall"]["score"] == pytest.approx(hits / count)


def test_the_rows_come_out_as_they_were_made(finished):
    _, results = finished
    score = {name: row["overall"]["score"] for name, row in results["rows"].items()}
    assert score["truth"] == 1.0
    # 10 % and 40 % errors, half of which guess right.
    assert score["teacher"] == pytest.approx(0.95, abs=0.06)
    assert score["student"] == pytest.approx(0.80, abs=0.1)
    for name in ("majority", "blind", "shuffled"):
        assert score[name] == pytest.approx(0.5, abs=0.15)


def test_retention_is_student_over_teacher_and_above_blind_uses_the_blind_row(finished):
    _, results = finished
    rows = results["rows"]
    kept = rows["student"]["retention"]
    assert set(kept) >= {"overall", *FAMILIES}
    for name in ("overall", *FAMILIES):
        student, teacher, blind = (rows[r][name]["score"] for r in ("student", "teacher", "blind"))
        assert kept[name]["score"] == pytest.approx(student / teacher)
        assert kept[name]["low"] <= kept[name]["score"] <= kept[name]["high"]
        assert kept[name]["above_blind"] == pytest.approx((student - blind) / (teacher - blind))
    assert rows["truth"]["retention"] == rows["teacher"]["retention"] == {}


def test_above_blind_is_above_the_stronger_blind_row_and_has_an_interval(store, tmp_path):
    rows = {
        "teacher": Seer(store, errs=0.02),
        "student": Seer(store, errs=0.2, seed=1),
        "blind": Seer(store, errs=0.9, seed=2),
        "blind_student": Seer(store, errs=0.6, seed=3),
    }
    found = run(store, tmp_path / "out", rows)["rows"]
    kept = found["student"]["retention"]["overall"]
    score = {row: found[row]["overall"]["score"] for row in rows}
    assert score["blind_student"] > score["blind"]
    assert kept["blind"] == "blind_student"
    above = score["teacher"] - score["blind_student"]
    assert kept["above_blind"] == pytest.approx((score["student"] - score["blind_student"]) / above)
    assert kept["above_blind_low"] < kept["above_blind"] < kept["above_blind_high"]
    # A teacher that may well be no better than blind: its share has no bounds.
    rows["teacher"] = Seer(store, errs=0.58, seed=4)
    other = run(store, tmp_path / "other", rows)["rows"]
    unsure = other["student"]["retention"]["overall"]
    assert unsure["above_blind_low"] is None


class BoxSeer:
    """Finds the things of a scene, but in some scenes the first one's box is far off."""

    def open(self, scene):
        return BoxSession(scene)


class BoxSession:
    def __init__(self, scene):
        self.scene = scene

    def answer(self, questions):
        return [Answer(question_id=q.question_id, text="yes") for q in questions]

    def geometry(self):
        turn = view0_from_world(self.scene.views[0].c2w, self.scene.floor_z)
        boxes = [(thing.category, moved(thing.box, turn)) for thing in self.scene.objects]
        if sum(self.scene.scene_id.encode()) % 3 == 0:
            far = replace(boxes[0][1], center=boxes[0][1].center + 50.0)
            boxes = [(boxes[0][0], far), *boxes[1:]]
        scores = tuple(0.9 - 0.01 * n for n in range(len(boxes)))
        return SceneGeometry(boxes=tuple(boxes), box_scores=scores)


def test_boxes_with_scores_get_average_precision_with_an_interval(tmp_path):
    store = open_store(tiny_store(tmp_path / "scenes", scenes=8))
    rows = {"teacher": baseline("truth", store, split="test"), "student": BoxSeer()}
    found = run(store, tmp_path / "out", rows)["rows"]
    assert "boxes" not in found["teacher"]["metrics"]
    boxes = found["student"]["metrics"]["boxes"]
    assert list(boxes) == ["0.25", "0.5"]
    scenes = [store.scene(scene_id) for scene_id in store.scene_ids("test")]
    truth, said = {}, {}
    for scene in scenes:
        turn = view0_from_world(scene.views[0].c2w, scene.floor_z)
        truth[scene.scene_id] = [(t.category, moved(t.box, turn)) for t in scene.objects]
        told = BoxSession(scene).geometry()
        said[scene.scene_id] = [
            Detection(label=kind, box=box, score=score)
            for (kind, box), score in zip(told.boxes, told.box_scores, strict=True)
        ]
    for threshold in (0.25, 0.5):
        classes = average_precision(truth, said, threshold=threshold)
        one = boxes[f"{threshold:g}"]
        assert one["map"] == pytest.approx(mean_ap(classes))
        assert 0 < one["map"] < 1
        assert {k: v["ap"] for k, v in one["classes"].items()} == pytest.approx(
            {k: v.ap for k, v in classes.items()}
        )
        assert one["low"] <= one["map"] <= one["high"]
        assert one["n"] == sum(len(scene.objects) for scene in scenes)


def test_scores_say_by_which_rule_and_wording_and_other_rules_are_refused(finished, store):
    out, results = finished
    rules = results["rows"]["student"]["metrics"]["scored_by"]
    assert rules["description"] == {"scorer": "rouge1-best-rendering/1", "prompt": PLAIN_PROMPT}
    assert rules["size"]["scorer"] == "option/1"
    newer = [*SCORERS.values(), "option/2"]
    with pytest.raises(BadInputError, match=r"other settings \(scorers"):
        run(store, out, scorer_ids=newer)


def test_an_answer_that_changed_in_the_store_is_not_gone_on_with(tmp_path):
    def written(answer):
        folder = tmp_path / f"scenes_{answer}"
        write_manifest(folder, {"count": 2})
        scenes = [tiny_scene(n, split="test") for n in range(2)]
        asked = [q for scene in scenes for q in tiny_questions(scene)]
        changed = replace(asked[0], answer=answer, options=(answer, "other"))
        write_shard(folder, 0, scenes, [changed, *asked[1:]])
        return open_store(folder)

    one, other = written("yes"), written("no")
    rows = {"truth": baseline("truth", one, split="test")}
    how = {"rows": rows, "teacher_row": None, "student_row": "truth"}
    run(one, tmp_path / "out", **how)
    with pytest.raises(BadInputError, match=r"other settings \(questions"):
        run(other, tmp_path / "out", **how)


def test_what_the_teacher_says_counts_as_truth_in_a_column_beside_it(finished):
    out, results = finished
    rows = results["rows"]
    relative = rows["student"]["metrics"]["teacher_relative"]
    assert set(relative) >= {"overall", *FAMILIES, "description", "object_counting"}
    lines = pq.read_table(out / "items.parquet").to_pylist()
    said = {
        row: {
            line["question_id"]: line["parsed"]
            for line in lines
            if line["model"] == row and line["family"] in FAMILIES
        }
        for row in ("teacher", "student")
    }
    same = [said["student"][key] == taught for key, taught in said["teacher"].items()]
    assert relative["overall"]["score"] == pytest.approx(np.mean(same))
    assert relative["overall"]["n"] == len(same)
    assert relative["overall"]["low"] <= relative["overall"]["score"] <= relative["overall"]["high"]
    # The truth agrees with the teacher exactly where the teacher is right.
    assert "teacher_relative" not in rows["teacher"]["metrics"]
    assert "teacher_relative" not in rows["truth"]["metrics"]


def test_an_item_says_what_was_asked_and_what_was_looked_at(finished, store):
    out, _ = finished
    lines = pq.read_table(out / "items.parquet").to_pylist()
    asked = {question.question_id: question.prompt for question in store.questions()}
    assert all(line["prompt"] == asked[line["question_id"]] for line in lines)
    assert {line["prompt_id"] for line in lines} == {"stillroom/plain-1"}
    frames = {line["model"]: line["frames"] for line in lines}
    assert frames["student"] == ["view0", "view1"]
    assert frames["blind"] == frames["majority"] == []
    assert all("/view" in name for name in frames["shuffled"])
    counted = [line for line in lines if line["family"] == "object_counting"]
    assert counted
    assert all(line["corrected_score"] is not None for line in counted)


def test_depth_without_a_scale_is_scored_under_a_named_alignment_only(store, tmp_path):
    class Unscaled(SeerSession):
        def geometry(self):
            found = super().geometry()
            return replace(found, depth=0.25 * found.depth, depth_unit="scene")

    seer = Seer(store, errs=0.4, seed=1)
    seer.session = Unscaled
    results = run(store, tmp_path, {"teacher": seer, "student": seer})
    depth = results["rows"]["student"]["metrics"]["depth"]
    assert set(depth) == {"median"}
    assert depth["median"]["rmse"] == pytest.approx(0.0, abs=1e-5)
    # Beside the measured maps it is shown in their metres.
    kept = ItemStore(tmp_path)
    shown = shown_scenes(store.scene_ids("test"), seed=0)
    for scene_id in shown:
        views = store.scene(scene_id).views
        found = kept.depth_map("student", scene_id)
        for view, one in zip(views, found, strict=True):
            np.testing.assert_allclose(one, view.depth[1::2, 1::2], rtol=1e-3)
    page = write_report(results, out=tmp_path, store=store).read_text()
    assert "as it is" not in page
    assert "has no scale" in page
    assert "no alignment" not in page


def test_meteor_is_computed_for_the_rows_that_ask_for_it(store, tmp_path, monkeypatch):
    from stillroom.evaluate import tables

    monkeypatch.setattr(tables, "meteor_missing", lambda: "")
    monkeypatch.setattr(tables, "meteor", lambda said, known: (0.25, [0.25] * len(said)))
    results = run(store, tmp_path, meteor_rows=["student"])
    metrics = {name: row["metrics"] for name, row in results["rows"].items()}
    assert metrics["student"]["meteor"] == 0.25
    assert metrics["student"]["text_scorers"]["meteor"] == "meteor-1.5"
    assert "meteor" not in metrics["teacher"]


def test_metrics_hold_text_facts_and_depth_where_a_row_has_them(finished):
    _, results = finished
    rows = results["rows"]
    truth = rows["truth"]["metrics"]
    assert truth["rouge"]["rouge1"]["score"] == 1.0
    assert truth["bleu"]["bleu4"] == pytest.approx(1.0)
    assert "depth" not in truth
    depth = rows["student"]["metrics"]["depth"]
    # Every prediction is 10 % too far: wrong as it is, right once the median is matched.
    assert depth["none"]["abs_rel"] == pytest.approx(0.1, abs=1e-3)
    assert depth["median"]["rmse"] == pytest.approx(0.0, abs=1e-5)
    assert depth["none"]["n"] == 12 * 2
    assert "depth" not in rows["shuffled"]["metrics"]
    assert rows["student"]["metrics"]["against_teacher"]["rouge"]["rouge1"]["n"] == 12


def test_every_item_is_kept_with_question_truth_answer_and_score(finished, store):
    out, results = finished
    table = pq.read_table(out / "items.parquet").to_pylist()
    assert len(table) == 6 * len(store.questions(split="test"))
    ours = [line for line in table if line["model"] == "student" and line["family"] in FAMILIES]
    mean = np.mean([line["score"] for line in ours])
    assert mean == pytest.approx(results["rows"]["student"]["overall"]["score"])
    assert {"question", "truth", "answer", "parsed", "scorer"} <= set(ours[0])


def test_a_finished_evaluation_asks_nobody_again(finished, store):
    out, results = finished
    before = (out / "results.json").stat().st_mtime_ns

    def refuse():
        raise AssertionError("a finished row was loaded again")

    assert run(store, out, dict.fromkeys(results["rows"], refuse)) == results
    assert (out / "results.json").stat().st_mtime_ns == before


def test_an_added_row_is_asked_alone_and_takes_its_place(store, tmp_path):
    teacher = Seer(store, errs=0.1)
    run(store, tmp_path, {"teacher": teacher}, student_row=None)
    asked = len(teacher.opened)
    results = run(store, tmp_path, {"teacher": teacher, "student": Seer(store, errs=0.4)})
    assert list(results["rows"]) == ["teacher", "student"]
    assert len(teacher.opened) == asked
    assert results["rows"]["student"]["retention"]["overall"]["above_blind"] is None


def test_other_settings_are_refused_and_touch_nothing(finished, store):
    out, _ = finished
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(BadInputError, match=r"other settings.*split"):
        run(store, out, split="val")
    with pytest.raises(BadInputError, match=r"other settings.*limit None, now 3"):
        run(store, out, limit=3)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_another_model_under_the_same_name_is_refused(store, tmp_path):
    row = {"m": Seer(store, errs=0.1)}
    names = {"teacher_row": None, "student_row": None}
    run(store, tmp_path, row, identities={"m": "aaaa"}, **names)
    with pytest.raises(BadInputError, match="another model under the name 'm'"):
        run(store, tmp_path, row, identities={"m": "bbbb"}, **names)


def test_foreign_results_are_not_overwritten(store, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(BadInputError, match="results of another run"):
        run(store, tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_split_all_asks_every_scene(store, tmp_path):
    results = run(
        store,
        tmp_path,
        {"blind": baseline("blind", store, split="all")},
        split="all",
        teacher_row=None,
        student_row="blind",
    )
    assert results["meta"]["scenes"] == len(store)
    assert results["rows"]["blind"]["overall"]["n"] == 12 * len(store)
    assert results["rows"]["blind"]["retention"] == {}


def test_a_limit_takes_the_first_scenes_and_progress_reaches_the_end(store, tmp_path):
    seen: list[tuple[int, int]] = []
    results = run(store, tmp_path, limit=3, progress=lambda done, total: seen.append((done, total)))
    assert results["meta"]["scenes"] == 3
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_with_a_known_answer_is_an_error_and_not_a_zero(store, tmp_path):
    scene = store.scene("scene003")
    unknown = [replace(q, answer="", renderings=()) for q in store.questions("scene003")]
    write_manifest(tmp_path / "scenes", {})
    write_shard(tmp_path / "scenes", 0, [scene], unknown)
    with pytest.raises(BadInputError, match="no question with a known answer"):
        run(open_store(tmp_path / "scenes"), tmp_path / "out", rows_of(store))
    with pytest.raises(BadInputError, match="split 'train'"):
        run(open_store(tmp_path / "scenes"), tmp_path / "out", rows_of(store), split="train")


def test_answers_out_of_order_are_refused(store, tmp_path):
    class Backwards:
        def open(self, scene):
            return self

        def answer(self, questions):
            return [Answer(question_id=q.question_id, text="yes") for q in questions[::-1]]

    with pytest.raises(ValueError, match="one answer per question, in order"):
        run(store, tmp_path, {"b": Backwards()}, teacher_row=None, student_row=None)


def test_recorded_teacher_answers_serve_as_a_row(store, tmp_path):
    labels = {q.question_id: q.answer for q in store.questions()}
    results = run(store, tmp_path, {"teacher": RecordedAnswers(labels)}, student_row=None)
    assert results["rows"]["teacher"]["overall"]["score"] == 1.0


def test_shown_scenes_are_drawn_by_seed():
    ids = [f"s{i}" for i in range(30)]
    assert shown_scenes(ids, seed=0) == shown_scenes(ids, seed=0) != shown_scenes(ids, seed=1)
    assert shown_scenes(["a"], seed=0) == ["a"]


SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from tiny_worlds import Seer
from stillroom.evaluate.run import evaluate
from stillroom.scenes.store import open_store

store = open_store({scenes!r})

class Slow(Seer):
    def open(self, scene):
        time.sleep(0.02)
        return super().open(scene)

evaluate({{"teacher": Slow(store, errs=0.1), "student": Slow(store, errs=0.4)}}, store, split=None,
         out=Path({out!r}), teacher_row="teacher", student_row="student", meta={{}})
"""


def test_a_run_killed_at_any_moment_goes_on_to_the_same_results(tmp_path):
    store = write_tiny_store(tmp_path / "scenes", scenes=5 * SCENES_PER_CHUNK)
    names = {"split": None, "meta": {}}
    rows = {"teacher": Seer(store, errs=0.1), "student": Seer(store, errs=0.4)}
    undisturbed = run(store, tmp_path / "calm", rows, **names)
    script = textwrap.dedent(SLOW_RUN).format(
        here=os.path.dirname(__file__),
        scenes=str(tmp_path / "scenes"),
        out=str(tmp_path / "killed"),
    )
    kept: list[int] = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script])
        before = kept[-1] if kept else 0
        # Killed once it has written something more: in the middle of the run, each time further.
        while process.poll() is None and len(chunks(tmp_path / "killed")) <= before:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept.append(len(chunks(tmp_path / "killed")))
    assert 0 < kept[0] < kept[1] < kept[2] < 10
    rows = {"teacher": Seer(store, errs=0.1), "student": Seer(store, errs=0.4)}
    resumed = run(store, tmp_path / "killed", rows, **names)
    assert resumed["rows"] == undisturbed["rows"]
    assert pq.read_table(tmp_path / "killed" / "items.parquet").equals(
        pq.read_table(tmp_path / "calm" / "items.parquet")
    )
    opened = len(rows["teacher"].opened) + len(rows["student"].opened)
    assert opened == (10 - kept[2]) * SCENES_PER_CHUNK


def chunks(out):
    return list((out / "evaluation" / "items").rglob("*.parquet"))
