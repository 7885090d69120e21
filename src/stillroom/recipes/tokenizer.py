"""How ``text/tokenizer.json`` was made, once: ``python -m stillroom.recipes.tokenizer FILE``.

Running it again on the same version gives the same file. Shipping another one voids every
checkpoint and every label store.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stillroom.records import Split
from stillroom.scenes.questions import ask_room, sample_texts
from stillroom.scenes.rooms import Density, draw_rooms
from stillroom.text.tokenizer import train_tokenizer

#: (density, split, rooms): what the merges are learnt from.
CORPUS: tuple[tuple[Density, Split, int], ...] = (
    ("plain", "train", 240),
    ("plain", "shifted", 10),
    ("furnished", "train", 6),
)
SEED = 99

#: Things of real rooms (the 40 classes of NYUv2 and what stands on desks), which no made room has.
_WORDS = (
    "wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk "
    "shelves curtain dresser pillow mirror mat clothes ceiling books refrigerator television paper "
    "towel shower box whiteboard person nightstand toilet sink lamp bathtub bag monitor keyboard "
    "mouse cup phone laptop bottle plant bicycle backpack clock radiator fireplace oven microwave "
    "piano stairs shoes printer speaker guitar kitchen bathroom bedroom office"
)
THINGS = tuple(_WORDS.split())

#: How people ask, and how teachers answer.
SENTENCES = (
    "Where is the {thing}? Is there a {thing} in this room? What colour is the {thing}?",
    "How far is the {thing} from the {thing}? What is on top of the {thing}? What is under it?",
    "Which object is next to the {thing}? There is a {thing} near the {thing}, against the wall.",
    "Yes, the {thing} is to the left of the {thing}. No, there are two {thing}s, not one {thing}.",
)


def main(file: Path) -> None:
    """Draw the corpus on all cores and write the tokenizer."""
    train_tokenizer(corpus(), file)


def corpus() -> Iterator[str]:
    """Every text of the rooms of ``CORPUS``, then the sentences about real things."""
    rooms = [(d, s, index) for d, s, count in CORPUS for index in range(count)]
    with ProcessPoolExecutor() as pool:
        for texts in pool.map(_texts, rooms, chunksize=4):
            yield from texts
    for sentence in SENTENCES:
        for thing in THINGS:
            yield sentence.format(thing=thing)


def _texts(room: tuple[Density, Split, int]) -> list[str]:
    density, split, index = room
    for scene, rng in draw_rooms(SEED, index, density=density, split=split):
        questions = ask_room(scene, count=40, rng=rng)
        if questions is not None:
            return list(sample_texts(questions))
    raise AssertionError("draw_rooms never ends")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
