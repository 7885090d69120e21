"""The model card: what it must say, and that an evaluation puts its scores into it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from stillroom.students.card import LISTED, UNREAD, add_scores, card, licence_of, write_card

FACTS: dict[str, Any] = {
    "name": "stillroom student paper_h100",
    "version": "0.1.0",
    "recipe": "paper_h100",
    "teacher": {"name": "llava3d:ChaimZhu/LLaVA-3D-7B", "revision": "abc123"},
    "encoder": "facebook/VGGT-1B",
    "language_model": "",
    "start_from": "",
    "tokenizer": "ChaimZhu/LLaVA-3D-7B",
    "parameters": {"language_model": 1_339_674_624, "total": 2_285_881_640},
    "scenes": {"counts": {"train": 1600, "val": 200}, "sources": ["capture:scannet"]},
    "seed": 3,
    "steps": 8000,
    "scenes_per_step": 1,
    "seconds": 5400.0,
    "machine": "Linux x86_64, 16 cores",
    "commit": "0123abc",
    "command": "stillroom distill paper_h100 --scenes W --labels L --out R",
    "config": {},
}


def scored(score: float) -> dict[str, Any]:
    return {"score": score, "low": score - 0.02, "high": score + 0.02, "n": 400}


RESULTS: dict[str, Any] = {
    "rows": {
        "R/student": {
            "overall": scored(0.71),
            "contact": scored(0.6),
            "metrics": {},
            "retention": {"overall": {"score": 0.885, "low": 0.861, "high": 0.912}},
        },
        "teacher": {"overall": scored(0.802), "contact": scored(0.8)},
        "shuffled:R/student": {"overall": scored(0.4)},
        "blind": {"overall": scored(0.5)},
        "truth": {"overall": scored(1.0)},
    },
    "meta": {"split": "test", "commit": "0123abc", "command": "stillroom evaluate R/student W"},
}


def test_a_card_names_teacher_data_recipe_command_seed_hours_and_machine() -> None:
    text = card(FACTS)
    for told in (
        "distilled from llava3d:ChaimZhu/LLaVA-3D-7B",
        "2,285,881,640 parameters",
        "Recipe `paper_h100`, seed 3, 8000 steps of 1 scenes; 1.50 hours on Linux x86_64, 16 cores",
        "revision abc123",
        "1600 train, 200 val",
        "stillroom distill paper_h100 --scenes W --labels L --out R",
        "Not evaluated yet.",
    ):
        assert told in text, told


def test_every_ingredient_has_its_licence_in_the_card() -> None:
    rows = [line for line in card(FACTS).splitlines() if line.startswith("| ")]
    table = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
    assert "CC BY-NC 4.0, non-commercial" in table["encoder"]
    assert "treat as non-commercial" in table["teacher"]
    assert "ScanNet Terms of Use" in table["scenes"]
    assert "language model" not in table


def test_what_nobody_has_read_is_said_to_be_unread() -> None:
    assert licence_of("somebody/else") == UNREAD
    assert UNREAD in card({**FACTS, "encoder": "somebody/else"})


@pytest.mark.parametrize(
    ("changes", "licence"),
    [
        ({}, "other"),
        (
            {
                "teacher": {"name": "teacher_mini"},
                "encoder": "encoder_mini",
                "tokenizer": "made worlds' tokenizer",
                "scenes": {"counts": {"train": 1}, "sources": ["made:plain"]},
            },
            "apache-2.0",
        ),
    ],
)
def test_the_hub_is_told_apache_only_where_every_ingredient_is(
    changes: dict[str, Any], licence: str
) -> None:
    head = card({**FACTS, **changes}).split("---")[1]
    assert f"license: {licence}\n" in head
    assert ("base_model:\n- facebook/VGGT-1B\n" in head) is (licence == "other")


def test_an_evaluation_puts_scores_with_intervals_beside_what_they_must_beat(
    tmp_path: Path,
) -> None:
    write_card(tmp_path, FACTS)
    assert "Not evaluated yet." in (tmp_path / "README.md").read_text()
    assert add_scores(tmp_path, RESULTS, row="R/student")
    text = (tmp_path / "README.md").read_text()
    assert "Not evaluated yet." not in text
    assert "| | this student | teacher | shuffled | blind |" in text
    assert "| overall | 71.0 (69.0 to 73.0), n = 400 | 80.2 (78.2 to 82.2), n = 400 |" in text
    # Some rows have not been asked about contact; truth, which is not to be beaten, is not there.
    contact = "| contact | 60.0 (58.0 to 62.0), n = 400 | 80.0 (78.0 to 82.0), n = 400 | - | - |"
    assert contact in text
    assert "100.0" not in text
    assert "it keeps 88.5 (86.1 to 91.2)" in text
    assert "stillroom evaluate R/student W" in text
    # A second evaluation replaces the first.
    again = copy.deepcopy(RESULTS)
    again["rows"]["R/student"]["overall"] = scored(0.5)
    assert add_scores(tmp_path, again, row="R/student")
    assert "71.0" not in (tmp_path / "README.md").read_text()


def test_a_folder_that_we_did_not_make_keeps_its_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert not add_scores(tmp_path, RESULTS, row="R/student")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_student_begun_from_another_carries_what_that_was_made_of() -> None:
    made = {
        **FACTS,
        "teacher": {"name": "truth"},
        "tokenizer": "made worlds' tokenizer",
        "scenes": {"counts": {"train": 1}, "sources": ["made:plain"]},
    }
    grandchild = {
        **made,
        "start_from": "second",
        "parent": {**made, "start_from": "first", "parent": FACTS},
    }
    text = card(grandchild)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # The first one's encoder is still in it, and what it learnt from teacher and scans.
    assert any("its teacher | llava3d:ChaimZhu/LLaVA-3D-7B" in r and "non-comm" in r for r in rows)
    assert any("its scenes | capture:scannet | ScanNet Terms" in row for row in rows)
    assert f"| begun from | first | {LISTED} |" in rows
    assert "Begun from second: recipe `paper_h100`, 8000 steps of 1 scenes on labels of truth" in (
        text
    )
    assert "license: other" in text.split("---")[1]


def test_a_line_of_free_students_is_free_and_an_unrecorded_beginning_is_not() -> None:
    free = {
        **FACTS,
        "teacher": {"name": "teacher_mini"},
        "encoder": "encoder_mini",
        "tokenizer": "made worlds' tokenizer",
        "scenes": {"counts": {"train": 1}, "sources": ["made:plain"]},
    }
    assert "license: apache-2.0" in card({**free, "start_from": "run", "parent": free})
    unknown = {**free, "start_from": "run", "parent": None, "encoder": "", "tokenizer": ""}
    text = card(unknown)
    assert "license: other" in text
    assert f"| begun from | run | {UNREAD} |" in text
    assert "of which nothing more is recorded" in text
