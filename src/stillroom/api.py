"""The verbs as functions: what the command line calls, and what a program may call.

Each imports what it needs when it runs, so that importing this module is cheap.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.records import (
    BadInputError,
    Scene,
    Signal,
    Split,
    content_hash,
)

if TYPE_CHECKING:
    from stillroom.bench.options import LatencyOptions
    from stillroom.distill.config import DistillConfig
    from stillroom.distill.pretrain_config import PretrainConfig
    from stillroom.engine.scene_cache import SceneCache
    from stillroom.scenes.importers.detect import Layout
    from stillroom.students.session import StudentSession
    from stillroom.teachers.options import TeacherOptions
    from stillroom.teachers.teach_config import TeachConfig

Progress = Callable[[int, int], None]
#: Memory that open scenes may take where nobody says how much.
OPEN_SCENES_BYTES = 1 << 30


# Rooms and captures. ----------------------------------------------------------------------------


def make_scenes(
    out: Path | str,
    *,
    count: int,
    seed: int,
    density: Literal["plain", "furnished"] = "plain",
    questions: int = 24,
    split: Split | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make rooms with questions in a store at ``out``; False if it was finished already."""
    from stillroom.scenes import make

    return make.make_scenes(
        Path(out),
        count=count,
        seed=seed,
        density=density,
        questions=questions,
        split=split,
        workers=workers,
        progress=progress,
    )


def import_scenes(source: Path | str, *, out: Path | str, layout: Layout = "auto") -> list[str]:
    """Read a capture into a store at ``out``; notes on what was taken and what was left."""
    from stillroom.scenes import importers

    imported = importers.import_capture(Path(source), layout=layout)
    importers.write_import(imported, Path(out))
    views = len(imported.scene.views)
    return [f"{out} holds {views} views of {source} read as {imported.layout}", *imported.notes]


def check_scenes(path: Path | str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Check every scene of a store, or a capture in its own layout.

    Returns ``ok``, printable ``lines`` and the ``faults`` found.
    """
    from stillroom.scenes.check import check_path

    return check_path(Path(path), progress=progress)


def audit_scenes(
    path: Path | str, *, seed: int = 0, progress: Progress | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What words alone give away of a store's answers: the figures, and lines to print.

    ``ok`` is False where a guesser stands more than 3 points above chance.
    """
    from stillroom.evaluate.audit import audit, lines

    report = audit(Path(path), seed=seed, progress=progress)
    return report, lines(report)


def show_scene(
    path: Path | str, *, scene: str = "0", out: Path | str = Path("contact_sheet.png")
) -> Path:
    """Draw the contact sheet of one scene (by id or by number) as a PNG at ``out``."""
    from stillroom.scenes.show import contact_sheet
    from stillroom.scenes.store import open_store

    out = Path(out)
    if out.suffix.lower() != ".png":
        raise BadInputError(f"--out must name a .png, got {out.name}")
    store = open_store(path)
    ids = store.scene_ids()
    if scene.isdigit() and int(scene) < len(ids):
        scene = ids[int(scene)]
    if scene not in ids:
        raise BadInputError(f"{path} holds no scene {scene!r}; it has {len(ids)}, numbered from 0")
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(store.scene(scene), store.questions(scene)).save(out)
    return out


def open_photos(path: Path | str) -> Scene:
    """A folder of photos or a capture as a scene.

    Raises:
        BadInputError: no folder, no readable photo in it, or a capture that contradicts itself.
    """
    from stillroom.scenes import importers

    return importers.import_capture(Path(path), layout="auto").scene


# Models. ----------------------------------------------------------------------------------------


def pretrain_encoder(
    config: PretrainConfig, *, scenes: Path | str, out: Path | str, progress: Progress | None = None
) -> str:
    """Pretrain a miniature encoder; a sentence on how it went."""
    from stillroom import registry
    from stillroom.distill import pretrain

    return pretrain.pretrain_encoder(
        config,
        scenes=Path(scenes),
        out=Path(out),
        start_from=registry.locate(config.start_from) if config.start_from else "",
        progress=progress,
    )


def teach(
    config: TeachConfig, *, scenes: Path | str, out: Path | str, progress: Progress | None = None
) -> str:
    """Train a miniature teacher from truth; a sentence on how it went."""
    from stillroom import registry
    from stillroom.teachers import teach as teaching

    start_from: Path | str = ""
    if config.start_from:
        kind, where = registry.kind_of(config.start_from)
        if kind != "llava3d":
            raise BadInputError(
                f"{config.start_from!r} is no teacher to start from: name teacher_mini or "
                "llava3d:WHERE"
            )
        start_from = registry.locate(where)
    return teaching.teach(
        config, scenes=Path(scenes), out=Path(out), start_from=start_from, progress=progress
    )


def label(
    scenes: Path | str,
    *,
    teacher: str,
    out: Path | str,
    options: TeacherOptions | None = None,
    signals: Sequence[Signal] = ("answers", "topk_logits"),
    workers: int | None = None,
    ray: str | None = None,
    scenes_per_part: int | None = None,
    geometry: Literal["given", "predicted"] = "given",
    encoder: str = "encoder_mini",
    progress: Progress | None = None,
) -> int:
    """Let a teacher answer every question of a store; the number of scenes labelled now.

    ``ray`` is the address of a Ray cluster whose actors do it; "local" starts one here.
    With ``geometry="predicted"`` scenes without depth and poses get those of ``encoder``.
    ``scenes_per_part`` scenes become durable at once; by default as many as the teacher gains by.

    Raises:
        BadInputError: scenes, teacher, options or folder do not go together, or a run was cut
            short; what is labelled stays.
    """
    if workers is not None and workers < 1:
        raise BadInputError(f"--workers must be at least 1, got {workers}")
    from stillroom import registry
    from stillroom.teachers.label import label_scenes

    registry.teacher_loader(teacher, options)  # refuses what cannot label
    kind, _ = registry.kind_of(teacher)
    if geometry == "predicted" and kind != "llava3d":
        raise BadInputError(
            f"the teacher {teacher!r} reads no depth and poses; leave --geometry predicted out"
        )
    if scenes_per_part is None and kind in registry.ONE_BY_ONE:
        scenes_per_part = 1
    # Weights, words and fingerprint are of one commit.
    teacher = registry.pinned(teacher)
    registry.require_usable(teacher, options)
    loader = registry.teacher_loader(teacher, options)
    description = registry.describe(teacher, options)
    if geometry == "predicted":
        loader = registry.predicting(loader, encoder)
        description["predicted_geometry"] = registry.describe(encoder)["revision"]
    return label_scenes(
        Path(scenes),
        loader,
        Path(out),
        teacher=description,
        signals=tuple(signals),
        vocabulary=registry.vocabulary(teacher),
        workers=workers,
        ray=ray,
        scenes_per_part=scenes_per_part,
        progress=progress,
    )


def label_cost(
    scenes: Path | str,
    *,
    teacher: str,
    options: TeacherOptions | None = None,
    signals: Sequence[Signal] = ("answers", "topk_logits"),
    tflops: float = 100.0,
) -> tuple[dict[str, Any], list[str]]:
    """What labelling would cost, from the teacher's config alone: figures, and lines to print.

    Besides the teachers that exist, "llava3d-7b" is the released one at full size. ``tflops`` are
    sustained TFLOP/s of all devices together.
    """
    from dataclasses import asdict

    from stillroom import registry
    from stillroom.teachers.dry_run import dry_run
    from stillroom.teachers.llava3d_config import LLaVA3DConfig
    from stillroom.teachers.options import TeacherOptions

    folder, options = None, options or TeacherOptions()
    if teacher == "llava3d-7b":
        config = LLaVA3DConfig()
    else:
        kind, where = registry.kind_of(teacher)
        place = registry.locate(where) if kind == "llava3d" else None
        if not isinstance(place, Path):
            raise BadInputError(
                f"--dry-run cannot read the sizes of {teacher!r}; name teacher_mini, llava3d-7b or "
                "llava3d:FOLDER with a config.json in it"
            )
        folder, config = place, LLaVA3DConfig.read(place)
    found, lines = dry_run(
        Path(scenes),
        config,
        folder=folder,
        signals=signals,
        options=options,
        tflops=tflops,
    )
    figures = asdict(found) | {
        "flop": found.flop,
        "bytes": found.bytes,
        "hours": found.hours(tflops),
        "tflops": tflops,
    }
    return figures, lines


def look_at_labels(
    action: Literal["status", "verify"], path: Path | str, *, scenes: Sequence[Path | str] = ()
) -> tuple[bool, list[str]]:
    """What a label store holds (status), or what is wrong with it (verify).

    ``scenes`` are the stores that were labelled; verify then also says what changed in them.
    """
    from stillroom.teachers import label_check

    if action == "status":
        return True, label_check.status_lines(Path(path))
    if found := label_check.problems(Path(path), scenes=[Path(one) for one in scenes]):
        return False, found
    return True, [f"{path}: {label_check.status(Path(path))['rows']} rows, every byte as written"]


def merge_labels(paths: Sequence[Path | str], *, out: Path | str) -> int:
    """Join label stores of one fingerprint in a new folder; its number of rows."""
    from stillroom.teachers.label_merge import merge

    return merge([Path(path) for path in paths], Path(out))


def export_labels(path: Path | str, *, out: Path | str, student: Path | str | None = None) -> int:
    """Write labels as ``target_logprobs``, ``target_token_ids``, ``target_mask``; rows written.

    With a ``student`` its vocabulary must be the teacher's, and rows are tokenised as well.
    """
    from stillroom import registry
    from stillroom.teachers.label_export import export

    place = None if student is None else registry.locate(str(student))
    if place is not None and not isinstance(place, Path):
        raise BadInputError(f"--student must be a folder or a shipped name, got {student!r}")
    return export(Path(path), Path(out), student=place)


def distill(
    config: DistillConfig,
    *,
    scenes: Path | str,
    labels: Path | str,
    out: Path | str,
    recipe: str = "",
    progress: Progress | None = None,
) -> str:
    """Train a student on a teacher's labels; a sentence on how it went.

    ``recipe`` is the config's name, for the student's model card.
    """
    from stillroom import registry
    from stillroom.distill import run

    return run.distill(
        config,
        scenes=Path(scenes),
        labels=Path(labels),
        out=Path(out),
        encoder=registry.locate(config.encoder),
        language_model=_language_model(config),
        tokenizer=config.tokenizer,
        recipe=recipe,
        meta=run_meta(time.monotonic()),
        progress=progress,
    )


def params(recipe: str, *, quant: Literal["int8", "int4"] | None = None) -> dict[str, int]:
    """Parameters of a recipe's student by part, and their total.

    With ``quant`` also the bytes of each part (``PART_bytes``) once its weights have so many bits.
    Nothing is allocated, and nothing fetched where the parts are published ones.
    """
    from stillroom import recipes, registry
    from stillroom.distill.build import described_student
    from stillroom.students.parameters import parameter_table, weight_bytes

    config = recipes.table("distill")[recipe]()
    encoder = registry.locate(config.encoder)
    student = described_student(config, encoder, _language_model(config))
    table = parameter_table(student)
    if quant is not None:
        student.weights = quant
        sizes = parameter_table(student, size_of=weight_bytes)
        table |= {f"{part}_bytes": size for part, size in sizes.items()}
    return table


def export(
    model: str, *, to: Literal["int8", "int4", "onnx", "executorch"], out: Path | str
) -> dict[str, Any]:
    """Write a student in another form: weights of 8 or 4 bits, ONNX graphs or ExecuTorch programs.

    Returns what was written, with sizes on disk in bytes.
    """
    from stillroom import registry

    kind, where = registry.kind_of(model)
    if kind != "student":
        raise BadInputError(f"{model!r} is no student; name student_mini, a folder or a hub id")
    place = registry.locate(where)
    if to == "onnx":
        from stillroom.export.onnx import export_onnx

        return export_onnx(place, Path(out))
    if to == "executorch":
        from stillroom.export.executorch import export_executorch

        return export_executorch(place, Path(out))
    from stillroom.export.quantise import quantise

    return quantise(place, Path(out), weights=to)


def _language_model(config: DistillConfig) -> Path | str:
    from stillroom import registry

    # A student that goes on from its own checkpoint brings its language model.
    used = config.language_model and not config.start_from
    return registry.locate(config.language_model) if used else ""


# Results. ---------------------------------------------------------------------------------------


def evaluate(
    model: str,
    scenes: Path | str,
    *,
    out: Path | str,
    teacher: str | None = None,
    labels: Path | str | None = None,
    split: str = "test",
    limit: int | None = None,
    blind_student: str | None = None,
    no_slots_student: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model on a split; ``results.json`` and ``report.html`` in ``out``.

    ``blind_student`` is a student that was trained without pictures (recipe mini_cpu_blind): what
    is above blind is then above the stronger of it and the guesser of words. ``no_slots_student``
    is one without slots. Both stand as rows beside the model.
    """
    from stillroom import registry
    from stillroom.evaluate.report import write_report
    from stillroom.evaluate.run import evaluate as score
    from stillroom.scenes.store import open_store

    started = time.monotonic()
    scenes, out = Path(scenes), Path(out)
    store = open_store(scenes)
    if teacher is not None and labels is not None:
        _require_labels_of(teacher, Path(labels))
    wanted = None if split == "all" else split
    rows: dict[str, Any] = {}
    if teacher is not None or labels is not None:
        rows["teacher"] = teacher_answers(teacher, labels, store, split)
    # Beside a model that looks stand what it must beat; a baseline stands alone.
    beside: list[str] = []
    kind, _ = registry.kind_of(model)
    if kind in ("student", *registry.LOOKING_TEACHERS):
        beside.append("truth")
        if split == "all" or store.scene_ids("train"):  # else there is nothing to fit them on
            beside += ["majority", "blind"]
        if len(store.scene_ids(wanted)) > 1:
            beside.append(f"shuffled:{model}")
        if kind == "llava3d":
            beside.append(f"no_depth:{model}")
    names = {name: name for name in [model, *beside]}
    for row, given in (("blind_student", blind_student), ("student_no_slots", no_slots_student)):
        if given is not None:
            if registry.kind_of(given)[0] != "student":
                raise BadInputError(f"{given!r} is no student; name a student's checkpoint")
            names[row] = given
    for row, name in names.items():
        rows[row] = _loader(name, store, split)
    results = score(
        rows,
        store,
        split=wanted,
        out=out,
        teacher_row="teacher" if "teacher" in rows else None,
        student_row=model,
        meta=run_meta(
            started,
            parameters=_parameters(names, teacher, labels),
            students=made_from(names),
        ),
        progress=progress,
        limit=limit,
        identities={row: _identity(names.get(row, row), teacher, labels) for row in rows},
        meteor_rows=[name for name in ("teacher", model) if name in rows],
    )
    write_report(results, out=out, store=store)
    if registry.kind_of(model)[0] == "student":
        refresh_card(model, results, row=model)
    return results


def refresh_card(model: str, results: Mapping[str, Any], *, row: str) -> None:
    """Write the scores of a row into the model card of a student that ``distill`` made.

    Nothing is done for models that are shipped, come from the hub or have no provenance.
    """
    from stillroom import registry
    from stillroom.students.card import add_scores

    place = registry.locate(registry.kind_of(model)[1])
    if isinstance(place, Path) and registry.MODELS not in place.parents:
        add_scores(place, results, row=row)


def evaluate_suite(
    model: str,
    data: Path | str,
    *,
    suite: str,
    out: Path | str,
    teacher: str | None = None,
    labels: Path | str | None = None,
    limit: int | None = None,
    prompt: Literal["official", "plain"] = "official",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model on a published benchmark whose files lie in ``data``.

    ``rows.MODEL.metrics.suite`` of ``results.json`` has the published figures and the corrected
    ones, each with its scorer, its interval and what is left of the teacher. Beside a model that
    looks stand those that do not: majority, blind, and itself before black pictures.
    """
    from stillroom import registry
    from stillroom.evaluate.baselines import FOLDS, Blank
    from stillroom.evaluate.report import write_report
    from stillroom.evaluate.run import PLAIN_PROMPT
    from stillroom.evaluate.run import evaluate as score
    from stillroom.evaluate.suites import find_suite
    from stillroom.evaluate.suites.report import add_tables, prepare, scorer_of

    started = time.monotonic()
    out = Path(out)
    chosen = find_suite(suite)
    kind, _ = registry.kind_of(model)
    if teacher is not None and labels is not None:
        _require_labels_of(teacher, Path(labels))
    store, items, missing = prepare(chosen, Path(data), out / "asked", prompt=prompt)
    rows: dict[str, Any] = {}
    if teacher is not None or labels is not None:
        rows["teacher"] = teacher_answers(teacher, labels, store, "all")
    rows[model] = _loader(model, store, "all")
    identities = {row: _identity(row, teacher, labels) for row in rows}
    decoding = {row: _decoding(row, teacher) for row in rows}
    if kind not in (*registry.BASELINES, *registry.CONTROLS):
        # Each fifth of the scenes is answered by guessers that were fitted on the other four.
        for name in ("majority", "blind") if len(store) >= FOLDS else ():
            rows[name], identities[name] = _loader(name, store, "all"), name
        blank = f"blank:{model}"
        rows[blank] = lambda: Blank(registry.answerer(model, store, split="all"))
        identities[blank], decoding[blank] = identities[model], decoding[model]
    results = score(
        rows,
        store,
        split=None,
        out=out,
        teacher_row="teacher" if "teacher" in rows else None,
        student_row=model,
        meta=run_meta(started, parameters=_parameters({model: model}, teacher, labels)),
        progress=progress,
        limit=limit,
        identities=identities,
        scorer=scorer_of(chosen, items),
        scorer_ids=[one for column in chosen.columns.values() for one in column.scorers.values()],
        prompt_id=chosen.prompt_id if prompt == "official" else PLAIN_PROMPT,
    )
    results = add_tables(results, chosen, items, missing, store, out, decoding=decoding)
    write_report(results, out=out, store=store)
    return results


def made_from(names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Recipe, seed and steps of the students behind a table's rows, of those that tell."""
    from stillroom import registry
    from stillroom.scenes.store import read_json
    from stillroom.students.card import PROVENANCE_FILE

    found = {}
    for row, name in names.items():
        kind, where = registry.kind_of(name)
        place = registry.locate(where) if kind == "student" else ""
        if isinstance(place, Path) and (place / PROVENANCE_FILE).is_file():
            facts = read_json(place / PROVENANCE_FILE)
            found[row] = {part: facts.get(part) for part in ("recipe", "seed", "steps")}
    return found


def _parameters(
    names: Mapping[str, str], teacher: str | None, labels: Path | str | None
) -> dict[str, int]:
    """All that the checkpoints behind a table's rows hold, of those that have one here."""
    from stillroom import registry
    from stillroom.teachers.label_store import open_labels

    named = dict(names)
    if teacher is None and labels is not None:
        told = str(open_labels(labels).settings["teacher"].get("name", ""))
        # Labels name a teacher of this machine or of another.
        teacher = told if told in registry.SHIPPED else None
    if teacher is not None:
        named["teacher"] = teacher
    counted = {row: registry.parameters(name) for row, name in named.items()}
    return {row: count for row, count in counted.items() if count is not None}


def _decoding(row: str, teacher: str | None) -> str | None:
    """How a row's answers are drawn; None for those that draw none, or where labels have them."""
    from stillroom import registry

    name = teacher if row == "teacher" else row
    return None if name is None else registry.describe(name).get("decoding")


def ask_scenes(
    data: Path | str,
    *,
    suite: str,
    out: Path | str,
    prompt: Literal["official", "plain"] = "official",
    progress: Progress | None = None,
) -> list[str]:
    """Join a benchmark's published questions with their scenes in a store at ``out``, to be
    labelled or asked; lines on what was joined."""
    from stillroom.evaluate.suites import find_suite
    from stillroom.evaluate.suites.report import missing_line, prepare

    store, _, missing = prepare(
        find_suite(suite), Path(data), Path(out), prompt=prompt, progress=progress
    )
    joined = f"{out} holds {len(store.questions())} questions of {suite} on {len(store)} scenes"
    return [joined, *missing_line(missing)]


def export_scenes(
    scenes: Path | str, *, out: Path | str, progress: Progress | None = None
) -> list[str]:
    """Write a store's VSI questions in VSI-Bench's own format; lines on what was written."""
    from stillroom.evaluate.suites.vsibench_export import export_vsibench
    from stillroom.scenes.store import open_store

    rows, rooms = export_vsibench(open_store(scenes), Path(out), progress=progress)
    return [f"{out} holds {rows} rows of VSI-Bench's format on {rooms} scenes, with their frames"]


def _require_labels_of(teacher: str, labels: Path) -> None:
    from stillroom import registry
    from stillroom.teachers.label_store import open_labels

    found = open_labels(labels).settings["teacher"]
    if found.get("revision") != registry.describe(teacher).get("revision"):
        raise BadInputError(
            f"{labels} holds labels of {found['name']}, not of {teacher}; name one of --teacher "
            "and --labels, or label again"
        )


def _identity(row: str, teacher: str | None, labels: Path | str | None) -> str:
    """What tells a row's answers from another's under the same name: its weights, or its labels."""
    from stillroom import registry

    if row == "teacher" and labels is not None:
        from stillroom.teachers.label_store import open_labels

        return content_hash([json.dumps(open_labels(labels).settings, sort_keys=True)])
    name = teacher if row == "teacher" and teacher is not None else row
    return str(registry.describe(name).get("revision", name))


def _loader(name: str, store: Any, split: str) -> Callable[[], Any]:
    """What loads a row of a table, when its turn comes."""
    from stillroom import registry

    return lambda: registry.answerer(name, store, split=split)


def teacher_answers(teacher: str | None, labels: Path | str | None, store: Any, split: str) -> Any:
    """The teacher's row: recorded answers where there are labels, else the teacher itself."""
    if labels is not None:
        from stillroom.evaluate.baselines import RecordedAnswers
        from stillroom.teachers.label_store import open_labels

        return RecordedAnswers(open_labels(labels).answers())
    assert teacher is not None
    return _loader(teacher, store, split)


def ablate(
    suite: Literal["table2", "table3", "slots"],
    *,
    scenes: Path | str,
    labels: Path | str,
    out: Path | str,
    recipe: str = "mini_cpu_paper",
    base: DistillConfig | None = None,
    steps: int | None = None,
    no_objects_encoder: str | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Train and compare the arms of a suite; what ``OUT/ABLATION.json`` holds.

    ``base`` takes the place of the recipe's config; ``processes`` are two where there are as many
    cores; ``how`` are further fields of ``bench.ablation.Ablation`` (seeds, arms, split, limit,
    plateau, null_size, arms_folder).
    """
    from stillroom import recipes, registry
    from stillroom.bench import ablation

    config = ablation.with_steps(base or recipes.table("distill")[recipe](), steps)
    asked = ablation.Ablation(
        suite=suite,
        recipe=recipe,
        base=config,
        scenes=Path(scenes),
        labels=Path(labels),
        out=Path(out),
        encoder=registry.locate(config.encoder),
        language_model=_language_model(config),
        no_objects_encoder=None
        if no_objects_encoder is None
        else registry.locate(no_objects_encoder),
        processes=min(2, len(os.sched_getaffinity(0))) if processes is None else processes,
        **how,
    )
    return ablation.ablate(asked, meta=run_meta(time.monotonic()), progress=progress)


def probe(
    checkpoint: str,
    scenes: Path | str,
    *,
    out: Path | str,
    split: str = "test",
    limit: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit linear probes to a student's slot states; what ``OUT/PROBE.json`` holds."""
    from stillroom import registry
    from stillroom.bench import probe as probing

    kind, where = registry.kind_of(checkpoint)
    if kind != "student":
        raise BadInputError(f"{checkpoint!r} has no slots; name a student")
    asked = probing.ProbeConfig(
        name=checkpoint,
        checkpoint=registry.locate(where),
        revision=str(registry.describe(checkpoint)["revision"]),
        scenes=Path(scenes),
        out=Path(out),
        split=split,
        limit=limit,
        seed=seed,
    )
    return probing.probe(asked, meta=run_meta(time.monotonic()), progress=progress)


def open_scene(model: str, photos: Path | str) -> StudentSession:
    """A session of a student on a folder of photos: ``.ask("...")`` from there on."""
    from stillroom import registry
    from stillroom.students.session import StudentAnswerer

    return StudentAnswerer.from_folder(registry.locate(model)).open(open_photos(photos))


def open_model(model: str, *, budget_bytes: int = OPEN_SCENES_BYTES) -> SceneCache:
    """A student or a LLaVA-3D, loaded once: ``.open(SCENE)`` gives the scene's session.

    Scenes stay open for their next question as long as all of them take at most ``budget_bytes``;
    those asked for longest ago are closed first.
    """
    from stillroom import registry
    from stillroom.engine.scene_cache import SceneCache

    kind, where = registry.kind_of(model)
    if kind == "student":
        from stillroom.students.session import StudentAnswerer

        return SceneCache(
            StudentAnswerer.from_folder(registry.locate(where)), budget_bytes=budget_bytes
        )
    if kind == "llava3d":
        from stillroom.teachers.llava3d import LLaVA3DTeacher

        return SceneCache(
            LLaVA3DTeacher.from_folder(registry.locate(where)), budget_bytes=budget_bytes
        )
    raise BadInputError(
        f"{model!r} looks at no scene that could be kept open; name student_mini, teacher_mini, a "
        "folder or a hub id"
    )


def ask(model: str, photos: Path | str, question: str) -> str:
    """One answer about a folder of photos or a capture."""
    from stillroom.asking import reply

    return reply(model, open_photos(photos), question).answer


def verify(
    fixtures: Sequence[Path], *, kind: Literal["llava3d", "metrics", "vggt"] | None = None
) -> tuple[bool, list[str]]:
    """Compare ports and scorers with recorded outputs; whether all agree, and a line for each."""
    from stillroom.verify import verify_all

    return verify_all(fixtures, kind=kind)


def bench_latency(
    options: LatencyOptions,
    *,
    student: str = "student_mini",
    teacher: str = "teacher_mini",
    scenes: Path | str | None = None,
    scene_count: int = 8,
    random_weights: bool = False,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time teacher and student side by side; the record, with figures in ``out`` if that is named.

    Without ``scenes`` rooms are made. With ``random_weights`` the student is a recipe's name and
    the teacher "llava3d-7b" or a folder, of which only the sizes count. A record that ``out`` holds
    of the same models and settings is given back, and nothing measured.
    """
    from stillroom import bench_models
    from stillroom.bench.run import finished, write

    started = time.monotonic()
    # Scenes are named by where they lie, models by their weights.
    asked = {
        "student": student if random_weights else bench_models.identity(student),
        "teacher": teacher if random_weights else bench_models.identity(teacher),
        "scenes": None if scenes is None else str(Path(scenes).resolve()),
        "scene_count": scene_count,
        "random_weights": random_weights,
    }
    found = None if out is None else finished(Path(out), asked, options)
    if found is not None:
        return found
    run = bench_models.run_random if random_weights else bench_models.run_loaded
    record = run(
        options,
        student=student,
        teacher=teacher,
        scenes=None if scenes is None else Path(scenes),
        scene_count=scene_count,
        progress=progress,
    )
    today = datetime.date.today().isoformat()
    record |= {"asked": asked, "meta": run_meta(started, date=today)}
    if out is not None:
        write(record, Path(out))
    return record


def run_meta(started: float, **more: Any) -> dict[str, Any]:
    """Where a result comes from: commit, command, machine, seconds since ``started``."""
    return {
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "seconds": round(time.monotonic() - started, 1),
        **more,
    }


def _commit() -> str:
    """The checkout's commit, with "-dirty" where it was changed; "unknown" for an installed
    wheel."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / "pyproject.toml").is_file():
        return "unknown"  # installed: the repository around it, if any, is another's
    # "-dirty" where tracked files were changed since; tags are no commits.
    command = ["git", "--no-optional-locks", "-C", str(here), "describe", "--always", "--dirty"]
    command += ["--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
