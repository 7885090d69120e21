"""``stillroom ablate``: the arms of a suite, every one with every seed, and the table they make.

``OUT/plan.json`` fingerprints what is compared, ``OUT/arms/ARM/seed0`` is one arm with one seed
(``arm.py``), ``OUT/features`` the frozen features that all arms share. ``OUT/ABLATION.json`` and
the table and the plot made from it are written anew whenever an arm ends. Killed at any moment the
same command goes on; more seeds or arms may be asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.bench.ablation_report import write_report
from stillroom.bench.ablation_table import ablation_record
from stillroom.bench.arm import ArmJob, asked_scenes, read_arm
from stillroom.bench.side_by_side import run_all
from stillroom.distill.config import DistillConfig
from stillroom.distill.scene_pack import alone
from stillroom.recipes.ablations import SUITES, Arm, Intervention, Suite, SuiteName
from stillroom.records import BadInputError, content_hash
from stillroom.scenes.store import SceneStore, open_store, write_atomically
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_run import threads_for
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.truth import TruthTeacher

Progress = Callable[[int, int], None]

RECORD_FILE = "ABLATION.json"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared, on what, and where."""

    suite: SuiteName
    # The recipe that arms are made from, by name and with its budget.
    recipe: str
    base: DistillConfig
    scenes: Path
    labels: Path
    out: Path
    # Where the recipe's encoder and language model lie.
    encoder: Path | str
    language_model: Path | str = ""
    # The encoder that was pretrained without object targets; without it that arm is left out.
    no_objects_encoder: Path | str | None = None
    seeds: int = 3
    # Arms to train, all if empty; the suite's base is always among them.
    arms: tuple[str, ...] = ()
    split: str = "test"
    limit: int | None = None
    processes: int = 1
    # What the base arm comes to when it is trained until it gains no more.
    plateau: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in ("seeds", "processes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 2:
            raise BadInputError(f"--limit must be at least 2 scenes, got {self.limit}")
        if self.plateau is not None and not 0 < self.plateau <= 1:
            raise BadInputError(
                f"--plateau is the base arm's best score, a fraction in 0 to 1, got {self.plateau}"
            )
        known = SUITES[self.suite].arms
        for arm in self.arms:
            if arm not in known:
                raise BadInputError(
                    f"{self.suite} has no arm {arm!r}; its arms are {', '.join(known)}"
                )

    @property
    def chosen(self) -> Suite:
        """The suite."""
        return SUITES[self.suite]

    def home(self, arm: str, seed: int) -> Path:
        """The folder of one arm with one seed."""
        return self.out / "arms" / arm / f"seed{seed}"


def with_steps(config: DistillConfig, steps: int | None) -> DistillConfig:
    """A recipe with another budget: evaluated as often over the whole run as it was."""
    if steps is None:
        return config
    train = config.train
    every = max(1, round(steps * train.evaluate_every / train.steps))
    return replace(
        config,
        train=replace(
            train, steps=steps, evaluate_every=every, save_every=min(train.save_every, every)
        ),
    )


def ablate(
    asked: Ablation, *, meta: Mapping[str, Any], progress: Progress | None = None
) -> dict[str, Any]:
    """Run what is not done yet and write the table; what ``ABLATION.json`` holds.

    An arm that fails or diverges is named under ``failed`` and tried again by the next call; the
    others go on. ``progress`` gets (arms done, arms in all).

    Raises:
        BadInputError: scenes, labels, recipe or folder do not go together; nothing was touched.
    """
    store = open_store(asked.scenes)
    skipped, arms = _arms(asked)
    settings = _settings(asked, store)
    held = _read_plan(asked.out, settings)
    _require_labels(asked, store)
    asked.out.mkdir(parents=True, exist_ok=True)
    with alone(asked.out / ".lock"):
        held = held or _read_plan(asked.out, settings) or _write_plan(asked, settings)
        truth = _truth_labels(asked) if any(a.labels == "truth" for a in arms.values()) else None
        jobs = [
            _job(asked, name, arm, seed, truth, int(held["workers"]), meta)
            for seed in range(asked.seeds)
            for name, arm in arms.items()
        ]
        failed: dict[str, str] = {}

        def write() -> dict[str, Any]:
            record = ablation_record(
                asked.suite,
                {(job.arm, job.seed): job.home for job in jobs if read_arm(job.home) is not None},
                meta={**meta, **_about(asked, store)},
                skipped=skipped,
                failed=failed,
                plateau=asked.plateau,
            )
            write_atomically(
                asked.out / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode()
            )
            write_report(record, asked.out)
            return record

        run_all(jobs, asked.processes, failed, write, progress)
        return write()


def _arms(asked: Ablation) -> tuple[dict[str, str], dict[str, Arm]]:
    """Arms that are left out, with the reason, and those that run."""
    suite, skipped, arms = asked.chosen, dict[str, str](), dict[str, Arm]()
    reference = suite.arms[suite.base].config(asked.base)
    signals = open_labels(asked.labels).settings["signals"]
    for name, arm in suite.arms.items():
        if asked.arms and name not in (*asked.arms, suite.base):
            continue
        config = arm.config(asked.base)
        if arm.no_objects and asked.no_objects_encoder is None:
            skipped[name] = (
                "no such encoder was given (--no-objects-encoder, made by 'stillroom "
                "pretrain-encoder mini_cpu_no_objects')"
            )
        elif arm.needs and arm.needs not in signals:
            skipped[name] = f"the labels hold no {arm.needs}: no arm learns from them"
        elif name != suite.base and config == reference and not _otherwise(arm):
            skipped[name] = f"the recipe {asked.recipe} is the same without it"
        else:
            possible = _interventions(arm, config.slots.used)
            skipped |= {
                kind: f"{config.slots.used} slots cannot be {kind}"
                for kind in arm.interventions
                if kind not in possible
            }
            arms[name] = replace(arm, interventions=possible)
    return skipped, arms


def _otherwise(arm: Arm) -> bool:
    """Whether an arm differs by more than its config."""
    return arm.labels == "truth" or arm.no_objects


def _interventions(arm: Arm, slots: int) -> tuple[Intervention, ...]:
    return tuple(k for k in arm.interventions if slots >= (2 if k == "shuffled" else 1))


def _job(
    asked: Ablation,
    name: str,
    arm: Arm,
    seed: int,
    truth: Path | None,
    workers: int,
    meta: Mapping[str, Any],
) -> ArmJob:
    config = arm.config(asked.base)
    train = replace(config.train, seed=config.train.seed + seed, workers=workers)
    encoder: Path | str = asked.encoder
    if arm.no_objects:
        assert asked.no_objects_encoder is not None, "an arm without its encoder was left out"
        encoder = asked.no_objects_encoder
        config = replace(config, encoder=str(encoder))
    return ArmJob(
        suite=asked.suite,
        arm=name,
        seed=seed,
        recipe=f"{asked.recipe}_{arm.row}" if arm.row else asked.recipe,
        config=replace(config, train=train, features=str(asked.out / "features")),
        scenes=asked.scenes,
        labels=asked.labels if arm.labels == "teacher" or truth is None else truth,
        teacher_labels=asked.labels,
        home=asked.home(name, seed),
        encoder=encoder,
        language_model=asked.language_model,
        split=asked.split,
        limit=asked.limit,
        interventions=arm.interventions,
        meta=meta,
    )


def _truth_labels(asked: Ablation) -> Path:
    """The true answers as a label store; made once."""
    out = asked.out / "truth_labels"
    label_scenes(
        asked.scenes,
        TruthTeacher,
        out,
        teacher={"name": "truth", "kind": "truth"},
        signals=("answers",),
    )
    return out


def _require_labels(asked: Ablation, store: SceneStore) -> None:
    """Every scene that is asked about is labelled: answers are compared with the teacher's."""
    chosen = asked_scenes(store, asked.split, asked.limit)
    if len(chosen) < 2:
        raise BadInputError(
            f"{asked.scenes} has {len(chosen)} scenes in split {asked.split!r}; an interval over "
            "scenes needs at least 2: make more, or name another --eval-split"
        )
    known = set(open_labels(asked.labels).scene_ids())
    missing = [scene_id for scene_id in chosen if scene_id not in known]
    if missing:
        raise BadInputError(
            f"{asked.labels} labels {len(chosen) - len(missing)} of the {len(chosen)} scenes that "
            f"are asked about (split {asked.split!r}); label them with 'stillroom label' first"
        )


def _settings(asked: Ablation, store: SceneStore) -> dict[str, Any]:
    """What must be equal for a folder to be gone on with; seeds, arms and processes may change."""
    config = asdict(replace(asked.base, features="", train=replace(asked.base.train, workers=1)))
    ids = asked_scenes(store, asked.split, asked.limit)
    questions = [q.question_id for scene_id in ids for q in store.questions(scene_id)]
    settings = {
        "suite": asked.suite,
        "recipe": asked.recipe,
        "config": config,
        "labels": open_labels(asked.labels).settings,
        "eval_split": asked.split,
        "limit": asked.limit,
        "questions": content_hash([*ids, *questions]),
    }
    return dict(json.loads(json.dumps(settings)))


def _read_plan(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    path = out / "plan.json"
    if not path.is_file():
        if out.is_dir() and any(not f.name.startswith(".") for f in out.iterdir()):
            raise BadInputError(f"{out} is not empty and holds no ablation. Choose another --out.")
        return None
    try:
        held = json.loads(path.read_text())
        there = held["settings"]
    except (ValueError, KeyError, TypeError):
        raise BadInputError(f"{path} is damaged. Choose another --out.") from None
    different = _difference(there, settings)
    if different:
        raise BadInputError(
            f"{out} holds an ablation with other settings ({different}). Choose another --out."
        )
    return dict(held)


def _difference(there: Any, here: Any, where: str = "") -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            name = f"{where}.{key}" if where else key
            if found := _difference(there.get(key), here.get(key), name):
                return found
        return ""
    return "" if there == here else f"{where}: {there} there, {here} now"


def _write_plan(asked: Ablation, settings: Mapping[str, Any]) -> dict[str, Any]:
    # Part of each run's own settings, so that it stays what it was whatever is asked later.
    workers = min(asked.base.train.workers, threads_for(asked.processes))
    plan = {"version": 1, "settings": dict(settings), "workers": workers}
    write_atomically(asked.out / "plan.json", (json.dumps(plan, indent=1) + "\n").encode())
    return plan


def _about(asked: Ablation, store: SceneStore) -> dict[str, Any]:
    ids = asked_scenes(store, asked.split, asked.limit)
    train = asked.base.train
    return {
        "recipe": asked.recipe,
        "steps": train.steps,
        "scenes_per_step": train.scenes_per_step,
        "split": asked.split,
        "scenes": len(ids),
        "questions": sum(len(store.questions(scene_id)) for scene_id in ids),
        "teacher": open_labels(asked.labels).settings["teacher"],
    }
