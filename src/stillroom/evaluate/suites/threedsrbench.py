"""3DSRBench (Ma et al. 2024): one picture a row, mirrored and rotated copies by ``qid``.

Rows of a .tsv (VLMEvalKit's, pictures as base64), .parquet, .jsonl, .json or .csv file. Where only
``image_url`` is given, the picture is looked for under its file name in ``images/``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.evaluate.flip_groups import GROUP_OF, SETTINGS
from stillroom.evaluate.suites.base import (
    Item,
    RowData,
    Suite,
    find_files,
    lettered_options,
    made_question,
    picture,
    read_rows,
    scenes_of,
    text_of,
)
from stillroom.evaluate.suites.choices import letter_columns
from stillroom.evaluate.suites.figures import Figures, grouped_figure, mean_figure, means_by
from stillroom.records import content_hash

RULE = "3dsrbench-letter/lmms-eval-0.7.3"
FILES = ("*3dsr*.tsv", "*3dsr*.parquet", "*3dsr*.jsonl", "*3dsr*.json", "*3dsr*.csv")
_LAST_LINE = "Please select the correct answer from the options above. \n"


def read(data: Path) -> list[Item]:
    """Every row with its picture. Raises BadInputError where a field or a picture is missing."""
    return [
        _item(row, data, f"{path.name}, row {number}")
        for path in find_files(data, FILES)[:1]
        for number, row in enumerate(read_rows(path))
    ]


def options_of(row: RowData) -> list[str]:
    """The texts of A to D; absent ones are empty, NaN or the text "nan"."""
    found = [row.get(letter) for letter in "ABCD"]
    return [str(o) for o in found if o is not None and str(o).strip().lower() not in ("", "nan")]


def _item(row: RowData, data: Path, where: str) -> Item:
    question, options = text_of(row, "question", where), options_of(row)
    image = picture(row.get("image") or row.get("image_url"), data, where)
    qid = str(row.get("qid") or row.get("index") or where)
    lettered = lettered_options(options)
    lines = "".join(f"{option}\n" for option in lettered)
    return Item(
        question=made_question(
            "3dsrbench",
            qid,
            content_hash([image]),
            str(row.get("category") or "unknown"),
            question,
            text_of(row, "answer", where).strip().upper(),
            options=lettered,
            asked_as=f"Question: {question}\nOptions:\n{lines}{_LAST_LINE}",
        ),
        details={"qid": qid, "category": str(row.get("category") or "unknown")},
        images=(image,),
    )


def _figures(items: Sequence[Item], scores: Sequence[float]) -> Figures:
    """The four settings, and the plain mean over rows of each group and category asked."""
    scenes = scenes_of(items)
    qids = [item.details["qid"] for item in items]
    found = {"vanilla": mean_figure(scores, scenes)}
    found |= {
        name: grouped_figure([key(qid) for qid in qids], scores, scenes)
        for name, key in SETTINGS.items()
        if name != "vanilla"
    }
    categories = [item.details["category"] for item in items]
    known = [i for i, category in enumerate(categories) if category in GROUP_OF]
    for keys in ([GROUP_OF[categories[i]] for i in known], [categories[i] for i in known]):
        found |= means_by(keys, [scores[i] for i in known], [scenes[i] for i in known])
    return found


SUITE = Suite(
    name="3dsrbench",
    files=FILES,
    read=read,
    columns=letter_columns(RULE, _figures),
    prompt_id="3dsrbench/vlmevalkit",
)
