"""What does it cost to ask for less: smaller weights, fewer photos, smaller photos?

    python benchmarks/quant_accuracy.py [--student student_mini] [--rooms 200 | --scenes DIR]
        [--forms bfloat16 int8 int4 onnx] [--views 2 3 4] [--sizes 84] [--work DIR] [--out FILE]

The student as it is (computed in float32), in bfloat16, exported to int8, int4 and ONNX answers the
same questions about made rooms that no shipped student was trained on, or about a split of a store;
with ``--views`` also from fewer photos, with ``--sizes`` from photos of fewer pixels, in both cases
without having been trained for that. Beside each form's share of right answers (the four families)
stands its difference to the student as it is, in points, paired by question, with a 95 % interval
over scenes; the most memory that a process of its own needed above what it had before loading; and
the bytes of its weights on disk. Prints a table for people, then one JSON line. With ``--work``
exports and answers are kept, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from record import circumstances, write

#: Rooms that are made where no store is named: their seed, and questions of each.
SEED, QUESTIONS = 59, 24
#: Scenes that memory is watched over.
WATCHED = 6
FORMS = ("bfloat16", "int8", "int4", "onnx")
EXPORTED = ("int8", "int4", "onnx")


def answerer(form: str, folder: Path | str) -> Any:
    """What answers in a form: one of ``FORMS``, "full", "N photos" or "N pixels"."""
    count, _, what = form.partition(" ")
    if what:
        model = answerer("full", folder)
        setattr(model.processor, {"photos": "max_views", "pixels": "image_size"}[what], int(count))
        return model
    if form == "onnx":
        from stillroom.export.runtime import GraphStudent

        return GraphStudent.from_folder(folder)
    import torch

    from stillroom.students.session import StudentAnswerer

    dtype = torch.bfloat16 if form == "bfloat16" else None
    return StudentAnswerer.from_folder(folder, dtype=dtype)


def peak_bytes(form: str, folder: Path | str, scenes: Path, split: str) -> int | None:
    """Memory that loading and asking take at most, above what the process had before."""
    import torch

    from stillroom.bench.machine import peak_memory, resident_bytes
    from stillroom.scenes.store import open_store

    store = open_store(scenes)
    names = store.scene_ids(None if split == "all" else split)[:WATCHED]
    read = [(store.scene(name), store.questions(name)) for name in names]
    if form == "onnx":
        import onnxruntime  # noqa: F401
    else:
        import stillroom.students.session  # noqa: F401
    before = resident_bytes()
    with peak_memory(torch.device("cpu")) as peak:
        model = answerer(form, folder)
        for scene, questions in read:
            model.open(scene).answer(questions)
    return None if peak.bytes is None or before is None else max(peak.bytes - before, 0)


def in_its_own_process(*given: Any) -> int | None:
    """``peak_bytes`` where nothing else has been done before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak_bytes, *given).result()


def weight_bytes(form: str, folder: Path) -> int:
    """Size of the files that hold its weights."""
    patterns = ("*.onnx", "*.data") if form == "onnx" else ("*.safetensors",)
    return sum(file.stat().st_size for pattern in patterns for file in folder.glob(pattern))


def compared(items: Path, forms: list[str]) -> dict[str, dict[str, Any]]:
    """Of every form: score, difference to the first form in points, and answers changed."""
    import numpy as np
    import pyarrow.parquet as pq

    from stillroom.evaluate.intervals import Resampler, interval_of
    from stillroom.records import FAMILIES

    rows = pq.read_table(items).to_pylist()
    said = {
        form: {row["question_id"]: row for row in rows if row["model"] == form} for form in forms
    }
    first = said[forms[0]]
    asked = [key for key, row in first.items() if row["family"] in FAMILIES]
    places = [first[key]["scene_id"] for key in asked]
    resampler = Resampler(places, rng=np.random.default_rng(0))
    scores = {
        form: np.array([found[key]["score"] for key in asked], dtype=float)
        for form, found in said.items()
    }
    table = {}
    for form, values in scores.items():
        whole = resampler.mean(values, places)
        off = values - scores[forms[0]]
        low, high = interval_of(resampler.draws(off, places))
        table[form] = {
            "score": whole.score,
            "low": whole.low,
            "high": whole.high,
            "n": whole.n,
            "points": 100 * float(off.mean()),
            "points_low": None if low is None else 100 * low,
            "points_high": None if high is None else 100 * high,
            "changed": sum(
                said[form][key]["answer"] != row["answer"] for key, row in first.items()
            ),
            "asked": len(first),
        }
    return table


def line(form: str, row: Mapping[str, Any]) -> str:
    """One form for people."""
    peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
    return (
        f"{form:10}{row['bytes'] / 1e6:10.2f}{peak:>10}"
        f"{100 * row['score']:9.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        f"{row['points']:+9.2f} ({row['points_low']:+.2f} to {row['points_high']:+.2f})"
        f"{row['changed']:8} of {row['asked']}"
    )


def main() -> None:
    """Export, ask, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="student_mini", help="a shipped name or a folder")
    parser.add_argument("--scenes", type=Path, help="scene store; without one, rooms are made")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rooms", type=int, default=200, help="rooms made without --scenes")
    parser.add_argument("--limit", type=int, help="at most so many scenes of the split")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--views", nargs="*", type=int, default=[], help="photos, besides")
    parser.add_argument("--sizes", nargs="*", type=int, default=[], help="pixels, besides")
    parser.add_argument("--work", type=Path, help="folder where exports and answers are kept")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        record = measure(chosen, chosen.work or Path(folder))
    write(record | circumstances(["torch", "transformers"], load=load_before), chosen.out)


def measure(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The record, its table printed on the way."""
    from stillroom import api, registry
    from stillroom.evaluate.run import evaluate
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store

    scenes = chosen.scenes
    if scenes is None:
        scenes = work / f"rooms_{chosen.rooms}"
        make_scenes(scenes, count=chosen.rooms, seed=SEED, questions=QUESTIONS, split=chosen.split)
    place = registry.locate(chosen.student)
    if not isinstance(place, Path):
        raise SystemExit(f"--student must be a folder or a shipped name, got {chosen.student}")
    folders = {"full": place}
    for form in chosen.forms:
        folders[form] = work / form if form in EXPORTED else place
        if form in EXPORTED and not folders[form].exists():
            api.export(chosen.student, to=form, out=folders[form])
    less = [f"{count} photos" for count in chosen.views]
    folders |= dict.fromkeys([*less, *(f"{count} pixels" for count in chosen.sizes)], place)
    results = evaluate(
        {form: (lambda form=form: answerer(form, folders[form])) for form in folders},
        open_store(scenes),
        split=None if chosen.split == "all" else chosen.split,
        out=work / "answers",
        teacher_row=None,
        student_row="full",
        meta={},
        limit=chosen.limit,
        identities={form: str(folder) for form, folder in folders.items()},
    )
    rows = compared(work / "answers" / "items.parquet", list(folders))
    for form, row in rows.items():
        row["bytes"] = weight_bytes(form, folders[form])
        row["peak_bytes"] = in_its_own_process(form, folders[form], scenes, chosen.split)
        row["families"] = {
            name: entry for name, entry in results["rows"][form].items() if "score" in entry
        }
    print(
        f"{'':10}{'disk [MB]':>10}{'peak [MB]':>10}{'right [%]':>24}"
        f"{'difference [points]':>27}{'changed':>11}"
    )
    for form, row in rows.items():
        print(line(form, row))
    return {
        "benchmark": "quant_accuracy",
        "student": chosen.student,
        "revision": registry.describe(chosen.student)["revision"],
        "scenes": results["meta"]["scenes"],
        "questions": results["meta"]["questions"],
        "split": chosen.split,
        "seed": SEED if chosen.scenes is None else None,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
