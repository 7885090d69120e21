"""VSI-Bench (Yang et al. 2024): rows of ``test.jsonl`` or ``test*.parquet``, one video a scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.evaluate import vsi_bench
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
from stillroom.records import BadInputError

FILES = ("test.jsonl", "test*.parquet", "**/test-*.parquet")
_CHOICE = "Answer with the option's letter from the given choices directly."
_NUMBER = "Please answer the question using a single word or phrase."


def prompt(question_type: str, question: str, options: Sequence[str]) -> str:
    """The published prompt; options with their letters."""
    lines = ["These are frames of a video.", question]
    if question_type in vsi_bench.CHOICE_TYPES:
        return "\n".join([*lines, "Options:", *options, _CHOICE])
    return "\n".join([*lines, _NUMBER])


def read(data: Path) -> list[Item]:
    """Every row. Raises BadInputError where one lacks a field or has a type nobody knows."""
    return [
        _item(row, f"{path.name}, row {number}")
        for path in find_files(data, FILES)
        for number, row in enumerate(read_rows(path))
    ]


def _item(row: RowData, where: str) -> Item:
    kind = text_of(row, "question_type", where)
    if kind not in vsi_bench.QUESTION_TYPES:
        raise BadInputError(f"{where} has the question_type {kind!r}, which VSI-Bench has not")
    options = [str(option) for option in row.get("options") or ()]
    scene, question = text_of(row, "scene_name", where), text_of(row, "question", where)
    return Item(
        question=made_question(
            "vsibench",
            str(row.get("id", "")),
            scene,
            kind,
            question,
            text_of(row, "ground_truth", where),
            options=options,
            asked_as=prompt(kind, question, options),
        ),
        details={"question_type": kind},
        media=f"{row.get('dataset', '')}/{scene}",
    )


def _score(item: Item, text: str, rule: vsi_bench.Rule = "official-2024") -> float:
    question = item.question
    return vsi_bench.answer_score(
        item.details["question_type"], text, question.answer, bare_options(item), rule
    )


def table(items: Sequence[Item], answers: Sequence[str]) -> Table:
    """The release's table by each of the three rules in use, and by ours."""
    types = [item.details["question_type"] for item in items]
    columns: Table = {}
    for rule in vsi_bench.RULES:
        scores = [_score(item, text, rule) for item, text in zip(items, answers, strict=True)]
        columns[_COLUMNS[rule]] = vsi_bench.table(types, scores)
    return columns


_COLUMNS: dict[vsi_bench.Rule, str] = {
    "official-2024": "official",
    "lmms-eval-0.7.3": "lmms-eval",
    "vlmevalkit-2026-08": "vlmevalkit",
    "stillroom-1": "corrected",
}
SUITE = Suite(
    name="vsibench",
    files=FILES,
    read=read,
    score=_score,
    table=table,
    scorers={
        "official": "vsi-mra/official-2024, vsi-letter/official-2024",
        "lmms-eval": "vsi-mra/lmms-eval-0.7.3, vsi-letter/official-2024",
        "vlmevalkit": "vsi-mra/vlmevalkit-2026-08, spatial-letter/vlmevalkit-2026-08",
        "corrected": "vsi-mra/stillroom-1, letter/stillroom-1",
    },
    prompt_id="vsibench/official-2024",
)
