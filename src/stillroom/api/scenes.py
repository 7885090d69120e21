"""Rooms and captures: made, read, checked, shown, and given to others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.api.meta import Progress
from stillroom.records import BadInputError, Scene, Split

if TYPE_CHECKING:
    from stillroom.scenes.importers.detect import Layout


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
