"""What a teacher said, on disk: rows in Parquet, logits in safetensors, a ledger of what is done.

``DIR/manifest.json`` fingerprints teacher, prompt, frames, decoding and scenes;
``DIR/labels/00000.parquet`` holds one row a question; ``DIR/tensors/00000.safetensors`` the top-k
logits of the same rows, end to end. ``DIR/ledger.jsonl`` gets one line with both hashes when a
shard is whole, so a store killed at any moment goes on with no row lost or doubled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from stillroom.records import BadInputError, TeacherLabel
from stillroom.scenes.store import read_manifest, write_atomically

VERSION = 1

LABEL_SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "answer": pa.string(),
        "answer_ids": pa.list_(pa.int32()),
        # Rows [start, stop) of the shard's tensors; empty when no logits were asked for.
        "start": pa.int64(),
        "stop": pa.int64(),
    }
)


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Open a store for writing; an unfinished one of equal settings is gone on with.

    Raises:
        BadInputError: ``out`` holds labels made with other settings, or something else.
    """
    record = {"kind": "labels", "version": VERSION, "settings": dict(settings)}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    path = out / "manifest.json"
    if path.exists():
        if read_manifest(out, kind="labels") != json.loads(text):
            raise BadInputError(
                f"{out} holds labels made with other settings. Choose another --out."
            )
        _end_torn_line(out / "ledger.jsonl")
    elif out.exists() and any(out.iterdir()):
        raise BadInputError(f"{out} is not empty and holds no label store. Choose another --out.")
    else:
        write_atomically(path, text.encode())


def finished_shards(out: Path) -> set[int]:
    """Shards that the ledger says are whole and whose files are there."""
    return {
        index for index in _ledger(out) if all(path.exists() for path in _shard_files(out, index))
    }


def write_shard(out: Path, index: int, labels: Sequence[TeacherLabel]) -> None:
    """Write one shard and then its ledger line; redone from scratch if the line is missing."""
    rows, start = [], 0
    for label in labels:
        stop = start + (0 if label.topk_ids is None else len(label.topk_ids))
        rows.append(
            {
                "scene_id": label.scene_id,
                "question_id": label.question_id,
                "answer": label.answer,
                "answer_ids": None if label.answer_ids is None else label.answer_ids.tolist(),
                "start": start,
                "stop": stop,
            }
        )
        start = stop
    table, tensors = _shard_files(out, index)
    kept = [label for label in labels if label.topk_ids is not None]
    arrays = {
        "topk_ids": _stack([label.topk_ids for label in kept], np.int32),
        "topk_logits": _stack([label.topk_logits for label in kept], np.float16),
        "logsumexp": _stack([label.logsumexp for label in kept], np.float32),
    }
    write_atomically(tensors, save(arrays))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), sink, compression="zstd")
    write_atomically(table, sink.getvalue().to_pybytes())
    line = {"shard": index, "rows": len(rows), "labels": _sha(table), "tensors": _sha(tensors)}
    # One write of one line: appends of this size are not torn by a kill, and a torn last line
    # is dropped on reading.
    descriptor = os.open(out / "ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LabelStore:
    """A teacher's labels, read whole shards at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path, kind="labels")
        self.settings: dict[str, Any] = self.manifest["settings"]
        shards = sorted(finished_shards(path))
        if not shards:
            raise BadInputError(f"{path} holds no finished shard of labels; run 'stillroom label'")
        self._rows: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for index in shards:
            for row in _read_table(path, index):
                self._rows.setdefault(row["scene_id"], []).append((index, row))
        self._tensors: tuple[int, dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def scene_ids(self) -> list[str]:
        """Scenes that carry labels."""
        return list(self._rows)

    def answers(self) -> dict[str, str]:
        """Answer text by question id."""
        return {
            row["question_id"]: row["answer"] for rows in self._rows.values() for _, row in rows
        }

    def labels(self, scene_id: str) -> list[TeacherLabel]:
        """Labels of one scene, in the order of its questions; none if it was not labelled."""
        return [self._label(index, row) for index, row in self._rows.get(scene_id, ())]

    def _label(self, index: int, row: dict[str, Any]) -> TeacherLabel:
        if self._tensors is None or self._tensors[0] != index:
            path = _shard_files(self.path, index)[1]
            try:
                self._tensors = (index, load_file(path))
            except (SafetensorError, OSError) as error:
                raise BadInputError(
                    f"{path} cannot be read ({error}); delete it and run the labelling again"
                ) from None
        has_logits = row["stop"] > row["start"]
        part = slice(row["start"], row["stop"])
        arrays = {name: array[part] for name, array in self._tensors[1].items()}
        return TeacherLabel(
            scene_id=row["scene_id"],
            question_id=row["question_id"],
            answer=row["answer"],
            answer_ids=None if row["answer_ids"] is None else np.array(row["answer_ids"], np.int64),
            topk_ids=arrays["topk_ids"] if has_logits else None,
            topk_logits=arrays["topk_logits"] if has_logits else None,
            logsumexp=arrays["logsumexp"] if has_logits else None,
        )


def problems(path: Path) -> list[str]:
    """What is wrong with a store's files: a flipped byte, a missing shard, a doubled row.

    Raises:
        BadInputError: ``path`` holds no label store.
    """
    read_manifest(path, kind="labels")
    found = []
    for index, line in sorted(_ledger(path).items()):
        for file, name in zip(_shard_files(path, index), ("labels", "tensors")):
            if not file.exists():
                found.append(f"{file} is missing; the same label command makes it again")
            elif _sha(file) != line[name]:
                found.append(f"{file} is not as it was written: delete it and label again")
    if found:
        return found
    rows = [row for index in _ledger(path) for row in _read_table(path, index)]
    doubled = len(rows) - len({row["question_id"] for row in rows})
    return [f"{doubled} rows stand more than once"] if doubled else []


def open_labels(path: Path | str) -> LabelStore:
    """Open a folder that ``stillroom label`` wrote.

    Raises:
        BadInputError: no such store, or a shard in it cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadInputError(f"label folder not found: {folder}; make one with 'stillroom label'")
    return LabelStore(folder)


def _read_table(out: Path, index: int) -> list[dict[str, Any]]:
    path = _shard_files(out, index)[0]
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(
            f"{path} is truncated or not a Parquet shard ({str(error).splitlines()[0]}); "
            "delete it and run the labelling again"
        ) from None


def _shard_files(out: Path, index: int) -> tuple[Path, Path]:
    return out / "labels" / f"{index:05d}.parquet", out / "tensors" / f"{index:05d}.safetensors"


def _ledger(out: Path) -> dict[int, dict[str, Any]]:
    path = out / "ledger.jsonl"
    lines: dict[int, dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # torn by a kill: its shard is written again
            lines[line["shard"]] = line
    return lines


def _end_torn_line(ledger: Path) -> None:
    """A kill may leave half a line; the next must not be glued to it."""
    if ledger.exists() and not ledger.read_bytes().endswith(b"\n"):
        with ledger.open("ab") as sink:
            sink.write(b"\n")


def _stack(arrays: Sequence[np.ndarray | None], dtype: type) -> np.ndarray:
    present: list[np.ndarray] = [
        np.asarray(array, dtype=dtype) for array in arrays if array is not None
    ]
    return np.concatenate(present) if present else np.zeros((0,), dtype=dtype)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
