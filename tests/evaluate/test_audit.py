"""The shortcut audit: fair worlds pass, worlds that give answers away are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom import cli
from stillroom.evaluate.audit import GUESSERS, audit, lines
from stillroom.evaluate.baselines import fit_kind_prior
from stillroom.records import BadInputError, Question, Scene, View
from stillroom.scenes.store import write_manifest, write_shard

KINDS = ("chair", "table", "lamp", "sofa", "bed")


def ask(scene: str, number: int, rng: np.random.Generator, *, told: bool) -> Question:
    """Which of two things is bigger; ``told``: whichever kind comes first in the alphabet."""
    one, other = rng.choice(np.array(KINDS), size=2, replace=False).tolist()
    options = (f"red {one}", f"blue {other}")
    answer = options[0 if one < other else 1] if told else options[int(rng.integers(2))]
    return Question(
        scene_id=scene,
        question_id=f"{scene}-{number}",
        split="train",
        family="size",
        question=f"Which is bigger, the {options[0]} or the {options[1]}?",
        answer=answer,
        options=options,
        margin=float(rng.uniform(1, 2)),
    )


def world(
    path: Path,
    *,
    told: bool,
    scenes: int = 100,
    each: int = 16,
    more: Sequence[Question] = (),
) -> Path:
    rng = np.random.default_rng(0)
    made, asked = [], []
    for number in range(scenes):
        scene_id = f"scene{number:03d}"
        view = View(name="view0", rgb=np.full((8, 8, 3), number, np.uint8))
        made.append(Scene(scene_id=scene_id, source="test", split="train", views=(view,)))
        asked += [ask(scene_id, k, rng, told=told) for k in range(each)]
        asked += [
            replace(q, scene_id=scene_id, question_id=f"{scene_id}-{q.question_id}") for q in more
        ]
    write_shard(path, 0, made, asked)
    write_manifest(path, {"made": "by a test"})
    return path


def test_a_fair_world_passes(tmp_path: Path) -> None:
    report = audit(world(tmp_path / "fair", told=False))
    assert report["ok"], report["faults"]
    (row,) = report["families"]
    assert (row["family"], row["n"], row["chance"]) == ("size", 1600, 0.5)
    for guesser in GUESSERS:
        assert row[guesser]["low"] < 0.53
    assert len(row["words_by_margin"]) == 3


def test_a_world_that_kinds_give_away_fails_and_says_by_whom(tmp_path: Path) -> None:
    report = audit(world(tmp_path / "told", told=True))
    assert not report["ok"]
    (row,) = report["families"]
    assert row["kinds"]["score"] > 0.9
    assert row["words"]["score"] > 0.9
    assert row["frequency"]["score"] < 0.65
    assert "chance is 50.0 %" in report["faults"][0]
    assert any(line.startswith("FAULT size") for line in lines(report))


def test_two_of_a_kind_cannot_be_lopsided(tmp_path: Path) -> None:
    chairs = Question(
        scene_id="",
        question_id="chairs",
        split="train",
        family="size",
        question="Which is bigger, the red chair or the blue chair?",
        answer="red chair",
        options=("red chair", "blue chair"),
        margin=1.5,
    )
    (row,) = audit(world(tmp_path / "twins", told=False, more=[chairs]))["families"]
    assert row["n"] == 1700
    assert row["lopsided"]
    assert "chair/chair" not in row["lopsided"]


def test_the_command_fails_on_such_a_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = str(world(tmp_path / "told", told=True))
    with pytest.raises(SystemExit) as stop:
        cli.main(["scenes", "audit", told, "--json"])
    assert stop.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["faults"]


def test_kinds_named_in_the_same_order_foretell_the_place() -> None:
    rng = np.random.default_rng(1)
    train = [ask("s", k, rng, told=True) for k in range(200)]
    asked = [replace(ask("t", k, rng, told=True), answer="") for k in range(20)]
    said = fit_kind_prior(train).open(Scene(scene_id="t", source="test", views=())).answer(asked)
    for question, answer in zip(asked, said, strict=True):
        first, second = (option.split()[1] for option in question.options)
        assert answer.text == question.options[0 if first < second else 1]


def test_a_store_without_choices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no questions"):
        audit(world(tmp_path / "empty", told=False, each=0))
