"""Overlap with a teacher's texts: cases worked by hand, and the report's section of them."""

import json

import numpy as np
import pytest
from test_report import Page
from tiny_worlds import Seer

from stillroom.evaluate.intervals import Resampler
from stillroom.evaluate.qualitative import text_agreement, text_cases
from stillroom.evaluate.report import write_report
from stillroom.evaluate.report_cases import case_scenes, ranked_scenes
from stillroom.evaluate.run import evaluate
from stillroom.records import Answer

#: Four words that are all right of eight, and two of which one is right of two.
SAID = ["A red chair stands", "blue lamp"]
TAUGHT = ["a red chair stands before a blue wall.", "green lamp"]


def agreement(said=SAID, taught=TAUGHT):
    scenes = [f"s{n}" for n in range(len(said))]
    return text_agreement(said, taught, scenes, Resampler(scenes, rng=np.random.default_rng(0)))


def test_macro_and_corpus_are_as_worked_by_hand() -> None:
    found = agreement()
    macro, corpus = found["macro"], found["corpus"]
    first = 2 * 1.0 * 0.5 / 1.5
    assert macro["precision"]["score"] == pytest.approx((1.0 + 0.5) / 2)
    assert macro["recall"]["score"] == pytest.approx((0.5 + 0.5) / 2)
    assert macro["f1"]["score"] == pytest.approx((first + 0.5) / 2)
    assert corpus["precision"] == pytest.approx(5 / 6)
    assert corpus["recall"] == pytest.approx(5 / 10)
    assert corpus["f1"] == pytest.approx(2 * (5 / 6) * 0.5 / (5 / 6 + 0.5))
    assert macro["length_ratio"]["score"] == pytest.approx((4 / 8 + 2 / 2) / 2)
    assert corpus["length_ratio"] == pytest.approx(6 / 10)
    assert macro["per_word"]["score"] == pytest.approx((first / 4 + 0.5 / 2) / 2)
    assert corpus["per_word"] == pytest.approx((first + 0.5) / 6)
    assert macro["teacher_per_word"]["score"] == pytest.approx((1 / 8 + 1 / 2) / 2)
    assert corpus["teacher_per_word"] == pytest.approx(2 / 10)
    assert found["words"] == {"student": 3.0, "teacher": 5.0}


def test_the_mean_of_f1_is_not_made_from_the_mean_precision_and_recall() -> None:
    # Item 19 of the specification: 0.397 and 0.085 are no 0.119.
    macro = agreement()["macro"]
    p, r = macro["precision"]["score"], macro["recall"]["score"]
    assert macro["f1"]["score"] != pytest.approx(2 * p * r / (p + r), abs=1e-3)


def test_a_short_text_pays_for_its_brevity_in_bleu() -> None:
    found = agreement(["a red chair"], ["a red chair before a blue wall"])
    # Precision 1 and the penalty exp(1 - 7 / 3), sentence and corpus alike.
    assert found["macro"]["bleu1"]["score"] == pytest.approx(np.exp(1 - 7 / 3), abs=1e-6)
    assert found["corpus"]["bleu1"] == pytest.approx(np.exp(1 - 7 / 3), abs=1e-6)


def test_a_copy_has_the_teachers_own_overlap_per_word() -> None:
    found = agreement(TAUGHT, TAUGHT)
    for part in ("macro", "corpus"):
        one = {k: v["score"] if part == "macro" else v for k, v in found[part].items()}
        assert one["per_word"] == pytest.approx(one["teacher_per_word"])
        assert one["length_ratio"] == one["f1"] == 1.0


def test_nothing_said_is_nothing_and_no_division() -> None:
    found = agreement(["", "!!"], ["a chair", ""])
    assert found["macro"]["f1"]["score"] == found["corpus"]["f1"] == 0.0
    assert found["macro"]["per_word"]["score"] == 0.0


def test_cases_are_the_best_the_median_and_the_worst() -> None:
    taught = ["one two three four"] * 5
    said = ["one", "one two three four", "five", "one two", "one two three"]
    about = [{"question_id": str(n)} for n in range(5)]
    cases = text_cases(said, taught, about, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert [(c["case"], c["question_id"]) for c in cases] == [
        ("best", "1"),
        ("median", "3"),
        ("worst", "2"),
    ]
    assert cases[1]["rouge1"] == pytest.approx(2 / 3)
    assert (cases[1]["words"], cases[1]["teacher_words"], cases[1]["meteor"]) == (2, 4, 0.4)
    assert [c["case"] for c in text_cases(said[:2], taught[:2], about[:2])] == ["best", "worst"]
    assert [c["case"] for c in text_cases(said[:1], taught[:1], about[:1])] == ["best"]
    assert "meteor" not in text_cases(said[:1], taught[:1], about[:1])[0]


class Brief(Seer):
    """A student that says the first words of a description only, and errs in the rest."""

    def open(self, scene):
        session = super().open(scene)
        whole = session.answer

        def answer(questions):
            return [
                Answer(question_id=a.question_id, text=" ".join(a.text.split()[:3]))
                for a in whole(questions)
            ]

        session.answer = answer
        return session


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("cases")
    rows = {"teacher": Seer(store, errs=0.1), "student": Brief(store, errs=0.6, seed=1)}
    results = evaluate(
        rows,
        store,
        split="test",
        out=out,
        teacher_row="teacher",
        student_row="student",
        meta={},
        meteor_rows=(),
    )
    return out, results


def test_results_hold_the_cases_and_the_conservative_numbers(run) -> None:
    out, results = run
    against = results["rows"]["student"]["metrics"]["against_teacher"]
    assert (
        json.loads((out / "results.json").read_text())["rows"]["student"]["metrics"][
            "against_teacher"
        ]
        == against
    )
    macro = against["agreement"]["macro"]
    assert macro["f1"]["score"] == pytest.approx(against["rouge"]["rouge1"]["score"])
    assert macro["precision"]["score"] == pytest.approx(against["rouge"]["rouge1"]["precision"])
    assert macro["length_ratio"]["score"] < 0.6
    assert macro["precision"]["score"] > macro["recall"]["score"]
    assert against["agreement"]["corpus"]["bleu1"] == pytest.approx(against["bleu"]["bleu1"])
    assert len(against["cases"]) == 3
    assert {"scene_id", "question", "student", "teacher"} <= set(against["cases"][0])
    assert "against_teacher" not in results["rows"]["teacher"]["metrics"]


def test_the_report_shows_the_cases_with_pictures(run, store) -> None:
    out, results = run
    text = write_report(results, out=out, store=store).read_text()
    page = Page(text)
    assert "cases" in page.ids
    section = text.split('id="cases"')[1].split("<h2")[0]
    assert section.count('<div class="card whole">') == 6
    assert section.count("<img ") == 12
    against = results["rows"]["student"]["metrics"]["against_teacher"]
    for case in against["cases"]:
        assert f"{case['case']}: ROUGE-1 {case['rouge1']:.2f}" in section
    assert f"{against['agreement']['macro']['length_ratio']['score']:.4f}" in section
    assert f"{against['agreement']['corpus']['per_word']:.4f}" in section


def test_scenes_are_ranked_by_how_often_both_say_the_same() -> None:
    def line(scene: str, family: str, parsed: str | None) -> dict:
        return {"scene_id": scene, "family": family, "parsed": parsed}

    teacher, student = {}, {}
    for scene, right in (("a", 1), ("b", 3), ("c", 0)):
        for number in range(3):
            key = f"{scene}{number}"
            teacher[key] = line(scene, "size", "left")
            student[key] = line(scene, "size", "left" if number < right else None)
    student["d0"] = teacher["d0"] = line("d", "description", "a room")
    ranked = ranked_scenes(student, teacher)
    assert [(scene, share) for scene, _, share in ranked] == [
        ("b", 1.0),
        ("a", pytest.approx(1 / 3)),
        ("c", 0.0),
    ]
    cases = case_scenes(ranked)
    assert {name: scene for name, (scene, *_) in cases.items()} == {
        "best": "b",
        "median": "a",
        "worst": "c",
    }
    assert list(case_scenes(ranked[:1])) == ["best"]
    assert ranked_scenes({}, {}) == []
