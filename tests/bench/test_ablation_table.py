"""What a table says of arms whose true effects are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_arms import EACH, SCENES, write_arms

from stillroom.bench.ablation_report import findings, markdown, plateau_sentence, tables
from stillroom.bench.ablation_table import (
    Figures,
    Plateau,
    Row,
    _Differences,
    _Judge,
    ablation_record,
    verdict,
)
from stillroom.evaluate.intervals import Resampler
from stillroom.evaluate.paired import Difference, SeedFigure
from stillroom.recipes.ablations import SUITES
from stillroom.records import FAMILIES, BadInputError

EFFECTS = {
    "learned": {"student": 0.8, "swapped": 0.8, "zeroed": 0.55},
    "none": {"student": 0.7},
    "filler": {"student": 0.797},
    "causal": {"student": 0.75},
    "causal_none": {"student": 0.75},
}
PLATEAU = Plateau(score=0.9, source="made up")
N = SCENES * EACH * len(FAMILIES)


def made(home: Path, *, plateau: float | None = None, seeds: int = 3, **more: Any) -> dict:
    return ablation_record(
        "slots",
        write_arms(home, EFFECTS, seeds=seeds),
        meta={"commit": "abc1234", "recipe": "made", "steps": 750, "scenes_per_step": 8},
        skipped=more.get("skipped", {}),
        failed=more.get("failed", {}),
        plateau=None if plateau is None else Plateau(score=plateau, source="made up"),
        **({"null_size": more["null_size"]} if "null_size" in more else {}),
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(tmp_path_factory.mktemp("arms") / "arms", plateau=0.89)


def test_effects_are_found_with_their_sign_and_size(record: dict[str, Any]) -> None:
    arms = record["arms"]
    assert arms["learned"]["figures"]["score"]["overall"]["value"] == pytest.approx(0.8, abs=0.03)
    assert arms["learned"]["figures"]["score"]["overall"]["n"] == N
    for name, effect, said in (
        ("none", -0.1, "worse"),
        ("learned/zeroed", -0.25, "worse"),
        ("causal", -0.05, "worse"),
    ):
        found = arms[name]["difference"]["score"]["overall"]
        assert found["value"] == pytest.approx(effect, abs=0.03)
        assert found["low"] < effect + 0.03
        assert found["high"] < 0
        assert found["verdict"] == said
        assert 0 < found["detectable"] < 0.1
        # More errors cost more nats: worse there too.
        assert arms[name]["difference"]["answer_ce"]["all"]["value"] > 0
        assert arms[name]["difference"]["answer_ce"]["all"]["verdict"] == "worse"


def test_no_difference_is_a_result_only_at_the_right_place_of_the_plateau(
    record: dict[str, Any], tmp_path: Path
) -> None:
    # 0.8 of 0.89 is within 85 to 95 %.
    small = record["arms"]["filler"]["difference"]["score"]["overall"]
    assert abs(small["value"]) < 0.01
    assert small["detectable"] < 0.03
    assert small["verdict"] == "no difference seen"
    assert record["plateau"]["null_counts"]
    assert "a missing difference counts" in plateau_sentence(record)
    for plateau, said in ((0.81, "says nothing"), (None, "No plateau is known")):
        other = made(tmp_path / str(plateau), plateau=plateau)
        found = other["arms"]["filler"]["difference"]["score"]["overall"]
        assert found["verdict"] == "not told apart"
        assert said in plateau_sentence(other)
    strict = made(tmp_path / "strict", plateau=0.89, null_size=0.001)
    found = strict["arms"]["filler"]["difference"]["score"]["overall"]
    assert found["verdict"] == "not told apart"


def test_primary_comparisons_are_corrected_together_and_others_are_marked(
    record: dict[str, Any],
) -> None:
    arms = record["arms"]
    none, causal = (arms[n]["difference"]["score"]["overall"] for n in ("none", "causal"))
    assert (none["primary"], none["level"]) == (True, 0.01)
    assert none["p_holm"] >= none["p"]
    assert (causal["primary"], causal["p_holm"], causal["level"]) == (False, None, 0.05)
    assert arms["none"]["difference"]["score"]["size"]["level"] == 0.05 / 20
    said = {line.split(" (")[0]: line for line in findings(record)}
    assert "after Holm" in said["none"]
    assert "secondary, uncorrected" in said["causal"]


def test_answers_that_never_change_are_named_so(record: dict[str, Any]) -> None:
    same = record["arms"]["learned/swapped"]["difference"]["score"]["overall"]
    assert (same["value"], same["p"], same["detectable"]) == (0.0, 1.0, None)
    assert same["verdict"] == "no item differs"


def test_further_pairs_are_compared_with_each_other(record: dict[str, Any]) -> None:
    assert list(record["pairs"]) == ["causal - causal_none"]
    pair = record["pairs"]["causal - causal_none"]["score"]["overall"]
    assert pair["verdict"] == "no item differs"
    assert record["teacher"]["overall"]["score"] == 0.9


def test_measures_beside_the_score(record: dict[str, Any]) -> None:
    figures = record["arms"]["none"]["figures"]
    assert figures["rouge1_to_teacher"]["all"]["value"] == pytest.approx(0.35)
    assert figures["depth_rmse"]["all"] == {
        "value": pytest.approx(0.2),
        "low": pytest.approx(0.2),
        "high": pytest.approx(0.2),
        "n": 100 * SCENES,
        "seeds": 3,
    }
    items = N * 2 + SCENES * 40
    right = record["arms"]["none"]["seeds"]["0"]["figures"]["score"]["overall"] * N
    nats = 0.5 * right + 3.0 * (N - right) + 20.0 * SCENES
    ce = record["arms"]["none"]["seeds"]["0"]["figures"]["answer_ce"]["all"]
    assert ce == pytest.approx(nats / items)


def test_fewer_than_three_seeds_claim_nothing(tmp_path: Path) -> None:
    found = made(tmp_path / "arms", seeds=2)
    assert found["arms"]["none"]["difference"]["score"]["overall"]["verdict"] == (
        "too few seeds to say (2)"
    )
    assert "nothing here is a claim" in markdown(found)


def test_every_table_has_a_line_an_arm_and_its_figures(record: dict[str, Any]) -> None:
    shown = {table.title: table for table in tables(record)}
    assert [row[0] for row in shown["Scores"].rows] == ["learned (base)", *list(record["arms"])[1:]]
    against = {row[0]: row for row in shown["Against learned"].rows}
    assert "learned (base)" not in against
    assert against["none"][5] == "worse"
    assert against["learned/swapped"][4] == "-"
    for family in FAMILIES:
        assert family in shown["Against learned, by family"].head
    said = findings(record)
    assert len(said) == len(record["arms"]) - 1 + 1
    assert any(line.startswith("none (no slots, mask prefix) against learned: -") for line in said)


def test_what_is_left_out_or_failed_is_in_the_table(tmp_path: Path) -> None:
    text = markdown(
        made(
            tmp_path / "arms",
            skipped={"no_objects": "no such encoder"},
            failed={"after, seed 2": "diverged | at step 1"},
        )
    )
    assert "| no_objects | left out: no such encoder |" in text
    assert "| after, seed 2 | failed: diverged \\| at step 1 |" in text


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    homes = write_arms(tmp_path / "one", {"learned": {"student": 0.5}})
    homes |= {
        ("none", seed): home
        for (_, seed), home in write_arms(tmp_path / "two", {"none": {"student": 0.5}}).items()
    }
    items = homes["none", 1] / "items.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(items).slice(1), items)
    with pytest.raises(BadInputError, match="answers to other questions"):
        ablation_record("slots", homes, meta={}, skipped={}, failed={}, plateau=None)


def test_without_a_finished_arm_there_is_an_empty_record() -> None:
    record = ablation_record("slots", {}, meta={}, skipped={}, failed={"a": "b"}, plateau=PLATEAU)
    assert record["arms"] == record["pairs"] == {}
    assert "The base arm is not finished" in markdown(record)


def test_a_verdict_goes_by_the_corrected_p_and_by_what_is_better() -> None:
    found = Difference(
        value=0.1, low=0.02, high=0.2, p=0.01, detectable=0.02, level=0.05, freedom=9.0, seeds=3
    )
    assert verdict(found, 0.01, "score", None) == "better"
    assert verdict(found, 0.01, "answer_ce", None) == "worse"
    assert verdict(found, 0.2, "score", None) == "not told apart"
    assert verdict(found, 0.2, "score", 0.9) == "no difference seen"
    assert verdict(found, 0.2, "score", 0.99) == "not told apart"
    assert verdict(found, 0.2, "answer_ce", 0.9) == "not told apart"
    assert verdict(found, 0.2, "score", 0.9, null_size=0.01) == "not told apart"


#: Arms that are drawn, and how.
TRAINED = ("learned", "none", "filler", "frozen_random", "causal")
BETWEEN_SEEDS, SEEN_SCENES, ASKED = 0.01, 60, 8


def drawn(seed: int, effect: float) -> dict[str, Difference]:
    """A suite of three seeds in which "none" is truly ``effect`` away and nothing else is."""
    draw = np.random.default_rng(seed)
    items = [f"s{n:02d}" for n in range(SEEN_SCENES) for _ in range(ASKED)]
    resampler = Resampler(items, rng=draw)
    hard = np.repeat(draw.normal(0, 0.1, SEEN_SCENES), ASKED)
    rows = {}
    for name in TRAINED:
        own = np.repeat(draw.normal(0, 0.05, SEEN_SCENES), ASKED)  # what the arm makes of a scene
        mean = 0.75 + (effect if name == "none" else 0.0)
        figures: dict[int, Figures] = {}
        for number in range(3):
            right = mean + draw.normal(0, BETWEEN_SEEDS) + hard + own
            scores = (draw.random(len(items)) < right).astype(float)
            one = SeedFigure(value=float(scores.mean()), draws=resampler.draws(scores, items))
            figures[number] = {"score": {"overall": one}}
        rows[name] = Row(title=name, figures=figures, counts={}, facts={})
    suite = SUITES["slots"]
    differ = _Differences(rows=rows, suite=suite, scenes=SEEN_SCENES)
    compared = {name: differ.between(name, suite.base) for name in TRAINED if name != suite.base}
    judged = _Judge(suite=suite, share=0.9, null_size=0.03).judged(compared)
    return {name: one["score"]["overall"] for name, one in judged.items()}


def test_what_would_be_seen_is_what_the_verdict_sees_as_often_as_it_says() -> None:
    primary = [name for name in SUITES["slots"].primary if name in TRAINED]
    null = [drawn(seed, 0.0) for seed in range(80)]
    # An error in any primary comparison of a suite, of which 5 % are allowed.
    wrong = [any(one[p]["verdict"] in ("better", "worse") for p in primary) for one in null]
    assert np.mean(wrong) <= 0.10
    # Secondary comparisons are uncorrected, each by itself has 5 %.
    secondary = [one["causal"]["verdict"] in ("better", "worse") for one in null]
    assert np.mean(secondary) <= 0.12
    effect = float(np.mean([one["none"]["detectable"] for one in null]))
    assert 0.03 < effect < 0.08
    told = [drawn(1000 + n, -effect)["none"]["verdict"] == "worse" for n in range(80)]
    assert 0.70 <= np.mean(told) <= 0.92
    half = [drawn(2000 + n, -effect / 2)["none"]["verdict"] == "worse" for n in range(40)]
    assert np.mean(half) <= 0.5
