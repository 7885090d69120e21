"""Does memory stay flat over many questions on many scenes, and does every answer stay the same?

    python benchmarks/scene_sessions.py [--scenes 50] [--questions 1000] [--open 8] [--out FILE]

The student answers questions about scenes drawn at random, each through a session that is kept open
only while ``SceneCache``'s budget of bytes allows. Every answer is held against the one that the
question got alone, before, from a scene opened for it; the scenes that are open, after every
question, against arithmetic on the order of scenes and what each of them takes. Memory is that of
the whole process after every hundred questions. Prints a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from record import circumstances, write

SEED = 23


def open_by_hand(held: dict[str, int], name: str, size: int, budget: int) -> None:
    """Which scenes should be open, the one asked for longest ago first, once ``name`` is."""
    if name not in held:
        # Room for one as large as any is made before a scene is opened.
        limit = budget - max(held.values(), default=0)
        while held and sum(held.values()) > limit:
            del held[next(iter(held))]
    held.pop(name, None)
    held[name] = size
    while len(held) > 1 and sum(held.values()) > budget:
        del held[next(iter(held))]


def main() -> None:
    """Make rooms, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--open", type=int, default=8, help="scenes that the budget has room for")
    parser.add_argument("--model", default="student_mini")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()

    import numpy as np

    from stillroom import registry
    from stillroom.bench.machine import resident_bytes
    from stillroom.engine.scene_cache import SceneCache
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store

    load_before = os.getloadavg()[0]
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        rooms = Path(folder) / "rooms"
        make_scenes(rooms, count=chosen.scenes, seed=SEED, split="test")
        store = open_store(rooms)
        names = store.scene_ids()
        scenes = {name: store.scene(name) for name in names}
        asked = {name: store.questions(name) for name in names}
        answerer = registry.answerer(chosen.model, store, split="test")
    expected, largest = {}, 0
    for name in names:
        session = answerer.open(scenes[name])
        expected[name] = [session.answer([question])[0] for question in asked[name]]
        largest = max(largest, session.nbytes)
    # The one being opened has its place, too.
    cache = SceneCache(answerer, budget_bytes=chosen.open * largest)
    resident: list[int] = []
    should: dict[str, int] = {}
    opened = changed = over = otherwise = 0
    began = time.perf_counter()
    for number in range(chosen.questions):
        name = names[rng.integers(len(names))]
        which = rng.integers(len(asked[name]))
        opened += name not in should
        session = cache.open(scenes[name])
        open_by_hand(should, name, session.nbytes, cache.budget_bytes)
        answer = session.answer([asked[name][which]])[0]
        changed += answer != expected[name][which]
        over += cache.nbytes > cache.budget_bytes
        otherwise += {one for one in names if one in cache} != set(should)
        if (number + 1) % 100 == 0:
            resident.append(resident_bytes() or 0)
            print(
                f"{number + 1:6} questions, {len(cache):3} scenes open, "
                f"{cache.nbytes / 1e6:7.1f} MB, process {resident[-1] / 1e6:8.1f} MB"
            )
    seconds = time.perf_counter() - began
    growth = resident[-1] - resident[len(resident) // 2] if len(resident) > 1 else 0
    print(
        f"{changed} answers changed, {over} times over the budget, {cache.evicted} evictions, "
        f"{otherwise} times other scenes open than by arithmetic"
    )
    record = {
        "benchmark": "scene_sessions",
        "model": chosen.model,
        "scenes": chosen.scenes,
        "questions": chosen.questions,
        "budget_bytes": cache.budget_bytes,
        "scene_bytes": largest,
        "evicted": cache.evicted,
        "opened": cache.opened,
        "opened_by_arithmetic": opened,
        "open_otherwise": otherwise,
        "answers_changed": changed,
        "over_budget": over,
        "resident_bytes": resident,
        # From the middle to the end, where all is warm.
        "growth_bytes": growth,
        "seconds": round(seconds, 2),
    }
    write(record | circumstances(["torch", "transformers"], load=load_before), chosen.out)


if __name__ == "__main__":
    main()
