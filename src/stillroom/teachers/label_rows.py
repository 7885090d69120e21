"""Between a teacher's labels and what lies on disk: Parquet rows, and tensors end to end.

A row points into the tensors of its shard: ``start, stop`` are answer positions (``topk_ids``,
``topk_logits``, ``logsumexp``, ``last_hidden``, ``attention_mass``); ``reference_start,
reference_stop`` positions of the true answer; ``attention`` is flat, ``groups x positions x
attention_tokens`` numbers a row from ``attention_start`` on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillroom.records import BadInputError, Question, SceneFeatures, TeacherLabel, TopLogits
from stillroom.teachers.label_tensors import TensorFile
from stillroom.teachers.signals import SignalConfig

_IDS = pa.list_(pa.int32())
LABEL_SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "split": pa.string(),
        "family": pa.string(),
        # What the teacher was asked, options below it.
        "prompt": pa.string(),
        "answer": pa.string(),
        "answer_ids": _IDS,
        # Of the answer with its end, in nats.
        "logprob": pa.float64(),
        "reference_ids": _IDS,
        # Whether the teacher saw cameras and depth as given, or as an encoder predicted them.
        "geometry": pa.string(),
        "start": pa.int64(),
        "stop": pa.int64(),
        "reference_start": pa.int64(),
        "reference_stop": pa.int64(),
        "attention_start": pa.int64(),
        "attention_tokens": pa.int64(),
    }
)
#: Columns that count tensor rows from the start of a shard, by a tensor that has as many.
OFFSETS: dict[str, tuple[str, ...]] = {
    "answers": ("start", "stop"),
    "reference": ("reference_start", "reference_stop"),
    "attention": ("attention_start",),
}


def narrow(size: int | None) -> type[np.generic]:
    """The smallest kind of integer for ids of a vocabulary of that size; None is unknown."""
    return np.uint16 if size is not None and size <= 1 << 16 else np.int32


def encode(
    pairs: Sequence[tuple[Question, TeacherLabel]],
    config: SignalConfig,
    *,
    geometry: Sequence[str],
    vocabulary: int | None,
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Rows and tensors of some questions with their labels, one ``geometry`` each.

    Raises:
        BadInputError: numbers that do not go together, or do not fit into 16 bits.
    """
    rows, at, reference_at, attention_at = [], 0, 0, 0
    positions = bool(set(config.row_tensors) - {*_REFERENCE})
    for (question, label), mark in zip(pairs, geometry, strict=True):
        own = len(label.answer_ids) if label.answer_ids is not None and positions else 0
        true = 0 if label.reference is None else len(label.reference.ids)
        seen = label.attention is not None and "attention" in config.signals
        rows.append(
            {
                "scene_id": label.scene_id,
                "question_id": label.question_id,
                "split": question.split,
                "family": question.family,
                "prompt": question.prompt,
                "answer": label.answer,
                "answer_ids": _listed(label.answer_ids),
                "logprob": label.logprob,
                "reference_ids": _listed(label.reference_ids),
                "geometry": mark,
                "start": at,
                "stop": at + own,
                "reference_start": reference_at,
                "reference_stop": reference_at + true,
                "attention_start": attention_at,
                "attention_tokens": label.attention.shape[2] if seen else 0,  # type: ignore[union-attr]
            }
        )
        at, reference_at = at + own, reference_at + true
        attention_at += label.attention.size if seen else 0  # type: ignore[union-attr]
    labels = [label for _, label in pairs]
    ids = narrow(vocabulary)
    tensors = {
        name: _stacked(name, [_TENSORS[name](label) for label in labels], ids, rows)
        for name in config.row_tensors
    }
    return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tensors


_REFERENCE = ("reference_topk_ids", "reference_topk_logits", "reference_logsumexp")

_TENSORS: dict[str, Callable[[TeacherLabel], Any]] = {
    "topk_ids": lambda label: label.topk_ids,
    "topk_logits": lambda label: label.topk_logits,
    "logsumexp": lambda label: label.logsumexp,
    "reference_topk_ids": lambda label: label.reference.ids,  # type: ignore[union-attr]
    "reference_topk_logits": lambda label: label.reference.logits,  # type: ignore[union-attr]
    "reference_logsumexp": lambda label: label.reference.logsumexp,  # type: ignore[union-attr]
    "last_hidden": lambda label: label.last_hidden,
    # Scenes differ in their visual tokens: one flat run of numbers.
    "attention": lambda label: label.attention.ravel(),  # type: ignore[union-attr]
    "attention_mass": lambda label: label.attention_mass.T,  # type: ignore[union-attr]
}
_HALF = ("topk_logits", "reference_topk_logits", "last_hidden", "attention")


def _stacked(
    name: str,
    arrays: Sequence[np.ndarray | None],
    ids: type[np.generic],
    rows: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    given = [np.asarray(array) for array in arrays if array is not None]
    if len(given) != len(arrays) or len({array.shape[1:] for array in given}) > 1:
        raise BadInputError(
            f"the teacher gives {name} of unlike shapes, or not for every question; leave its "
            "signal out of --signals"
        )
    ends = ("reference_start", "reference_stop") if name in _REFERENCE else ("start", "stop")
    if name != "attention":
        for row, array in zip(rows, given, strict=True):
            if len(array) != row[ends[1]] - row[ends[0]]:
                raise BadInputError(
                    f"the teacher gives {name} at {len(array)} positions of an answer that has "
                    f"{row[ends[1]] - row[ends[0]]} (question {row['question_id']})"
                )
    joined = np.concatenate(given) if given else np.zeros((0,))
    if name.endswith("_ids"):
        return joined.astype(ids)
    return half(joined, name) if name in _HALF else joined.astype(np.float32)


def half(array: np.ndarray, name: str) -> np.ndarray:
    """In 16 bits. Raises BadInputError if a finite number would become infinite."""
    with np.errstate(over="ignore"):
        kept = array.astype(np.float16)
    if np.isinf(kept).any() and np.isfinite(array[np.isinf(kept)]).any():
        raise BadInputError(
            f"the teacher's {name} holds {np.abs(array).max():.3g}, more than 16 bits can; leave "
            "its signal out of --signals"
        )
    return kept


def _listed(ids: np.ndarray | None) -> list[int] | None:
    return None if ids is None else [int(i) for i in ids]


def shifted(table: pa.Table, by: Mapping[str, int]) -> pa.Table:
    """Rows of a part as rows of a shard whose tensors begin ``by`` (of ``OFFSETS``) earlier."""
    for kind, columns in OFFSETS.items():
        for name in columns:
            place = table.schema.get_field_index(name)
            moved = pc.add(table.column(name), pa.scalar(by[kind], pa.int64()))
            table = table.set_column(place, LABEL_SCHEMA.field(name), moved)
    return table


def lengths(tensors: Mapping[str, Any]) -> dict[str, int]:
    """How far tensors, given by shape, reach in the terms of ``OFFSETS``."""
    answers = [n for n in tensors if n not in (*_REFERENCE, "attention")]
    reference = [n for n in tensors if n in _REFERENCE]
    return {
        "answers": int(tensors[answers[0]][0]) if answers else 0,
        "reference": int(tensors[reference[0]][0]) if reference else 0,
        "attention": int(tensors["attention"][0]) if "attention" in tensors else 0,
    }


def decode(rows: Sequence[Mapping[str, Any]], tensors: TensorFile | None) -> list[TeacherLabel]:
    """The labels of neighbouring rows: each tensor is read once, from the first to the last."""
    names = set(tensors.names) if tensors is not None else set()
    if tensors is None or not rows or not names:
        return [_label(row, {}) for row in rows]
    spans = {
        "answers": (rows[0]["start"], rows[-1]["stop"]),
        "reference": (rows[0]["reference_start"], rows[-1]["reference_stop"]),
    }
    read = {
        name: tensors.read(name, *spans["reference" if name in _REFERENCE else "answers"])
        for name in names - {"attention"}
    }
    for name in names & {"topk_ids", "reference_topk_ids"}:
        read[name] = read[name].astype(np.int32)  # from 16 bits without a sign
    labels = []
    for row in rows:
        own = slice(row["start"] - spans["answers"][0], row["stop"] - spans["answers"][0])
        first = spans["reference"][0]
        true = slice(row["reference_start"] - first, row["reference_stop"] - first)
        arrays = {n: values[true if n in _REFERENCE else own] for n, values in read.items()}
        if "attention" in names:
            groups, positions = arrays["attention_mass"].shape[1], row["stop"] - row["start"]
            size = groups * positions * row["attention_tokens"]
            begin = row["attention_start"]
            flat = tensors.read("attention", begin, begin + size)
            arrays["attention"] = flat.reshape(groups, positions, row["attention_tokens"])
        labels.append(_label(row, arrays))
    return labels


def _label(row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> TeacherLabel:
    mass = arrays.get("attention_mass")
    return TeacherLabel(
        scene_id=row["scene_id"],
        question_id=row["question_id"],
        answer=row["answer"],
        answer_ids=_array(row["answer_ids"]),
        logprob=row["logprob"],
        topk_ids=arrays.get("topk_ids"),
        topk_logits=arrays.get("topk_logits"),
        logsumexp=arrays.get("logsumexp"),
        reference_ids=_array(row["reference_ids"]),
        reference=TopLogits(
            ids=arrays["reference_topk_ids"],
            logits=arrays["reference_topk_logits"],
            logsumexp=arrays["reference_logsumexp"],
        )
        if "reference_topk_ids" in arrays
        else None,
        last_hidden=arrays.get("last_hidden"),
        attention=arrays.get("attention"),
        attention_mass=None if mass is None else mass.T,
    )


def _array(ids: Sequence[int] | None) -> np.ndarray | None:
    return None if ids is None else np.array(ids, np.int64)


# Scenes. ----------------------------------------------------------------------------------------


def encode_features(found: Sequence[SceneFeatures]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors ``SCENE_ID/NAME`` of some scenes, and what is no tensor as metadata."""
    tensors: dict[str, np.ndarray] = {}
    metadata = {}
    for one in found:
        tensors[f"{one.scene_id}/pooled"] = half(np.asarray(one.pooled), "scene_features")
        for name in ("semantics", "points"):
            if getattr(one, name) is not None:
                tensors[f"{one.scene_id}/{name}"] = np.asarray(getattr(one, name), np.float32)
        if one.patch_token is not None:
            kind = np.int16 if len(one.pooled) < 1 << 15 else np.int32
            tensors[f"{one.scene_id}/patch_token"] = np.asarray(one.patch_token).astype(kind)
        metadata[one.scene_id] = json.dumps({"views": list(one.views), "cap_seed": one.cap_seed})
    return tensors, metadata


def decode_features(scene_id: str, file: TensorFile) -> SceneFeatures:
    """One scene's features. Raises KeyError if the file has none of that id."""
    record = json.loads(file.metadata[scene_id])

    def tensor(name: str) -> np.ndarray | None:
        key = f"{scene_id}/{name}"
        return file.read(key) if key in file.names else None

    return SceneFeatures(
        scene_id=scene_id,
        pooled=file.read(f"{scene_id}/pooled"),
        semantics=tensor("semantics"),
        points=tensor("points"),
        patch_token=tensor("patch_token"),
        views=tuple(record["views"]),
        cap_seed=record["cap_seed"],
    )
