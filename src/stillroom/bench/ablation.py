"""``stillroom ablate``: the arms of a suite, every one with every seed, and the table they make.

``OUT/plan.json`` fingerprints what is compared, ``OUT/arms/ARM/seed0`` is one arm with one seed
(``arm.py``), ``OUT/features`` the frozen features that all arms share. With ``arms_folder`` arms
lie in ``ARMS/DIGEST/seed0`` instead, named by all that makes them, and features beside them: an arm
that several suites have is trained once. ``OUT/ABLATION.json`` and the table and the plot made from
it are written anew whenever an arm ends, of all arms that are finished. Killed at any moment the
same command goes on; more seeds or arms may be asked for later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stillroom.bench.ablation_report import write_report
from stillroom.bench.ablation_table import NULL_SIZE, Plateau, ablation_record, overall_score
from stillroom.bench.arm import (
    ArmJob,
    asked_scenes,
    read_arm,
    require_same,
    settings_difference,
)
from stillroom.bench.side_by_side import run_all
from stillroom.distill.config import DistillConfig
from stillroom.distill.scene_pack import alone
from stillroom.recipes.ablations import SUITES, Arm, Intervention, Suite, SuiteName
from stillroom.records import BadInputError, content_hash, weights_digest
from stillroom.scenes.store import SceneStore, open_store, read_json, write_atomically
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_run import threads_for
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.truth import TruthTeacher

Progress = Callable[[int, int], None]

RECORD_FILE = "ABLATION.json"
#: The arm whose score is the plateau: the base arm, trained so many times as long, with one seed.
LONGER, LONGER_STEPS = "longer", 3


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
    # What the base arm comes to when it gains no more; "auto" trains it longer and measures it.
    plateau: float | Literal["auto"] | None = None
    # A difference that is too small to matter, as a share of the answers.
    null_size: float = NULL_SIZE
    # Where arms lie that several suites share.
    arms_folder: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in ("seeds", "processes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 2:
            raise BadInputError(f"--limit must be at least 2 scenes, got {self.limit}")
        if isinstance(self.plateau, str) and self.plateau != "auto":
            raise BadInputError(f"--plateau is a score or auto, got {self.plateau!r}")
        if not (self.plateau is None or self.plateau == "auto" or 0 < self.plateau <= 1):
            raise BadInputError(
                "--plateau is the base arm's best score, a fraction in 0 to 1, or auto, got "
                f"{self.plateau}"
            )
        if not 0 < self.null_size < 1:
            raise BadInputError(
                f"--null-size is a share of the answers, in 0 to 1, got {self.null_size}"
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

    @property
    def shared(self) -> Path:
        """Where what all arms need lies: features and true labels."""
        return self.arms_folder or self.out


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
    plan = _read_plan(asked.out, settings)
    _require_labels(asked, store)
    _finished_jobs(asked, settings, meta)  # refuses arms that are not what is asked for now
    asked.out.mkdir(parents=True, exist_ok=True)
    with alone(asked.out / ".lock"):
        plan = plan or _read_plan(asked.out, settings) or _new_plan(asked, settings)
        if asked.plateau is not None and asked.plateau != "auto":
            plan["plateau"] = asdict(Plateau(score=asked.plateau, source="given by --plateau"))
        _write_plan(asked.out, plan)
        if any(arm.labels == "truth" for arm in arms.values()):
            _truth_labels(asked)
        workers = int(plan["workers"])
        jobs = [
            _job(asked, settings, name, arm, seed, workers, meta)
            for seed in range(asked.seeds)
            for name, arm in arms.items()
        ]
        longer = None
        if asked.plateau == "auto":
            longer = _longer(asked, settings, workers, meta)
            jobs.append(longer)
        failed: dict[str, str] = {}

        def write() -> dict[str, Any]:
            if longer is not None and longer.finished:
                steps, seed = longer.config.train.steps, longer.config.train.seed
                plan["plateau"] = asdict(
                    Plateau(
                        score=overall_score(longer.home),
                        source=f"measured: the base arm, trained {steps} steps with seed {seed}",
                    )
                )
                _write_plan(asked.out, plan)
            held = plan.get("plateau")
            homes = {(job.arm, job.seed): job.home for job in _finished_jobs(asked, settings, meta)}
            record = ablation_record(
                asked.suite,
                homes,
                meta={**_about(asked, store), **_made_by(homes, longer, meta)},
                skipped={name: why for name, why in skipped.items() if (name, 0) not in homes},
                failed=failed,
                plateau=None if held is None else Plateau(**held),
                null_size=asked.null_size,
            )
            write_atomically(
                asked.out / RECORD_FILE, (json.dumps(record, indent=1) + "\n").encode()
            )
            write_report(record, asked.out)
            return record

        run_all(jobs, asked.processes, failed, write, progress)
        return write()


def _finished_jobs(
    asked: Ablation, settings: Mapping[str, Any], meta: Mapping[str, Any]
) -> list[ArmJob]:
    """All finished arms of the suite that lie there, whether this call asks for them or not.

    Raises:
        BadInputError: one that was begun is not what is asked for now.
    """
    found = []
    for name, arm in asked.chosen.arms.items():
        if asked.arms_folder is not None and arm.no_objects and asked.no_objects_encoder is None:
            continue  # its folder is named by the encoder
        first = _job(asked, settings, name, arm, 0, 1, meta)
        for folder in sorted(first.home.parent.glob("seed*")):
            if number := re.fullmatch(r"seed(\d+)", folder.name):
                job = _job(asked, settings, name, arm, int(number[1]), 1, meta)
                require_same(job)
                if read_arm(job.home) is not None:
                    found.append(job)
    return found


def _longer(
    asked: Ablation, settings: Mapping[str, Any], workers: int, meta: Mapping[str, Any]
) -> ArmJob:
    """The base arm, trained until it should gain no more."""
    longer = replace(asked, base=with_steps(asked.base, LONGER_STEPS * asked.base.train.steps))
    base = replace(asked.chosen.arms[asked.chosen.base], interventions=())
    return _job(longer, settings, LONGER, base, 0, workers, meta)


def _made_by(
    homes: Mapping[tuple[str, int], Path], longer: ArmJob | None, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Commits, commands and machines of the arms themselves; of this call only beside them."""
    places = [*homes.values(), *([longer.home] if longer is not None and longer.finished else [])]
    arms = [read_arm(home) or {} for home in places]
    runs = [one[part] for one in arms for part in ("meta", "asked_meta") if one.get(part)]
    every = {
        name: list(dict.fromkeys(str(run[name]) for run in runs if run.get(name)))
        for name in ("commit", "command", "machine")
    }
    return {
        **{name: "; ".join(found) for name, found in every.items() if found},
        "table": {name: meta[name] for name in ("commit", "command") if name in meta},
    }


def _arms(asked: Ablation) -> tuple[dict[str, str], dict[str, Arm]]:
    """Arms that are left out, with the reason, and those that run."""
    suite, skipped, arms = asked.chosen, dict[str, str](), dict[str, Arm]()
    reference = _settled(suite.arms[suite.base].config(asked.base))
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
        elif name != suite.base and _settled(config) == reference and not _otherwise(arm):
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


def _settled(config: DistillConfig) -> DistillConfig:
    """Without a choice that changes nothing: what teaches slots that no other term reaches."""
    answer = replace(config, slots=replace(config.slots, supervision="answer"))
    return config if answer.shelters_slots else answer


def _otherwise(arm: Arm) -> bool:
    """Whether an arm differs by more than its config."""
    return arm.labels == "truth" or arm.no_objects


def _interventions(arm: Arm, slots: int) -> tuple[Intervention, ...]:
    return tuple(k for k in arm.interventions if slots >= (2 if k == "shuffled" else 1))


def _job(
    asked: Ablation,
    settings: Mapping[str, Any],
    name: str,
    arm: Arm,
    seed: int,
    workers: int,
    meta: Mapping[str, Any],
) -> ArmJob:
    config = arm.config(asked.base)
    train = replace(config.train, seed=config.train.seed + seed, workers=workers)
    encoder: Path | str | None = asked.no_objects_encoder if arm.no_objects else asked.encoder
    if arm.no_objects:
        config = replace(config, encoder=str(encoder))
    config = replace(config, train=train, features=str(asked.shared / "features"))
    told = {
        # Where things lie and how many processes load them changes nothing.
        "config": _plain(replace(config, encoder="")),
        "learns_from": arm.labels,
        **({} if encoder is None else {"encoder": weights_digest(encoder)}),
        **{part: settings[part] for part in _SHARED_SETTINGS},
    }
    made = {**told, "config": {**told["config"], "train": {**told["config"]["train"], "seed": 0}}}
    digest = content_hash([json.dumps(made, sort_keys=True)])
    arms = asked.out / "arms" / name if asked.arms_folder is None else asked.arms_folder / digest
    return ArmJob(
        suite=asked.suite,
        arm=name,
        seed=seed,
        recipe=f"{asked.recipe}_{arm.row}",
        config=config,
        scenes=asked.scenes,
        labels=asked.labels if arm.labels == "teacher" else asked.shared / TRUTH_LABELS,
        teacher_labels=asked.labels,
        home=arms / f"seed{seed}",
        encoder=encoder or "",
        language_model=asked.language_model,
        split=asked.split,
        limit=asked.limit,
        interventions=arm.interventions,
        asked=told,
        meta=meta,
    )


#: Of the settings of an ablation, those that an arm depends on beside its own.
_SHARED_SETTINGS = ("language_model", "labels", "eval_split", "limit", "questions")
TRUTH_LABELS = "truth_labels"


def _plain(config: DistillConfig) -> dict[str, Any]:
    """A config as JSON has it, without what shapes no run."""
    plain = replace(config, features="", train=replace(config.train, workers=1))
    return dict(json.loads(json.dumps(asdict(plain))))


def _truth_labels(asked: Ablation) -> None:
    """The true answers as a label store; made once."""
    asked.shared.mkdir(parents=True, exist_ok=True)
    label_scenes(
        asked.scenes,
        TruthTeacher,
        asked.shared / TRUTH_LABELS,
        teacher={"name": "truth", "kind": "truth"},
        signals=("answers",),
    )


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
    ids = asked_scenes(store, asked.split, asked.limit)
    questions = [q.question_id for scene_id in ids for q in store.questions(scene_id)]
    settings = {
        "suite": asked.suite,
        "recipe": asked.recipe,
        "config": _plain(replace(asked.base, encoder="")),
        "encoder": weights_digest(asked.encoder),
        "language_model": weights_digest(asked.language_model),
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
    held: dict[str, Any] = read_json(path, remedy="choose another --out")
    if not isinstance(held.get("settings"), dict) or not isinstance(held.get("workers"), int):
        raise BadInputError(f"{path} is damaged; choose another --out")
    if different := settings_difference(held["settings"], settings):
        raise BadInputError(
            f"{out} holds an ablation with other settings ({different}). Choose another --out."
        )
    return held


def _new_plan(asked: Ablation, settings: Mapping[str, Any]) -> dict[str, Any]:
    # Part of each run's own settings, so that it stays what it was whatever is asked later.
    workers = min(asked.base.train.workers, threads_for(asked.processes))
    return {"version": 2, "settings": dict(settings), "workers": workers}


def _write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    write_atomically(out / "plan.json", (json.dumps(plan, indent=1) + "\n").encode())


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
