"""Questions to ask about a capture of which no truth is known, in the made world's own words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from stillroom.records import Question, Scene, asked
from stillroom.scenes.wording import PHRASINGS, VSI_WORDING

#: Furniture that is asked after where nobody says what the photos show; "none" is an answer.
COMMON_THINGS = ("cabinet", "table", "chair")


def capture_questions(scene: Scene, *, things: Sequence[str] = ()) -> list[Question]:
    """A handful of questions of the family ``asked``: no truth is stored with them.

    ``things`` are names of what the photos show, each there once ("cabinet", "blue book"); without
    them the scene's own objects are taken, and without those only what needs no names is asked.
    """
    named = list(dict.fromkeys(things or [thing.name for thing in scene.objects]))[:3]
    sentences = [PHRASINGS["description"][0], VSI_WORDING["room_size_estimation"]]
    sentences += [VSI_WORDING["object_counting"].format(a=name) for name in named or COMMON_THINGS]
    sentences += [VSI_WORDING["object_size_estimation"].format(a=name) for name in named]
    for one, other in combinations(named, 2):
        sentences += [
            PHRASINGS["contact"][0].format(a=one, b=other),
            PHRASINGS["size"][0].format(a=one, b=other),
            PHRASINGS["left_right"][0].format(a=one, b=other, p="left", q="right"),
        ]
    if len(named) == 3:
        sentences.append(PHRASINGS["proximity"][0].format(a=named[0], b=named[1], c=named[2]))
    return [asked(scene.scene_id, sentence) for sentence in sentences]
