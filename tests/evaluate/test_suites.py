import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import WRITERS, dump, frames, parquet, png, threedsrbench, vsibench

from stillroom import api, cli
from stillroom.cli import parsing
from stillroom.evaluate import scan2cap, spatialbench, vsi_bench
from stillroom.evaluate.flip_groups import threedsr_table
from stillroom.evaluate.letters import LETTER_RULES
from stillroom.evaluate.numbers import NUMBER_RULES
from stillroom.evaluate.run import evaluate
from stillroom.evaluate.suites import SUITES, find_suite, read_items, rooms
from stillroom.evaluate.suites.attach import attach_items, attach_questions, frame_grid
from stillroom.evaluate.suites.base import Item
from stillroom.evaluate.suites.report import add_tables, html_table, lines, prepare, scorer_of
from stillroom.evaluate.vsi_bench import RULES, answer_score
from stillroom.records import Answer, BadInputError
from stillroom.scenes.store import open_store
from stillroom.testing import tiny_store

NAMES = sorted(SUITES)
#: What a scorer must bear without raising, and never take for an answer in the corrected column.
NOTHING = ["", " \n", "🪑🛋️", "...", ",", "no idea at all " * 10]
ODD = ["three", "20 m^2", "1e1", "word " * 20_000, "A" * 100_000, "🪑" * 100_000, "9" * 100_000]


@pytest.fixture(autouse=True)
def without_meteor(monkeypatch):
    """METEOR takes seconds to start; test_captions and verify hold it to its figures."""
    for module in (rooms, scan2cap):
        monkeypatch.setattr(module, "missing", lambda: "left out of these tests")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, write in WRITERS.items():
        made[name] = tmp_path_factory.mktemp(name) / "data"
        write(made[name])
    return made


@pytest.fixture(scope="module")
def items(folders):
    return {name: read_items(SUITES[name], folder) for name, folder in folders.items()}


def test_every_suite_has_a_small_file_and_the_command_line_knows_it():
    assert set(WRITERS) == set(SUITES) == set(parsing.SuiteName.__args__)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_scores_one_in_every_column(items, name):
    suite, asked = SUITES[name], items[name]
    truths = [item.question.answer for item in asked]
    assert [suite.score(item, text) for item, text in zip(asked, truths)] == [1.0] * len(asked)
    for column, figures in suite.table(asked, truths).items():
        for figure in (
            "overall",
            "items",
            "vanilla",
            "overall_score",
            "EM@1",
            "ROUGE-L (given boxes)",
        ):
            assert figures.get(figure, 1.0) == pytest.approx(1.0), (column, figure)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", NOTHING)
def test_an_empty_answer_is_never_right_in_the_corrected_column(items, name, text):
    suite, asked = SUITES[name], items[name]
    figures = suite.table(asked, [text] * len(asked))["corrected"]
    counts = {name: value for name, value in figures.items() if name != "n"}
    # A page that names no option may share words with a caption; it is not right for that.
    assert all(value < 0.3 for value in counts.values()), counts
    if not text.strip():
        assert set(counts.values()) == {0.0}
        assert all(suite.score(item, text) == 0.0 for item in asked)


#: Any text without a letter and a digit: emoji, punctuation, control characters, nothing.
WORDLESS = st.text(max_size=200).map(lambda text: "".join(c for c in text if not c.isalnum()))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_no_text_makes_a_suite_raise_and_no_wordless_one_is_right(items, name, data):
    suite, asked = SUITES[name], items[name]
    wordless = [data.draw(WORDLESS) for _ in asked]
    assert set(suite.table(asked, wordless)["corrected"].values()) == {0.0}
    corrected = suite.columns["corrected"]
    assert all(corrected.parse(i, t) is None for i, t in zip(asked, wordless))
    anything = [data.draw(st.text(max_size=200)) for _ in asked]
    for column in suite.columns.values():
        scores = [column.score(item, text) for item, text in zip(asked, anything)]
        assert all(0 <= score <= 1 for score in scores)
        assert all(one.value >= 0 for one in column.figures(asked, anything).values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:8])
def test_no_odd_answer_makes_a_suite_raise(items, name, text):
    suite, asked = SUITES[name], items[name]
    for figures in suite.table(asked, [text] * len(asked)).values():
        assert all(value >= 0 for value in figures.values())


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=400))
def test_no_text_makes_a_rule_raise(text):
    for rule in NUMBER_RULES.values():
        number = rule(text)
        assert number is None or abs(number) < float("inf")
    for rule in LETTER_RULES.values():
        letter = rule(text, ["left", "right"])
        assert letter is None or len(letter) == 1
    for vsi_rule in RULES:
        assert 0 <= answer_score("object_counting", text, "4", [], vsi_rule) <= 1


def test_rows_become_questions_with_what_their_scorer_needs(items):
    count, side = items["vsibench"]
    assert (count.question.family, count.question.answer) == ("object_counting", "4")
    assert side.question.options == ("A. left", "B. right")
    assert side.question.prompt == (
        "These are frames of a video.\nIs the lamp to the left or the right?\nOptions:\nA. left\n"
        "B. right\nAnswer with the option's letter from the given choices directly."
    )
    base, mirrored = items["3dsrbench"]
    assert base.question.options == ("A. the mug", "B. the lamp")
    assert mirrored.details == {"qid": "AAAAAAAA-flip", "category": "height_higher"}
    assert base.question.prompt.startswith("Question: Which is higher?\nOptions:\nA. the mug\n")
    choice, number = items["spatialbench"]
    assert (choice.question.answer, choice.media) == ("B", "dataset/rgb_video_1")
    assert number.question.options == ()
    assert items["scanqa"][0].question.renderings == ("dark brown",)
    (situated,) = items["sqa3d"]
    assert situated.question.question == "I am facing a trash bin. What color is the bin?"
    assert situated.details == {"question_type": "what"}
    (caption,) = items["scan2cap"]
    assert "the trash can" in caption.question.question
    assert caption.question.renderings == ("the can is by the door.",)
    assert len(items["blink"][-1].images) + len(items["blink"][0].images) == 3
    assert items["mmvp"][1].question.answer == "B"
    assert items["vstar"][0].question.options == ("A. red", "B. green")
    assert items["mmstar"][0].question.options == (
        "A. red, dark", "B. blue", "C. green", "D. grey"
    )  # fmt: skip


def test_the_official_overalls_are_means_of_groups(items):
    cv = SUITES["cvbench"].table(items["cvbench"], ["A", "B", "A"])["official"]
    assert cv["overall"] == pytest.approx(((1 + 0) / 2 + 1) / 2)
    blink = SUITES["blink"].table(items["blink"], ["B", "A", "(B)"])["official"]
    assert blink["spatial"] == pytest.approx(2 / 3)
    mmvp = SUITES["mmvp"].table(items["mmvp"], ["A", "A"])["official"]
    assert (mmvp["pairs"], mmvp["items"]) == (0.0, 0.5)


def test_spatialbench_drops_empty_answers_as_published_and_says_how_many_it_kept(items):
    suite, asked = SUITES["spatialbench"], items["spatialbench"]
    table = suite.table(asked, ["B", ""])
    assert table["official"]["overall_score"] == 1.0
    counted = suite.columns["official"].figures(asked, ["B", ""])["overall_score"]
    assert len(counted.scenes) == 1
    assert table["official, empty answers wrong"]["overall_score"] == 0.5
    assert table["corrected"]["overall_score"] == 0.5


def test_llava3d_form_of_scanqa_is_read(tmp_path):
    row = {"question_id": "q1", "video": "scannet/scene0011_00", "text": "What is red?"}
    (tmp_path / "llava3d_scanqa_val_question.json").write_text(json.dumps([row]))
    with pytest.raises(BadInputError, match="no answers"):
        read_items(SUITES["scanqa"], tmp_path)
    answer = {"question_id": "q1", "text": ["chair", "a chair"]}
    (tmp_path / "llava3d_scanqa_val_answer.json").write_text(json.dumps([answer]))
    (item,) = read_items(SUITES["scanqa"], tmp_path)
    assert item.question.scene_id == "scene0011_00"
    assert item.question.renderings == ("a chair",)


def vsi_row(**changed):
    row = {"id": 1, "dataset": "scannet", "scene_name": "s", "question": "q"}
    row |= {"question_type": "object_rel_distance", "options": ["A. a", "B. b"]}
    return json.dumps(row | {"ground_truth": "A"} | changed)


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        ("vsibench", "test.jsonl", "{", "not readable as .jsonl"),
        ("vsibench", "test.jsonl", '{"scene_name": "x"}', "has no 'question_type'"),
        ("vsibench", "test.jsonl", "", "hold no question"),
        ("vsibench", "other.txt", "", "holds none of test.jsonl"),
        ("scanqa", "ScanQA_v1.0_val.json", "3", "expected a list"),
        ("sqa3d", "v1_balanced_questions_test_scannetv2.json", "[]", "annotations beside it"),
        ("3dsrbench", "3dsr.csv", "question,A,answer\nq,a,A\n", "neither embedded nor a file"),
        (
            "mmvp",
            "Questions.csv",
            "Index,Question,Options,Correct Answer\n1,q,(a) x,(a)\n",
            "neith",
        ),
        ("vstar", "test_questions.jsonl", '{"text": "q"}', "has no"),
        ("vsibench", "test.jsonl", vsi_row(options=5), "'options' must be a list, got 5"),
        ("vsibench", "test.jsonl", vsi_row(ground_truth="Z"), "'Z' is the letter of no option"),
        (
            "vsibench",
            "test.jsonl",
            vsi_row(question_type="object_counting", ground_truth="many"),
            "'many' to a object_counting question is no number",
        ),
        ("spatialbench", "QA.txt", '[{"sample": 3}]', "'sample' must be an object"),
        (
            "spatialbench",
            "QA.txt",
            '[{"problem_type": "multiple_choice", "problem": "p", "path": "a.mp4", "options": 7}]',
            "'options' must be a list, got 7",
        ),
        (
            "scan2cap",
            "ScanRefer_val.json",
            '[{"scene_id": "s", "object_id": "1", "description": "d", "bbox": ["a", 1, 2, 3]}]',
            "must be centre and size as six numbers",
        ),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, name, file, content, complaint):
    (tmp_path / file).write_text(content)
    with pytest.raises(BadInputError, match=complaint):
        read_items(SUITES[name], tmp_path)


def test_an_answer_that_is_no_option_is_refused(tmp_path):
    row = {"index": 0, "question": "q Options: A: x, B: y", "image": png(0), "answer": "E"}
    parquet(tmp_path / "mmstar.parquet", [row])
    with pytest.raises(BadInputError, match="letter of no option"):
        read_items(SUITES["mmstar"], tmp_path)


def test_unknown_suites_and_folders_are_refused():
    with pytest.raises(BadInputError, match="known: vsibench"):
        find_suite("scanqb")
    with pytest.raises(BadInputError, match="not found"):
        read_items(SUITES["scanqa"], Path("/nowhere"))


def test_frames_are_an_even_grid_with_both_ends():
    grid = frame_grid(100)
    assert (len(grid), grid[0], grid[-1]) == (32, 0, 99)
    assert frame_grid(3) == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_questions_join_their_scenes_in_a_store(folders, tmp_path, name):
    store, asked, missing = prepare(
        SUITES[name], folders[name], tmp_path / "store", prompt="official"
    )
    assert missing == ()
    questions = store.questions()
    assert {q.question_id for q in questions} == {item.question.question_id for item in asked}
    assert {q.scene_id for q in questions} == set(store.scene_ids())
    assert all(store.scene(scene_id).views for scene_id in store.scene_ids())
    # Once more is nothing new; other words are another store.
    prepare(SUITES[name], folders[name], tmp_path / "store", prompt="official")
    with pytest.raises(BadInputError, match="other questions or scenes"):
        prepare(SUITES[name], folders[name], tmp_path / "store", prompt="plain")


def test_an_imported_capture_is_found_by_the_name_of_its_store(folders, tmp_path):
    data = tmp_path / "data"
    WRITERS["scanqa"](data)
    for file in (data / "scannet" / "scene0011_00").iterdir():
        file.unlink()
    with pytest.raises(BadInputError, match=r"none of the 1 scenes .* scenes import"):
        prepare(SUITES["scanqa"], data, tmp_path / "store", prompt="plain")
    assert not (tmp_path / "store").exists()
    frames(tmp_path / "photos", 2)
    api.import_scenes(tmp_path / "photos", out=data / "scenes" / "scene0011_00")
    store, _, missing = prepare(SUITES["scanqa"], data, tmp_path / "store", prompt="plain")
    assert missing == ()
    (imported,) = open_store(data / "scenes" / "scene0011_00").scene_ids()
    assert store.scene_ids() == [imported]
    assert {q.scene_id for q in store.questions()} == {imported}


def test_a_scene_that_comes_later_is_joined_then(tmp_path):
    store = open_store(tiny_store(tmp_path / "scenes"))
    questions = [store.questions(scene_id)[0] for scene_id in store.scene_ids()]
    asked = [Item(question=question) for question in questions]
    known = {store.scene_ids()[0]}

    def find(item):
        name = item.question.scene_id
        return store.scene(name) if name in known else None

    first = attach_items(asked, find, tmp_path / "out", settings={})
    assert (first.scenes, len(first.missing)) == (1, 3)
    known.update(store.scene_ids())
    assert attach_items(asked, find, tmp_path / "out", settings={}).missing == ()
    assert open_store(tmp_path / "out").questions() == questions


def test_questions_of_ones_own_replace_those_of_a_store_and_can_be_labelled(tmp_path):
    store = open_store(tiny_store(tmp_path / "scenes"))
    first = store.scene_ids()[0]
    question = store.questions(first)[0]
    attached = attach_questions(store, [question], tmp_path / "own")
    assert (attached.questions, attached.scenes, attached.missing) == (1, 1, ())
    assert open_store(tmp_path / "own").questions() == [question]
    labels = tmp_path / "labels"
    assert api.label(tmp_path / "own", teacher="truth", out=labels, signals=["answers"]) == 1


def test_the_command_line_evaluates_a_suite_and_prints_both_columns(tmp_path, capsys):
    vsibench(tmp_path / "data")
    words = ["evaluate", "truth", str(tmp_path / "data"), "--suite", "vsibench"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert stop.value.code in (0, None), shown
    assert "vsi-mra/official-2024" in shown
    assert "corrected" in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    suite = results["rows"]["truth"]["metrics"]["suite"]
    assert suite["columns"]["official"]["overall"] == 1.0
    assert suite["table"][0]["n"] == 2
    assert results["meta"]["suite"]["prompt"] == "vsibench/official-2024"
    assert (tmp_path / "out" / "report.html").is_file()


def room_questions(data, scenes=8, each=4):
    """ScanQA's file on scenes whose frames are there."""
    rows = [
        {
            "scene_id": f"scene{scene:04d}_00",
            "object_ids": [1],
            "object_names": ["chair"],
            "question_id": f"val-{scene}-{n}",
            "question": f"What colour is chair number {n}?",
            "answers": ["brown chair" if (scene + n) % 2 else "red"],
        }
        for scene in range(scenes)
        for n in range(each)
    ]
    dump(data / "ScanQA_v1.0_val.json", rows)
    for scene in range(scenes):
        frames(data / "scannet" / f"scene{scene:04d}_00", 2)
    return rows


class Sayer:
    """Says a text of its own for each question: ``say(place, truth)``."""

    views = (0,)

    def __init__(self, say):
        self.say = say
        self.opened = 0

    def open(self, scene):
        self.opened += 1
        return self

    def answer(self, questions):
        return [
            Answer(question_id=q.question_id, text=self.say(n, q.answer))
            for n, q in enumerate(questions)
        ]


def run_rooms(data, out, rows):
    suite = SUITES["scanqa"]
    store, asked, missing = prepare(suite, data, out / "asked", prompt="official")
    results = evaluate(
        rows,
        store,
        split=None,
        out=out,
        teacher_row="teacher",
        student_row="student",
        blind_rows=["silent"],
        meta={},
        scorer=scorer_of(suite, asked),
        prompt_id=suite.prompt_id,
    )
    return add_tables(results, suite, asked, missing, store, out, decoding={"student": "greedy"})


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Student right in the first two of four, teacher in the first three, a row that is silent."""
    folder = tmp_path_factory.mktemp("told")
    room_questions(folder / "data")
    rows = {
        "teacher": Sayer(lambda n, truth: truth if n < 3 else "nothing at all"),
        "student": Sayer(lambda n, truth: truth if n < 2 else "nothing at all"),
        "silent": Sayer(lambda n, truth: ""),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "missing", lambda: "left out of these tests")
        return rows, run_rooms(folder / "data", folder / "out", rows), folder


def figure_of(results, row, column, name):
    table = results["rows"][row]["metrics"]["suite"]["table"]
    (line,) = [one for one in table if (one["column"], one["figure"]) == (column, name)]
    return line


def test_a_row_of_the_table_says_how_it_was_made(told):
    _, results, _ = told
    line = figure_of(results, "student", "official", "EM@1")
    assert line | {"revision": "", "retention": {}, "teacher_relative": {}} == {
        "benchmark": "scanqa",
        "revision": "",
        "column": "official",
        "figure": "EM@1",
        "scorer": "em/llava3d-leo",
        "prompt": "scanqa/plain",
        "frames": 1,
        "frame_rule": "even grid of 32, first and last included",
        "decoding": "greedy",
        "score": 0.5,
        "low": 0.5,
        "high": 0.5,
        "n": 32,
        "unparsed": 0,
        "retention": {},
        "teacher_relative": {},
    }
    bleu = figure_of(results, "student", "official", "BLEU-4")
    assert bleu["scorer"] == "coco-bleu/pycocoevalcap-1.2 on ptb/stillroom-1"
    assert bleu["low"] <= bleu["score"] <= bleu["high"]


def test_retention_and_the_teachers_own_answers_stand_beside_the_score(told):
    _, results, _ = told
    line = figure_of(results, "student", "official", "EM@1")
    # Every scene is alike, so the paired interval has no width, whatever is drawn.
    kept = line["retention"]
    assert kept["score"] == kept["low"] == kept["high"] == pytest.approx(2 / 3)
    assert kept["above_blind"] == pytest.approx(2 / 3)
    # Against the teacher it is right where both are right and where both say nothing at all.
    assert line["teacher_relative"]["score"] == pytest.approx(3 / 4)
    assert line["teacher_relative"]["n"] == 32
    assert figure_of(results, "teacher", "official", "EM@1")["retention"] is None


def test_the_trap_is_in_the_official_column_and_not_in_the_corrected_one(told):
    _, results, _ = told
    assert figure_of(results, "silent", "official", "EM-R")["score"] == 1.0
    line = figure_of(results, "silent", "corrected", "EM-R")
    assert (line["score"], line["unparsed"]) == (0.0, 32)
    assert line["scorer"] == "em-refined/stillroom-1"


def test_items_of_a_suite_hold_prompt_frames_answer_parsed_and_score(told):
    _, _, folder = told
    lines = pq.read_table(folder / "out" / "items.parquet").to_pylist()
    line = next(one for one in lines if one["model"] == "student" and one["score"] == 1.0)
    assert line["prompt"].startswith("What colour is chair")
    assert line["prompt_id"] == "scanqa/plain"
    assert line["frames"] == ["0000"]
    assert line["answer"] == line["parsed"] == line["truth"]
    assert (line["scorer"], line["corrected_score"]) == ("em/llava3d-leo", 1.0)
    silent = next(one for one in lines if one["model"] == "silent")
    assert (silent["parsed"], silent["corrected_score"]) == (None, 0.0)


def test_the_same_call_again_asks_nobody_and_says_the_same(told):
    rows, results, folder = told
    opened = {name: row.opened for name, row in rows.items()}
    assert run_rooms(folder / "data", folder / "out", rows) == results
    assert {name: row.opened for name, row in rows.items()} == opened
    shown = "\n".join(lines(results))
    assert "em/llava3d-leo" in shown
    assert "against teacher" in shown
    assert "em-refined/stillroom-1" in html_table(results)


def test_a_killed_run_goes_on_from_its_last_chunk(tmp_path):
    room_questions(tmp_path / "data", scenes=10)

    class Tired(Sayer):
        def open(self, scene):
            if self.opened == 9:
                raise KeyboardInterrupt
            return super().open(scene)

    student = Tired(lambda n, truth: truth)
    rows = {"teacher": Sayer(lambda n, truth: truth), "student": student}
    rows["silent"] = Sayer(lambda n, truth: "")
    with pytest.raises(KeyboardInterrupt):
        run_rooms(tmp_path / "data", tmp_path / "out", rows)
    rows["student"] = Sayer(lambda n, truth: truth)
    results = run_rooms(tmp_path / "data", tmp_path / "out", rows)
    assert rows["student"].opened == 2  # the first eight scenes were kept
    assert rows["teacher"].opened == 10
    assert figure_of(results, "student", "official", "EM@1")["n"] == 40


@pytest.mark.parametrize("model", ["majority", "blind", "truth"])
def test_guessers_answer_a_benchmark_from_four_fifths_of_its_scenes(tmp_path, model):
    room_questions(tmp_path / "data")
    results = api.evaluate_suite(model, tmp_path / "data", suite="scanqa", out=tmp_path / "out")
    line = figure_of(results, model, "official", "EM@1")
    assert line["frames"] == 0
    assert 0 <= line["score"] <= (1.0 if model == "truth" else 0.9)
    assert line["n"] == 32


def test_beside_a_model_stand_the_guessers_and_itself_before_black_pictures(tmp_path):
    room_questions(tmp_path / "data", scenes=5, each=1)
    results = api.evaluate_suite(
        "student_mini", tmp_path / "data", suite="scanqa", out=tmp_path / "out", prompt="plain"
    )
    assert list(results["rows"]) == ["student_mini", "majority", "blind", "blank:student_mini"]
    assert figure_of(results, "student_mini", "official", "EM@1")["decoding"] == "greedy"
    assert figure_of(results, "blank:student_mini", "official", "EM@1")["frames"] == 0


def test_labels_of_the_asked_store_stand_for_the_teacher(tmp_path):
    room_questions(tmp_path / "data")
    api.ask_scenes(tmp_path / "data", suite="scanqa", out=tmp_path / "store")
    api.label(tmp_path / "store", teacher="truth", out=tmp_path / "labels", signals=["answers"])
    results = api.evaluate_suite(
        "majority",
        tmp_path / "data",
        suite="scanqa",
        out=tmp_path / "out",
        labels=tmp_path / "labels",
    )
    line = figure_of(results, "teacher", "official", "EM@1")
    assert (line["score"], line["frames"]) == (1.0, None)
    kept = figure_of(results, "majority", "official", "EM@1")["retention"]
    assert kept["low"] <= kept["score"] <= kept["high"]


def test_figures_agree_with_the_tables_of_the_published_scorers(items):
    asked = items["3dsrbench"] * 1
    right = [True, False]
    texts = [item.question.answer if hit else "" for item, hit in zip(asked, right)]
    qids = [item.details["qid"] for item in asked]
    categories = [item.details["category"] for item in asked]
    wanted = threedsr_table(qids, categories, right)
    found = SUITES["3dsrbench"].table(asked, texts)["official"]
    assert {name: found[name] for name in wanted} == wanted
    types = [item.details["question_type"] for item in items["vsibench"]]
    found = SUITES["vsibench"].table(items["vsibench"], ["4", "A"])["official"]
    assert found.pop("items") == 0.5
    assert found == vsi_bench.table(types, [1.0, 0.0])
    released = spatialbench.summary(
        [
            spatialbench.Row(
                problem_type=item.details["problem_type"],
                question_type=item.question.family,
                scene_type=item.details["scene_type"],
                score=score,
            )
            for item, score in zip(items["spatialbench"], [1.0, 0.0])
        ]
    )
    found = SUITES["spatialbench"].table(items["spatialbench"], ["B", "1"])["official"]
    for name in ("overall_score", "weighted_overall_score"):
        assert round(100 * found[name], 2) == released[name]
    assert found["symbolic_visual_reasoning"] == 1.0


def test_a_changed_annotation_file_is_another_revision_and_is_not_gone_on_with(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    WRITERS["sqa3d"](data)
    first = api.evaluate_suite("truth", data, suite="sqa3d", out=out)
    (file,) = data.glob("*annotations*")
    held = json.loads(file.read_text())
    rows = held["annotations"] if isinstance(held, dict) else held
    rows[0]["answers"][0]["answer"] = "penguin"
    file.write_text(json.dumps(held))
    with pytest.raises(BadInputError, match="holds other questions or scenes"):
        api.evaluate_suite("truth", data, suite="sqa3d", out=out)
    again = api.evaluate_suite("truth", data, suite="sqa3d", out=tmp_path / "again")
    revisions = [one["meta"]["suite"]["revision"] for one in (first, again)]
    assert revisions[0] != revisions[1]


def test_captions_of_given_boxes_are_named_so(items):
    suite, asked = SUITES["scan2cap"], items["scan2cap"]
    for column, figures in suite.table(asked, ["a chair"] * len(asked)).items():
        assert all(name.endswith(" (given boxes)") for name in figures)
        scorers = [suite.columns[column].scorer_of(name) for name in figures]
        assert all("given boxes" in scorer for scorer in scorers)


def test_scenes_ask_says_what_it_joined(tmp_path, capsys):
    threedsrbench(tmp_path / "data")
    words = ["scenes", "ask", str(tmp_path / "data"), "--suite", "3dsrbench"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(tmp_path / "store")])
    assert stop.value.code in (0, None)
    assert "2 questions of 3dsrbench on 2 scenes" in capsys.readouterr().out
