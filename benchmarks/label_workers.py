"""What a second worker brings: the same rooms labelled by one and by two, processes and Ray actors.

    python benchmarks/label_workers.py [--scenes 200] [--ways processes ray] [--out FILE]

Every run is a command of its own; the time counts everything: starting workers (and, for Ray, a
cluster of this machine), loading teachers, labelling, writing. The smallest run, of two shards, is
taken off, so that ``scenes a second`` is what more scenes cost. Each worker has its share of the
cores as torch threads. Prints a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from label_scale import QUESTIONS, SEED, measure, take
from record import circumstances, write

#: Scenes of the run that costs hardly more than starting.
SMALL = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument(
        "--ways", nargs="+", choices=["processes", "ray"], default=["processes", "ray"]
    )
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()
    from stillroom.scenes.make import make_scenes
    from stillroom.teachers.label_check import problems

    load = os.getloadavg()[0]
    record: dict[str, object] = {"benchmark": "label_workers", "scenes": chosen.scenes}
    print(f"{'way':<12}{'workers':>8}{'seconds':>10}{'start':>8}{'scenes/s':>10}")
    with tempfile.TemporaryDirectory() as home:
        rooms = Path(home) / "rooms"
        make_scenes(rooms, count=chosen.scenes, seed=SEED, questions=QUESTIONS)
        small = take(rooms, SMALL, Path(home) / "small")
        for way in chosen.ways:
            rates = {}
            for workers in (1, 2):
                address = "local" if way == "ray" else None
                seconds = []
                for scenes in (small, rooms):
                    out = Path(home) / f"{way}{workers}{scenes.name}"
                    seconds.append(measure(scenes, out, workers, address)["seconds"])
                    assert not problems(out, scenes=[scenes])
                rates[workers] = (chosen.scenes - SMALL) / (seconds[1] - seconds[0])
                print(
                    f"{way:<12}{workers:>8}{seconds[1]:>10.1f}{seconds[0]:>8.1f}"
                    f"{rates[workers]:>10.2f}"
                )
            record[way] = {"scenes_per_second": rates, "two_over_one": rates[2] / rates[1]}
            print(f"{way}: two workers label {rates[2] / rates[1]:.2f} times as much as one")
    write(record | circumstances(["torch", "transformers"], load=load), chosen.out)


if __name__ == "__main__":
    main()
