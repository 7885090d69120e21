"""SpatialBench (2511.21471): ``QA.txt``, a JSON list of ``{"sample": {...}}``, one video a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stillroom.evaluate import spatialbench as rules
from stillroom.evaluate.suites.base import (
    Item,
    RowData,
    Suite,
    Table,
    bare_options,
    find_files,
    made_question,
    read_rows,
    text_of,
)

FILES = ("QA.txt", "QA.json", "*spatialbench*.json", "*.txt")
_FORM = """
YOUR TASK IS TO PROVIDE ONLY THE FINAL ANSWER.
DO NOT INCLUDE ANY EXPLANATIONS, REASONING, OR THOUGHT PROCESS.
YOUR RESPONSE MUST BE EXTREMELY CONCISE AND CONTAIN ONLY THE ANSWER.

Desired Answer Format:
- For a Multiple choice question, your entire response must be a single letter (e.g., A).
- For a Regression question, your entire response must be a single number (e.g., 240).

Provide the final answer ONLY."""


def prompt(problem_type: str, problem: str, options: Sequence[str]) -> str:
    """The published prompt without examples; options with their letters."""
    lines = ["Analyze the video frames and answer the question.", ""]
    lines += [f"Question type: {problem_type}", f"Question: {problem}"]
    lines += ["Options:", *options] if options else [""]
    return "\n".join([*lines, _FORM])


def read(data: Path) -> list[Item]:
    """Every row. Raises BadInputError where a field is missing."""
    return [
        _item(row.get("sample", row), f"{path.name}, row {number}")
        for path in find_files(data, FILES)[:1]
        for number, row in enumerate(read_rows(path))
    ]


def _item(row: RowData, where: str) -> Item:
    kind = text_of(row, "problem_type", where)
    problem, video = text_of(row, "problem", where), text_of(row, "path", where)
    options = [] if rules.is_number(kind) else [str(option) for option in row.get("options") or ()]
    path = PurePosixPath(video.replace("\\", "/"))
    return Item(
        question=made_question(
            "spatialbench",
            str(row.get("problem_id", "")),
            path.stem,
            str(row.get("original_question_type") or "unknown"),
            problem,
            rules.released_truth(text_of(row, "solution", where)),
            options=options,
            asked_as=prompt(kind, problem, options),
        ),
        details={"problem_type": kind, "scene_type": str(row.get("scene_type") or "")},
        media=str(path.with_suffix("")),
    )


def _official(item: Item, text: str) -> float:
    kind = item.details["problem_type"]
    answer = rules.clean_answer(text, kind, item.question.options)
    return rules.released_score(answer, item.question.answer, kind)


def _corrected(item: Item, text: str) -> float:
    kind = item.details["problem_type"]
    return rules.corrected_score(text, item.question.answer, kind, bare_options(item))


def _score(item: Item, text: str) -> float:
    """As published, but an empty answer is wrong rather than left out."""
    return _official(item, text) if text.strip() else 0.0


def _row(item: Item, score: float) -> rules.Row:
    return rules.Row(
        problem_type=item.details["problem_type"],
        question_type=item.question.family,
        scene_type=item.details["scene_type"],
        score=score,
    )


def table(items: Sequence[Item], answers: Sequence[str]) -> Table:
    """The release's summary as fractions: with empty answers dropped as there, with them counted
    as wrong, and by our reading of the answers."""
    asked = list(zip(items, answers, strict=True))
    kept = [_row(item, _official(item, text)) for item, text in asked if text.strip()]
    columns = {
        "official": kept,
        "official, empty answers wrong": [_row(item, _score(item, text)) for item, text in asked],
        "corrected": [_row(item, _corrected(item, text)) for item, text in asked],
    }
    table = {name: _flat(rules.summary(rows)) for name, rows in columns.items()}
    for name, rows in columns.items():
        table[name]["n"] = float(len(rows))
    return table


def _flat(summary: dict[str, object]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            flat |= {str(key): float(score) / 100 for key, score in value.items()}
        elif isinstance(value, (int, float)):
            flat[name] = float(value) / 100
    return flat


SUITE = Suite(
    name="spatialbench",
    files=FILES,
    read=read,
    score=_score,
    table=table,
    scorers={
        "official": "spatialbench/release-2026-03",
        "official, empty answers wrong": "spatialbench/release-2026-03, empty answers wrong",
        "corrected": "spatialbench/stillroom-1",
    },
    prompt_id="spatialbench/release-2026-03",
)
