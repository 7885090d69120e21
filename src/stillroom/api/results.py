"""What a model is worth: tables beside truth, teacher and baselines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.api.meta import Progress, run_meta
from stillroom.records import BadInputError, content_hash

if TYPE_CHECKING:
    pass


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


def verify(
    fixtures: Sequence[Path], *, kind: Literal["llava3d", "metrics", "vggt"] | None = None
) -> tuple[bool, list[str]]:
    """Compare ports and scorers with recorded outputs; whether all agree, and a line for each."""
    from stillroom.verify import verify_all

    return verify_all(fixtures, kind=kind)
