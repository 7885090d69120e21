"""VSI-Bench (Yang et al. 2024): rows of ``test.jsonl`` or ``test*.parquet``, one video a scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.evaluate import vsi_bench
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
    require_lettered,
    scenes_of,
    text_of,
    texts_of,
)
from stillroom.evaluate.suites.figures import Figures, mean_figure, nested_mean, positions
from stillroom.records import BadInputError
from stillroom.text.answers import official_number

FILES = ("test.jsonl", "test.parquet", "test-*.parquet", "full/test-*.parquet")
#: The rows that the authors left when they removed what can be had without looking.
DEBIASED_FILES = ("test_debiased.parquet", "test_debiased*", "debiased/test-*.parquet")
_CHOICE = "Answer with the option's letter from the given choices directly."
_NUMBER = "Please answer the question using a single word or phrase."


def prompt(question_type: str, question: str, options: Sequence[str]) -> str:
    """The published prompt; options with their letters."""
    lines = ["These are frames of a video.", question]
    if question_type in vsi_bench.CHOICE_TYPES:
        return "\n".join([*lines, "Options:", *options, _CHOICE])
    return "\n".join([*lines, _NUMBER])


def read(data: Path, *, suite: str = "vsibench", files: Sequence[str] = FILES) -> list[Item]:
    """Every row. Raises BadInputError where one lacks a field or has a type nobody knows."""
    return [
        _item(row, suite, f"{path.name}, row {number}")
        for path in find_files(data, files)
        for number, row in enumerate(read_rows(path))
    ]


def read_debiased(data: Path) -> list[Item]:
    """Every row of the debiased configuration."""
    return read(data, suite="vsibench-debiased", files=DEBIASED_FILES)


def _item(row: RowData, suite: str, where: str) -> Item:
    kind = text_of(row, "question_type", where)
    if kind not in vsi_bench.QUESTION_TYPES:
        raise BadInputError(f"{where} has the question_type {kind!r}, which VSI-Bench has not")
    options = texts_of(row, "options", where)
    truth = text_of(row, "ground_truth", where)
    if kind in vsi_bench.CHOICE_TYPES:
        require_lettered(truth, len(options), where)
    elif official_number(truth) is None:
        raise BadInputError(f"{where}: the answer {truth!r} to a {kind} question is no number")
    scene, question = text_of(row, "scene_name", where), text_of(row, "question", where)
    return Item(
        question=made_question(
            suite,
            str(row.get("id", "")),
            scene,
            kind,
            question,
            truth,
            options=options,
            asked_as=prompt(kind, question, options),
        ),
        details={"question_type": kind},
        media=f"{row.get('dataset', '')}/{scene}",
    )


def _column(rule: vsi_bench.Rule, scorer: str) -> Column:
    def parse(item: Item, text: str) -> str | None:
        kind = item.details["question_type"]
        return vsi_bench.understood(kind, text, bare_options(item), rule)

    def score(item: Item, text: str) -> float:
        kind, truth = item.details["question_type"], item.question.answer
        return vsi_bench.answer_score(kind, text, truth, bare_options(item), rule)

    return item_column(scorer, parse, score, _figures)


def _figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    """The release's table: overall is the mean of its tasks; and the mean over items, so named."""
    types, scenes = [item.details["question_type"] for item in items], scenes_of(items)
    parts = {
        kind: ([scores[i] for i in where], [scenes[i] for i in where])
        for kind, where in positions(types).items()
    }
    tasks = {
        task: [part for kind, part in parts.items() if vsi_bench.task_of(kind) == task]
        for task in vsi_bench.FIGURE_OF
    }
    asked = {task: levels for task, levels in tasks.items() if levels}
    return {
        "overall": nested_mean(list(asked.values())),
        "items": mean_figure(scores, scenes),
        **{vsi_bench.FIGURE_OF[task]: nested_mean([levels]) for task, levels in asked.items()},
    }


COLUMNS = {
    "official": _column("official-2024", "vsi-mra/official-2024, vsi-letter/official-2024"),
    "lmms-eval": _column("lmms-eval-0.7.3", "vsi-mra/lmms-eval-0.7.3, vsi-letter/official-2024"),
    "vlmevalkit": _column(
        "vlmevalkit-2026-08", "vsi-mra/vlmevalkit-2026-08, spatial-letter/vlmevalkit-2026-08"
    ),
    "corrected": _column("stillroom-1", "vsi-mra/stillroom-1, letter/stillroom-1"),
}
PROMPT_ID = "vsibench/official-2024"
SUITE = Suite(name="vsibench", files=FILES, read=read, columns=COLUMNS, prompt_id=PROMPT_ID)
DEBIASED = Suite(
    name="vsibench-debiased",
    files=DEBIASED_FILES,
    read=read_debiased,
    columns=COLUMNS,
    prompt_id=PROMPT_ID,
)
