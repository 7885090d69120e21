"""Benchmarks of others from their published files: ``stillroom evaluate MODEL DATA --suite NAME``.

One file per benchmark or family of them: how its rows are read, how they are asked, how the
answers are scored. ``attach`` joins the questions with scenes into a store.
"""

from __future__ import annotations

from pathlib import Path

from stillroom.evaluate.suites import pictures, rooms, spatialbench, threedsrbench, vsibench
from stillroom.evaluate.suites.base import Item, Suite
from stillroom.records import BadInputError

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        vsibench.SUITE,
        vsibench.DEBIASED,
        threedsrbench.SUITE,
        spatialbench.SUITE,
        rooms.SCANQA,
        rooms.SQA3D,
        rooms.SCAN2CAP,
        pictures.BLINK,
        pictures.CVBENCH,
        pictures.MMVP,
        pictures.VSTAR,
        pictures.MMSTAR,
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name. Raises BadInputError naming the known ones otherwise."""
    if name not in SUITES:
        raise BadInputError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    return SUITES[name]


def read_items(suite: Suite, data: Path) -> list[Item]:
    """Every question that the published files in ``data`` hold.

    Raises:
        BadInputError: no such folder or files, a row that lacks something, or two rows of one id.
    """
    if not data.exists():
        raise BadInputError(f"data folder not found: {data}")
    items = suite.read(data)
    if not items:
        raise BadInputError(f"the {suite.name} files in {data} hold no question")
    seen: set[str] = set()
    for item in items:
        key = item.question.question_id
        if key in seen:
            raise BadInputError(
                f"{data} holds the same {suite.name} question twice: {item.question.question!r}"
            )
        seen.add(key)
    return items
