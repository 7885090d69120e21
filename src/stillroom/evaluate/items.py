"""Every answer of an evaluation on disk, written chunk by chunk, so that a killed run goes on.

``OUT/evaluation/manifest.json`` says what is asked; ``items/ROW/00000.parquet`` holds the answers
of one row to one chunk of scenes, ``depth/ROW/00000.parquet`` its depth errors,
``boxes/ROW/00000.parquet`` the boxes it finds with how sure it is, beside the true ones, and
``depth_maps/ROW/SCENE.npy`` the depth of the few scenes that the report shows. A chunk's items are
written last and by rename: a chunk that is there is whole.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from stillroom.evaluate.depth_metrics import DEPTH_ERRORS
from stillroom.records import BadInputError, content_hash
from stillroom.scenes.store import read_manifest, write_atomically

VERSION = 1

ITEM_SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "split": pa.string(),
        "family": pa.string(),
        "question": pa.string(),
        "options": pa.list_(pa.string()),
        # The whole text that was asked, and whose wording it is.
        "prompt": pa.string(),
        "prompt_id": pa.string(),
        # Names of the views that were looked at; null where that is not known (recorded answers).
        "frames": pa.list_(pa.string()),
        "truth": pa.string(),
        "answer": pa.string(),
        # Null where nothing could be understood.
        "parsed": pa.string(),
        # 0 to 1; null where no truth is known.
        "score": pa.float64(),
        "scorer": pa.string(),
        # The same by the stricter rule, where the scorer is a published one.
        "corrected_parsed": pa.string(),
        "corrected_score": pa.float64(),
        "margin": pa.float64(),
    }
)
DEPTH_SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "scene_id": pa.string(),
        "view": pa.string(),
        "alignment": pa.string(),
        **{name: pa.float64() for name in DEPTH_ERRORS},
    }
)
#: Boxes that a row finds, and (``score`` null) those that are truly there; both in view0 [m].
BOX_SCHEMA = pa.schema(
    {
        "model": pa.string(),
        "scene_id": pa.string(),
        "kind": pa.string(),
        "center": pa.list_(pa.float64()),
        "size": pa.list_(pa.float64()),
        "rotation": pa.list_(pa.float64()),
        "score": pa.float64(),
    }
)


class ItemStore:
    """The chunks of one evaluation folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = out / "evaluation"

    def begin(self, settings: Mapping[str, Any], identities: Mapping[str, str]) -> None:
        """Take the folder for an evaluation, or go on with one of equal settings.

        ``identities`` say which weights stand behind a row's name, as far as they are known.

        Raises:
            BadInputError: the folder holds an evaluation with other settings or weights.
        """
        path = self._folder / "manifest.json"
        wanted = json.loads(json.dumps(settings))
        known: dict[str, str] = {}
        if path.exists():
            held = read_manifest(self._folder, kind="evaluation")["settings"]
            known = held["identities"]
            if held["asked"] != wanted:
                raise BadInputError(
                    f"{self.out} holds an evaluation with other settings "
                    f"({_difference(held['asked'], wanted)}). Choose another --out."
                )
            for row, identity in identities.items():
                if known.get(row, identity) != identity:
                    raise BadInputError(
                        f"{self.out} holds answers of another model under the name {row!r}. "
                        "Choose another --out."
                    )
        elif (self.out / "results.json").exists():
            raise BadInputError(
                f"{self.out} holds results of another run (results.json). Choose another --out."
            )
        merged = dict(sorted({**known, **identities}.items()))
        record = {
            "kind": "evaluation",
            "version": VERSION,
            "settings": {"asked": wanted, "identities": merged},
        }
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        if not path.exists() or merged != known:
            write_atomically(path, text.encode())

    def has(self, row: str, chunk: int) -> bool:
        """Whether a row's chunk is whole."""
        return self._path("items", row, chunk).is_file()

    def write(
        self,
        row: str,
        chunk: int,
        items: Sequence[Mapping[str, Any]],
        depth: Sequence[Mapping[str, Any]],
        boxes: Sequence[Mapping[str, Any]] = (),
        *,
        seconds: float,
    ) -> None:
        """Keep a chunk: depth and boxes first, items last. ``seconds`` is what answering took."""
        if depth:
            _write(self._path("depth", row, chunk), depth, DEPTH_SCHEMA)
        if boxes:
            _write(self._path("boxes", row, chunk), boxes, BOX_SCHEMA)
        schema = ITEM_SCHEMA.with_metadata({"seconds": f"{seconds:.3f}"})
        _write(self._path("items", row, chunk), items, schema)

    def items(self, row: str, chunks: int) -> pa.Table:
        """All items of a row, in the order asked."""
        parts = [_read(self._path("items", row, chunk)) for chunk in range(chunks)]
        return pa.concat_tables([part.replace_schema_metadata(None) for part in parts])

    def depth(self, row: str, chunks: int) -> pa.Table:
        """All depth errors of a row; no line where the row has no depth."""
        return self._there("depth", DEPTH_SCHEMA, row, chunks)

    def boxes(self, row: str, chunks: int) -> pa.Table:
        """All boxes of a row and of its scenes; no line where the row tells none."""
        return self._there("boxes", BOX_SCHEMA, row, chunks)

    def _there(self, table: str, schema: pa.Schema, row: str, chunks: int) -> pa.Table:
        paths = [self._path(table, row, chunk) for chunk in range(chunks)]
        parts = [_read(path) for path in paths if path.is_file()]
        return pa.concat_tables([schema.empty_table(), *parts])

    def seconds(self, row: str, chunks: int) -> float:
        """Time that answering a row took, over all runs [s]."""
        total = 0.0
        for chunk in range(chunks):
            metadata = pq.read_schema(self._path("items", row, chunk)).metadata or {}
            total += float(metadata.get(b"seconds", b"0"))
        return total

    def write_depth_map(
        self, row: str, scene_id: str, depth: Float32[np.ndarray, "views h w"]
    ) -> None:
        """Keep what a row believes of a scene's depth [m], for the report."""
        sink = io.BytesIO()
        np.save(sink, depth)
        write_atomically(self._depth_map(row, scene_id), sink.getvalue())

    def depth_map(self, row: str, scene_id: str) -> Float32[np.ndarray, "views h w"] | None:
        """The kept depth [m], or None."""
        path = self._depth_map(row, scene_id)
        return np.load(path) if path.is_file() else None

    def _path(self, table: str, row: str, chunk: int) -> Path:
        return self._folder / table / _slug(row) / f"{chunk:05d}.parquet"

    def _depth_map(self, row: str, scene_id: str) -> Path:
        return self._folder / "depth_maps" / _slug(row) / f"{_slug(scene_id)}.npy"


def write_items(path: Path, table: pa.Table) -> None:
    """All rows of an evaluation as one Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue())


def _slug(name: str) -> str:
    """A folder name for a row: readable, and two rows never share one."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[-40:]
    return readable if readable == name else f"{readable}-{content_hash([name])[:8]}"


def _write(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    write_atomically(path, sink.getvalue())


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInputError(
            f"{path} is not readable ({reason}); delete it and run the evaluation again"
        ) from None


def _difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = sorted(key for key in {*held, *wanted} if held.get(key) != wanted.get(key))
    return ", ".join(f"{name} {held.get(name)!r}, now {wanted.get(name)!r}" for name in names)
