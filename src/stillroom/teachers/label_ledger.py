"""What of a label store is written: the manifest, and a ledger for every shard.

A shard is a fixed run of scenes and has one writer at a time (``leases``). It grows by parts, each
durable by itself: files by rename, then one line in the shard's ledger with their hashes. When all
parts are there they become the shard's own files, the ledger one line, and the parts go. So a
writer killed at any moment costs the part in hand, and a store of n shards has a few n files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from stillroom.records import BadInputError, content_hash
from stillroom.scenes.store import read_manifest, write_atomically
from stillroom.teachers.label_rows import LABEL_SCHEMA, lengths, shifted
from stillroom.teachers.label_tensors import TensorFile, join
from stillroom.teachers.leases import holder, waited_for

VERSION = 3

#: Kinds of files, by the folder in which a shard's lies: rows, their tensors, the scenes' tensors.
SUFFIX = {"labels": ".parquet", "tensors": ".safetensors", "scenes": ".safetensors"}

#: What the system says of a disk that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

#: Rows of a Parquet row group: what one read costs at least.
ROWS_PER_GROUP = 512


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How scenes are dealt to shards, and what of a shard is written at once."""

    scenes_per_shard: int
    scenes_per_part: int

    def shards(self, scenes: int) -> int:
        """Shards of so many scenes."""
        return -(-scenes // self.scenes_per_shard)

    def scenes_of(self, shard: int, ids: Sequence[str]) -> Sequence[str]:
        """The scenes of a shard."""
        return ids[shard * self.scenes_per_shard : (shard + 1) * self.scenes_per_shard]

    def parts_of(self, scene_ids: Sequence[str]) -> list[Sequence[str]]:
        """A shard's scenes as they are labelled together, always in the same groups."""
        step = self.scenes_per_part
        return [scene_ids[start : start + step] for start in range(0, len(scene_ids), step)]


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A scene whose rows are written: their number, and what names the scene's content."""

    scene_id: str
    rows: int
    content: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a ledger: scenes in order, sha256 by kind of file, ``mark_of`` the settings."""

    scenes: tuple[Sealed, ...]
    files: Mapping[str, str]
    settings: str

    @property
    def rows(self) -> int:
        """Rows of all its scenes."""
        return sum(scene.rows for scene in self.scenes)

    def to_json(self, **more: int) -> str:
        """As a line, with its end."""
        scenes = [[s.scene_id, s.rows, s.content] for s in self.scenes]
        record = {**more, "scenes": scenes, "files": dict(self.files), "settings": self.settings}
        return json.dumps(record) + "\n"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What of one shard is there: parts by number, or the whole shard."""

    parts: Mapping[int, Entry]
    whole: Entry | None = None

    @property
    def scenes(self) -> int:
        """Scenes whose rows are durable."""
        entries = [self.whole] if self.whole is not None else list(self.parts.values())
        return sum(len(entry.scenes) for entry in entries)


# The manifest. ----------------------------------------------------------------------------------


def begin(
    out: Path,
    settings: Mapping[str, Any],
    layout: Layout,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> Layout:
    """Open a store for writing; an unfinished one of equal settings is gone on with, as it lies.

    ``beside`` are files that lie beside the manifest and follow from the settings.

    Raises:
        BadInputError: ``out`` holds labels made with other settings, or something else.
    """
    path = out / "manifest.json"
    with writing(out):
        if not path.exists():
            _require_empty(out)
            out.mkdir(parents=True, exist_ok=True)
        with changing_manifest(out):
            if not path.exists():
                _require_empty(out)
                write_atomically(path, _text(settings, layout))
            found = read_labels_manifest(out)
            same = mark_of(found["settings"]) == mark_of(settings)
            if not same:
                _require_nothing_labelled(out)
                write_atomically(path, _text(settings, layout))
                found = read_labels_manifest(out)
            for name, data in beside.items():
                if not (same and (out / name).exists()):
                    write_atomically(out / name, data)
    return Layout(**found["layout"])


def changing_manifest(out: Path) -> contextlib.AbstractContextManager[None]:
    """Alone with the manifest for a moment, among all commands on a store."""
    return waited_for(out / ".manifest.lock")


def require_settings(out: Path, settings: Mapping[str, Any], layout: Layout) -> None:
    """Refuse to write into a store whose manifest is another command's.

    To be called by whoever holds a lease: from then on nobody replaces the manifest.

    Raises:
        BadInputError: the manifest has other settings, or deals scenes to shards otherwise.
    """
    with changing_manifest(out):
        found = read_labels_manifest(out)
    if mark_of(found["settings"]) != mark_of(settings) or Layout(**found["layout"]) != layout:
        raise _other_settings(out)


def mark_of(settings: Mapping[str, Any]) -> str:
    """Names settings in every line of a ledger."""
    return content_hash([json.dumps(settings, sort_keys=True)])


def _require_empty(out: Path) -> None:
    # A kill may have left a manifest half written.
    if out.exists() and any(not p.name.startswith(".manifest.") for p in out.iterdir()):
        raise BadInputError(f"{out} is not empty and holds no label store. Choose another --out.")


def _require_nothing_labelled(out: Path) -> None:
    """Settings bind nobody once their command was refused: without a row and without a worker."""
    if (out / "ledger").exists():
        raise _other_settings(out)
    for lock in (out / "leases").glob("*.lock"):
        if (one := holder(lock)) is not None:
            raise BadInputError(
                f"{out} is being labelled with other settings (pid {one.pid} on {one.host}). "
                "Choose another --out."
            )


def _other_settings(out: Path) -> BadInputError:
    return BadInputError(f"{out} holds labels made with other settings. Choose another --out.")


def read_labels_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a label store. Raises BadInputError if there is none that can be read."""
    return read_manifest(out, kind="labels", version=VERSION)


def _text(settings: Mapping[str, Any], layout: Layout) -> bytes:
    record = {
        "kind": "labels",
        "version": VERSION,
        "settings": dict(settings),
        "layout": asdict(layout),
    }
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn a folder or a disk that takes nothing into one sentence; what is durable stays so.

    To be put around calls that write to ``out``, and nothing else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BadInputError(
                f"cannot write to {out} ({error.strerror}); make room and give the same command "
                "again: all that was finished is kept"
            ) from None
        raise BadInputError(
            f"cannot write to {out} ({error.strerror or error}); choose another --out"
        ) from None


# Ledgers and shards. ----------------------------------------------------------------------------


def ledger_path(out: Path, shard: int) -> Path:
    """Where a shard's ledger lies."""
    return out / "ledger" / f"{shard:05d}.jsonl"


def lease_path(out: Path, shard: int) -> Path:
    """The lock file of whoever writes a shard."""
    return out / "leases" / f"{shard:05d}.lock"


def shard_file(out: Path, kind: str, shard: int) -> Path:
    """Where a shard's file of a kind lies."""
    return out / kind / f"{shard:05d}{SUFFIX[kind]}"


def parts_folder(out: Path, shard: int) -> Path:
    """Where the parts of an unfinished shard lie."""
    return out / "parts" / f"{shard:05d}"


def part_file(out: Path, kind: str, shard: int, part: int) -> Path:
    """Where a part's file of a kind lies."""
    return parts_folder(out, shard) / f"{part:05d}.{kind}{SUFFIX[kind]}"


def shards_begun(out: Path) -> list[int]:
    """Shards that have a ledger."""
    return sorted(int(path.stem) for path in (out / "ledger").glob("*.jsonl"))


def read_ledger(out: Path, shard: int) -> Ledger:
    """What a shard's ledger says; a line torn by a kill says nothing."""
    parts: dict[int, Entry] = {}
    whole = None
    path = ledger_path(out, shard)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Ledger(parts={})
    for line in text.splitlines():
        try:
            record = json.loads(line)
            scenes = tuple(
                Sealed(scene_id=name, rows=rows, content=content)
                for name, rows, content in record["scenes"]
            )
            entry = Entry(scenes=scenes, files=record["files"], settings=record["settings"])
            if "shard" in record:
                whole = entry
            else:
                parts[int(record["part"])] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return Ledger(parts=parts, whole=whole)


def is_whole(out: Path, shard: int) -> bool:
    """Whether a shard is finished and its files are there."""
    whole = read_ledger(out, shard).whole
    return whole is not None and all(shard_file(out, kind, shard).exists() for kind in whole.files)


def sha256(path: Path) -> str:
    """Of a file, read piece by piece."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class ShardWriter:
    """Writes one shard; whoever has it holds the shard's lease.

    ``settings`` are the manifest's: what was labelled with others does not count.
    """

    def __init__(self, out: Path, shard: int, settings: Mapping[str, Any]) -> None:
        self.out, self.shard, self._mark = out, shard, mark_of(settings)
        self._parts: dict[int, Entry] = {}
        ledger = read_ledger(out, shard)
        if ledger.whole is None:
            self._parts = {
                part: entry for part, entry in ledger.parts.items() if self._stands(part, entry)
            }
        self._clean()

    def _stands(self, part: int, entry: Entry) -> bool:
        """Whether a part's files are as its ledger line says, and of these settings."""
        if entry.settings != self._mark:
            return False
        files = [(part_file(self.out, k, self.shard, part), sha) for k, sha in entry.files.items()]
        return all(path.exists() and sha256(path) == sha for path, sha in files)

    def _clean(self) -> None:
        """Remove what a killed writer left half done; its ledger keeps the lines that count."""
        for kind in SUFFIX:
            path = shard_file(self.out, kind, self.shard)
            for stray in path.parent.glob(f".{path.name}.*"):
                stray.unlink(missing_ok=True)
        ledger = ledger_path(self.out, self.shard)
        for stray in ledger.parent.glob(f".{ledger.name}.*"):
            stray.unlink(missing_ok=True)
        folder = parts_folder(self.out, self.shard)
        known = {
            part_file(self.out, kind, self.shard, part)
            for part, entry in self._parts.items()
            for kind in entry.files
        }
        for path in folder.iterdir() if folder.exists() else ():
            if path not in known:
                path.unlink()
        lines = "".join(entry.to_json(part=part) for part, entry in sorted(self._parts.items()))
        if ledger.exists() and ledger.read_text() != lines:
            write_atomically(ledger, lines.encode())

    @property
    def scenes(self) -> list[Sealed]:
        """Scenes that are durable."""
        return [scene for _, entry in sorted(self._parts.items()) for scene in entry.scenes]

    @property
    def parts(self) -> set[int]:
        """Numbers of the parts that are durable."""
        return set(self._parts)

    def write_part(
        self,
        part: int,
        scenes: Sequence[Sealed],
        table: pa.Table,
        tensors: Mapping[str, np.ndarray],
        features: tuple[Mapping[str, np.ndarray], Mapping[str, str]] | None,
    ) -> None:
        """Make the rows of some scenes durable: files first, then their line."""
        data = {"labels": _parquet(table)}
        if tensors:
            data["tensors"] = save(_contiguous(tensors))
        if features is not None:
            data["scenes"] = save(_contiguous(features[0]), metadata=dict(features[1]))
        for kind, content in data.items():
            write_atomically(part_file(self.out, kind, self.shard, part), content)
        files = {kind: hashlib.sha256(content).hexdigest() for kind, content in data.items()}
        entry = Entry(scenes=tuple(scenes), files=files, settings=self._mark)
        _append(ledger_path(self.out, self.shard), entry.to_json(part=part))
        self._parts[part] = entry

    def finish(self) -> None:
        """Make the parts one shard, and forget them."""
        entries = [entry for _, entry in sorted(self._parts.items())]
        kinds = {kind for entry in entries for kind in entry.files}
        paths = {
            kind: [
                part_file(self.out, kind, self.shard, part)
                for part, entry in sorted(self._parts.items())
                if kind in entry.files
            ]
            for kind in kinds
        }
        files = {}
        for kind in sorted(kinds - {"labels"}):
            target = shard_file(self.out, kind, self.shard)
            files[kind] = join(paths[kind], target)
        rows = _parquet(_joined(paths["labels"], paths.get("tensors", ())))
        write_atomically(shard_file(self.out, "labels", self.shard), rows)
        files["labels"] = hashlib.sha256(rows).hexdigest()
        scenes = tuple(scene for entry in entries for scene in entry.scenes)
        whole = Entry(scenes=scenes, files=files, settings=self._mark)
        write_atomically(
            ledger_path(self.out, self.shard), whole.to_json(shard=self.shard).encode()
        )
        self.forget_parts()

    def forget_parts(self) -> None:
        """Remove parts that a whole shard no longer needs."""
        shutil.rmtree(parts_folder(self.out, self.shard), ignore_errors=True)


def write_whole(out: Path, shard: int, entry: Entry) -> None:
    """The ledger of a shard whose files were put in place by other means."""
    write_atomically(ledger_path(out, shard), entry.to_json(shard=shard).encode())


def _joined(tables: Sequence[Path], tensors: Sequence[Path]) -> pa.Table:
    """Rows of all parts, pointing into the joined tensors."""
    found, base = [], {"answers": 0, "reference": 0, "attention": 0}
    for number, path in enumerate(tables):
        found.append(shifted(pq.read_table(path), base))
        if tensors:
            file = TensorFile(tensors[number])
            reach = lengths({name: file.shape(name) for name in file.names})
            base = {kind: base[kind] + reach[kind] for kind in base}
    return pa.concat_tables(found)


def _contiguous(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers in the order of their axes: safetensors writes memory as it lies, a view's too."""
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    rows = table.cast(LABEL_SCHEMA)
    pq.write_table(rows, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _append(ledger: Path, line: str) -> None:
    """One line, whole or torn at the end of the file; a torn one does not count."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = line.encode()
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
