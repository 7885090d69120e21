"""Two label stores of one fingerprint and different scenes as one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.records import BadInputError, TeacherLabel, content_hash
from stillroom.teachers.label_ledger import (
    Entry,
    Layout,
    Sealed,
    ShardWriter,
    begin,
    mark_of,
    read_ledger,
    sha256,
    shard_file,
    shards_begun,
    write_whole,
    writing,
)
from stillroom.teachers.label_rows import OFFSETS, decode_features, encode_features, shifted
from stillroom.teachers.label_store import VOCABULARY_FILE, LabelStore, open_labels, read_table
from stillroom.teachers.label_tensors import TensorFile

#: What two stores may differ in: which scenes they hold.
_OF_SCENES = ("scenes", "scene_count", "questions", "question_count", "merged_shards")

#: Logits at which a step of 16 bits is taken where none are kept; the largest number of 16 bits.
STEP_AT, HALF_MAX = 16.0, 65504.0


def merge(sources: Sequence[Path], out: Path) -> int:
    """Join label stores in a new folder; its number of rows.

    Shards are linked or copied as they are. A scene that several stores hold with equal labels is
    taken once.

    Raises:
        BadInputError: fingerprints differ, a store is unfinished or damaged, the same scene has
            other labels, or ``out`` holds something else.
    """
    if len(sources) < 2:
        raise BadInputError("merge needs two label stores or more: labels merge A B --out C")
    stores = [open_labels(source) for source in sources]
    entries = [_entries(store) for store in stores]
    _require_one_fingerprint(stores)
    seen: dict[str, tuple[int, Sealed]] = {}
    taken: list[list[tuple[int, Entry, list[Sealed]]]] = []
    for number, (store, shards) in enumerate(zip(stores, entries, strict=True)):
        kept = []
        for shard, entry in shards:
            fresh = []
            for scene in entry.scenes:
                if scene.scene_id in seen:
                    first, before = seen[scene.scene_id]
                    _require_same(scene, before, store, stores[first])
                else:
                    seen[scene.scene_id] = (number, scene)
                    fresh.append(scene)
            if fresh:
                kept.append((shard, entry, fresh))
        taken.append(kept)
    scenes = [scene for kept in taken for _, _, fresh in kept for scene in fresh]
    settings = {
        **stores[0].settings,
        "scenes": content_hash(scene.scene_id for scene in scenes),
        "scene_count": len(scenes),
        "questions": content_hash(
            q for store, kept in zip(stores, taken) for q in _question_ids(store, kept)
        ),
        "question_count": sum(scene.rows for scene in scenes),
        "merged_shards": sum(len(kept) for kept in taken),
    }
    layout = Layout(**stores[0].manifest["layout"])
    known = stores[0].vocabulary
    begin(out, settings, layout, {} if known is None else {VOCABULARY_FILE: known.write()})
    with writing(out):
        target = 0
        for store, kept in zip(stores, taken, strict=True):
            for shard, entry, fresh in kept:
                if len(fresh) == len(entry.scenes):
                    _take_files(store.path, shard, entry, out, target, settings)
                else:
                    _take_scenes(store.path, shard, entry, fresh, out, target, settings)
                target += 1
    return sum(scene.rows for scene in scenes)


def _entries(store: LabelStore) -> list[tuple[int, Entry]]:
    found = []
    for shard in shards_begun(store.path):
        whole = read_ledger(store.path, shard).whole
        if whole is None:
            raise BadInputError(f"{store.path} is not finished; label it to the end before merging")
        for kind, sha in whole.files.items():
            file = shard_file(store.path, kind, shard)
            if not file.exists() or sha256(file) != sha:
                raise BadInputError(
                    f"{file} is missing or not as it was written; 'stillroom labels verify "
                    f"{store.path}' says more"
                )
        found.append((shard, whole))
    if sum(len(entry.scenes) for _, entry in found) != store.settings["scene_count"]:
        raise BadInputError(f"{store.path} is not finished; label it to the end before merging")
    return found


def _require_one_fingerprint(stores: Sequence[LabelStore]) -> None:
    def of(store: LabelStore) -> dict[str, Any]:
        return {key: value for key, value in store.settings.items() if key not in _OF_SCENES}

    for store in stores[1:]:
        first, other = of(stores[0]), of(store)
        unlike = sorted(key for key in {*first, *other} if first.get(key) != other.get(key))
        if unlike:
            raise BadInputError(
                f"{stores[0].path} and {store.path} were not labelled alike: they differ in "
                f"{', '.join(unlike)}"
            )


def _require_same(scene: Sealed, before: Sealed, store: LabelStore, other: LabelStore) -> None:
    name = scene.scene_id
    if scene.content != before.content:
        raise BadInputError(
            f"scene {name} of {store.path} has other pictures or questions in {other.path}"
        )
    ours, theirs = store.labels(name), other.labels(name)
    if len(ours) != len(theirs) or not all(map(alike, ours, theirs)):
        raise BadInputError(f"scene {name} has other labels in {store.path} than in {other.path}")


def alike(one: TeacherLabel, other: TeacherLabel) -> bool:
    """Equal up to rounding: a model computes in another order with another number of threads.

    Answers and ids are the same; a number may differ by one step of 16 bits at the largest of its
    row, so that logits a step apart may also stand in another order, or one of them fall out.
    """
    first, second = _flat(one), _flat(other)
    if first.keys() != second.keys():
        return False
    for name in (name for name in ("topk", "reference.topk") if name in first):
        if not _topk_alike(first.pop(name), second.pop(name)):
            return False
    return all(_close(first[name], second[name]) for name in first)


def _flat(label: TeacherLabel) -> dict[str, Any]:
    values = {k: v for k, v in vars(label).items() if v is not None and k != "reference"}
    if label.topk_ids is not None:
        values["topk"] = (values.pop("topk_ids"), values.pop("topk_logits"))
    if label.reference is not None:
        own = dict(vars(label.reference))
        values["reference.topk"] = (own.pop("ids"), own.pop("logits"))
        values |= {f"reference.{name}": value for name, value in own.items() if value is not None}
    if label.logprob is not None and label.answer_ids is not None:
        # A sum over tokens, each of which may be off by a step.
        values["logprob"] = np.array([label.logprob / max(1, len(label.answer_ids)), STEP_AT])
    return values


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray):
        return bool(one == other)
    if one.dtype.kind != "f" or one.shape != other.shape or not one.size:
        return np.array_equal(one, other)
    return bool((np.abs(one.astype(np.float64) - other) <= _step(one, other)).all())


def _step(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One step of 16 bits at the largest number of each row."""
    largest = np.maximum(np.abs(one), np.abs(other)).max(axis=-1, keepdims=True)
    return np.spacing(np.minimum(largest, HALF_MAX).astype(np.float16)).astype(np.float64)


def _topk_alike(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    if one[1].shape != other[1].shape:
        return False
    for ids, logits, other_ids, other_logits, step in zip(
        *one, *other, _step(one[1], other[1]), strict=True
    ):
        first = dict(zip(ids.tolist(), logits.astype(np.float64), strict=True))
        second = dict(zip(other_ids.tolist(), other_logits.astype(np.float64), strict=True))
        lowest = max(min(first.values()), min(second.values()))
        for token in first.keys() | second.keys():
            apart = first.get(token, lowest) - second.get(token, lowest)
            if abs(apart) > float(step[0]):
                return False
    return True


def _question_ids(store: LabelStore, kept: Sequence[tuple[int, Entry, list[Sealed]]]) -> list[str]:
    found: list[str] = []
    for shard, _, fresh in kept:
        names = {scene.scene_id for scene in fresh}
        table = read_table(store.path, shard, columns=["scene_id", "question_id"])
        found += [row["question_id"] for row in table.to_pylist() if row["scene_id"] in names]
    return found


def _take_files(
    source: Path, shard: int, entry: Entry, out: Path, target: int, settings: Mapping[str, Any]
) -> None:
    """A whole shard, byte for byte."""
    for kind in entry.files:
        place = shard_file(out, kind, target)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(shard_file(source, kind, shard), place)
        except OSError:  # another disk
            shutil.copyfile(shard_file(source, kind, shard), place)
    write_whole(out, target, replace(entry, settings=mark_of(settings)))


def _take_scenes(
    source: Path,
    shard: int,
    entry: Entry,
    fresh: Sequence[Sealed],
    out: Path,
    target: int,
    settings: Mapping[str, Any],
) -> None:
    """Some scenes of a shard as a shard of their own."""
    table = read_table(source, shard)
    tensors = TensorFile(shard_file(source, "tensors", shard)) if "tensors" in entry.files else None
    features = TensorFile(shard_file(source, "scenes", shard)) if "scenes" in entry.files else None
    writer = ShardWriter(out, target, settings)
    starts, row = {}, 0
    for scene in entry.scenes:
        starts[scene.scene_id], row = row, row + scene.rows
    for part, scene in enumerate(fresh):
        if part in writer.parts:
            continue
        rows = table.slice(starts[scene.scene_id], scene.rows)
        own, arrays = _cut(rows, tensors)
        found = (
            None
            if features is None
            else encode_features([decode_features(scene.scene_id, features)])
        )
        writer.write_part(part, [scene], own, arrays, found)
    writer.finish()


def _cut(rows: pa.Table, tensors: TensorFile | None) -> tuple[pa.Table, Mapping[str, np.ndarray]]:
    """Rows that point into tensors of their own, and those."""
    listed = rows.to_pylist()
    if tensors is None or not listed:
        return rows, {}
    base = {kind: listed[0][columns[0]] for kind, columns in OFFSETS.items()}
    arrays = {}
    for name in tensors.names:
        if name == "attention":
            last, mass = listed[-1], tensors.shape("attention_mass")[1]
            size = mass * (last["stop"] - last["start"]) * last["attention_tokens"]
            span = (base["attention"], last["attention_start"] + size)
        elif name.startswith("reference_"):
            span = (base["reference"], listed[-1]["reference_stop"])
        else:
            span = (base["answers"], listed[-1]["stop"])
        arrays[name] = tensors.read(name, *span)
    return shifted(rows, {kind: -start for kind, start in base.items()}), arrays
