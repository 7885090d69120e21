"""The shortcut audit: fair worlds pass, worlds that give answers away are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom import cli
from stillroom.evaluate import audit as module
from stillroom.evaluate.audit import GUESSERS, audit, lines, verdict_on
from stillroom.evaluate.baselines import fit_kind_prior, fit_majority
from stillroom.evaluate.intervals import Estimate
from stillroom.records import BadInputError, Question, Scene, View
from stillroom.scenes.store import write_manifest, write_shard
from stillroom.testing import tiny_questions, tiny_scene

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
    scenes: int = 30,
    each: int = 8,
    more: Sequence[Question] = (),
) -> Path:
    rng = np.random.default_rng(0)
    asked = [ask(scene_id(n), k, rng, told=told) for n in range(scenes) for k in range(each)]
    asked += [_moved(q, scene_id(n)) for n in range(scenes) for q in more]
    return write(path, [Scene(scene_id=scene_id(n), **_bare(n)) for n in range(scenes)], asked)


def write(path: Path, scenes: Sequence[Scene], asked: Sequence[Question]) -> Path:
    write_shard(path, 0, scenes, asked)
    write_manifest(path, {"made": "by a test"})
    return path


def scene_id(number: int) -> str:
    return f"scene{number:03d}"


def _bare(number: int) -> dict[str, Any]:
    view = View(name="view0", rgb=np.full((8, 8, 3), number % 256, np.uint8))
    return {"source": "test", "split": "train", "views": (view,)}


def _moved(question: Question, scene: str) -> Question:
    return replace(question, scene_id=scene, question_id=f"{scene}-{question.question_id}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("told"), told=True)


def test_a_fair_world_passes(tmp_path: Path) -> None:
    report = audit(world(tmp_path / "fair", told=False))
    assert report["ok"], report["faults"]
    (row,) = report["families"]
    assert (row["family"], row["n"], row["chance"]) == ("size", 240, 0.5)
    for guesser in GUESSERS:
        assert row[guesser]["low"] < 0.53
    assert len(row["words_by_margin"]) == 3


def test_a_world_that_kinds_give_away_fails_and_says_by_whom(told: Path) -> None:
    report = audit(told)
    assert not report["ok"]
    (row,) = report["families"]
    assert row["kinds"]["score"] > 0.9
    assert row["words"]["score"] > 0.9
    assert row["frequency"]["score"] < 0.65
    assert row["verdict"] == "fault"
    assert "chance is 50.0 %" in report["faults"][0]
    assert any(line.startswith("FAULT size") for line in lines(report))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the guesser of frequencies: its score is the share of the commoner answer."""
    monkeypatch.setattr(module, "fit_kind_prior", fit_majority)
    monkeypatch.setattr(module, "fit_blind", lambda questions, rng: fit_majority(questions))


@pytest.mark.parametrize(
    ("n", "score", "low", "verdict"),
    [
        # From 2,000 on the score itself decides.
        (2_000, 0.529, 0.507, "fair"),
        (2_000, 0.531, 0.509, "fault"),
        # Below, only a whole interval above the tolerance does, and nothing is said to be fair.
        (1_999, 0.529, 0.507, "too few to say"),
        (1_999, 0.531, 0.509, "too few to say"),
        (1_999, 0.560, 0.531, "fault"),
    ],
)
def test_the_verdict_on_each_side_of_2000_questions(
    n: int, score: float, low: float, verdict: str
) -> None:
    fair = Estimate(score=0.5, low=0.48, high=0.52, n=n)
    guesser = Estimate(score=score, low=low, high=2 * score - low, n=n)
    found = verdict_on({"frequency": fair, "kinds": guesser, "words": fair}, chance=0.5)
    assert found[0] == verdict
    assert ("the guesser of kinds" in found[1]) == (verdict == "fault")


@pytest.mark.usefixtures("cheap")
def test_with_enough_questions_the_score_decides_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """53.5 % have the first option for an answer, spread so that the interval holds chance."""
    monkeypatch.setattr(module, "ENOUGH", 200)
    asked = []
    for k in range(200):
        first = int((k + 1) * 0.535) > int(k * 0.535)
        answer = ("chair", "table")[0 if first else 1]
        question = Question(
            scene_id="",
            question_id=str(k),
            split="train",
            family="size",
            question="Which is bigger?",
            answer=answer,
            options=("chair", "table"),
        )
        asked.append(_moved(question, scene_id(k // 20 if first else (k // 20 + 3) % 10)))
    scenes = [Scene(scene_id=scene_id(n), **_bare(n)) for n in range(10)]
    report = audit(write(tmp_path / "coin", scenes, asked))
    (row,) = report["families"]
    assert row["frequency"]["score"] == pytest.approx(0.535)
    assert row["frequency"]["low"] < 0.53
    assert row["verdict"] == "fault"
    assert report["undecided"] == []


def test_few_questions_are_said_to_prove_nothing(
    tmp_path: Path, cheap: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["scenes", "audit", str(world(tmp_path / "few", told=False, scenes=8))])
    assert stop.value.code == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "audit more rooms" in line]
    assert said.startswith("too few to say whether these are fair: size;")


def test_numbers_have_no_verdict(tmp_path: Path, cheap: None) -> None:
    count = Question(
        scene_id="",
        question_id="count",
        split="train",
        family="object_counting",
        question="How many chair(s) are in this room?",
        answer="2",
        value=2.0,
    )
    rows = audit(world(tmp_path / "numbers", told=False, more=[count]))["families"]
    assert {row["family"]: row["verdict"] for row in rows} == {
        "object_counting": "",
        "size": "too few to say",
    }


@pytest.mark.parametrize(("views", "hidden"), [(2, 0), (1, 10)])
@pytest.mark.usefixtures("cheap")
def test_a_thing_named_that_one_view_shows_is_a_fault(
    tmp_path: Path, views: int, hidden: int
) -> None:
    scenes, asked = [], []
    for number in range(10):
        scene = tiny_scene(number, views=2)
        bare = replace(scene.views[1], instances=np.zeros_like(scene.views[1].instances))
        scenes.append(scene if views == 2 else replace(scene, views=(scene.views[0], bare)))
        (question,) = tiny_questions(scene, count=1)
        asked.append(replace(question, answer=question.options[number % 2]))
    report = audit(write(tmp_path / "store", scenes, asked))
    assert report["shown"] == {"mean_views": float(views), "hidden": hidden}
    assert report["ok"] == (hidden == 0)
    assert report["faults"] == (
        ["10 questions name a thing that fewer than 2 views show well"] if hidden else []
    )


def test_two_of_a_kind_cannot_be_lopsided(
    tmp_path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(module, "OFTEN", 10)
    (row,) = audit(world(tmp_path / "twins", told=False, more=[chairs]))["families"]
    assert row["n"] == 270
    assert row["lopsided"]
    assert "chair/chair" not in row["lopsided"]


def test_the_command_fails_on_such_a_world(
    told: Path, cheap: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit_kind_prior", fit_kind_prior)
    with pytest.raises(SystemExit) as stop:
        cli.main(["scenes", "audit", str(told), "--json"])
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
