"""Made rooms in VSI-Bench's own format, so that any harness that reads VSI-Bench reads them.

``test.jsonl`` and ``test.parquet`` with the published columns; ``frames/made/SCENE/000.png`` ...
instead of a video: six views are no film, and frames stay as they were drawn. A model that reads
cameras and depth is given the store itself beside them (``scenes/`` in the folder).
``lmms_eval/`` is the task for lmms-eval's ``--include_path``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stillroom.evaluate.lmms_eval_task import write_task
from stillroom.evaluate.suites.base import bare
from stillroom.evaluate.vsi_bench import CHOICE_TYPES, QUESTION_TYPES
from stillroom.records import BadInputError, Question
from stillroom.scenes.store import SceneStore, write_atomically
from stillroom.text.answers import lettered, option_index, spoken

DATASET = "made"
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "dataset": pa.string(),
        "scene_name": pa.string(),
        "question_type": pa.string(),
        "question": pa.string(),
        "options": pa.list_(pa.string()),
        "ground_truth": pa.string(),
    }
)


def export_vsibench(
    store: SceneStore, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Write the store's questions of VSI-Bench's types; how many rows, on how many scenes.

    The same call goes on where it stopped: frames that are there are not written again.

    Raises:
        BadInputError: the store has no such question, or ``out`` holds another export.
    """
    asked = {
        scene_id: [q for q in store.questions(scene_id) if q.family in QUESTION_TYPES and q.answer]
        for scene_id in store.scene_ids()
    }
    asked = {scene_id: questions for scene_id, questions in asked.items() if questions}
    if not asked:
        raise BadInputError(
            f"{store.path} has no question of VSI-Bench's types; made rooms have them "
            "('stillroom scenes make')"
        )
    flat = [question for questions in asked.values() for question in questions]
    rows = [_row(number, question) for number, question in enumerate(flat)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    target = out / "test.jsonl"
    if target.exists() and target.read_bytes() != text:
        raise BadInputError(f"{out} holds another export. Choose another --out.")
    for done, scene_id in enumerate(asked, start=1):
        _write_frames(store, scene_id, out / "frames" / DATASET / scene_id)
        if progress is not None:
            progress(done, len(asked))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    write_atomically(out / "test.parquet", sink.getvalue())
    write_task(out)
    write_atomically(target, text)
    return len(rows), len(asked)


def _row(number: int, question: Question) -> dict[str, Any]:
    options, truth = list(question.options), question.answer
    if question.family in CHOICE_TYPES:
        if not lettered(options):
            raise BadInputError(f"question {question.question_id} has options without letters")
        # The store keeps the letter; the text of an option is taken as well.
        letters = [spoken(options, i) for i in range(len(options))]
        if truth not in letters:
            index = option_index(truth, [bare(option) for option in options])
            if index is None:
                raise BadInputError(f"question {question.question_id} is answered by no option")
            truth = letters[index]
    return {
        "id": number,
        "dataset": DATASET,
        "scene_name": question.scene_id,
        "question_type": question.family,
        "question": question.question,
        "options": options or None,
        "ground_truth": truth,
    }


def _write_frames(store: SceneStore, scene_id: str, folder: Path) -> None:
    scene = store.scene(scene_id)
    for number, view in enumerate(scene.views):
        frame = folder / f"{number:03d}.png"
        if not frame.is_file():
            sink = io.BytesIO()
            Image.fromarray(view.rgb).save(sink, format="PNG")
            write_atomically(frame, sink.getvalue())
