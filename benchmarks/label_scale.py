"""What labelling costs by the number of scenes, and whether the cost model foretells it.

    python benchmarks/label_scale.py [--scenes 50 200 500] [--rooms DIR] [--out FILE]

Labels the first 50, 200 and 500 of the same made rooms with ``teacher_mini`` and all its default
signals, each in a process of its own: seconds, processor seconds, bytes, files and the largest
resident size. A line through the smallest and the middle run (a + b x scenes) foretells the
largest; files and ledgers are foretold by the layout, since larger stores have larger shards.
Prints a table for people, then one JSON line; the exit code is 1 if a prediction is more than 15 %
off or memory grew by more than 10 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from record import circumstances, write

SEED = 13
QUESTIONS = 24
#: What is said of a prediction that holds.
TOLERANCE = 0.15
#: By how much the largest run may need more memory than the smallest.
GROWTH = 1.10


def take(rooms: Path, count: int, folder: Path) -> Path:
    """The first ``count`` rooms of a store as a store of their own."""
    from stillroom.scenes.store import open_store, write_manifest, write_shard

    store = open_store(rooms)
    ids = store.scene_ids()[:count]
    for shard, start in enumerate(range(0, count, 50)):
        chosen = ids[start : start + 50]
        asked = [question for one in chosen for question in store.questions(one)]
        write_shard(folder, shard, [store.scene(one) for one in chosen], asked)
    write_manifest(folder, {"first": count})
    return folder


def measure(scenes: Path, out: Path, workers: int = 1, ray: str | None = None) -> dict[str, float]:
    """One labelling in a fresh process: what it took, and what it left behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:  # unlike Pool's, it may have children
        spent = pool.submit(_label, scenes, out, workers, ray).result()
    files = [path for path in out.rglob("*") if path.is_file()]
    spent["files"] = len(files)
    spent["bytes"] = sum(path.stat().st_size for path in files)
    spent["ledger_bytes"] = sum(path.stat().st_size for path in (out / "ledger").iterdir())
    return spent


def _label(scenes: Path, out: Path, workers: int, ray: str | None) -> dict[str, float]:
    from stillroom import api

    clock, used = time.perf_counter(), time.process_time()
    api.label(scenes, teacher="teacher_mini", out=out, workers=workers, ray=ray)
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - used,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def line_through(first: tuple[int, float], second: tuple[int, float]) -> tuple[float, float]:
    """(a, b) of a + b x that meets both points."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] - slope * first[0], slope


def main() -> int:
    """Measure, foretell, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, nargs=3, default=[50, 200, 500])
    parser.add_argument("--rooms", type=Path, help="made rooms to use; else they are made")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()
    counts = sorted(chosen.scenes)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from stillroom.scenes.make import make_scenes
    from stillroom.teachers.cost import LEDGER_BYTES
    from stillroom.teachers.label import layout_for

    load = os.getloadavg()[0]
    runs: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        rooms = chosen.rooms
        if rooms is None:
            rooms = Path(home) / "rooms"
            make_scenes(rooms, count=counts[-1], seed=SEED, questions=QUESTIONS)
        take(rooms, 5, Path(home) / "warm")
        measure(Path(home) / "warm", Path(home) / "warm_labels")  # the disk's cache, compiled code
        for count in counts:
            scenes = take(rooms, count, Path(home) / str(count))
            runs[count] = measure(scenes, Path(home) / f"labels{count}")
    names = ("seconds", "processor_seconds", "bytes")
    model = {n: line_through(*((c, runs[c][n]) for c in counts[:2])) for n in names}
    largest = counts[-1]
    foretold = {name: a + b * largest for name, (a, b) in model.items()}
    # Manifest and vocabulary, then rows, tensors and ledger of every shard.
    shards = {count: layout_for(count).shards(count) for count in counts}
    foretold["files"] = 2 + 3 * shards[largest]
    # Every scene has its line's share, every shard a frame around it: as the smallest run says.
    frame = runs[counts[0]]["ledger_bytes"] - LEDGER_BYTES * counts[0]
    foretold["ledger_bytes"] = LEDGER_BYTES * largest + frame * shards[largest] / shards[counts[0]]
    off = {name: value / runs[largest][name] - 1 for name, value in foretold.items()}
    growth = runs[largest]["peak_mb"] / runs[counts[0]]["peak_mb"]
    columns = ("seconds", "processor_seconds", "bytes", "files", "ledger_bytes", "peak_mb")
    print(f"{'scenes':>8}" + "".join(f"{name:>20}" for name in columns))
    for count, run in runs.items():
        print(f"{count:>8}" + "".join(f"{run[name]:>20,.1f}" for name in columns))
    print("foretold" + "".join(f"{foretold.get(name, float('nan')):>20,.1f}" for name in columns))
    print("off     " + "".join(f"{off.get(name, float('nan')):>20.1%}" for name in columns))
    print(f"memory of {largest} scenes over that of {counts[0]}: {growth:.3f}")
    record = {
        "benchmark": "label_scale",
        "questions_per_scene": QUESTIONS,
        "runs": runs,
        "model": {name: {"fixed": a, "per_scene": b} for name, (a, b) in model.items()},
        "off": off,
        "memory_growth": growth,
    }
    write(record | circumstances(["torch", "transformers"], load=load), chosen.out)
    return int(growth > GROWTH or any(abs(value) > TOLERANCE for value in off.values()))


if __name__ == "__main__":
    sys.exit(main())
