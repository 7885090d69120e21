"""How likely each answer is given the names, estimated from many rooms: makes ``balance.json``.

To be run again whenever the rooms change (``docs/world.md`` has the command).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from stillroom.scenes import families, vsi
from stillroom.scenes.balance import Candidate, fit_balance
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.physics import surface_distances
from stillroom.scenes.rooms import Density, draw_rooms

#: Seed of the rooms that the shipped table was estimated from; no world is made with it.
ESTIMATE_SEED = 90_210
#: How strongly weights are pulled to 0. Size depends on its names most, so its table is freest.
SHRINK = {"size": 1.0, "contact": 5.0, "obj_appearance_order": 5.0}
SHRINK_ELSEWHERE = 20.0
_ROOMS_A_JOB = 25


def estimate_balance(
    density: Density,
    *,
    rooms: int,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Tables "density/task" from that many rooms; the same for any number of ``workers``."""
    found: dict[str, list[Candidate]] = defaultdict(list)
    starts = range(0, rooms, _ROOMS_A_JOB)
    job = partial(_room_candidates, density, rooms)
    with get_context("spawn").Pool(workers) as pool:
        for done, candidates in enumerate(pool.imap(job, starts), start=1):
            for candidate in candidates:
                found[candidate.task].append(candidate)
            if progress is not None:
                progress(min(done * _ROOMS_A_JOB, rooms))
    return {
        f"{density}/{task}": fit_balance(found[task], shrink=SHRINK.get(task, SHRINK_ELSEWHERE))
        for task in sorted(found)
    }


def write_balance(tables: dict[str, dict[str, float]], path: Path) -> None:
    """Put these tables into ``path`` in place of those of the same names; the rest stays."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(kept | tables, indent=0, sort_keys=True) + "\n")


def _room_candidates(density: Density, rooms: int, start: int) -> list[Candidate]:
    stop = min(start + _ROOMS_A_JOB, rooms)
    return [c for index in range(start, stop) for c in _candidates(density, index)]


def _candidates(density: Density, index: int) -> Iterator[Candidate]:
    scene, rng = next(draw_rooms(ESTIMATE_SEED, index, density=density, split="train"))
    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    for make in (*families.MAKERS.values(), *vsi.MAKERS.values()):
        yield from (c for c in make(facts, rng=rng) if any(c.keys))
