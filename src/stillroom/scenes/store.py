"""Scenes and questions on disk: Parquet shards, pictures inside, one row a scene.

``DIR/manifest.json`` says what was asked for; ``DIR/scenes/00000.parquet`` holds scenes with their
encoded pictures, ``DIR/questions/00000.parquet`` the questions about them. A shard's scenes are
written last and by rename, so a shard that is there is whole. Depth is kept as 16-bit PNG with
its own unit (0.25 mm where the view is shallower than 16 m, else 1 mm).
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stillroom.records import (
    BadInputError,
    OrientedBox,
    Part,
    Question,
    Scene,
    SceneObject,
    Split,
    View,
    prompt_of,
)

VERSION = 1
#: Scenes that share a Parquet row group: what one random access reads.
ROWS_PER_GROUP = 5
#: Shards whose file is held open, and whose questions are kept, at any time.
SHARDS_HELD = 8

_NUMBERS = pa.list_(pa.float64())
_VIEW = pa.struct(
    {
        "name": pa.string(),
        "rgb": pa.binary(),
        "depth": pa.binary(),
        "depth_unit_m": pa.float64(),
        "instances": pa.binary(),
        "intrinsics": _NUMBERS,
        "c2w": _NUMBERS,
    }
)
_PART = pa.struct({"kind": pa.string(), "center": _NUMBERS, "size": _NUMBERS, "wxyz": _NUMBERS})
_OBJECT = pa.struct(
    {
        "object_id": pa.int32(),
        "category": pa.string(),
        "name": pa.string(),
        "colour": pa.string(),
        "center": _NUMBERS,
        "size": _NUMBERS,
        "rotation": _NUMBERS,
        "supported_by": pa.int32(),
        "parts": pa.list_(_PART),
    }
)
SCENE_SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "source": pa.string(),
        "split": pa.string(),
        "floor_z": pa.float64(),
        "room_size": _NUMBERS,
        "objects": pa.list_(_OBJECT),
        "views": pa.list_(_VIEW),
    }
)
QUESTION_SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "split": pa.string(),
        "family": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "options": pa.list_(pa.string()),
        "value": pa.float64(),
        "unit": pa.string(),
        "margin": pa.float64(),
        "rationale": pa.string(),
        "renderings": pa.list_(pa.string()),
        "facts": pa.list_(pa.list_(pa.string())),
        "object_ids": pa.list_(pa.int32()),
        "asked_as": pa.string(),
    }
)
assert set(QUESTION_SCHEMA.names) == {entry.name for entry in fields(Question)}


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it, whenever the process dies or the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path, *, remedy: str = "delete it and give the same command again") -> Any:
    """The object that a JSON file of ours holds.

    Raises:
        BadInputError: it is damaged; the message ends with ``remedy``.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} is not readable JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise BadInputError(f"{path} holds no JSON object; {remedy}")
    return found


def write_manifest(folder: Path, settings: Mapping[str, object]) -> None:
    """Write ``folder/manifest.json``: the settings that made the store, sorted, no dates."""
    record = {"kind": "scenes", "version": VERSION, "settings": dict(settings)}
    write_atomically(
        folder / "manifest.json", (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    )


def read_manifest(folder: Path, *, kind: str = "scenes", version: int = VERSION) -> dict[str, Any]:
    """The manifest of a store of ours.

    Raises:
        BadInputError: there is none, or it is of another kind or version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise BadInputError(f"{folder} holds no {kind} store: manifest.json is missing")
    try:
        record = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path} is not readable JSON ({error}); make the store again"
        ) from None
    if not isinstance(record, dict) or record.get("kind") != kind:
        found = record.get("kind") if isinstance(record, dict) else None
        raise BadInputError(f"{folder} holds a store of kind {found!r}, expected {kind!r}")
    if record.get("version") != version:
        raise BadInputError(
            f"{folder} has version {record.get('version')}, this stillroom reads {version}; "
            "make it again in another folder"
        )
    return record


def write_shard(
    folder: Path, index: int, scenes: Sequence[Scene], questions: Sequence[Question]
) -> None:
    """Write shard ``index`` of a store: questions first, then scenes, each by rename."""
    rows = [_question_row(question) for question in questions]
    _write_table(shard_path(folder, "questions", index), rows, QUESTION_SCHEMA, max(len(rows), 1))
    scene_rows = [_scene_row(scene) for scene in scenes]
    _write_table(shard_path(folder, "scenes", index), scene_rows, SCENE_SCHEMA, ROWS_PER_GROUP)


def shard_path(folder: Path, table: str, index: int) -> Path:
    """Where shard ``index`` of ``table`` lies."""
    return folder / table / f"{index:05d}.parquet"


def _write_table(
    path: Path, rows: list[dict[str, Any]], schema: pa.Schema, rows_per_group: int
) -> None:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    # Pictures are compressed already; the rest is small.
    pq.write_table(table, sink, row_group_size=rows_per_group, compression="zstd")
    write_atomically(path, sink.getvalue())


class SceneStore:
    """A folder of scenes and questions; both are read when asked for, a few shards at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self._shards = sorted((path / "scenes").glob("*.parquet"))
        if not self._shards:
            raise BadInputError(
                f"{path} holds no finished shard of scenes; make or import some first"
            )
        self._place: dict[str, tuple[int, int]] = {}
        self._split: dict[str, Split] = {}
        self._ids: list[list[str]] = []
        for number, shard in enumerate(self._shards):
            with _open_parquet(shard) as table:
                index = table.read(columns=["scene_id", "split"]).to_pylist()
            self._ids.append([entry["scene_id"] for entry in index])
            for row, entry in enumerate(index):
                self._place[entry["scene_id"]] = (number, row)
                self._split[entry["scene_id"]] = entry["split"]
        self._group: tuple[tuple[int, int], list[dict[str, Any]]] | None = None
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._asked: OrderedDict[int, dict[str, list[Question]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._place)

    def scene_ids(self, split: str | None = None) -> list[str]:
        """Ids in the order of making; of one split, or of all."""
        return [key for key, where in self._split.items() if split in (None, where)]

    def scene(self, scene_id: str) -> Scene:
        """One scene with its pictures. Raises KeyError if the store has none of that id."""
        shard, row = self._place[scene_id]
        group, within = divmod(row, ROWS_PER_GROUP)
        if self._group is None or self._group[0] != (shard, group):
            file = _held(self._files, shard, lambda: _open_parquet(self._shards[shard]))
            self._group = ((shard, group), file.read_row_group(group).to_pylist())
        return _scene(self._group[1][within])

    def kinds(self, scene_ids: Iterable[str]) -> Counter[str]:
        """How many things of each kind some scenes have; no picture is read."""
        wanted = set(scene_ids)
        found: Counter[str] = Counter()
        for number, ids in enumerate(self._ids):
            if wanted.isdisjoint(ids):
                continue
            with _open_parquet(self._shards[number]) as table:
                rows = table.read(columns=["scene_id", "objects"]).to_pylist()
            for row in rows:
                if row["scene_id"] in wanted:
                    found.update(thing["category"] for thing in row["objects"])
        return found

    def iter_scenes(self, split: str | None = None) -> Iterator[Scene]:
        """Scenes in the order of making; one row group in memory at a time."""
        for scene_id in self.scene_ids(split):
            yield self.scene(scene_id)

    def questions(
        self, scene_id: str | None = None, *, split: str | None = None, family: str | None = None
    ) -> list[Question]:
        """Questions of one scene or of all, narrowed to a split and a family.

        Those of one scene cost one shard of memory; those of all are as many as there are.
        """
        chosen = [scene_id] if scene_id is not None else self.scene_ids(split)
        return [
            question
            for key in chosen
            for question in self._questions_of(key)
            if family in (None, question.family)
        ]

    def question_ids(self) -> Iterator[str]:
        """Ids of all questions in the order of ``questions``; one shard in memory at a time."""
        return (row["question_id"] for row in self._question_columns("question_id"))

    def asked(self) -> Iterator[tuple[str, str, str]]:
        """Id, prompt and answer of all questions, as ``question_ids``."""
        names = ("question_id", "question", "options", "answer", "asked_as")
        for row in self._question_columns(*names):
            prompt = row.get("asked_as") or prompt_of(row["question"], row["options"] or ())
            yield row["question_id"], prompt, row["answer"]

    def _question_columns(self, *columns: str) -> Iterator[dict[str, Any]]:
        for number in range(len(self._shards)):
            path = self._question_file(number)
            if path is None:
                continue
            with _open_parquet(path) as table:
                # Stores made before a column was thought of lack it.
                there = [name for name in columns if name in table.schema_arrow.names]
                rows = table.read(columns=["scene_id", *there]).to_pylist()
            found: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                found.setdefault(row["scene_id"], []).append(row)
            for scene_id in self._ids[number]:
                yield from found.get(scene_id, ())

    def _questions_of(self, scene_id: str) -> list[Question]:
        number = self._place[scene_id][0]
        return _held(self._asked, number, lambda: self._read_questions(number)).get(scene_id, [])

    def _read_questions(self, number: int) -> dict[str, list[Question]]:
        found: dict[str, list[Question]] = {}
        path = self._question_file(number)
        if path is not None:
            with _open_parquet(path) as table:
                for row in table.read().to_pylist():
                    found.setdefault(row["scene_id"], []).append(_question(row))
        return found

    def _question_file(self, number: int) -> Path | None:
        """A shard's questions lie under the number of its scenes."""
        path = self.path / "questions" / self._shards[number].name
        return path if path.exists() else None


_Kept = TypeVar("_Kept")


def _held(kept: OrderedDict[int, _Kept], number: int, make: Callable[[], _Kept]) -> _Kept:
    """What is kept under a shard's number; the one used longest ago goes when there are many."""
    if number not in kept:
        kept[number] = make()
        if len(kept) > SHARDS_HELD:
            kept.popitem(last=False)
    kept.move_to_end(number)
    return kept[number]


def open_store(path: Path | str) -> SceneStore:
    """Open a folder that ``scenes make`` or ``scenes import`` wrote.

    Raises:
        BadInputError: no such store, or a shard in it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadInputError(
            f"scene folder not found: {folder}; make one with 'stillroom scenes make'"
        )
    return SceneStore(folder)


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"{path} is truncated or not a Parquet shard ({reason}); delete it and run the command "
            "that made it again"
        ) from None


# Rows. -----------------------------------------------------------------------------------------


def _png(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _numbers(array: np.ndarray | None) -> list[float] | None:
    return None if array is None else np.asarray(array, dtype=np.float64).ravel().tolist()


def _array(numbers: list[float] | None, *shape: int) -> np.ndarray | None:
    return None if numbers is None else np.array(numbers, dtype=np.float64).reshape(shape)


def _view_row(view: View) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": view.name,
        "rgb": _png(view.rgb),
        "intrinsics": _numbers(view.intrinsics),
        "c2w": _numbers(view.c2w),
    }
    if view.depth is not None:
        metres = np.where(view.depth_valid, view.depth, 0.0)
        unit = 0.00025 if float(metres.max(initial=0.0)) < 16.0 else 0.001
        counts = np.clip(np.rint(metres / unit), 0, 65535)
        row |= {"depth": _png(counts.astype(np.uint16)), "depth_unit_m": unit}
    if view.instances is not None:
        row["instances"] = _png(view.instances.astype(np.uint16))
    return row


def _view(row: Mapping[str, Any]) -> View:
    depth = instances = None
    if row["depth"] is not None:
        depth = (_pixels(row["depth"]) * row["depth_unit_m"]).astype(np.float32)
    if row["instances"] is not None:
        instances = _pixels(row["instances"]).astype(np.uint16)
    return View(
        name=row["name"],
        rgb=_pixels(row["rgb"]),
        intrinsics=_array(row["intrinsics"], 3, 3),
        c2w=_array(row["c2w"], 4, 4),
        depth=depth,
        instances=instances,
    )


def _scene_row(scene: Scene) -> dict[str, Any]:
    return {
        "scene_id": scene.scene_id,
        "source": scene.source,
        "split": scene.split,
        "floor_z": float(scene.floor_z),
        "room_size": _numbers(scene.room_size),
        "objects": [_object_row(thing) for thing in scene.objects],
        "views": [_view_row(view) for view in scene.views],
    }


def _scene(row: Mapping[str, Any]) -> Scene:
    return Scene(
        scene_id=row["scene_id"],
        source=row["source"],
        split=row["split"],
        floor_z=row["floor_z"],
        room_size=_array(row["room_size"], 3),
        objects=tuple(_object(entry) for entry in row["objects"]),
        views=tuple(_view(entry) for entry in row["views"]),
    )


def _object_row(thing: SceneObject) -> dict[str, Any]:
    return {
        "object_id": thing.object_id,
        "category": thing.category,
        "name": thing.name,
        "colour": thing.colour,
        "center": _numbers(thing.box.center),
        "size": _numbers(thing.box.size),
        "rotation": _numbers(thing.box.rotation),
        "supported_by": thing.supported_by,
        "parts": [
            {
                "kind": part.kind,
                "center": _numbers(part.center),
                "size": _numbers(part.size),
                "wxyz": _numbers(part.wxyz),
            }
            for part in thing.parts
        ],
    }


def _object(row: Mapping[str, Any]) -> SceneObject:
    return SceneObject(
        object_id=row["object_id"],
        category=row["category"],
        name=row["name"],
        colour=row["colour"],
        box=OrientedBox(
            center=np.array(row["center"]),
            size=np.array(row["size"]),
            rotation=np.array(row["rotation"]).reshape(3, 3),
        ),
        supported_by=row["supported_by"],
        parts=tuple(
            Part(
                kind=part["kind"],
                center=np.array(part["center"]),
                size=np.array(part["size"]),
                wxyz=np.array(part["wxyz"]),
            )
            for part in row["parts"]
        ),
    )


def _question_row(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in QUESTION_SCHEMA.names}


def _question(row: dict[str, Any]) -> Question:
    values = dict(row)
    for name in ("options", "renderings", "object_ids"):
        values[name] = tuple(values[name] or ())
    values["facts"] = tuple(tuple(fact) for fact in values["facts"] or ())
    return Question(**values)
