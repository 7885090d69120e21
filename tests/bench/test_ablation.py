"""Whole ablations of arms of two steps: what is run, gone on with, refused and written."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_ablation import TINY

from stillroom.bench import arm
from stillroom.bench import side_by_side as running
from stillroom.bench.ablation import Ablation, ablate, with_steps
from stillroom.bench.arm import read_items
from stillroom.recipes.ablations import SUITES
from stillroom.records import FAMILIES, BadInputError
from stillroom.training.handed import TrainingDiverged


def asked(world: Path, out: Path, **how: Any) -> Ablation:
    settings: dict[str, Any] = {
        "suite": "slots",
        "recipe": "tiny",
        "base": replace(TINY, encoder=str(world / "encoder")),
        "scenes": world / "scenes",
        "labels": world / "labels",
        "out": out,
        "encoder": world / "encoder",
        "seeds": 2,
    }
    return Ablation(**(settings | how))


@pytest.fixture(scope="module")
def slots(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The slots suite with three arms and two seeds."""
    out = tmp_path_factory.mktemp("slots") / "out"
    seen: list[tuple[int, int]] = []
    record = ablate(
        asked(world, out, arms=("none", "filler")),
        meta={"commit": "abc1234"},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 6) for n in range(7)]
    return out, record


def test_every_arm_and_intervention_has_its_figures_for_every_seed(
    slots: tuple[Path, dict[str, Any]],
) -> None:
    out, record = slots
    kinds = SUITES["slots"].arms["learned"].interventions
    assert list(record["arms"]) == ["learned", *(f"learned/{k}" for k in kinds), "none", "filler"]
    assert json.loads((out / "ABLATION.json").read_text()) == record
    for name, row in record["arms"].items():
        score = row["figures"]["score"]
        assert {"overall", *FAMILIES} == set(score)
        assert score["overall"]["n"] == 32
        assert score["overall"]["seeds"] == 2
        assert 0 <= score["overall"]["low"] <= score["overall"]["value"]
        seeds = [row["seeds"][s]["figures"]["score"]["overall"] for s in ("0", "1")]
        assert score["overall"]["value"] == pytest.approx(np.mean(seeds))
        assert row["figures"]["answer_ce"]["all"]["value"] > 0
        assert ("depth_rmse" in row["figures"]) == ("/" not in name)
        if "/" not in name:
            facts = row["seeds"]["0"]
            assert facts["steps"] == 2
            assert facts["seconds"] > 0
            assert facts["parameters"]["total"] > facts["parameters"]["trained"] > 0
        if name != "learned":
            found = row["difference"]["score"]["overall"]
            assert found["value"] == pytest.approx(
                score["overall"]["value"]
                - record["arms"]["learned"]["figures"]["score"]["overall"]["value"]
            )
            assert found["low"] <= found["value"] <= found["high"]
            assert 0 < found["p"] <= found["p_holm"] <= 1
            differs = found["detectable"] is not None
            assert found["verdict"] == (
                "too few seeds to say (2)" if differs else "no item differs"
            )
    assert record["meta"]["seeds"] == [0, 1]
    assert record["skipped"] == record["failed"] == {}


def test_the_figures_are_those_of_the_items(slots: tuple[Path, dict[str, Any]]) -> None:
    out, record = slots
    home = out / "arms" / "none" / "seed0"
    items = read_items(home).to_pylist()
    assert {item["row"] for item in items} == {"student"}
    figures = record["arms"]["none"]["seeds"]["0"]["figures"]
    assert figures["score"]["overall"] == pytest.approx(np.mean([i["score"] for i in items]))
    nats, tokens = (sum(item[name] for item in items) for name in ("nats", "tokens"))
    assert figures["answer_ce"]["all"] == pytest.approx(nats / tokens)
    # The same scores as the evaluation kept.
    kept = pq.read_table(home / "evaluation" / "items.parquet").to_pylist()
    scores = {row["question_id"]: row["score"] for row in kept if row["model"] == "student"}
    assert {item["question_id"]: item["score"] for item in items} == scores
    assert record["teacher"]["overall"]["n"] == 32


def test_arms_share_one_cache_of_features_and_differ_in_their_config_alone(
    slots: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = slots
    assert len([f for f in (out / "features").iterdir() if f.name.startswith("features-")]) == 1
    assert not list(out.glob("arms/*/*/run/features"))
    settings = {
        arm: json.loads((out / "arms" / arm / "seed1" / "run" / "settings.json").read_text())
        for arm in ("learned", "filler")
    }
    ours, other = (settings[name]["settings"]["config"] for name in ("learned", "filler"))
    assert {name for name in ours if ours[name] != other[name]} == {"slots"}
    assert settings["filler"]["train"]["seed"] == 1


def test_table_page_and_plot_are_written_from_the_record(
    slots: tuple[Path, dict[str, Any]],
) -> None:
    out, record = slots
    text = (out / "ABLATION.md").read_text()
    page = (out / "ABLATION.html").read_text()
    for name, row in record["arms"].items():
        overall = row["figures"]["score"]["overall"]
        cell = f"{100 * overall['value']:.1f} % ({100 * overall['low']:.1f} to"
        line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert cell in line
        assert cell in page
    assert "Fewer than 3 seeds: nothing here is a claim" in text
    assert "No plateau was given" in text
    assert "abc1234" in text
    with Image.open(out / "ABLATION.png") as picture:
        assert picture.width > 900


def test_the_same_command_trains_nothing_again_and_more_may_be_asked_later(
    world: Path, slots: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = slots
    trained = []
    once = running.run_arm

    def counted(job: Any, *rest: Any) -> Any:
        trained.append((job.arm, job.seed))
        return once(job, *rest)

    monkeypatch.setattr(running, "run_arm", counted)
    again = ablate(asked(world, out, arms=("none", "filler")), meta={"commit": "abc1234"})
    assert trained == []
    assert again == record
    more = ablate(asked(world, out, arms=("none",), seeds=3), meta={}, progress=None)
    assert trained == [("learned", 2), ("none", 2)]
    assert more["meta"]["seeds"] == [0, 1, 2]
    overall = more["arms"]["none"]["difference"]["score"]["overall"]
    assert overall["seeds"] == 3
    assert overall["verdict"] in ("better", "worse", "not told apart", "no item differs")
    # What is asked last is what the table has.
    ablate(asked(world, out, arms=("none", "filler")), meta={"commit": "abc1234"})


def test_other_settings_and_foreign_folders_are_refused_untouched(
    world: Path, slots: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = slots
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    other = with_steps(asked(world, out).base, 4)
    with pytest.raises(BadInputError, match=r"other settings \(config.train"):
        ablate(asked(world, out, base=other), meta={})
    with pytest.raises(BadInputError, match="suite: slots there, table3 now"):
        ablate(asked(world, out, suite="table3"), meta={})
    assert before == {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BadInputError, match="holds no ablation"):
        ablate(asked(world, tmp_path), meta={})
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


def test_what_cannot_work_is_refused_with_a_sentence(world: Path, tmp_path: Path) -> None:
    for how, sentence in (
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"processes": 0}, "--processes must be at least 1"),
        ({"arms": ("lerned",)}, "slots has no arm 'lerned'; its arms are learned, none"),
        ({"plateau": 90.0}, "--plateau is the base arm's best score, a fraction"),
        ({"limit": 1}, "--limit must be at least 2"),
    ):
        with pytest.raises(BadInputError, match=sentence):
            asked(world, tmp_path, **how)
    with pytest.raises(BadInputError, match="has 0 scenes in split 'shifted'"):
        ablate(asked(world, tmp_path / "out", split="shifted"), meta={})
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_killed_in_an_arm_goes_on_there(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = asked(world, tmp_path / "out", arms=("none",), seeds=1)
    judge, left = arm._judge, ["killed"]

    def dies(*given: Any) -> Any:
        if left:
            raise KeyboardInterrupt(left.pop())
        return judge(*given)

    monkeypatch.setattr(arm, "_judge", dies)
    with pytest.raises(KeyboardInterrupt):
        ablate(plan, meta={})
    result = (tmp_path / "out/arms/learned/seed0/run/result.json").read_bytes()
    record = ablate(plan, meta={})
    # Trained before the kill, asked after it.
    assert (tmp_path / "out/arms/learned/seed0/run/result.json").read_bytes() == result
    assert {"learned", "none"} <= set(record["arms"])


def test_an_arm_that_diverges_is_named_and_the_others_stay(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = asked(world, tmp_path / "out", arms=("none",), seeds=1)
    once = running.run_arm

    def diverges(job: Any, *rest: Any) -> Any:
        if job.arm == "learned":
            raise TrainingDiverged(1, ["loss"])
        return once(job, *rest)

    monkeypatch.setattr(running, "run_arm", diverges)
    record = ablate(plan, meta={})
    assert list(record["arms"]) == ["none"]
    assert "diverged at step 1" in record["failed"]["learned, seed 0"]
    assert "diverged at step 1" in (tmp_path / "out" / "ABLATION.md").read_text()
    monkeypatch.setattr(running, "run_arm", once)
    assert ablate(plan, meta={})["failed"] == {}


def test_table2_trains_on_truth_and_on_the_other_encoder(world: Path, tmp_path: Path) -> None:
    chosen = ("truth", "no_objects", "static_weights", "no_detection", "no_feature")
    plan = asked(world, tmp_path / "out", suite="table2", arms=chosen, seeds=1, limit=2)
    without = ablate(plan, meta={})
    assert "no such encoder was given" in without["skipped"]["no_objects"]
    assert "the same without it" in without["skipped"]["no_detection"]
    assert "the labels hold no scene_features" in without["skipped"]["no_feature"]
    assert list(without["arms"]) == ["all", "static_weights", "truth"]
    settings = json.loads((tmp_path / "out/arms/truth/seed0/run/settings.json").read_text())
    assert settings["settings"]["labels"]["teacher"]["name"] == "truth"
    assert without["arms"]["all"]["figures"]["score"]["overall"]["n"] == 16
    record = ablate(replace(plan, no_objects_encoder=world / "no_objects"), meta={})
    assert "no_objects" in record["arms"]
    runs = [
        json.loads((tmp_path / f"out/arms/{arm}/seed0/run/settings.json").read_text())
        for arm in ("all", "no_objects")
    ]
    assert runs[0]["settings"]["encoder"] != runs[1]["settings"]["encoder"]
    assert "no such encoder" not in (tmp_path / "out" / "ABLATION.md").read_text()


def test_two_at_a_time_and_one_that_fails_leaves_the_other(world: Path, tmp_path: Path) -> None:
    plan = asked(world, tmp_path / "out", arms=("none", "filler"), seeds=1)
    ablate(replace(plan, arms=("learned",)), meta={})
    # What a process finds in its way: where its run belongs lies a file.
    blocked = tmp_path / "out" / "arms" / "none" / "seed0"
    blocked.mkdir(parents=True)
    (blocked / "run").write_text("in the way")
    record = ablate(replace(plan, processes=2), meta={})
    assert list(record["failed"]) == ["none, seed 0"]
    assert "is a file, a folder is needed" in record["failed"]["none, seed 0"]
    assert {"learned", "filler"} <= set(record["arms"])
    (blocked / "run").unlink()
    assert ablate(plan, meta={})["failed"] == {}


def test_a_process_that_was_killed_leaves_no_words_but_a_reason() -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    sender.close()
    assert running._last_words(-9, receiver).startswith("its process ended with -9")
    assert running._last_words(0, receiver) == ""
