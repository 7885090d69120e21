"""How fast rooms are made: rooms a minute, 1 and 2 processes, both densities, everything counted.

    python benchmarks/scenes.py [--plain 300] [--furnished 60] [--memory 5000] [--out FILE]

Prints a table for people, then one JSON line. Rooms are made as ``stillroom scenes make`` makes
them: drawn, rendered, asked about, encoded and written. Memory is the largest resident size of the
process that makes them, looked at as it goes through ``--memory`` plain rooms (a tenth as many
furnished ones); ``memory_ratio`` is the last of its ten looks over the second, so 1.0 is flat.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

from record import circumstances, write

SEED = 11
#: How often memory is looked at while a process makes rooms.
LOOKS = 10


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


def peak_memory(density: str, rooms: int) -> list[float]:
    """Largest resident size [MB] of one process after each tenth of its rooms."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_watched, (density, rooms))


def _watched(density: str, rooms: int) -> list[float]:
    from stillroom.scenes.make import make_scenes

    peaks: list[float] = []

    def look(done: int, total: int) -> None:
        if done * LOOKS >= (len(peaks) + 1) * total:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    with tempfile.TemporaryDirectory() as folder:
        make_scenes(
            Path(folder) / "rooms",
            count=rooms,
            seed=SEED,
            density=density,  # type: ignore[arg-type]
            workers=1,
            shard_size=max(1, min(100, rooms // LOOKS)),
            progress=look,
        )
    return peaks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=int, default=300, help="plain rooms per measurement")
    parser.add_argument("--furnished", type=int, default=60, help="furnished rooms per measurement")
    parser.add_argument("--memory", type=int, default=5000, help="plain rooms of the memory run")
    parser.add_argument("--out", type=Path, help="file that the record is also written to")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record: dict[str, object] = {"benchmark": "scenes"}
    record |= circumstances(["mujoco-core", "numpy"], load=os.getloadavg()[0])
    print(f"{'density':<10} {'processes':>9} {'rooms':>6} {'rooms/min':>10} {'/core-min':>10}")
    for density, rooms in (("plain", chosen.plain), ("furnished", chosen.furnished)):
        for processes in (1, 2):
            rate, per_core = rooms_a_minute(density, rooms, processes)
            record[f"{density}_{processes}"] = round(rate, 1)
            record[f"{density}_{processes}_per_core_minute"] = round(per_core, 1)
            print(f"{density:<10} {processes:>9} {rooms:>6} {rate:>10.0f} {per_core:>10.0f}")
    least = 2 * LOOKS
    for density, rooms in (("plain", chosen.memory), ("furnished", chosen.memory // 10)):
        rooms = max(least, rooms)
        peaks = peak_memory(density, rooms)
        record[f"{density}_memory_rooms"] = rooms
        record[f"{density}_memory_mb"] = [round(peak) for peak in peaks]
        record[f"{density}_memory_ratio"] = round(peaks[-1] / peaks[1], 3)
        print(f"{density:<10} memory over {rooms} rooms: {peaks[1]:.0f} to {peaks[-1]:.0f} MB")
    write(record, chosen.out)


if __name__ == "__main__":
    main()
