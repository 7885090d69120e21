"""A benchmark's tables in ``results.json``: published figures beside corrected ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stillroom.evaluate.coco_java import missing as meteor_missing
from stillroom.evaluate.intervals import Resampler
from stillroom.evaluate.suites import read_items
from stillroom.evaluate.suites.attach import attach_suite
from stillroom.evaluate.suites.base import Item, Suite
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
    """How the runner scores one answer: the suite's headline rule."""
    by_id = {item.question.question_id: item for item in items}
    name = next(iter(suite.scorers.values()))

    def score(question: Question, text: str) -> Scored:
        said = " ".join(text.split())
        value = suite.score(by_id[question.question_id], text)
        return Scored(parsed=said or None, score=value, scorer=name)

    return score


def add_tables(
    results: dict[str, Any],
    suite: Suite,
    items: Sequence[Item],
    missing: Sequence[str],
    store: SceneStore,
    out: Path,
) -> dict[str, Any]:
    """The results with ``rows.ROW.metrics.suite``, as written to ``out/results.json``."""
    by_id = {item.question.question_id: item for item in items}
    table = pq.read_table(out / "items.parquet").to_pylist()
    resampler: Resampler | None = None
    for row, entry in results["rows"].items():
        mine = [line for line in table if line["model"] == row]
        scenes = [line["scene_id"] for line in mine]
        resampler = resampler or Resampler(scenes, rng=np.random.default_rng(0))
        answers = [line["answer"] for line in mine]
        asked = [by_id[line["question_id"]] for line in mine]
        scores = np.array([line["score"] for line in mine], dtype=np.float64)
        entry["metrics"]["suite"] = {
            "columns": suite.table(asked, answers),
            "scorers": dict(suite.scorers),
            "items": asdict(resampler.mean(scores, scenes)),
            "empty_answers": sum(not text.strip() for text in answers),
        }
    settings = store.manifest["settings"]
    results["meta"]["suite"] = {
        "name": suite.name,
        **{key: settings[key] for key in ("revision", "prompt", "frames")},
        "missing_scenes": list(missing),
        "meteor": meteor_missing() or "there",
    }
    write_atomically(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def missing_line(missing: Sequence[str]) -> list[str]:
    """A sentence on scenes that were not there, or nothing."""
    if not missing:
        return []
    shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
    return [f"{len(missing)} scenes were not there and were not asked about: {shown}"]


def lines(results: Mapping[str, Any]) -> list[str]:
    """The tables for a terminal: a line per figure, a column per rule, fractions."""
    about = results["meta"]["suite"]
    found = [f"{about['name']}, files {about['revision']}, prompt {about['prompt']}"]
    found += missing_line(about["missing_scenes"])
    for row, entry in results["rows"].items():
        suite = entry["metrics"]["suite"]
        columns = suite["columns"]
        found.append(f"{row} ({suite['items']['n']} items, {suite['empty_answers']} empty answers)")
        figures = dict.fromkeys(name for column in columns.values() for name in column)
        found.append("  " + " ".join(["figure".ljust(40), *(name.rjust(12) for name in columns)]))
        for name in figures:
            values = [columns[column].get(name) for column in columns]
            cells = ["-" if value is None else f"{value:.4f}" for value in values]
            found.append("  " + " ".join([name.ljust(40), *(cell.rjust(12) for cell in cells)]))
        found += [f"  scorer of {name}: {scorer}" for name, scorer in suite["scorers"].items()]
    return found
