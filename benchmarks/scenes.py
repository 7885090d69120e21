"""How fast rooms are made: rooms a minute, 1 and 2 processes, both densities, everything counted.

    python benchmarks/scenes.py [--plain 300] [--furnished 60] [--out FILE]

Prints a table for people, then one JSON line. Rooms are made as ``stillroom scenes make`` makes
them: drawn, rendered, asked about, encoded and written. Memory is the largest resident size of a
process that makes rooms; ``memory_ratio`` compares a second batch of the same size in the same
process with the first, so 1.0 is flat.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

SEED = 11


def rooms_a_minute(density: str, rooms: int, processes: int) -> tuple[float, float]:
    """Rooms a minute on the clock, and per minute that a core really worked on them.

    On a machine that others use too, only the second says what the code costs. Both count
    everything: starting, drawing, rendering, asking, encoding, writing.
    """
    from stillroom.scenes.make import make_scenes

    with tempfile.TemporaryDirectory() as folder:
        clock, worked = time.perf_counter(), _processor_seconds()
        make_scenes(
            Path(folder) / "rooms",
            count=rooms,
            seed=SEED,
            density=density,  # type: ignore[arg-type]
            workers=processes,
            shard_size=max(1, rooms // (4 * processes)),
        )
        clock, worked = time.perf_counter() - clock, _processor_seconds() - worked
    return 60.0 * rooms / clock, 60.0 * rooms / worked


def _processor_seconds() -> float:
    """Processor time of this process and of its finished children [s]."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in spent)


def peak_memory(density: str, rooms: int) -> tuple[float, float]:
    """Largest resident size [MB] after one batch of rooms, and the same after a second batch."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        first, second = pool.apply(_two_batches, (density, rooms))
    return first, second


def _two_batches(density: str, rooms: int) -> tuple[float, float]:
    from stillroom.scenes.make import make_scenes

    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in range(2):
            make_scenes(
                Path(folder) / str(batch),
                count=rooms,
                seed=SEED + batch,
                density=density,  # type: ignore[arg-type]
                workers=1,
                shard_size=max(1, min(50, rooms // 2)),
            )
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return peaks[0], peaks[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=int, default=300, help="plain rooms per measurement")
    parser.add_argument("--furnished", type=int, default=60, help="furnished rooms per measurement")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record: dict[str, object] = {
        "benchmark": "scenes",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    print(f"{'density':<10} {'processes':>9} {'rooms':>6} {'rooms/min':>10} {'/core-min':>10}")
    for density, rooms in (("plain", chosen.plain), ("furnished", chosen.furnished)):
        for processes in (1, 2):
            rate, per_core = rooms_a_minute(density, rooms, processes)
            record[f"{density}_{processes}"] = round(rate, 1)
            record[f"{density}_{processes}_per_core_minute"] = round(per_core, 1)
            print(f"{density:<10} {processes:>9} {rooms:>6} {rate:>10.0f} {per_core:>10.0f}")
        first, second = peak_memory(density, max(4, rooms // 3))
        record[f"{density}_peak_mb"] = round(second)
        record[f"{density}_memory_ratio"] = round(second / first, 3)
        print(f"{density:<10} peak memory {second:.0f} MB ({first:.0f} MB after half the rooms)")
    line = json.dumps(record)
    print(line)
    if chosen.out is not None:
        chosen.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
