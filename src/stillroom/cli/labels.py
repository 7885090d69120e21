"""The verbs of a teacher's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stillroom.cli import parsing
from stillroom.cli.parsing import Folder
from stillroom.console import progress_bar
from stillroom.records import BadInputError
from stillroom.teachers.options import TeacherOptions


def label(words: Sequence[str]) -> int:
    """Label scenes with a teacher."""

    def options(
        scenes: Positional[Folder],
        /,
        *,
        teacher: str,
        out: Path | None = None,
        signals: tuple[
            Literal[
                "answers",
                "topk_logits",
                "reference_logits",
                "last_hidden",
                "attention",
                "scene_features",
            ],
            ...,
        ] = ("answers", "topk_logits"),
        workers: int | None = None,
        options: TeacherOptions = TeacherOptions(),  # noqa: B008  (it is frozen)
        ray: str | None = None,
        scenes_per_part: int | None = None,
        dry_run: bool = False,
        tflops: float = 100.0,
        json: bool = False,
        geometry: Literal["given", "predicted"] = "given",
        encoder: str = "encoder_mini",
    ) -> dict[str, Any]:
        """Let a teacher answer every question of every scene, once.

        Several commands may label one store at once: they share the work.

        Args:
            scenes: Scene store.
            teacher: teacher_mini, a folder, llava3d:WHERE, vlm:WHERE, http:ADDRESS#MODEL or truth.
            out: Folder of the label store.
            signals: What to keep.
            workers: Processes, or Ray actors, one teacher each. Default is 1; with --ray one per
                GPU, or per 8 CPUs of a machine where there is none.
            ray: Label with the Ray cluster at this address; without one, start it here.
            scenes_per_part: Scenes that a kill may cost; none is 5, of vlm: and http: 1.
            dry_run: Load nothing and write nothing: print sizes, operations, time and disk.
                Knows llava3d-7b, the released teacher, too.
            tflops: With --dry-run: TFLOP/s sustained by all devices together.
            json: With --dry-run: print one JSON object.
            options: How the teacher is loaded and asked. In brackets stand the kinds of teachers
                that know an option; teacher_mini is of kind llava3d.
            geometry: What a scene without depth and poses gets: nothing, or an encoder's.
            encoder: The encoder that predicts geometry.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, _with_address(words), "label")
    tflops, as_json = given.pop("tflops"), given.pop("json")
    if given.pop("dry_run"):
        wanted = {name: given[name] for name in ("scenes", "teacher", "signals", "options")}
        figures, lines = api.label_cost(**wanted, tflops=tflops)
        parsing.say(json.dumps(figures) if as_json else "\n".join(lines))
        return 0
    if given["out"] is None:
        raise BadInputError("name the folder of the label store: --out DIR")
    with progress_bar("labelling scenes") as progress:
        done = api.label(**given, progress=progress)
    parsing.say(
        f"{given['out']} " + (f"labelled {done} scenes" if done else "was finished already")
    )
    return 0


def _with_address(words: Sequence[str]) -> list[str]:
    """``--ray`` may stand alone: then the cluster is started here."""
    given = list(words)
    if "--ray" in given:
        place = given.index("--ray") + 1
        address = given[place] if place < len(given) else ""
        if not re.fullmatch(r"local|auto|ray://\S+|[\w.-]+:\d+", address):
            given.insert(place, "local")
    return given


def labels(words: Sequence[str]) -> int:
    """Look into label stores."""

    def options(
        action: Positional[Literal["status", "verify", "merge", "export"]],
        paths: Positional[tuple[Folder, ...]],
        /,
        *,
        scenes: tuple[Path, ...] = (),
        out: Path | None = None,
        student: str | None = None,
        json: bool = False,
    ) -> dict[str, Any]:
        """Say what a label store holds (status), whether every byte and row of it is as written
        (verify), join stores (merge), or write them for other trainers (export).

        Args:
            action: status, verify, merge or export.
            paths: Label stores; several for merge.
            scenes: With verify: the scene stores that were labelled, to see what changed in them.
            out: Folder that merge and export write.
            student: With export: whose tokenizer the rows are tokenised with.
            json: With status: print one JSON object.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "labels")
    action, paths, out = given["action"], given["paths"], given["out"]
    if action in ("merge", "export") and out is None:
        raise BadInputError(f"labels {action} needs --out DIR")
    if action == "merge":
        parsing.say(f"{out} holds {api.merge_labels(paths, out=out)} rows")
        return 0
    if len(paths) != 1:
        raise BadInputError(f"labels {action} takes one label store, got {len(paths)}")
    if action == "export":
        rows = api.export_labels(paths[0], out=out, student=given["student"])
        parsing.say(f"{out} holds {rows} rows for other trainers")
        return 0
    if action == "status" and given["json"]:
        from stillroom.teachers.label_check import status

        parsing.say(json.dumps(status(paths[0])))
        return 0
    ok, lines = api.look_at_labels(action, paths[0], scenes=given["scenes"])
    parsing.say("\n".join(lines))
    return 0 if ok else 1
