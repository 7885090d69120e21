import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stillroom import api
from stillroom.evaluate import lmms_eval_task
from stillroom.evaluate.suites import SUITES, read_items
from stillroom.evaluate.suites.report import prepare
from stillroom.evaluate.suites.vsibench_export import export_vsibench
from stillroom.evaluate.vsi_bench import QUESTION_TYPES
from stillroom.records import BadInputError
from stillroom.scenes.make import make_scenes
from stillroom.scenes.store import open_store
from stillroom.testing import tiny_store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "rooms"
    make_scenes(folder, count=2, seed=5, workers=1)
    return open_store(folder)


@pytest.fixture(scope="module")
def exported(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    return out, export_vsibench(world, out)


def vsi_questions(store):
    return [q for q in store.questions() if q.family in QUESTION_TYPES]


def test_the_reader_gets_back_what_was_exported(world, exported):
    out, (rows, rooms) = exported
    asked = vsi_questions(world)
    assert (rows, rooms) == (len(asked), 2)
    items = read_items(SUITES["vsibench"], out)
    for question, item in zip(asked, items, strict=True):
        assert item.question.question == question.question
        assert item.question.options == question.options
        assert item.question.scene_id == question.scene_id
        assert item.details["question_type"] == question.family
        assert SUITES["vsibench"].score(item, item.question.answer) == 1.0
        assert item.question.answer == question.answer


def test_the_table_has_the_published_columns(exported):
    out, (rows, _) = exported
    names = ["id", "dataset", "scene_name", "question_type", "question", "options", "ground_truth"]
    table = pq.read_table(out / "test.parquet")
    assert table.column_names == names
    lines = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    assert table.to_pylist() == lines
    assert len(lines) == rows


def test_the_frames_are_the_views(world, exported, tmp_path):
    out, _ = exported
    store, _, missing = prepare(SUITES["vsibench"], out, tmp_path / "store", prompt="plain")
    assert missing == ()
    for scene_id in world.scene_ids():
        for view, original in zip(
            store.scene(scene_id).views, world.scene(scene_id).views, strict=True
        ):
            np.testing.assert_array_equal(view.rgb, original.rgb)


def test_once_more_is_nothing_new_and_another_world_is_refused(world, exported, tmp_path):
    out, counts = exported
    before = (out / "test.jsonl").read_bytes()
    assert export_vsibench(world, out) == counts
    assert (out / "test.jsonl").read_bytes() == before
    make_scenes(tmp_path / "other", count=1, seed=6, workers=1)
    with pytest.raises(BadInputError, match="another export"):
        export_vsibench(open_store(tmp_path / "other"), out)


def test_a_world_without_such_questions_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no question of VSI-Bench's types"):
        export_vsibench(open_store(tiny_store(tmp_path / "tiny")), tmp_path / "out")


def test_the_task_of_lmms_eval_shows_the_frames_and_scores_as_the_release(exported):
    out, _ = exported
    docs = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    (message,) = lmms_eval_task.messages_of(docs[0], out)
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image"] * 6 + ["text"]
    right = [lmms_eval_task.scored(doc, [doc["ground_truth"]]) for doc in docs]
    assert lmms_eval_task.overall([entry["vsi_overall"] for entry in right]) == 1.0
    wrong = [lmms_eval_task.scored(doc, [""]) for doc in docs]
    assert lmms_eval_task.overall([entry["vsi_overall"] for entry in wrong]) == 0.0


def lmms_eval_python(folder: Path) -> str:
    """An environment with lmms-eval and this stillroom; skips where it cannot be made.

    Its pins conflict with ours, so it is never our own. STILLROOM_LMMS_EVAL_PYTHON names one that
    is there already.
    """
    given = os.environ.get("STILLROOM_LMMS_EVAL_PYTHON")
    if given:
        return given
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    repository = Path(__file__).parents[2]
    wanted = ["lmms-eval==0.7.3", str(repository)]
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"lmms-eval could not be installed: {done.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
def test_lmms_eval_itself_runs_the_exported_world_through_the_plugin(exported, tmp_path):
    out, (rows, _) = exported
    python = lmms_eval_python(tmp_path / "venv")
    command = [
        *(python, "-m", "lmms_eval", "--model", "stillroom"),
        *("--model_args", "model=student_mini,prompt=plain"),
        *("--tasks", lmms_eval_task.TASK, "--include_path", str(out / "lmms_eval")),
        *("--output_path", str(tmp_path / "results"), "--log_samples", "--batch_size", "1"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **offline}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "results").rglob("*_results.json")
    figure = json.loads(file.read_text())["results"][lmms_eval_task.TASK]
    # The same figure as our own runner has on the same export, in the same words.
    ours = api.evaluate_suite(
        "student_mini", out, suite="vsibench", out=tmp_path / "ours", prompt="plain"
    )
    official = ours["rows"]["student_mini"]["metrics"]["suite"]["columns"]["official"]
    assert figure[f"{lmms_eval_task.FIGURE},none"] == pytest.approx(official["overall"], abs=1e-9)
    (samples,) = (tmp_path / "results").rglob(f"*_samples_{lmms_eval_task.TASK}.jsonl")
    assert len(samples.read_text().splitlines()) == rows
