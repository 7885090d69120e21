"""What is the engine of a session worth, beside a language model's own ``forward``?

    python benchmarks/session_engine.py [--student student_mini] [--rooms 6] [--out FILE]

The same student answers the same questions of made rooms in two ways, in turns: ``plain`` reads
the scene anew for every question by transformers' own ``forward``, as ``generate`` does;
``session`` has read it once and goes on behind it. Scenes are opened in two ways as well: with
plain weights, and as students are loaded, with the encoder's weights in oneDNN's order. Then one
product of a few rows with a large matrix, packed beside plain. Prints a table for people, then one
JSON line with ``ratio`` (plain over session) and ``ratio_opening`` (plain weights over packed).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from record import circumstances, write

SEED, QUESTIONS = 67, 24
#: How often each scene is opened in each way.
OPENINGS = 8
#: Rows, inputs and outputs of the products, as a miniature and the 7B teacher have them.
PRODUCTS = ((1, 128, 512), (32, 128, 512), (1, 4096, 11008), (32, 4096, 11008))
#: Bytes of weights that are gone through before a product is timed again: more than caches hold.
CYCLED = 256 << 20


def sessions(where: Path) -> tuple[Any, Any]:
    """The student with plain weights, and as it is loaded."""
    import torch

    from stillroom.students.model import StillroomStudent
    from stillroom.students.processor import StillroomProcessor
    from stillroom.students.session import StudentAnswerer

    plain = StillroomStudent.from_pretrained(where, dtype=torch.float32)
    processor = StillroomProcessor.from_pretrained(where)
    return StudentAnswerer(plain, processor), StudentAnswerer.from_folder(where)


def answered(unpacked: Any, packed: Any, asked: list[Any]) -> tuple[dict[str, list[float]], int]:
    """Seconds of every later question in each way, and how many answers were not alike."""
    taken: dict[str, list[float]] = {
        "plain": [],
        "session": [],
        "open_plain": [],
        "open_packed": [],
    }
    differing = 0
    for number, (scene, questions) in enumerate(asked):
        for _ in range(OPENINGS):
            began = time.perf_counter()
            first = unpacked.open(scene)
            between = time.perf_counter()
            second = packed.open(scene)
            if number:
                taken["open_plain"].append(between - began)
                taken["open_packed"].append(time.perf_counter() - between)
        ways = {"plain": first.plain_answer, "session": second.answer}
        for question in questions:
            said = []
            for name, answer in ways.items():
                began = time.perf_counter()
                said.append(answer([question])[0].text)
                if number:  # the first scene warms up
                    taken[name].append(time.perf_counter() - began)
            differing += len(set(said)) > 1
    return taken, differing


def products() -> list[dict[str, Any]]:
    """Microseconds of a product with plain and with packed weights, bfloat16 and float32."""
    import torch
    from torch.nn.functional import linear as plain_linear

    from stillroom.cpu import linear, packed_weight

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows, inputs, outputs in PRODUCTS:
            x = torch.randn(rows, inputs).to(dtype)
            size = inputs * outputs * x.element_size()
            weights = [
                torch.randn(outputs, inputs).to(dtype) for _ in range(max(4, CYCLED // size))
            ]
            packed = [packed_weight(weight) for weight in weights]
            times: dict[str, list[float]] = {"plain": [], "packed": []}
            for _ in range(5):
                for name, held in (("plain", weights), ("packed", packed)):
                    began = time.perf_counter()
                    for weight in held:
                        if name == "plain":
                            plain_linear(x, weight)
                        else:
                            linear(x, weight, None)
                    times[name].append((time.perf_counter() - began) / len(held))
            found.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": [rows, inputs, outputs],
                    **{
                        f"{name}_us": round(1e6 * statistics.median(t), 2)
                        for name, t in times.items()
                    },
                }
            )
    return found


def main() -> None:
    """Make rooms, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="student_mini", help="a shipped name or a folder")
    parser.add_argument("--rooms", type=int, default=6)
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()

    import torch

    from stillroom import registry
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(Path(folder), count=chosen.rooms, seed=SEED, questions=QUESTIONS, split="test")
        store = open_store(Path(folder))
        asked = [(store.scene(name), store.questions(name)) for name in store.scene_ids()]
    with torch.no_grad():
        taken, differing = answered(*sessions(Path(registry.locate(chosen.student))), asked)
        timed = products()
    median = {name: 1000 * statistics.median(values) for name, values in taken.items()}
    for name, milliseconds in median.items():
        what = "opening" if name.startswith("open") else "question"
        print(f"{name:12}{milliseconds:9.2f} ms a {what} (median of {len(taken[name])})")
    print(f"{differing} questions with answers that differ")
    for row in timed:
        rows, inputs, outputs = row["shape"]
        shape = f"{row['dtype']}, {rows} rows x {inputs} x {outputs}"
        times = row["plain_us"] / row["packed_us"]
        print(
            f"{shape:34}plain {row['plain_us']:9.1f} us, packed {row['packed_us']:9.1f} us, "
            f"{times:.2f} times"
        )
    record = {
        "benchmark": "session_engine",
        "ratio": round(median["plain"] / median["session"], 3),
        "ratio_opening": round(median["open_plain"] / median["open_packed"], 3),
        "ms": {name: round(value, 4) for name, value in median.items()},
        "questions": len(taken["plain"]),
        "answers_differing": differing,
        "products": timed,
        "student": chosen.student,
        "threads": torch.get_num_threads(),
    }
    write(record | circumstances(["torch", "transformers"], load=load_before), chosen.out)


if __name__ == "__main__":
    main()
