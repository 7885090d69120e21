"""The task of an export in VSI-Bench's format, as lmms-eval wants it; needs nothing of lmms-eval.

``scenes export`` writes a task folder whose ``utils.py`` takes these functions: the published
prompt, frames as images, and VSI-Bench's own scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stillroom.evaluate import vsi_bench
from stillroom.evaluate.suites.base import bare
from stillroom.evaluate.suites.vsibench import prompt

Doc = Mapping[str, Any]

#: The name of the task, and of its figure.
TASK = "stillroom_vsi"
FIGURE = "vsi_overall"


def frames_of(doc: Doc, folder: Path) -> list[Image.Image]:
    """The frames of a document's scene, in order."""
    files = sorted((folder / "frames" / doc["dataset"] / doc["scene_name"]).glob("*.png"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no frames of {doc['scene_name']}")
    return [Image.open(file).convert("RGB") for file in files]


def text_of(doc: Doc) -> str:
    """VSI-Bench's prompt."""
    return prompt(doc["question_type"], doc["question"], doc["options"] or [])


def messages_of(doc: Doc, folder: Path) -> list[dict[str, Any]]:
    """One turn: the frames, then the prompt."""
    content = [{"type": "image", "url": frame} for frame in frames_of(doc, folder)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text_of(doc)}]}]


def scored(doc: Doc, results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The score of one answer by the release's rule, for ``overall``."""
    options = [bare(option) for option in doc["options"] or ()]
    kind = doc["question_type"]
    score = vsi_bench.answer_score(kind, results[0], doc["ground_truth"], options, "official-2024")
    return {FIGURE: {"question_type": kind, "score": score}}


def overall(entries: Sequence[Mapping[str, Any]]) -> float:
    """VSI-Bench's overall score of a run, 0..1."""
    types = [str(entry["question_type"]) for entry in entries]
    return vsi_bench.table(types, [float(entry["score"]) for entry in entries])["overall"]


def write_task(folder: Path) -> None:
    """Write ``folder/lmms_eval``: the YAML and ``utils.py`` that ``--include_path`` is given."""
    target = folder / "lmms_eval"
    target.mkdir(parents=True, exist_ok=True)
    here = folder.resolve()
    (target / f"{TASK}.yaml").write_text(
        f"""task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {here / "test.jsonl"}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: ground_truth
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
metric_list:
  - metric: {FIGURE}
    aggregation: !function utils.overall
    higher_is_better: true
metadata:
  - version: 1.0
"""
    )
    (target / "utils.py").write_text(
        f'''"""Written by ``stillroom scenes export``."""

from pathlib import Path

from stillroom.evaluate import lmms_eval_task as task
from stillroom.evaluate.lmms_eval_task import overall

FOLDER = Path({str(here)!r})


def doc_to_visual(doc):
    return task.frames_of(doc, FOLDER)


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return task.text_of(doc)


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    return task.messages_of(doc, FOLDER)


def process_results(doc, results):
    return task.scored(doc, results)
'''
    )
