"""Label rooms with the shipped teacher and distil a student from it, all on two CPU cores.

python examples/03_distil_mini.py --out runs/mini --rooms 400 --steps 300
"""

import argparse
from dataclasses import replace
from pathlib import Path

import stillroom
from stillroom import recipes


def main(out: Path, rooms: int, steps: int) -> None:
    """Rooms, labels, a student, and its first figures on held-out rooms."""
    stillroom.make_scenes(out / "rooms", count=rooms, seed=1)
    stillroom.label(out / "rooms", teacher="teacher_mini", out=out / "labels")
    base = recipes.table("distill")["mini_cpu"]()
    config = replace(base, train=replace(base.train, steps=steps))
    print(
        stillroom.distill(config, scenes=out / "rooms", labels=out / "labels", out=out / "distill")
    )
    results = stillroom.evaluate(
        str(out / "distill" / "student"),
        out / "rooms",
        labels=out / "labels",
        out=out / "evaluation",
    )
    for name, row in results["rows"].items():
        overall = row["overall"]
        print(f"{name:40} {overall['score']:.3f}  [{overall['low']:.3f}, {overall['high']:.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument("--rooms", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    main(given.out, given.rooms, given.steps)
