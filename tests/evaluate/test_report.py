import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_worlds import Seer, tiny_scene

from stillroom.evaluate.baselines import Shuffled, baseline
from stillroom.evaluate.report import print_table, terminal_table, write_report
from stillroom.evaluate.report_figures import depth_figure, is_share, photo, training_figure
from stillroom.evaluate.run import evaluate
from stillroom.records import SceneGeometry
from stillroom.scenes.store import open_store, write_manifest, write_shard

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Pictures, links and text of a page; refuses tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.ids.add(given.get("id", ""))
        self.addresses += [given[key] for key in ("src", "href") if key in given]
        if tag == "img":
            self.images.append(given["src"])
            assert given["alt"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.text += data


def decoded(address: str) -> tuple[int, int]:
    """Size of a picture in a data address; fails if it is no picture."""
    head, data = address.split(",", 1)
    content = base64.b64decode(data)
    if head == "data:image/svg+xml;base64":
        assert ElementTree.fromstring(content).tag.endswith("svg")
        return (1, 1)
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.size


def write_log(path, *, torn=False):
    rows = [
        {"kind": "step", "step": i, "terms": {"text": 3.0 / (i + 1), "kl": 1.0}, "metrics": {}}
        for i in range(40)
    ]
    rows += [
        {"kind": "eval", "step": i, "metrics": {"answer_ce": 2.0 - i / 40, "accuracy": i / 40}}
        for i in range(0, 40, 10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + ('{"kind": "st' if torn else ""))
    return path


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    student = Seer(store, errs=0.5, seed=1)
    rows = {
        "truth": baseline("truth", store, split="test"),
        "teacher": Seer(store, errs=0.1),
        "student": student,
        "shuffled": Shuffled(student, store, split="test"),
        "blind": baseline("blind", store, split="test"),
    }
    results = evaluate(
        rows,
        store,
        split="test",
        out=out,
        teacher_row="teacher",
        student_row="student",
        meta={"commit": "abc1234", "parameters": {"teacher": 6_000_000, "student": 1_500_000}},
    )
    return out, results


def capture_of(store):
    scene = store.scene("scene003")
    return {
        "title": "captures/<cabinet>",
        "statement": "Miniatures are not expected to be right here.",
        "check": ["poses agree"],
        "scene": scene,
        "geometry": SceneGeometry(depth=np.stack([view.depth for view in scene.views])),
        "answers": [{"question": "Is it left?", "teacher": "left", "student": "<b>right</b>"}],
    }


def test_the_page_is_whole_and_asks_no_network(run, store, tmp_path):
    out, results = run
    path = write_report(
        results,
        out=out,
        store=store,
        log=write_log(tmp_path / "log.jsonl", torn=True),
        capture=capture_of(store),
    )
    page = Page(path.read_text())
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert "url(" not in path.read_text()
    assert "script" not in page.tags
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= page.ids
    sizes = [decoded(image) for image in page.images]
    # Curves, depth of the shown scenes and of the capture, and photos in the cards.
    assert len(sizes) > 10
    for section in ("scores", "retention", "text", "training", "answers", "depth", "capture"):
        assert section in page.ids


def test_the_page_says_the_numbers_of_the_results(run, store):
    out, results = run
    text = Page(write_report(results, out=out, store=store).read_text()).text
    rows = results["rows"]
    for row in rows.values():
        for family in ("overall", "contact"):
            assert f"{100 * row[family]['score']:.1f} %" in text
            assert f"{100 * row[family]['low']:.1f} to {100 * row[family]['high']:.1f}" in text
    kept = rows["student"]["retention"]["overall"]
    assert f"{100 * kept['score']:.1f} %" in text
    assert f"above blind {100 * kept['above_blind']:.1f} %" in text
    assert f"{rows['student']['metrics']['depth']['none']['rmse']:.3f} m" in text
    assert "4.00×" in text
    assert "abc1234" in text


def test_answers_show_right_and_wrong_ones_and_the_same_ones_each_time(run, store):
    out, results = run
    first = write_report(results, out=out, store=store).read_text()
    assert first == write_report(results, out=out, store=store).read_text()
    for family in ("proximity", "contact", "size", "orientation"):
        assert first.count(f'<div class="family">{family}</div>') == 2
    students = first.split("<dt>student</dt><dd>")[1:]
    marks = ["✓" in said.split("</dd>")[0] for said in students if "mark" in said.split("</dd>")[0]]
    assert sum(marks) == len(marks) / 2 == 4


def test_a_model_alone_without_pictures_or_log_still_has_a_page(store, tmp_path):
    results = evaluate(
        {"majority": baseline("majority", store, split="test")},
        store,
        split="test",
        out=tmp_path,
        teacher_row=None,
        student_row="majority",
        meta={},
    )
    page = Page(write_report(results, out=tmp_path).read_text())
    assert page.images == []
    assert not {"training", "answers", "depth", "capture", "retention"} & page.ids
    assert "majority answers" in page.text


def test_words_of_others_cannot_break_the_page(store, tmp_path):
    scene = replace(store.scene("scene003"), scene_id="evil")
    evil = '<script>alert("1")</script> & <img src=x>'
    questions = [
        replace(q, scene_id="evil", question=evil, options=(evil, "b"), answer=evil)
        for q in store.questions("scene003")
        if q.family == "size"
    ]
    write_manifest(tmp_path / "scenes", {})
    write_shard(tmp_path / "scenes", 0, [scene], questions)
    evil_store = open_store(tmp_path / "scenes")
    results = evaluate(
        {evil: baseline("truth", evil_store, split="test")},
        evil_store,
        split="test",
        out=tmp_path,
        teacher_row=None,
        student_row=evil,
        meta={"command": evil},
    )
    page = Page(write_report(results, out=tmp_path, store=evil_store).read_text())
    assert "script" not in page.tags
    assert all(image.startswith("data:") for image in page.images)
    assert evil in page.text


def test_the_captures_plain_statement_and_depth_errors_are_there(run, store):
    out, results = run
    page = Page(write_report(results, out=out, store=store, capture=capture_of(store)).read_text())
    assert "Miniatures are not expected to be right here." in page.text
    assert "<b>right</b>" in page.text
    assert "as it is: RMSE 0.00 m" in page.text
    assert "poses agree" in page.text


def test_a_student_is_asked_for_depth_that_the_evaluation_did_not_keep(run, store, tmp_path):
    out, results = run
    (tmp_path / "items.parquet").write_bytes((out / "items.parquet").read_bytes())
    without = Page(write_report(results, out=tmp_path, store=store).read_text())
    page = Page(
        write_report(
            results, out=tmp_path, store=store, student=lambda: Seer(store, errs=0.0)
        ).read_text()
    )
    assert len(page.images) == len(without.images) + 3


def test_depth_figures_need_measured_depth():
    scene = tiny_scene(0, "test")
    maps = np.ones((2, 8, 10), dtype=np.float32)
    names = {"truth_name": "true", "predicted_name": "predicted"}
    assert decoded(depth_figure(scene.views, maps, **names))[0] > 200
    blank = tuple(replace(view, depth=np.zeros((8, 10), np.float32)) for view in scene.views)
    assert depth_figure(blank, maps, **names) is None
    assert depth_figure([replace(view, depth=None) for view in blank], maps, **names) is None


def test_an_empty_or_missing_log_has_no_figure(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert training_figure(tmp_path / "empty.jsonl") is None
    assert training_figure(tmp_path / "missing.jsonl") is None


def test_means_of_epochs_and_of_scenes_trained_on_are_drawn_beside_the_held_out(tmp_path):
    rows = [
        {"kind": "step", "step": n, "terms": {"text": 9.0 / n}, "metrics": {}} for n in range(1, 9)
    ]
    rows += [
        {"kind": "eval", "step": n, "metrics": {"text": 5.0 / n, "right.size": 0.1 * n}}
        for n in (4, 8)
    ]

    def drawn(*more):
        log = tmp_path / "log.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
        return training_figure(log)

    seen = {"train.text": 4.0, "train.right.size": 0.9}
    plain = drawn()
    evals = [{"kind": "eval", "step": n, "metrics": seen} for n in (4, 8)]
    beside = drawn(*evals)
    words = base64.b64decode(beside.partition(",")[2]).decode()
    assert words.count("trained on") == 2
    assert "trained on" not in base64.b64decode(plain.partition(",")[2]).decode()
    assert is_share("train.right.size")
    assert not is_share("train.text")
    epoch = {"kind": "epoch", "epoch": 1, "step": 8, "terms": {"text": 2.0}, "metrics": {}}
    # A dot on a curve, no curve of its own and no further point of the steps.
    dotted = drawn(epoch)
    assert dotted != plain
    assert abs(len(dotted) - len(plain)) < 2000


def test_losses_and_shares_stand_in_panels_of_their_own():
    shares = ["right.obj_appearance_order", "right.object_rel_distance", "depth_delta1"]
    losses = ["text", "depth_reg", "grounding", "answer_ce", "loss.camera", "center_m"]
    assert [name for name in [*shares, *losses] if is_share(name)] == shares


def test_photos_are_made_smaller_and_never_larger():
    assert decoded(photo(np.zeros((480, 640, 3), np.uint8))) == (213, 160)
    assert decoded(photo(np.zeros((112, 112, 3), np.uint8))) == (112, 112)


def test_the_terminal_table_has_a_line_a_row_with_intervals(run, capsys):
    _, results = run
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal_table(results))
    text = console.export_text()
    for name, row in results["rows"].items():
        line = next(line for line in text.splitlines() if f"│ {name} " in line)
        assert f"{100 * row['overall']['score']:.1f} (" in line
    print_table(results)
    assert "above blind" in capsys.readouterr().out
