"""Whole ablations of arms of two steps: what is run, gone on with, refused and written."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_ablation import TINY

from stillroom.api import meta
from stillroom.bench import arm
from stillroom.bench import side_by_side as running
from stillroom.bench.ablation import Ablation, ablate, with_steps
from stillroom.bench.arm import read_items
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, SlotConfig
from stillroom.recipes.ablations import ROWS, SUITES
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
            assert found["primary"] == (name in SUITES["slots"].primary)
            assert 0 < found["p"] <= (found["p_holm"] or 1) <= 1
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
    assert "No plateau is known" in text
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
    later = {"commit": "def5678-dirty", "command": "the third seed"}
    more = ablate(asked(world, out, arms=("none",), seeds=3), meta=later, progress=None)
    assert trained == [("learned", 2), ("none", 2)]
    assert more["meta"]["seeds"] == [0, 1, 2]
    # What is not asked for this time stays in the table; each arm with who made it.
    assert list(more["arms"]) == list(record["arms"])
    assert list(more["arms"]["filler"]["seeds"]) == ["0", "1"]
    assert more["meta"]["commit"] == "abc1234; def5678-dirty"
    assert more["meta"]["command"] == "the third seed"
    assert more["meta"]["table"] == {"commit": "def5678-dirty", "command": "the third seed"}
    assert more["arms"]["filler"]["seeds"]["0"]["meta"] == {"commit": "abc1234"}
    overall = more["arms"]["none"]["difference"]["score"]["overall"]
    assert overall["seeds"] == 3
    assert overall["verdict"] in ("better", "worse", "not told apart", "no item differs")


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
    # Another encoder, also under the same name; or one arm that was made otherwise.
    with pytest.raises(BadInputError, match="other settings \\(encoder: "):
        ablate(asked(world, out, encoder=world / "no_objects"), meta={})
    plan = out / "arms" / "filler" / "seed0" / "plan.json"
    kept = plan.read_bytes()
    changed = json.loads(kept)
    changed["asked"]["config"]["slots"]["count"] = 5
    plan.write_text(json.dumps(changed))
    with pytest.raises(BadInputError, match=r"filler, seed 0 .*slots.count: 5 there, 8 now"):
        ablate(asked(world, out, arms=("none",)), meta={})
    plan.write_bytes(kept)
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
    # Finished with that encoder: another is refused, none keeps it in the table.
    with pytest.raises(BadInputError, match=r"no_objects, seed 0 .*encoder: "):
        ablate(replace(plan, no_objects_encoder=world / "encoder"), meta={})
    again = ablate(plan, meta={})
    assert "no_objects" in again["arms"]
    assert "no_objects" not in again["skipped"]


def test_damaged_files_of_an_arm_and_of_the_plan_are_named(world: Path, tmp_path: Path) -> None:
    plan = asked(world, tmp_path / "out", arms=("none",), seeds=1, limit=2)
    ablate(plan, meta={})
    home = tmp_path / "out" / "arms" / "none" / "seed0"
    (home / "items.parquet").write_bytes(b"x")
    with pytest.raises(BadInputError, match=r"items.parquet is not readable .*; delete .*arm.json"):
        ablate(plan, meta={})
    (home / "arm.json").unlink()
    assert "none" in ablate(plan, meta={})["arms"]
    (home / "arm.json").write_text("{")
    with pytest.raises(BadInputError, match=r"arm.json is not readable JSON"):
        ablate(plan, meta={})
    (tmp_path / "out" / "plan.json").write_text("[]")
    with pytest.raises(BadInputError, match=r"plan.json holds no JSON object"):
        ablate(plan, meta={})


def test_the_plateau_is_measured_once_and_kept(world: Path, tmp_path: Path) -> None:
    plan = asked(world, tmp_path / "out", arms=("none",), seeds=1, limit=2)
    record = ablate(replace(plan, plateau="auto"), meta={})
    longer = tmp_path / "out" / "arms" / "longer" / "seed0"
    assert json.loads((longer / "arm.json").read_text())["steps"] == 6
    items = [i for i in read_items(longer).to_pylist() if i["row"] == "student"]
    assert record["plateau"]["score"] == pytest.approx(np.mean([i["score"] for i in items]))
    assert record["plateau"]["source"] == "measured: the base arm, trained 6 steps with seed 0"
    own = record["arms"]["learned"]["figures"]["score"]["overall"]["value"]
    assert record["plateau"]["base_share"] == pytest.approx(own / record["plateau"]["score"])
    assert "longer" not in record["arms"]
    # Kept in the plan: a later call without the flag has it, a given one takes its place.
    assert ablate(plan, meta={})["plateau"] == record["plateau"]
    given = ablate(replace(plan, plateau=0.9), meta={})["plateau"]
    assert (given["score"], given["source"]) == (0.9, "given by --plateau")


def test_arms_that_suites_share_are_trained_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = tmp_path / "arms"
    plan = asked(world, tmp_path / "table3", suite="table3", arms=("k0",), seeds=1, limit=2)
    first = ablate(replace(plan, arms_folder=arms), meta={})
    results = {f: f.read_bytes() for f in arms.glob("*/seed0/run/result.json")}
    assert len(results) == 2
    slots = replace(plan, suite="slots", out=tmp_path / "slots", arms=("none",), arms_folder=arms)
    second = ablate(slots, meta={})
    # The same two runs; the learned arm was asked again under the interventions.
    assert {f: f.read_bytes() for f in arms.glob("*/seed0/run/result.json")} == results
    assert "learned/emptied" in second["arms"]
    figures = [record["arms"][a]["figures"] for record, a in ((first, "k8"), (second, "learned"))]
    assert figures[0] == figures[1]
    assert first["arms"]["k0"]["figures"] == second["arms"]["none"]["figures"]
    # And table3 goes on as if nothing had been.
    monkeypatch.setattr(running, "run_arm", lambda *_: pytest.fail("trained again"))
    again = ablate(replace(plan, arms_folder=arms), meta={})
    assert again["arms"]["k8"]["figures"] == first["arms"]["k8"]["figures"]
    assert list(again["arms"]) == list(first["arms"])


@pytest.mark.parametrize("slots", [SlotConfig(count=4), SlotConfig(kind="none", count=0)])
def test_rows_are_what_their_titles_say_whatever_the_base(slots: SlotConfig) -> None:
    base = replace(TINY, slots=slots, mask="causal")
    arms = {f"{suite}/{n}": a for suite, one in SUITES.items() for n, a in one.arms.items()}
    made = {name: arm.config(base) for name, arm in arms.items()}
    for same in ("slots/learned", "table3/k8", "table2/hidden_cot"):
        assert made[same] == made["slots/learned"]
        assert (made[same].slots.kind, made[same].slots.used) == ("learned", 8)
        assert (made[same].slots.position, made[same].mask) == ("before", "prefix")
    for same in ("table3/k0", "table2/all"):
        assert made[same] == made["slots/none"]
    assert made["table3/k4"].slots.used == 4
    assert made["slots/filler"].slots.used == 8
    assert made["slots/causal_none"].mask == "causal"


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


def test_arms_of_one_seed_start_from_the_same_values(world: Path) -> None:
    every = replace(TINY.losses, detection=True, spatial=True, multi_view=True, feature=True)
    base = replace(TINY, losses=every, encoder=str(world / "encoder"))

    def start(config: DistillConfig) -> dict[str, torch.Tensor]:
        student, _ = build_student(config, world / "encoder", feature_width=8)
        return dict(student.named_parameters())

    first = start(ROWS["k8"][1](base))
    assert {name.split(".")[0] for name in first} >= {"slots", "detector", "relations"}
    for row, (_, change) in ROWS.items():
        other = start(change(base))
        for name in first.keys() & other.keys():
            if first[name].shape == other[name].shape:
                assert torch.equal(first[name], other[name]), (row, name)
    seed = start(replace(base, train=replace(base.train, seed=1)))
    assert not torch.equal(first["slots.embeddings"], seed["slots.embeddings"])
    assert not torch.equal(first["connector.projector.weight"], seed["connector.projector.weight"])


def test_a_commit_says_that_files_were_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "src" / "stillroom" / "api" / "meta.py"
    code.parent.mkdir(parents=True)
    code.write_text("one")
    (tmp_path / "pyproject.toml").write_text("")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(meta, "__file__", str(code))
    commit = meta._commit()
    assert re.fullmatch("[0-9a-f]{7,40}", commit)
    code.write_text("two")
    assert meta._commit() == f"{commit}-dirty"
