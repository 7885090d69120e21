"""Small files in the published formats of the benchmarks; all content is made up."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(seed: int) -> bytes:
    """A small picture, another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def embedded(seed: int) -> dict[str, object]:
    """A picture as ``datasets`` writes it into Parquet."""
    return {"bytes": png(seed), "path": None}


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def frames(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for n in range(count):
        (folder / f"{n:04d}.png").write_bytes(png(n))


def vsibench(data: Path) -> None:
    base = {"dataset": "scannet", "scene_name": "scene0011_00"}
    rows = [
        {
            "id": 0,
            **base,
            "question_type": "object_counting",
            "question": "How many chair(s) are in this room?",
            "options": None,
            "ground_truth": "4",
        },
        {
            "id": 1,
            **base,
            "question_type": "object_rel_direction_easy",
            "question": "Is the lamp to the left or the right?",
            "options": ["A. left", "B. right"],
            "ground_truth": "B",
        },
    ]
    data.mkdir(parents=True, exist_ok=True)
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frames(data / "frames" / "scannet" / "scene0011_00", 40)


def vsibench_debiased(data: Path) -> None:
    vsibench(data)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    parquet(data / "test_debiased.parquet", rows[1:])
    # Lies beside it in the published folder and is another configuration.
    parquet(data / "test_pruned.parquet", rows[:1])


def threedsrbench(data: Path) -> None:
    lines = ["index\tqid\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage"]
    for n, (qid, answer) in enumerate([("AAAAAAAA", "A"), ("AAAAAAAA-flip", "B")]):
        image = base64.b64encode(png(n)).decode()
        choices = "the mug\tthe lamp\tnan\t"
        lines.append(f"{n}\t{qid}\tWhich is higher?\t{choices}\t{answer}\theight_higher\t{image}")
    data.mkdir(parents=True, exist_ok=True)
    (data / "3dsrbench_v1_vlmevalkit_circular.tsv").write_text("\n".join(lines) + "\n")


def spatialbench(data: Path) -> None:
    base = {"path": "./dataset/rgb_video_1.mp4", "scene_type": "indoor"}
    samples = [
        {
            "problem_id": 1,
            "problem": "Which is the third car?",
            "problem_type": "multiple choice",
            "original_question_type": "multi-hop_spatial_reasoning",
            "options": ["A. A Citroen.", "B. A Honda."],
            "solution": "<answer>B</answer>",
            **base,
        },
        {
            "problem_id": 2,
            "problem": "What's the length in cm?",
            "problem_type": "regression",
            "original_question_type": "object_size",
            "options": None,
            "solution": "442",
            **base,
        },
    ]
    dump(data / "QA.txt", [{"sample": sample} for sample in samples])
    frames(data / "dataset" / "rgb_video_1", 3)


def scanqa(data: Path) -> None:
    rows = [
        {
            "scene_id": "scene0011_00",
            "object_ids": [3],
            "object_names": ["chair"],
            "question_id": f"val-scene0011-{n}",
            "question": question,
            "answers": answers,
        }
        for n, (question, answers) in enumerate(
            [("What color is the chair?", ["brown", "dark brown"]), ("Where is it?", ["left"])]
        )
    ]
    dump(data / "ScanQA_v1.0_val.json", rows)
    frames(data / "scannet" / "scene0011_00", 2)


def sqa3d(data: Path) -> None:
    questions = [
        {
            "scene_id": "scene0011_00",
            "question_id": 220602000002,
            "situation": "I am facing a trash bin. ",
            "alternative_situation": ["I stand near it."],
            "question": "What color is the bin?",
        }
    ]
    annotations = [
        {
            "scene_id": "scene0011_00",
            "question_id": 220602000002,
            "answers": [{"answer": "black", "answer_confidence": "yes", "answer_id": 1}],
            "position": {"x": 0.1, "y": 0.2, "z": 0},
            "rotation": {"_x": 0, "_y": 0, "_z": 0, "_w": 1},
        }
    ]
    dump(data / "v1_balanced_questions_test_scannetv2.json", {"questions": questions})
    dump(data / "v1_balanced_sqa_annotations_test_scannetv2.json", {"annotations": annotations})
    frames(data / "scannet" / "scene0011_00", 2)


def scan2cap(data: Path) -> None:
    rows = [
        {
            "scene_id": "scene0011_00",
            "object_id": "7",
            "object_name": "trash_can",
            "ann_id": str(n),
            "description": description,
            "token": description.split(),
        }
        for n, description in enumerate(["a black trash can.", "the can is by the door."])
    ]
    dump(data / "ScanRefer_filtered_val.json", rows)
    frames(data / "scannet" / "scene0011_00", 2)


def blink(data: Path) -> None:
    for n, task in enumerate(("Relative_Depth", "Spatial_Relation", "Multi-view_Reasoning")):
        row = {
            "idx": f"val_{task}_1",
            "sub_task": task,
            "question": "Which is closer?",
            "prompt": "Which is closer?\nSelect from:\n(A) A is closer\n(B) B is closer",
            "choices": ["A is closer", "B is closer"],
            "answer": "(B)",
            "image_1": embedded(n),
            "image_2": embedded(n + 10) if task == "Multi-view_Reasoning" else None,
        }
        parquet(data / task / "val-00000-of-00001.parquet", [row])


def cvbench(data: Path) -> None:
    sources = ["ADE20K", "COCO", "Omni3D"]
    rows = [
        {
            "idx": n,
            "type": "3D" if source == "Omni3D" else "2D",
            "task": "Depth" if source == "Omni3D" else "Count",
            "source": source,
            "question": "How many lamps are there?",
            "prompt": "How many lamps are there? Select from:\n(A) 1\n(B) 2",
            "choices": ["1", "2"],
            "answer": "(A)",
            "image": embedded(n),
        }
        for n, source in enumerate(sources)
    ]
    parquet(data / "test_2d.parquet", rows[:2])
    parquet(data / "test_3d.parquet", rows[2:])


def mmvp(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True)
    (data / "Questions.csv").write_text(
        "Index,Question,Options,Correct Answer\n"
        "1,Is the door open?,(a) Open (b) Closed,(a)\n"
        "2,Is the door open?,(a) Open (b) Closed,(b)\n"
    )
    (data / "MMVP Images").mkdir()
    for n in (1, 2):
        (data / "MMVP Images" / f"{n}.jpg").write_bytes(png(n))


def vstar(data: Path) -> None:
    row = {
        "image": "direct_attributes/sa_1.jpg",
        "text": "What is the color of the cup?\n(A) red\n(B) green\n"
        "Answer with the option's letter from the given choices directly.",
        "category": "direct_attributes",
        "label": "B",
        "question_id": 0,
    }
    (data / "direct_attributes").mkdir(parents=True)
    (data / "test_questions.jsonl").write_text(json.dumps(row) + "\n")
    (data / "direct_attributes" / "sa_1.jpg").write_bytes(png(1))


def mmstar(data: Path) -> None:
    row = {
        "index": 0,
        "question": "Which one fits?\nOptions: A: red, dark, B: blue, C: green, D: grey",
        "image": png(1),
        "answer": "A",
        "category": "coarse perception",
        "l2_category": "image scene and topic",
        "meta_info": {"source": "made", "split": "val", "image_path": "images/0.jpg"},
    }
    parquet(data / "mmstar.parquet", [row])


WRITERS = {
    "vsibench": vsibench,
    "vsibench-debiased": vsibench_debiased,
    "3dsrbench": threedsrbench,
    "spatialbench": spatialbench,
    "scanqa": scanqa,
    "sqa3d": sqa3d,
    "scan2cap": scan2cap,
    "blink": blink,
    "cvbench": cvbench,
    "mmvp": mmvp,
    "vstar": vstar,
    "mmstar": mmstar,
}
