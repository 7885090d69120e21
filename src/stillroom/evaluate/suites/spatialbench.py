"""SpatialBench (2511.21471): ``QA.txt``, a JSON list of ``{"sample": {...}}``, one video a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stillroom.evaluate import spatialbench as rules
from stillroom.evaluate.suites.base import (
    Column,
    Item,
    RowData,
    Suite,
    bare_options,
    find_files,
    item_column,
    made_question,
    read_rows,
    scenes_of,
    text_of,
    texts_of,
)
from stillroom.evaluate.suites.figures import Figures, mean_figure, means_by, weighted_groups
from stillroom.records import BadInputError

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
        _item(_sample(row, f"{path.name}, row {number}"), f"{path.name}, row {number}")
        for path in find_files(data, FILES)[:1]
        for number, row in enumerate(read_rows(path))
    ]


def _sample(row: RowData, where: str) -> RowData:
    found = row.get("sample", row)
    if not isinstance(found, dict):
        raise BadInputError(f"{where}: 'sample' must be an object, got {found!r}")
    return found


def _item(row: RowData, where: str) -> Item:
    kind = text_of(row, "problem_type", where)
    problem, video = text_of(row, "problem", where), text_of(row, "path", where)
    options = [] if rules.is_number(kind) else texts_of(row, "options", where)
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


def _released_answer(item: Item, text: str) -> str:
    return rules.clean_answer(text, item.details["problem_type"], item.question.options)


def _released_parse(item: Item, text: str) -> str | None:
    return (_released_answer(item, text) or None) if text.strip() else None


def _released_score(item: Item, text: str) -> float:
    """As published, but an empty answer is wrong rather than left out."""
    if not text.strip():
        return 0.0
    kind = item.details["problem_type"]
    return rules.released_score(_released_answer(item, text), item.question.answer, kind)


def _corrected_parse(item: Item, text: str) -> str | None:
    return rules.stated_answer(text, item.details["problem_type"], bare_options(item))


def _corrected_score(item: Item, text: str) -> float:
    kind = item.details["problem_type"]
    return rules.corrected_score(text, item.question.answer, kind, bare_options(item))


def _released_figures(items: Sequence[Item], answers: Sequence[str]) -> Figures:
    """The release's summary: items with an empty answer are no part of it."""
    kept = [(i, text) for i, text in zip(items, answers, strict=True) if text.strip()]
    # A run of empty answers alone has the score 0 there.
    kept = kept or [(item, "") for item in items]
    return _figures([i for i, _ in kept], [_released_score(i, text) for i, text in kept])


def _figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    """The release's summary as fractions: over items, weighted over the five groups (one never
    asked counts 0), and whatever was asked of groups, types, forms and kinds of scene."""
    scenes = scenes_of(items)
    types = [item.question.family for item in items]
    group_of = {kind: name for name, (_, kinds) in rules.GROUPS.items() for kind in kinds}
    weights = {name: weight for name, (weight, _) in rules.GROUPS.items()}
    groups = [group_of.get(kind, "") for kind in types]
    forms = [
        "regression" if rules.is_number(item.details["problem_type"]) else "multiple_choice"
        for item in items
    ]
    found = {
        "overall_score": mean_figure(scores, scenes),
        "weighted_overall_score": weighted_groups(groups, weights, scores, scenes),
    }
    for keys in (groups, types, forms, [item.details["scene_type"] for item in items]):
        found |= {k: one for k, one in means_by(keys, scores, scenes).items() if k}
    return found


_RELEASE = "spatialbench/release-2026-03"
SUITE = Suite(
    name="spatialbench",
    files=FILES,
    read=read,
    columns={
        "official": Column(
            scorers={"": _RELEASE},
            parse=_released_parse,
            score=_released_score,
            figures=_released_figures,
        ),
        "official, empty answers wrong": item_column(
            f"{_RELEASE}, empty answers wrong", _released_parse, _released_score, _figures
        ),
        "corrected": item_column(
            "spatialbench/stillroom-1", _corrected_parse, _corrected_score, _figures
        ),
    },
    prompt_id=_RELEASE,
)
