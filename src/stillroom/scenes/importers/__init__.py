"""Captures of others as scenes of ours: one file per foreign layout, converted at the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.records import BadInputError, Question, Scene, View, content_hash
from stillroom.scenes.importers.detect import DESCRIPTIONS, Layout, layouts_in
from stillroom.scenes.importers.floor import floor_height
from stillroom.scenes.importers.nerfstudio import read_transforms
from stillroom.scenes.importers.photos import read_photos
from stillroom.scenes.importers.scannet_export import read_scannet
from stillroom.scenes.importers.tum import read_tum
from stillroom.scenes.store import read_manifest, shard_path, write_manifest, write_shard

_READERS = {
    "scannet": read_scannet,
    "tum": read_tum,
    "transforms": read_transforms,
    "photos": read_photos,
}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A capture as a scene, the layout it was read as, and what a user should know of it."""

    scene: Scene
    layout: str
    notes: tuple[str, ...]


def import_capture(source: Path, *, layout: Layout = "auto") -> Imported:
    """Read a capture into a scene; ``auto`` takes the first layout found and notes the others.

    Raises:
        BadInputError: nothing there that can be read, or a capture that contradicts itself.
    """
    if layout != "auto" and layout not in _READERS:
        raise BadInputError(f"unknown layout {layout!r}; known: auto, {', '.join(_READERS)}")
    found = layouts_in(source)
    notes: list[str] = []
    taken = layout
    if layout == "auto":
        # Without anything better the photo reader says best what is missing.
        taken = found[0] if found else "photos"
        if len(found) > 1:
            notes.append(
                f"{source.name} holds several layouts: read as {taken}, also there: "
                f"{', '.join(found[1:])} (choose with --layout)"
            )
    elif layout not in found and layout != "photos":
        raise BadInputError(
            f"{source} is not of the layout {layout}: expected {_described(layout)}"
        )
    views, more = _READERS[taken](source)
    floor, floor_note = floor_height(views)
    scene = Scene(
        scene_id=_identity(views),
        source="photos" if taken == "photos" else f"capture:{taken}",
        views=tuple(views),
        floor_z=floor,
    )
    return Imported(scene=scene, layout=taken, notes=(*notes, *more, *floor_note))


def _described(layout: str) -> str:
    return next(text for name, text in DESCRIPTIONS.items() if name == layout)


def _identity(views: Sequence[View]) -> str:
    parts: list[bytes | str] = []
    for view in views:
        parts += [view.name, view.rgb.tobytes()]
        for array in (view.depth, view.intrinsics, view.c2w):
            parts.append(b"" if array is None else array.tobytes())
    return content_hash(parts)


def write_import(imported: Imported, out: Path, *, questions: Sequence[Question] = ()) -> bool:
    """Store the capture as a scene store of one scene; False if it was there already.

    Raises:
        BadInputError: ``out`` holds something else; nothing is touched then.
    """
    scene = imported.scene
    settings = {
        "capture": scene.source,
        "layout": imported.layout,
        "scene_ids": [scene.scene_id],
        "notes": list(imported.notes),
        "questions": content_hash(question.question_id for question in questions),
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        # The manifest goes first, so that a killed import is known as ours and goes on.
        if not out.is_dir() or read_manifest(out)["settings"] != settings:
            raise BadInputError(
                f"{out} holds something else than this capture; choose another --out"
            )
        if shard_path(out, "scenes", 0).is_file():
            return False
    write_manifest(out, settings)
    write_shard(out, 0, [scene], list(questions))
    return True
