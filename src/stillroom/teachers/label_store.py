"""What a teacher said, read back from disk: rows from Parquet, tensors a slice at a time.

``DIR/manifest.json`` fingerprints teacher, prompt, frames, decoding and scenes. Of every shard,
``DIR/labels/00000.parquet`` holds one row a question, ``DIR/tensors/00000.safetensors`` the
tensors of the same rows, end to end, ``DIR/scenes/00000.safetensors`` what all questions of a
scene share, and ``DIR/ledger/00000.jsonl`` which scenes are there, with the hashes of all three.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.records import BadInputError, SceneFeatures, TeacherLabel
from stillroom.teachers.label_ledger import (
    is_whole,
    read_labels_manifest,
    read_ledger,
    shard_file,
    shards_begun,
)
from stillroom.teachers.label_rows import decode, decode_features
from stillroom.teachers.label_tensors import TensorFile
from stillroom.text.vocabulary import Vocabulary

#: Shards whose rows are in memory, and whose tensors are mapped, at any time.
SHARDS_HELD = 4

VOCABULARY_FILE = "vocabulary.json"

_Kept = TypeVar("_Kept")


class LabelStore:
    """A teacher's labels in finished shards; memory holds an index of scenes and a few shards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_labels_manifest(path)
        self.settings: dict[str, Any] = self.manifest["settings"]
        #: By scene: its shard, and its first row there and the one after its last.
        self._place: dict[str, tuple[int, int, int]] = {}
        self._count = 0
        shards = [shard for shard in shards_begun(path) if is_whole(path, shard)]
        for shard in shards:
            whole, row = read_ledger(path, shard).whole, 0
            assert whole is not None, "is_whole has looked"
            for scene in whole.scenes:
                if scene.rows:
                    self._place[scene.scene_id] = (shard, row, row + scene.rows)
                row += scene.rows
            self._count += row
        if not shards:
            raise BadInputError(
                f"{path} holds no finished shard of labels; the same 'stillroom label' command "
                "finishes what is there"
            )
        self._shards = shards
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._tensors: OrderedDict[int, TensorFile | None] = OrderedDict()
        self._features: OrderedDict[int, TensorFile | None] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The teacher's tokens; None if it did not tell them."""
        if self.settings.get("vocabulary") is None:
            return None
        return Vocabulary.read(self.path / VOCABULARY_FILE)

    def scene_ids(self) -> list[str]:
        """Scenes that carry labels."""
        return list(self._place)

    def answers(self) -> dict[str, str]:
        """Answer text by question id, of all rows."""
        found: dict[str, str] = {}
        for shard in self._shards:
            table = read_table(self.path, shard, columns=["question_id", "answer"])
            found.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
        return found

    def rows(self, scene_id: str) -> list[dict[str, Any]]:
        """Rows of one scene as they are stored, in the order of its questions."""
        if scene_id not in self._place:
            return []
        shard, start, stop = self._place[scene_id]
        table = _held(self._tables, shard, lambda: read_table(self.path, shard))
        rows: list[dict[str, Any]] = table.slice(start, stop - start).to_pylist()
        if len(rows) != stop - start or any(row["scene_id"] != scene_id for row in rows):
            raise BadInputError(
                f"{shard_file(self.path, 'labels', shard)} does not hold the rows that its ledger "
                "names; 'stillroom labels verify' says more"
            )
        return rows

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """All rows, a shard in memory at a time."""
        for scene_id in self._place:
            yield from self.rows(scene_id)

    def labels(self, scene_id: str) -> list[TeacherLabel]:
        """Labels of one scene, in the order of its questions; none if it was not labelled."""
        rows = self.rows(scene_id)
        if not rows:
            return []
        shard = self._place[scene_id][0]
        return decode(rows, _held(self._tensors, shard, lambda: self._file("tensors", shard)))

    def scene_features(self, scene_id: str) -> SceneFeatures | None:
        """What all questions of a scene share; None if it was not asked for."""
        if scene_id not in self._place:
            return None
        shard = self._place[scene_id][0]
        file = _held(self._features, shard, lambda: self._file("scenes", shard))
        return None if file is None else decode_features(scene_id, file)

    def _file(self, kind: str, shard: int) -> TensorFile | None:
        path = shard_file(self.path, kind, shard)
        return TensorFile(path) if path.exists() else None


def _held(kept: OrderedDict[int, _Kept], shard: int, make: Callable[[], _Kept]) -> _Kept:
    if shard not in kept:
        kept[shard] = make()
        if len(kept) > SHARDS_HELD:
            kept.popitem(last=False)
    kept.move_to_end(shard)
    return kept[shard]


def open_labels(path: Path | str) -> LabelStore:
    """Open a folder that ``stillroom label`` wrote.

    Raises:
        BadInputError: no such store, or nothing in it is finished.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadInputError(f"label folder not found: {folder}; make one with 'stillroom label'")
    return LabelStore(folder)


def read_table(out: Path, shard: int, columns: list[str] | None = None) -> pa.Table:
    """Rows of a shard.

    Raises:
        BadInputError: the file is cut short or no Parquet.
    """
    path = shard_file(out, "labels", shard)
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(
            f"{path} is truncated or not a Parquet shard ({str(error).splitlines()[0]}); "
            "delete it and run the labelling again"
        ) from None
