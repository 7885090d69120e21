"""Questions that count only together: 3DSRBench's flips and rotations, MMVP's pairs.

A group is right when every row in it is; the score is the mean over groups. 3DSRBench's ``qid``
is eight characters for the base question, ``-flip`` for the mirrored picture, ``-1 .. -n`` for
rotations of the options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: Setting -> what rows of one group share (specs/benchmarks.md section 3).
SETTINGS: dict[str, Callable[[str], str]] = {
    "vanilla": lambda qid: qid,
    "flip": lambda qid: qid.replace("-flip", ""),
    "circular": lambda qid: qid[:13] if "-flip" in qid else qid[:8],
    "flip_circular": lambda qid: qid[:8],
}

#: The twelve categories and the four groups that the paper prints.
GROUP_OF = {
    "height_higher": "height",
    "location_above": "location",
    "location_closer_to_camera": "location",
    "location_next_to": "location",
    "orientation_in_front_of": "orientation",
    "orientation_on_the_left": "orientation",
    "orientation_viewpoint": "orientation",
    "multi_object_closer_to": "multi_object",
    "multi_object_facing": "multi_object",
    "multi_object_viewpoint_towards_object": "multi_object",
    "multi_object_parallel": "multi_object",
    "multi_object_same_direction": "multi_object",
}


def grouped_accuracy(keys: Sequence[str], right: Sequence[bool]) -> float:
    """Share of the groups (rows of equal key) in which every row is right."""
    if not keys or len(keys) != len(right):
        raise ValueError(f"{len(right)} answers for {len(keys)} rows")
    whole: dict[str, bool] = {}
    for key, hit in zip(keys, right, strict=True):
        whole[key] = whole.get(key, True) and bool(hit)
    return float(np.mean(list(whole.values())))


def threedsr_table(
    qids: Sequence[str], categories: Sequence[str], right: Sequence[bool]
) -> dict[str, float]:
    """3DSRBench's four settings, and the plain mean over rows of each of the four groups asked."""
    table = {
        name: float(np.mean(right)) if name == "vanilla" else _setting(name, qids, right)
        for name in SETTINGS
    }
    for group in dict.fromkeys(GROUP_OF.values()):
        hits = [hit for hit, name in zip(right, categories) if GROUP_OF.get(name) == group]
        if hits:
            table[group] = float(np.mean(hits))
    return table


def _setting(name: str, qids: Sequence[str], right: Sequence[bool]) -> float:
    return grouped_accuracy([SETTINGS[name](qid) for qid in qids], right)
