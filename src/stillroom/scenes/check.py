"""``scenes check``: captures against themselves, made rooms against their geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.records import Question, Scene
from stillroom.scenes.check_capture import check_views
from stillroom.scenes.check_made import check_scene
from stillroom.scenes.importers import import_capture
from stillroom.scenes.store import open_store

#: Faults shown one by one; of more, the number is said.
SHOWN = 20


def check_path(path: Path, *, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Check a scene store, or a capture in its own layout.

    Every posed view's depth is reprojected into the others; every stored answer of a made room is
    computed from geometry again. ``ok`` is the verdict, ``lines`` are to print, ``faults`` holds
    every fault found as {"scene_id", "fault"}.

    Raises:
        BadInputError: nothing there that can be read.
    """
    if (path / "manifest.json").is_file():
        store = open_store(path)
        ids = store.scene_ids()
        faults, notes = [], []
        for done, scene_id in enumerate(ids, start=1):
            found, lines = _check(store.scene(scene_id), store.questions(scene_id))
            faults += found
            notes = lines if len(ids) == 1 else []
            if progress is not None:
                progress(done, len(ids))
        questions = len(store.questions())
        head = f"{path}: {len(ids)} scenes, {questions} questions, {len(faults)} faults"
    else:
        imported = import_capture(path)
        faults, lines = _check(imported.scene, [])
        notes = [*imported.notes, *lines]
        head = f"{path}: a capture read as {imported.layout}, {len(faults)} faults"
    shown = [f"  {entry['scene_id']}: {entry['fault']}" for entry in faults[:SHOWN]]
    if len(faults) > SHOWN:
        shown.append(f"  and {len(faults) - SHOWN} more")
    return {"ok": not faults, "lines": [head, *notes, *shown], "faults": faults}


def _check(scene: Scene, questions: list[Question]) -> tuple[list[dict[str, str]], list[str]]:
    """Faults of one scene, and what else is worth saying of it."""
    report = check_views(scene)
    found = list(report.faults)
    if scene.source.startswith("made:"):
        found += check_scene(scene, questions)
    faults = [{"scene_id": scene.scene_id, "fault": fault} for fault in found]
    return faults, [line for line in report.lines if line not in report.faults]
