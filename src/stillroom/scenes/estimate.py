"""How likely each answer is given the names, estimated from made rooms: writes ``balance.json``.

To be run again whenever the rooms change (``docs/world.md`` has the commands).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np

from stillroom.records import Scene
from stillroom.scenes import families, vsi
from stillroom.scenes.balance import Candidate, fit_balance
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.questions import density_of

#: How strongly weights are pulled to 0: less where names tell most, or where cases are few.
SHRINK = {"size": 1.0, "contact": 5.0, "obj_appearance_order": 5.0, "route_planning": 5.0}
SHRINK_ELSEWHERE = 20.0
#: Of one task so many cases of a room are enough: they are far from independent.
MOST_A_ROOM = 200

Tables = dict[str, dict[str, float]]


def estimate_balance(scenes: Iterable[Scene], *, rng: np.random.Generator) -> Tables:
    """Tables "density/task" from rooms; some thousands of plain ones, hundreds of furnished."""
    found: dict[str, list[list[Candidate]]] = defaultdict(list)
    for scene in scenes:
        for cases in _candidates(scene, rng):
            found[f"{density_of(scene)}/{cases[0].task}"].append(cases)
    return {
        name: fit_balance(rooms, shrink=SHRINK.get(name.partition("/")[2], SHRINK_ELSEWHERE))
        for name, rooms in sorted(found.items())
    }


def write_balance(tables: Tables, path: Path | None = None) -> Path:
    """Put these tables in place of those of the same names; by default in the shipped file."""
    where = Path(str(files("stillroom.scenes"))) / "balance.json" if path is None else path
    kept = json.loads(where.read_text()) if where.is_file() else {}
    where.write_text(json.dumps(kept | tables, indent=0, sort_keys=True) + "\n")
    return where


def _candidates(scene: Scene, rng: np.random.Generator) -> Iterator[list[Candidate]]:
    """By task, what could be asked about the room where names may tell something of the answer."""
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    for make in (*families.MAKERS.values(), *vsi.MAKERS.values()):
        made = make(facts, rng=rng)
        for task in sorted({c.task for c in made if any(c.keys)}):
            yield [c for c in made if c.task == task][:MOST_A_ROOM]
