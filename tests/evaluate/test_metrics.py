import json
from pathlib import Path

import pytest

from stillroom.evaluate.metrics import (
    fact_overlap,
    mean_relative_accuracy,
    vsi_overall,
    vsi_task_scores,
)
from stillroom.text.answers import official_letter, official_number

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"


def test_mra_matches_the_recorded_official_scores():
    for pair in json.loads((FIXTURES / "vsi_numeric.json").read_text())["pairs"]:
        recorded = pair["scorers"]["vsi_official_2024"]["mra"]
        ours = mean_relative_accuracy(
            official_number(pair["prediction"]), float(pair["ground_truth"])
        )
        assert ours == pytest.approx(recorded, abs=1e-6), pair["prediction"]


def test_mra_has_ten_thresholds_and_counts_the_border_in():
    # |1.05 - 1| is within all ten; 1.45 is within those of 0.50 and 0.55 only.
    assert mean_relative_accuracy(1.05, 1.0) == 1.0
    assert mean_relative_accuracy(1.45, 1.0) == pytest.approx(0.2)


def test_a_truth_of_zero_asks_for_exactly_zero():
    assert mean_relative_accuracy(0.0, 0.0) == 1.0
    assert mean_relative_accuracy(0.1, 0.0) == 0.0


def test_vsi_tasks_and_overall_match_the_recorded_run():
    record = json.loads((FIXTURES / "vsi_aggregate.json").read_text())
    by_type: dict[str, list[float]] = {}
    for doc in record["docs"]:
        number = official_number(doc["ground_truth"])
        if number is None:
            value = float(official_letter(doc["prediction"]) == doc["ground_truth"])
        else:
            value = mean_relative_accuracy(official_number(doc["prediction"]), number)
        by_type.setdefault(doc["question_type"], []).append(value)
    scores = {kind: sum(values) / len(values) for kind, values in by_type.items()}
    recorded = record["vsi_official_2024_overall"]
    tasks = vsi_task_scores(scores)
    assert len(tasks) == 8
    for key, value in recorded.items():
        if key.endswith("_accuracy"):
            assert 100 * tasks[key.removesuffix("_accuracy")] == pytest.approx(value, abs=1e-6)
        elif "_MRA" in key:
            assert 100 * tasks[key.split("_MRA")[0]] == pytest.approx(value, abs=1e-6)
    assert 100 * vsi_overall(scores) == pytest.approx(recorded["overall"], abs=1e-6)


def test_no_vsi_task_gives_no_vsi_overall():
    assert vsi_overall({"contact": 0.7}) is None


def test_fact_overlap_by_hand():
    known = [
        ("object", "red chair"),
        ("object", "mug"),
        ("on", "mug", "table"),
        ("object", "table"),
    ]
    said = [("object", "red chair"), ("object", "mug"), ("object", "mug"), ("object", "lamp")]
    overlap = fact_overlap(said, known)
    # Two of three distinct facts said are true; two of four known facts are said.
    assert overlap.precision == pytest.approx(2 / 3)
    assert overlap.recall == pytest.approx(1 / 2)
    assert overlap.f1 == pytest.approx(4 / 7)


def test_an_empty_description_has_no_facts_right():
    assert fact_overlap([], [("object", "mug")]).f1 == 0.0
