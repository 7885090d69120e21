"""A benchmark's tables in ``results.json``: published figures beside corrected ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stillroom.evaluate.coco_java import missing as meteor_missing
from stillroom.evaluate.intervals import Resampler, above_blind, interval_of
from stillroom.evaluate.suites import read_items
from stillroom.evaluate.suites.attach import attach_suite
from stillroom.evaluate.suites.base import Column, Item, Suite, scenes_of
from stillroom.evaluate.suites.figures import Figure, Figures
from stillroom.evaluate.tasks import Scored
from stillroom.records import Question
from stillroom.scenes.store import SceneStore, open_store, write_atomically


def prepare(
    suite: Suite,
    data: Path,
    out: Path,
    *,
    prompt: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SceneStore, list[Item], tuple[str, ...]]:
    """The store of a suite's questions and scenes at ``out``, its items, and the scenes missing."""
    items = read_items(suite, data)
    attached = attach_suite(
        suite, items, data, out, official_prompt=prompt == "official", progress=progress
    )
    return open_store(out), items, attached.missing


def scorer_of(suite: Suite, items: Sequence[Item]) -> Callable[[Question, str], Scored]:
    """How the runner scores one answer: the suite's headline rule, and the corrected one beside."""
    by_id = {item.question.question_id: item for item in items}
    official, corrected = suite.columns["official"], suite.columns["corrected"]

    def score(question: Question, text: str) -> Scored:
        item = by_id[question.question_id]
        return Scored(
            parsed=official.parse(item, text),
            score=official.score(item, text),
            scorer=official.scorer_of("item"),
            corrected_parsed=corrected.parse(item, text),
            corrected_score=corrected.score(item, text),
        )

    return score


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one row said, in the order of the items, and the figures of that by column."""

    items: list[Item]
    texts: list[str]
    # The most that were looked at for one item; None where that was not recorded.
    frames: int | None
    figures: Mapping[str, Figures]

    @classmethod
    def of(
        cls, lines: Sequence[Mapping[str, Any]], by_id: Mapping[str, Item], suite: Suite
    ) -> _Answers:
        looked = [len(line["frames"]) for line in lines if line["frames"] is not None]
        items = [by_id[line["question_id"]] for line in lines]
        texts = [line["answer"] for line in lines]
        return cls(
            items=items,
            texts=texts,
            frames=max(looked, default=None),
            figures={name: column.figures(items, texts) for name, column in suite.columns.items()},
        )


def add_tables(
    results: dict[str, Any],
    suite: Suite,
    items: Sequence[Item],
    missing: Sequence[str],
    store: SceneStore,
    out: Path,
    *,
    decoding: Mapping[str, str | None],
) -> dict[str, Any]:
    """The results with ``rows.ROW.metrics.suite``, as written to ``out/results.json``.

    ``decoding`` says for a row how its answers were drawn, where that is known.
    """
    by_id = {item.question.question_id: item for item in items}
    lines = pq.read_table(out / "items.parquet").to_pylist()
    said = {
        row: _Answers.of([line for line in lines if line["model"] == row], by_id, suite)
        for row in results["rows"]
    }
    meta, settings = results["meta"], store.manifest["settings"]
    scenes = scenes_of(next(iter(said.values())).items)
    resampler = Resampler(scenes, rng=np.random.default_rng(0))
    teacher, blind = said.get(meta["teacher"]), said.get(meta["blind"])
    about = {key: settings[key] for key in ("revision", "prompt")}
    for row, entry in results["rows"].items():
        made = {
            "benchmark": suite.name,
            **about,
            "frames": said[row].frames,
            "frame_rule": settings["frames"],
            "decoding": decoding.get(row),
        }
        kept = None if row in (meta["teacher"], "truth") else teacher
        table = [
            made | line
            for name in suite.columns
            for line in _column_lines(suite, name, said[row], kept, blind, resampler)
        ]
        columns: dict[str, dict[str, float]] = {}
        for line in table:
            columns.setdefault(line["column"], {})[line["figure"]] = line["score"]
        entry["metrics"]["suite"] = {
            "columns": columns,
            "table": table,
            "empty_answers": sum(not text.strip() for text in said[row].texts),
        }
    results["meta"]["suite"] = {
        "name": suite.name,
        **about,
        "frames": settings["frames"],
        "missing_scenes": list(missing),
        "meteor": meteor_missing() or "there",
    }
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def _column_lines(
    suite: Suite,
    name: str,
    said: _Answers,
    teacher: _Answers | None,
    blind: _Answers | None,
    resampler: Resampler,
) -> list[dict[str, Any]]:
    """One line per figure of a column: against the truth, against the teacher, what is kept."""
    column = suite.columns[name]
    unparsed = sum(
        column.parse(i, text) is None for i, text in zip(said.items, said.texts, strict=True)
    )
    taught = {} if teacher is None else teacher.figures[name]
    guessed = {} if blind is None else blind.figures[name]
    told = {} if teacher is None else _against(column, said, teacher)
    found = []
    for key, figure in said.figures[name].items():
        kept = None
        if key in taught:
            kept = _retention(figure, taught[key], guessed.get(key), resampler)
        found.append(
            {
                "column": name,
                "figure": key,
                "scorer": column.scorer_of(key),
                **_estimate(figure, resampler),
                "unparsed": unparsed,
                "retention": kept,
                "teacher_relative": _estimate(told[key], resampler) if key in told else None,
            }
        )
    return found


def _against(column: Column, said: _Answers, teacher: _Answers) -> Figures:
    """The figures with what the teacher said for the truth, where it said something."""
    told, texts = [], []
    for item, text, taught in zip(said.items, said.texts, teacher.texts, strict=True):
        answer = column.parse(item, taught)
        if answer is not None:
            question = replace(item.question, answer=answer, renderings=())
            told.append(replace(item, question=question))
            texts.append(text)
    return column.figures(told, texts) if told else {}


def _estimate(figure: Figure, resampler: Resampler) -> dict[str, Any]:
    low, high = interval_of(figure.drawn(resampler))
    return {"score": figure.value, "low": low, "high": high, "n": len(figure.scenes)}


def _retention(
    student: Figure, teacher: Figure, blind: Figure | None, resampler: Resampler
) -> dict[str, Any]:
    """Student over teacher, both against the truth, drawn together; and above the blind row."""
    if teacher.value <= 0:
        return {"score": None, "low": None, "high": None, "above_blind": None}
    mine, theirs = student.drawn(resampler), teacher.drawn(resampler)
    ratios = None
    if mine is not None and theirs is not None:
        drawn = theirs > 0
        ratios = mine[drawn] / theirs[drawn]
    low, high = interval_of(ratios)
    kept = None if blind is None else above_blind(student.value, teacher.value, blind.value)
    return {"score": student.value / teacher.value, "low": low, "high": high, "above_blind": kept}


def missing_line(missing: Sequence[str]) -> list[str]:
    """A sentence on scenes that were not there, or nothing."""
    if not missing:
        return []
    shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    return [f"{len(missing)} scenes were not there and were not asked about: {shown}"]


def lines(results: Mapping[str, Any]) -> list[str]:
    """The tables for a terminal: a line per figure, its columns side by side, fractions.

    The headline has its interval; those of the other columns are in ``results.json``.
    """
    about = results["meta"]["suite"]
    found = [f"{about['name']}, files {about['revision']}, prompt {about['prompt']}"]
    found += missing_line(about["missing_scenes"])
    for row, entry in results["rows"].items():
        suite = entry["metrics"]["suite"]
        official = [line for line in suite["table"] if line["column"] == "official"]
        others = {name: column for name, column in suite["columns"].items() if name != "official"}
        relative = any(line["retention"] or line["teacher_relative"] for line in official)
        first = official[0]
        frames = "frames not recorded" if first["frames"] is None else f"{first['frames']} frames"
        decoded = first["decoding"] or "no decoding"
        unread = f"{first['unparsed']} not understood, {suite['empty_answers']} empty"
        found += ["", f"{row}: {frames}, {decoded}, {unread}"]
        kept = ["retention", "against teacher"] if relative else []
        heads = ["official", *kept, "n", *others]
        widths = [max(len(head), 22 if head in ("official", *kept) else 10) for head in heads]
        found.append(_line("figure", heads, widths))
        for line in official:
            cells = [_between(line)]
            cells += [_between(line["retention"]), _between(line["teacher_relative"])][: len(kept)]
            values = [column.get(line["figure"]) for column in others.values()]
            shown = ["-" if value is None else f"{value:.4f}" for value in values]
            found.append(_line(line["figure"], [*cells, str(line["n"]), *shown], widths))
    scorers: dict[str, list[str]] = {}
    for line in _first_table(results):
        scorers.setdefault(line["column"], []).append(line["scorer"])
    found += [""] + [f"{name}: {', '.join(dict.fromkeys(ids))}" for name, ids in scorers.items()]
    return found


def _first_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of the first row; all rows have the same figures by the same scorers."""
    rows: Mapping[str, Any] = results["rows"]
    table: list[dict[str, Any]] = next(iter(rows.values()))["metrics"]["suite"]["table"]
    return table


def _line(figure: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  " + "  ".join([figure.ljust(38), *padded])


def _between(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["score"] is None:
        return "-"
    between = "" if entry["low"] is None else f" ({entry['low']:.3f}-{entry['high']:.3f})"
    return f"{entry['score']:.4f}{between}"


def html_table(results: Mapping[str, Any]) -> str:
    """The same for ``report.html``; "" where no benchmark was asked."""
    about = results["meta"].get("suite")
    if not about:
        return ""
    text = (
        f'<p class="note">{escape(about["name"])}, files {about["revision"]}, prompt '
        f"{escape(about['prompt'])}. <i>official</i> is the published scorer with its traps, "
        "<i>corrected</i> the same without them. Fractions with their 95 % interval over scenes; "
        "retention is the score over the teacher's, against teacher the score with the teacher's "
        "answers for the truth.</p>"
    )
    heads = ["figure", "column", "against truth", "n", "unparsed", "retention", "above blind"]
    heads += ["against teacher", "scorer"]
    for row, entry in results["rows"].items():
        body = ""
        for line in entry["metrics"]["suite"]["table"]:
            kept = line["retention"]
            above = kept["above_blind"] if kept else None
            cells = [line["figure"], line["column"], _between(line), line["n"], line["unparsed"]]
            cells += [_between(kept), "-" if above is None else f"{above:.3f}"]
            cells += [_between(line["teacher_relative"]), line["scorer"]]
            body += "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
        head = "".join(f"<th>{name}</th>" for name in heads)
        text += (
            f'<h3>{escape(row)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    return text
