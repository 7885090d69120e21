"""The page of results: made from records alone, checked, and never with a figure of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_arms import write_arms

from stillroom.bench.ablation_table import ablation_record
from stillroom.bench.results_page import main, page
from stillroom.records import BadInputError

DOCS = Path(__file__).parents[2] / "docs"


def estimate(score: float) -> dict[str, Any]:
    return {"score": score, "low": score - 0.02, "high": score + 0.02, "n": 40}


ABOVE = {
    "above_blind": 0.7,
    "above_blind_low": 0.6,
    "above_blind_high": 0.8,
    "blind": "blind_student",
}


def evaluation(seed: int, score: float, recipe: str = "mini_cpu") -> dict[str, Any]:
    """As ``stillroom evaluate`` writes it."""
    names = ("precision", "recall", "f1", "length_ratio", "per_word", "teacher_per_word", "bleu1")
    row: dict[str, Any] = {
        "overall": estimate(score),
        "size": estimate(score),
        "metrics": {
            "against_teacher": {
                "rouge": {"rouge1": estimate(0.61)},
                "agreement": {
                    "macro": {name: estimate(0.3 + 0.01 * n) for n, name in enumerate(names)},
                    "corpus": {name: 0.4 + 0.01 * n for n, name in enumerate(names)},
                    "words": {"student": 8.0, "teacher": 40.0},
                },
                "cases": [
                    {
                        "case": "best",
                        "question": "Describe | the room.",
                        "teacher": "a room",
                        "student": "a room",
                        "rouge1": 1.0,
                        "bleu1": 0.9,
                        "words": 2,
                        "teacher_words": 2,
                    }
                ],
            }
        },
        "retention": {"overall": estimate(score / 0.9) | ABOVE},
    }
    teacher = {"overall": estimate(0.9), "metrics": {}, "retention": {}}
    return {
        "rows": {"teacher": teacher, "student": row},
        "meta": {
            "commit": "abc1234",
            "command": "stillroom evaluate",
            "student": "student",
            "teacher": "teacher",
            "split": "test",
            "questions": 40,
            "scenes": 4,
            "students": {"student": {"recipe": recipe, "seed": seed, "steps": 680}},
            "seeds": {"distill": seed},
            "parameters": {"student": 1_670_000, "teacher": 5_800_000},
        },
    }


TIMES = ("total_ms", "see_ms", "read_ms", "per_token_ms")


def latency() -> dict[str, Any]:
    """What ``stillroom bench latency`` writes of a student and its teacher."""

    def model(role: str, factor: float) -> dict[str, Any]:
        times = {name: {"median": factor * 5.0, "p95": factor * 6.0} for name in TIMES}
        return {
            "name": f"{role}_mini",
            "parameters": int(factor * 1_500_000),
            "weight_bytes": int(factor * 6_000_000),
            "peak_bytes": int(factor * 9_000_000) if role == "student" else None,
            "views": 6,
            "scene_tokens": 384,
            "cold": times,
            "warm": times,
            "extrapolated": {"views": 20 if role == "teacher" else 8},
        }

    return {
        "kind": "latency",
        "models": {"teacher": model("teacher", 4.0), "student": model("student", 1.0)},
        "ratio": {"cold": 4.0, "warm": 3.5},
        "ratio_as_asked": {"cold": 3.25, "warm": 3.125},
        "ratio_extrapolated": {"cold": 8.72, "warm": 9.5},
        "parameter_ratio": 4.0,
        "answers_equal": False,
        "answers_compared": {
            "teacher": {"equal": 95, "of": 96},
            "student": {"equal": 96, "of": 96},
        },
        "device": {"name": "a processor", "device": "cpu", "dtype": "float32", "threads": 2},
        "options": {"question_tokens": 32, "tokens": 64, "repeats": 20},
        "meta": {"commit": "abc1234"},
    }


def write(folder: Path, name: str, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    effects = {"learned": {"student": 0.8, "zeroed": 0.5}, "none": {"student": 0.7}}
    slots = ablation_record(
        "slots",
        write_arms(tmp_path / "arms", effects),
        meta={"commit": "def5678", "recipe": "made", "questions": 720, "scenes": 60},
        skipped={},
        failed={},
        plateau=None,
    )
    write(tmp_path / "docs" / "results", "slots.json", slots)
    write(tmp_path / "docs" / "results", "seed0.json", evaluation(0, 0.80))
    write(tmp_path / "docs" / "results", "seed1.json", evaluation(1, 0.84))
    write(tmp_path / "docs" / "results", "speed.json", latency())
    return tmp_path / "docs"


def test_every_table_has_its_figures_with_n_seeds_interval_and_commit(docs: Path) -> None:
    text = page(docs / "results")
    # I: each run, and the mean over seeds.
    assert "| student | 1.67 M | 3.47 | 80.0 % (78.0 to 82.0) |" in text
    kept = "| 88.9 % (86.9 to 90.9) | 70.0 % (60.0 to 80.0), over blind_student |"
    assert f"{kept} 0.610 (0.590 to 0.630) | 40 |" in text
    low, high = (82.0 - 2.83 / 2**0.5 * 12.706, 82.0 + 2.83 / 2**0.5 * 12.706)
    line = next(line for line in text.splitlines() if line.startswith("| mini_cpu | test | 0, 1 |"))
    told = re.search(r"82\.0 % \((-?[\d.]+) to ([\d.]+)\)", line)
    # Student's t of one degree of freedom between the seeds swamps the scenes' two points.
    assert [float(x) for x in told.groups()] == pytest.approx([low, high], rel=0.06)
    assert line.endswith("| seed0.json, seed1.json |")
    # Slots: the paragraph and the tables.
    assert "The student with 8 learned slots, before the question, mask prefix answers" in text
    assert "No slots, mask prefix: -" in text
    assert "after Holm, worse" in text
    assert "Secondary, p uncorrected: learned/zeroed - learned -" in text
    assert "3 seeds, 720 questions each." in text
    assert "| learned (base) | 3 |" in text
    # II and III are not there yet, and say so.
    assert text.count("No committed record yet.") == 2
    # IV: ratios are computed.
    assert "a processor, 2 threads, float32; questions of 32 and answers of 64 tokens" in text
    assert "The student is 4.00 times as fast cold and 3.50 times warm." in text
    assert "On real questions it is 3.25 times as fast cold and 3.12 times warm." in text
    assert "to 20 and 8 photos it is 8.72 times as fast cold and 9.50 times warm." in text
    assert "191 of 192 answers of sessions are those of the models' own forward." in text
    assert "| teacher: teacher_mini | 6.00 M | 24.0 MB | - | 6 / 384 | 20.00 (24.00) |" in text
    assert "| student: student_mini | 1.50 M | 6.0 MB | 9.0 MB | 6 / 384 | 5.00 (6.00) |" in text
    # V.
    assert "| best | Describe \\| the room. | a room | a room | 1.00 | 0.90 | - | 2 / 2 |" in text
    assert "| length ratio | 0.330 (0.310 to 0.350) | 0.430 | 40 |" in text
    assert text.count("commit abc1234") == 5
    assert "commit def5678; seeds 0, 1, 2; 720 questions on 60 scenes" in text


def test_the_papers_figures_stand_beside_its_tables(docs: Path, tmp_path: Path) -> None:
    record = ablation_record(
        "table2",
        write_arms(tmp_path / "more", {"all": {"student": 0.6}, "no_depth": {"student": 0.5}}),
        meta={},
        skipped={"no_objects": "no such encoder"},
        failed={},
        plateau=None,
    )
    write(docs / "results", "table2.json", record)
    text = page(docs / "results")
    line = next(line for line in text.splitlines() if line.startswith("| no_depth | 3"))
    assert line.endswith("| 6.92 / 0.095 / 0.52 / 0.31 |")
    assert "| no_objects | left out: no such encoder |" in text


def test_students_of_other_recipes_or_of_one_seed_make_no_mean(docs: Path) -> None:
    write(docs / "results", "seed1.json", evaluation(1, 0.50, recipe="mini_cpu_no_slots"))
    assert "Students over seeds" not in page(docs / "results")
    write(docs / "results", "seed1.json", evaluation(0, 0.50))
    assert "Students over seeds" not in page(docs / "results")


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "ablation", "suite": "slots"},
        {"kind": "ablation"},
        {"kind": "latency"},
        {"rows": {}, "meta": {"student": "x"}},
        {"rows": {"m": {"metrics": {}}}, "meta": {"student": "m"}},
        {"rows": [], "meta": []},
    ],
)
def test_a_partial_record_is_named_or_shown_without_a_traceback(
    record: dict[str, Any], docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (docs / "results" / "slots.json").unlink()
    write(docs / "results", "part.json", record)
    code = main([str(docs)])
    said = capsys.readouterr().err
    assert code == 0 or "part.json is" in said
    assert (code == 2) == ("kind" in record or record["rows"] == [])


def test_a_page_that_was_touched_or_is_stale_is_noticed(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(docs), "--check"]) == 1
    assert main([str(docs)]) == 0
    assert main([str(docs), "--check"]) == 0
    written = docs / "results.md"
    written.write_text(written.read_text().replace("80.0 %", "81.0 %"))
    assert main([str(docs), "--check"]) == 1
    assert "is not what" in capsys.readouterr().err
    assert main([str(docs)]) == 0
    write(docs / "results", "seed1.json", evaluation(1, 0.85))
    assert main([str(docs), "--check"]) == 1


def test_what_is_no_record_is_refused(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(docs / "results", "notes.json", {"notes": 1})
    with pytest.raises(BadInputError, match=r"notes.json is no record"):
        page(docs / "results")
    assert main([str(docs)]) == 2
    (docs / "results" / "notes.json").write_text("{")
    with pytest.raises(BadInputError, match="not readable JSON"):
        page(docs / "results")
    (docs / "results" / "notes.json").unlink()
    again = json.loads((docs / "results" / "slots.json").read_text())
    write(docs / "results", "slots_again.json", again)
    with pytest.raises(BadInputError, match="both of the suite slots"):
        page(docs / "results")


def test_the_committed_page_is_what_the_committed_records_make() -> None:
    committed = DOCS / "results.md"
    if any((DOCS / "results").glob("*.json")):
        assert committed.read_text(encoding="utf-8") == page(DOCS / "results")
    else:
        assert not committed.exists(), "results.md holds figures without a record behind them"
