"""Thirds by margin never mix units, nor the two answers of contact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_worlds import margined

from stillroom.evaluate.audit import audit
from stillroom.evaluate.margins import margin_thirds
from stillroom.evaluate.run import evaluate
from stillroom.records import Answer, Question, Scene, View
from stillroom.scenes.store import open_store, write_manifest, write_shard


def orientation() -> list[Question]:
    """Six in metres, six in degrees: every number in degrees is the larger."""
    metres = [margined("orientation", 0.3 + 0.1 * k, unit="m", number=k) for k in range(6)]
    degrees = [margined("orientation", 10.0 + 5 * k, unit="deg", number=6 + k) for k in range(6)]
    return [*metres, *degrees]


def contact() -> list[Question]:
    """Six that touch (margin at most 0.10) and six that do not (at least 0.10)."""
    yes = [margined("contact", 0.098 + 0.0003 * k, answer="yes", number=k) for k in range(6)]
    no = [margined("contact", 0.11 + 0.1 * k, answer="no", number=6 + k) for k in range(6)]
    return [*yes, *no]


@pytest.mark.parametrize("asked", [orientation(), contact()], ids=["orientation", "contact"])
def test_each_third_holds_as_many_of_each_kind(asked: list[Question]) -> None:
    thirds = margin_thirds(asked)
    assert [sorted(third) for third in thirds] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_within_one_kind_thirds_go_by_the_margin() -> None:
    asked = [margined("size", 2.0 - 0.1 * k, unit="ratio", number=k) for k in range(7)]
    assert margin_thirds(asked) == [[6, 5, 4], [3, 2], [1, 0]]


def test_what_has_no_margin_or_always_the_same_has_no_thirds() -> None:
    assert margin_thirds([margined("size", None, number=k) for k in range(6)]) == []
    assert margin_thirds([margined("size", 1.0, number=k) for k in range(6)]) == []
    assert margin_thirds([margined("size", 1.0 + k, number=k) for k in range(2)]) == []


class LeftInMetres:
    """Right in the harder half of what is asked in metres, wrong elsewhere."""

    def open(self, scene: Scene) -> LeftInMetres:
        return self

    def answer(self, questions: list[Question]) -> list[Answer]:
        hard = [q.unit == "m" and q.margin is not None and q.margin < 0.55 for q in questions]
        said = ["left" if one else "right" for one in hard]
        return [Answer(question_id=q.question_id, text=t) for q, t in zip(questions, said)]


def test_evaluation_and_audit_show_these_thirds(tmp_path: Path) -> None:
    asked = []
    scenes = []
    for number in range(5):
        scene_id = f"scene{number}"
        view = View(name="0", rgb=np.full((4, 4, 3), number, np.uint8))
        scenes.append(Scene(scene_id=scene_id, source="test", split="test", views=(view,)))
        asked += [
            replace(q, scene_id=scene_id, question_id=f"{scene_id}-{q.question_id}")
            for q in orientation()
        ]
    write_shard(tmp_path / "store", 0, scenes, asked)
    write_manifest(tmp_path / "store", {})
    store = open_store(tmp_path / "store")
    results = evaluate(
        {"model": LeftInMetres()},
        store,
        split="test",
        out=tmp_path / "out",
        teacher_row=None,
        student_row="model",
        meta={},
    )
    thirds = results["rows"]["model"]["metrics"]["by_margin"]["orientation"]
    assert thirds == [{"score": s, "n": 20} for s in (0.5, 0.25, 0.0)]
    (row,) = audit(tmp_path / "store")["families"]
    assert len(row["words_by_margin"]) == 3
