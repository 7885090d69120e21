"""What sharing the scene is worth: questions labelled a second with it and without it.

    python benchmarks/label_prefix.py [--rooms 20] [--questions 45] [--teacher NAME] [--out FILE]

Rooms are made, then labelled twice by the same teacher with ``stillroom label``'s own code:
scene-shared, as it is used, and with ``share_scene`` off, so that each question reads its scene
anew. Both label the same questions; ``same_labels`` says whether answers agree id by id and kept
logits within a step that the store's 16 bits have at the largest of them. Prints a table for
people, then one JSON line with ``ratio``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from record import circumstances, write

SEED = 17
SIGNALS = ("answers", "topk_logits")


def measure(scenes: Path, teacher: str, *, share: bool, out: Path) -> tuple[float, float, Any]:
    """Seconds on the clock and of this process's processor time, and the finished label store.

    The teacher is loaded and has answered once before the clock starts.
    """
    from stillroom import registry
    from stillroom.scenes.store import open_store
    from stillroom.teachers.label import label_scenes
    from stillroom.teachers.label_store import open_labels
    from stillroom.teachers.options import TeacherOptions

    options = TeacherOptions(share_scene=share)
    loaded: Any = registry.teacher(teacher, options)
    store = open_store(scenes)
    first = store.scene_ids()[0]
    loaded.label(store.scene(first), store.questions(first)[:2], SIGNALS)
    clock, worked = time.perf_counter(), time.process_time()
    label_scenes(
        scenes,
        lambda: loaded,
        out,
        teacher=registry.describe(teacher, options),
        signals=SIGNALS,
    )
    clock, worked = time.perf_counter() - clock, time.process_time() - worked
    return clock, worked, open_labels(out)


def largest_difference(one: Any, other: Any) -> tuple[int, float]:
    """Questions whose answer differs, and the largest difference of a kept logit among the rest,
    in steps that 16-bit floats have at the largest logit of a position.

    Where two of the largest logits are nearly equal their order may differ: values are compared
    rank by rank.
    """
    import numpy as np

    differing, worst = 0, 0.0
    assert one.scene_ids() == other.scene_ids()
    for scene_id in one.scene_ids():
        for a, b in zip(one.labels(scene_id), other.labels(scene_id), strict=True):
            assert a.question_id == b.question_id
            if a.answer_ids.tolist() != b.answer_ids.tolist():
                differing += 1
                continue
            gap = np.abs(a.topk_logits.astype(np.float32) - b.topk_logits.astype(np.float32))
            step = np.spacing(np.abs(a.topk_logits).max(axis=-1, keepdims=True))
            worst = max(worst, float((gap / step).max()))
    return differing, worst


def main() -> None:
    """Make rooms, label them both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=20)
    parser.add_argument("--questions", type=int, default=45, help="questions per room")
    parser.add_argument("--teacher", default="teacher_mini")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import torch

    from stillroom.scenes.make import make_scenes

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "rooms"
        make_scenes(scenes, count=chosen.rooms, seed=SEED, questions=chosen.questions, split="test")
        found = {
            name: measure(scenes, chosen.teacher, share=share, out=Path(folder) / name)
            for name, share in (("shared", True), ("per_question", False))
        }
        count = len(found["shared"][2])
        differing, worst = largest_difference(found["shared"][2], found["per_question"][2])
    print(f"{'labelling':<14} {'questions':>9} {'seconds':>8} {'questions/s':>11} {'of a core':>9}")
    for name, (clock, worked, _) in found.items():
        print(f"{name:<14} {count:>9} {clock:>8.1f} {count / clock:>11.2f} {worked / clock:>9.2f}")
    ratio = found["per_question"][0] / found["shared"][0]
    print(f"scene-shared labelling is {ratio:.2f} times as fast; {differing} answers differ")
    record = {
        "benchmark": "label_prefix",
        "ratio": round(ratio, 3),
        # On a machine that others use too, processor time is the fairer clock.
        "ratio_processor_time": round(found["per_question"][1] / found["shared"][1], 3),
        "questions_per_second": round(count / found["shared"][0], 2),
        "questions_per_second_per_question": round(count / found["per_question"][0], 2),
        "rooms": chosen.rooms,
        "questions": count,
        "teacher": chosen.teacher,
        "same_labels": differing == 0 and worst <= 1.0,
        "answers_differing": differing,
        "largest_logit_difference_steps": worst,
        "threads": torch.get_num_threads(),
    }
    write(record | circumstances(["torch", "transformers"], load=load_before), chosen.out)


if __name__ == "__main__":
    main()
