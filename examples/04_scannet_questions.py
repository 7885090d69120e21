"""ScanNet exports with ScanQA or SQA3D questions as one scene store, ready for ``stillroom label``.

    python examples/04_scannet_questions.py EXPORTS QUESTIONS.json OUT [--scenes 20]

EXPORTS holds a folder per scan (``scene0011_00/color``, ``depth``, ``pose``, ``intrinsic``, and
``scene0011_00.txt`` with its axisAlignment); QUESTIONS.json is a list of rows with ``scene_id``,
``question_id``, ``question``, ``answers`` and, for SQA3D, ``situation``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from stillroom.records import Question, Scene
from stillroom.scenes.importers import import_capture
from stillroom.scenes.store import write_manifest, write_shard


def question_of(row: dict[str, Any], scene: Scene) -> Question:
    """One row; its family chooses the wording that the teacher was trained with."""
    answer, *others = row["answers"]
    situation = row.get("situation", "")
    return Question(
        scene_id=scene.scene_id,
        question_id=str(row["question_id"]),
        split=scene.split,
        family="sqa3d" if situation else "scanqa",
        question=f"{situation} {row['question']}".strip(),
        answer=answer,
        renderings=tuple(others),
    )


def main(exports: Path, questions: Path, out: Path, scenes: int) -> None:
    """Write a store of the first ``scenes`` scans that questions are asked about."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(questions.read_text()):
        rows.setdefault(row["scene_id"], []).append(row)
    folders = sorted(exports / name for name in rows if (exports / name).is_dir())[:scenes]
    for shard, folder in enumerate(folders):
        imported = import_capture(folder, layout="scannet")
        asked = [question_of(row, imported.scene) for row in rows[folder.name]]
        write_shard(out, shard, [imported.scene], asked)
        print(f"{folder.name}: {len(asked)} questions; {'; '.join(imported.notes)}")
    # Last, so that a store with a manifest is whole.
    write_manifest(out, {"capture": "scannet", "questions": questions.name, "count": len(folders)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ScanNet exports with questions as a scene store")
    parser.add_argument("exports", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=20)
    main(**vars(parser.parse_args()))
