import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import WRITERS, frames, parquet, png, threedsrbench, vsibench

from stillroom import api, cli
from stillroom.evaluate import scan2cap
from stillroom.evaluate.letters import LETTER_RULES
from stillroom.evaluate.numbers import NUMBER_RULES
from stillroom.evaluate.suites import SUITES, find_suite, read_items, rooms
from stillroom.evaluate.suites.attach import attach_items, attach_questions, frame_grid
from stillroom.evaluate.suites.base import Item
from stillroom.evaluate.suites.report import prepare
from stillroom.evaluate.vsi_bench import RULES, answer_score
from stillroom.records import BadInputError
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
    assert set(WRITERS) == set(SUITES) == set(cli.SuiteName.__args__)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_scores_one_in_every_column(items, name):
    suite, asked = SUITES[name], items[name]
    truths = [item.question.answer for item in asked]
    assert [suite.score(item, text) for item, text in zip(asked, truths)] == [1.0] * len(asked)
    for column, figures in suite.table(asked, truths).items():
        for figure in ("overall", "items", "vanilla", "overall_score", "EM@1", "ROUGE-L@0.5"):
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
        read_items(SUITES["scanqa"], api.Path("/nowhere"))


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


def test_scenes_ask_says_what_it_joined(tmp_path, capsys):
    threedsrbench(tmp_path / "data")
    words = ["scenes", "ask", str(tmp_path / "data"), "--suite", "3dsrbench"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--out", str(tmp_path / "store")])
    assert stop.value.code in (0, None)
    assert "2 questions of 3dsrbench on 2 scenes" in capsys.readouterr().out
