"""Labels as a data set for other trainers: the fields ``target_logprobs``, ``target_token_ids``,
``target_mask`` that Axolotl's distillation plugin and users of TRL read, in Parquet.

Entry i of a field belongs to token i, as labels do: the distribution from which that token was
said. The shift by one is the trainer's, as for labels.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.records import BadInputError, TeacherLabel
from stillroom.teachers.label_store import LabelStore, open_labels
from stillroom.teachers.leases import lease
from stillroom.text.tokenizer import Tokenizer
from stillroom.text.vocabulary import Vocabulary, compare

#: Rows of one file, and those that are in memory at once.
ROWS_PER_FILE, ROWS_PER_GROUP = 20_000, 500

#: Labels of tokens that are not scored.
IGNORE_INDEX = -100

_TARGETS = {
    "target_logprobs": pa.list_(pa.list_(pa.float32())),
    "target_token_ids": pa.list_(pa.list_(pa.int32())),
    "target_mask": pa.list_(pa.list_(pa.int8())),
}
_MESSAGE = pa.struct({"role": pa.string(), "content": pa.string()})
EXPORT_SCHEMA = pa.schema(
    {
        "scene_id": pa.string(),
        "question_id": pa.string(),
        "split": pa.string(),
        "messages": pa.list_(_MESSAGE),
        "prompt": pa.string(),
        "completion": pa.string(),
        "completion_ids": pa.list_(pa.int32()),
        **_TARGETS,
    }
)
#: What is there beside it when the student's tokenizer is known; targets are then as long.
TOKENISED = {
    "input_ids": pa.list_(pa.int32()),
    "attention_mask": pa.list_(pa.int8()),
    "labels": pa.list_(pa.int32()),
}


def export(path: Path, out: Path, *, student: Path | None = None) -> int:
    """Write a label store's rows for other trainers; their number.

    With a ``student``'s folder its vocabulary is compared with the teacher's first, and rows are
    tokenised as well: ``input_ids`` is the prompt followed by the teacher's ids, ``labels`` leave
    the prompt out, and the targets of the prompt are masked.

    Raises:
        BadInputError: the store holds no logits, ``out`` is not empty, or the student reads ids
            otherwise than the teacher.
    """
    store = open_labels(path)
    if "topk_logits" not in store.settings["signals"]:
        raise BadInputError(f"{path} holds no topk_logits to export; label again with that signal")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out} is no empty folder; remove it or choose another --out")
    tokenizer = None if student is None else _tokenizer(student, store)
    schema = EXPORT_SCHEMA
    for name, kind in TOKENISED.items() if tokenizer is not None else ():
        schema = schema.append(pa.field(name, kind))
    # Written beside and renamed when whole: what a full disk or a kill leaves is not an export.
    beside = out.absolute().with_name(f".{out.absolute().name}.partial")
    with lease(beside.with_suffix(".lock")) as mine:
        if not mine:
            raise BadInputError(f"another command exports to {out}; wait for it")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            count = _write_all(beside, out, _rows(store, tokenizer), schema)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return count


def _write_all(beside: Path, out: Path, rows: Iterator[dict[str, Any]], schema: pa.Schema) -> int:
    count = 0
    with _exporting(out):
        beside.mkdir(parents=True)
    while file_rows := _write(beside, out, count // ROWS_PER_FILE, rows, schema):
        count += file_rows
    with _exporting(out):
        beside.rename(out)  # takes the place of an empty folder, too
    return count


@contextlib.contextmanager
def _exporting(out: Path) -> Iterator[None]:
    """Put around what writes, and nothing else."""
    try:
        yield
    except OSError as error:
        raise BadInputError(
            f"cannot export to {out} ({error.strerror or error}); make room or choose another "
            "--out, and give the command again: nothing of it was kept"
        ) from None


def _tokenizer(student: Path, store: LabelStore) -> Tokenizer:
    file = student / "tokenizer.json"
    known = store.vocabulary
    if known is None:
        raise BadInputError(
            f"{store.path} does not say what its teacher's ids mean; export without --student"
        )
    found = compare(Vocabulary.from_tokenizer_file(file, rows=known.rows), known)
    if not found.logits_fit:
        raise BadInputError(
            f"the logits of {store.path} cannot teach {student}: their vocabularies are "
            f"{found.match.value} ({found.reason})"
        )
    return Tokenizer(file)


def _rows(store: LabelStore, tokenizer: Tokenizer | None) -> Iterator[dict[str, Any]]:
    for scene_id in store.scene_ids():
        for row, label in zip(store.rows(scene_id), store.labels(scene_id), strict=True):
            yield _row(row, label, tokenizer)


def _row(row: dict[str, Any], label: TeacherLabel, tokenizer: Tokenizer | None) -> dict[str, Any]:
    assert label.answer_ids is not None, "rows with logits have ids"
    assert label.topk_ids is not None
    answer = [int(i) for i in label.answer_ids]
    made: dict[str, Any] = {
        **{name: row[name] for name in ("scene_id", "question_id", "split", "prompt")},
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": label.answer},
        ],
        "completion": label.answer,
        "completion_ids": answer,
    }
    before: Sequence[int] = () if tokenizer is None else tokenizer.encode(row["prompt"])
    if tokenizer is not None:
        made |= {
            "input_ids": [*before, *answer],
            "attention_mask": [1] * (len(before) + len(answer)),
            "labels": [IGNORE_INDEX] * len(before) + answer,
        }
    return made | targets(label, masked=len(before))


def targets(label: TeacherLabel, *, masked: int = 0) -> dict[str, list[list[Any]]]:
    """The three fields of one label, after ``masked`` positions that count for nothing.

    Log-probabilities (nats) are over the whole vocabulary: what k of them leave of 1 is the
    rest's, but for the rounding to 16 bits.
    """
    assert label.topk_logits is not None
    assert label.topk_ids is not None
    assert label.logsumexp is not None
    logprobs = label.topk_logits.astype(np.float32) - label.logsumexp[:, None].astype(np.float32)
    logprobs = np.minimum(logprobs, 0.0)  # a logit rounded up to 16 bits may pass the logsumexp
    k = logprobs.shape[1]
    return {
        "target_logprobs": [[-np.inf] * k] * masked + logprobs.tolist(),
        "target_token_ids": [list(range(k))] * masked + label.topk_ids.astype(np.int64).tolist(),
        "target_mask": [[0] * k] * masked + [[1] * k] * len(logprobs),
    }


def _write(
    beside: Path, out: Path, number: int, rows: Iterator[dict[str, Any]], schema: pa.Schema
) -> int:
    """One file of the next rows; how many there were."""
    group = list(itertools.islice(rows, ROWS_PER_GROUP))
    if not group:
        return 0
    count = 0
    with _exporting(out):
        sink = pq.ParquetWriter(beside / f"{number:05d}.parquet", schema, compression="zstd")
    try:
        while group:
            table = pa.Table.from_pylist(group, schema=schema)
            with _exporting(out):
                sink.write_table(table)
            count += len(group)
            group = list(itertools.islice(rows, min(ROWS_PER_GROUP, ROWS_PER_FILE - count)))
    finally:
        with _exporting(out):
            sink.close()
    return count
