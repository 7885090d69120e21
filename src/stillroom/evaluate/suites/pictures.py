"""Choice questions about single pictures or a few: BLINK, CV-Bench, MMVP, V*, MMStar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from stillroom.evaluate.suites.base import (
    FiguresOf,
    Item,
    RowData,
    Suite,
    bare,
    find_files,
    lettered_options,
    made_question,
    picture,
    read_rows,
    require_lettered,
    scenes_of,
    text_of,
    texts_of,
)
from stillroom.evaluate.suites.choices import letter_columns
from stillroom.evaluate.suites.figures import (
    Figures,
    grouped_figure,
    mean_figure,
    means_by,
    nested_mean,
    positions,
)
from stillroom.records import content_hash

_LETTER_NOTE = (
    "Note: You only need to respond with {} without providing any additional information.\n"
)
_LETTER_LINE = "\nAnswer with the option's letter from the given choices directly"

BLINK_FILES = ("**/val-*.parquet", "val*.parquet", "*blink*.parquet", "*blink*.jsonl")
#: The sub-tasks that the spatial group is the plain mean of.
BLINK_SPATIAL = ("Relative_Depth", "Spatial_Relation", "Multi-view_Reasoning")
CVBENCH_FILES = ("test*.parquet", "*cv*bench*.parquet", "test*.jsonl")
MMVP_FILES = ("Questions.csv", "*mmvp*.csv", "*mmvp*.parquet")
VSTAR_FILES = ("test_questions.jsonl", "*vstar*.jsonl", "*vstar*.parquet")
MMSTAR_FILES = ("**/val-*.parquet", "*mmstar*.parquet", "*MMStar*.tsv", "*mmstar*.tsv")


def _rows(data: Path, patterns: Sequence[str]) -> list[tuple[RowData, str]]:
    return [
        (row, f"{path.name}, row {number}")
        for path in find_files(data, patterns)
        for number, row in enumerate(read_rows(path))
    ]


def _picture_item(
    suite: str,
    key: str,
    family: str,
    question: str,
    options: Sequence[str],
    answer: str,
    asked_as: str,
    images: Sequence[bytes],
    where: str,
    **details: str,
) -> Item:
    letter = require_lettered(answer.strip().strip("()").strip().upper(), len(options), where)
    return Item(
        question=made_question(
            suite,
            key,
            content_hash(images),
            family,
            question,
            letter,
            options=lettered_options(options),
            asked_as=asked_as,
        ),
        details=details,
        images=tuple(images),
    )


def read_blink(data: Path) -> list[Item]:
    """BLINK's validation rows of every sub-task that is there; ``image_1`` to ``image_4``."""
    items = []
    for row, where in _rows(data, BLINK_FILES):
        task, options = text_of(row, "sub_task", where), texts_of(row, "choices", where)
        held = [row.get(f"image_{n}") for n in range(1, 5)]
        images = [picture(image, data, where) for image in held if image is not None]
        note = _LETTER_NOTE.format(", ".join("ABCDEFGH"[: len(options)]))
        prompt, question = text_of(row, "prompt", where), text_of(row, "question", where)
        key, answer = text_of(row, "idx", where), text_of(row, "answer", where)
        items.append(
            _picture_item(
                "blink", key, task, question, options, answer, note + prompt, images, where
            )
        )
    return items


def _blink_figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    tasks = _parts([item.question.family for item in items], items, scores)
    # The group is named only where all of it was asked.
    whole = {}
    if set(BLINK_SPATIAL) <= set(tasks):
        whole["spatial"] = nested_mean([[tasks[task]] for task in BLINK_SPATIAL])
    return {**whole, **_by_family(items, scores)}


def _parts(
    keys: Sequence[str], items: Sequence[Item], scores: Sequence[float]
) -> dict[str, tuple[list[float], list[str]]]:
    """The scores and scenes of each key."""
    scenes = scenes_of(items)
    return {
        key: ([scores[i] for i in where], [scenes[i] for i in where])
        for key, where in positions(keys).items()
    }


def read_cvbench(data: Path) -> list[Item]:
    """CV-Bench's 2D and 3D rows; ``prompt`` holds the question with its choices."""
    items = []
    for row, where in _rows(data, CVBENCH_FILES):
        options = texts_of(row, "choices", where)
        image = picture(row.get("image") or row.get("filename"), data, where)
        note = _LETTER_NOTE.format(", ".join("ABCDEFGH"[: len(options)]))
        items.append(
            _picture_item(
                "cvbench",
                text_of(row, "idx", where),
                text_of(row, "task", where),
                text_of(row, "question", where),
                options,
                text_of(row, "answer", where),
                f"{note}\n{text_of(row, 'prompt', where)}",
                [image],
                where,
                source=text_of(row, "source", where),
                type=text_of(row, "type", where),
            )
        )
    return items


def _cvbench_figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    """Official overall: 1/2 ((ADE20K + COCO) / 2 + Omni3D); not the mean over items."""
    sources = [item.details["source"] for item in items]
    parts, overall = _parts(sources, items, scores), {}
    if {"ADE20K", "COCO", "Omni3D"} <= set(parts):
        tasks = [[parts["ADE20K"], parts["COCO"]], [parts["Omni3D"]]]
        overall["overall"] = nested_mean(tasks)
    by_source = means_by(sources, scores, scenes_of(items))
    return {**overall, **_by_family(items, scores), **by_source}


def read_mmvp(data: Path) -> list[Item]:
    """MMVP's ``Questions.csv`` with the pictures in ``MMVP Images/INDEX.jpg``, or rows that embed
    them. Rows 1 and 2, 3 and 4 ... are pairs."""
    items = []
    for row, where in _rows(data, MMVP_FILES):
        index = text_of(row, "Index", where)
        given = row.get("image") or f"MMVP Images/{index}.jpg"
        question = text_of(row, "Question", where)
        options = _bracketed(text_of(row, "Options", where))
        lines = "\n".join(lettered_options(options))
        items.append(
            _picture_item(
                "mmvp",
                index,
                "mmvp",
                question,
                options,
                text_of(row, "Correct Answer", where),
                f"{question}\n{lines}{_LETTER_LINE}",
                [picture(given, data, where)],
                where,
                pair=str((int(index) - 1) // 2) if index.isdigit() else where,
            )
        )
    return items


def _bracketed(text: str) -> list[str]:
    """The options of "(a) Open (b) Closed"."""
    parts = re.split(r"\(([A-Za-z])\)", text)
    return [part.strip() for part in parts[2::2]]


def _mmvp_figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    pairs, scenes = [item.details["pair"] for item in items], scenes_of(items)
    return {"pairs": grouped_figure(pairs, scores, scenes), "items": mean_figure(scores, scenes)}


def read_vstar(data: Path) -> list[Item]:
    """V*'s ``test_questions.jsonl``, pictures beside it as named; options stand in the text."""
    items = []
    for row, where in _rows(data, VSTAR_FILES):
        text = text_of(row, "text", where)
        options = [option.split("\n")[0] for option in _bracketed(text)]
        question = text.split("(A)")[0].strip()
        lines = "\n".join(lettered_options(options))
        items.append(
            _picture_item(
                "vstar",
                text_of(row, "question_id", where),
                text_of(row, "category", where),
                question,
                options,
                text_of(row, "label", where),
                f"{question}\n{lines}{_LETTER_LINE}.",
                [picture(row.get("image"), data, where)],
                where,
            )
        )
    return items


def read_mmstar(data: Path) -> list[Item]:
    """MMStar's rows: the options stand in the question ("Options: A: ..., B: ..."), or in columns
    A to D in VLMEvalKit's .tsv."""
    items = []
    for row, where in _rows(data, MMSTAR_FILES):
        text = text_of(row, "question", where)
        question, options = _inline_options(text)
        if not options:
            options = [str(row[letter]) for letter in "ABCD" if row.get(letter)]
        lines = "\n".join(["Options:", *lettered_options(options)])
        items.append(
            _picture_item(
                "mmstar",
                text_of(row, "index", where),
                str(row.get("category") or "unknown"),
                question,
                options,
                text_of(row, "answer", where),
                f"{question}\n{lines}{_LETTER_LINE}",
                [picture(row.get("image"), data, where)],
                where,
                l2_category=str(row.get("l2_category") or "unknown"),
            )
        )
    return items


def _inline_options(text: str) -> tuple[str, list[str]]:
    """ "Which? Options: A: red, B: blue" as ("Which?", ["red", "blue"])."""
    question, found, tail = text.partition("Options:")
    if not found:
        return text.strip(), []
    parts = re.split(r"(?:^|[,\s])\s*([A-H])[:.]\s", " " + tail.strip())
    return question.strip(), [bare(part.strip().rstrip(",").strip()) for part in parts[2::2]]


def _by_family(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    scenes = scenes_of(items)
    families = [item.question.family for item in items]
    return {"items": mean_figure(scores, scenes), **means_by(families, scores, scenes)}


def _choice_suite(
    name: str,
    files: tuple[str, ...],
    read: Callable[[Path], list[Item]],
    rule: str,
    figures: FiguresOf,
    prompt_id: str,
) -> Suite:
    return Suite(
        name=name,
        files=files,
        read=read,
        columns=letter_columns(rule, figures),
        prompt_id=prompt_id,
    )


BLINK = _choice_suite(
    "blink",
    BLINK_FILES,
    read_blink,
    "blink-letter/lmms-eval-0.7.3",
    _blink_figures,
    "blink/lmms-eval-0.7.3",
)
CVBENCH = _choice_suite(
    "cvbench",
    CVBENCH_FILES,
    read_cvbench,
    "cvbench-letter/lmms-eval-0.7.3",
    _cvbench_figures,
    "cvbench/lmms-eval-0.7.3",
)
MMVP = _choice_suite(
    "mmvp",
    MMVP_FILES,
    read_mmvp,
    "mmvp-letter/lmms-eval-0.7.3",
    _mmvp_figures,
    "mmvp/lmms-eval-0.7.3",
)
VSTAR = _choice_suite(
    "vstar",
    VSTAR_FILES,
    read_vstar,
    "vstar-letter/lmms-eval-0.7.3",
    _by_family,
    "vstar/lmms-eval-0.7.3",
)
MMSTAR = _choice_suite(
    "mmstar",
    MMSTAR_FILES,
    read_mmstar,
    "infer-letter/vlmevalkit-2026-08",
    _by_family,
    "mmstar/stillroom-1",
)
