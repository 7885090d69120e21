"""Descriptions: the same facts in every rendering, and facts read back from text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stillroom.scenes.descriptions import describe, facts_of
from stillroom.scenes.facts import RoomFacts


def test_every_rendering_states_exactly_the_facts(hand_made_facts: RoomFacts) -> None:
    described = describe(hand_made_facts)
    assert described is not None
    assert len(described.renderings) >= 3
    assert len(set(described.renderings)) == len(described.renderings)
    for text in described.renderings:
        assert facts_of(text) == set(described.facts)


def test_every_rendering_has_30_to_60_words(hand_made_facts: RoomFacts) -> None:
    described = describe(hand_made_facts)
    assert described is not None
    for text in described.renderings:
        assert 30 <= len(text.split()) <= 60


def test_all_things_seen_well_and_what_stands_on_what_are_said(hand_made_facts: RoomFacts) -> None:
    described = describe(hand_made_facts)
    assert described is not None
    objects = {fact[1] for fact in described.facts if fact[0] == "object"}
    assert objects == {hand_made_facts.things[i].name for i in hand_made_facts.shown}
    assert ("on", "white box", "red table") in described.facts


def test_a_room_with_too_little_to_say_has_no_description(hand_made_facts: RoomFacts) -> None:
    scene = replace(hand_made_facts.scene, objects=hand_made_facts.things[:2])
    few = RoomFacts(scene=scene, distance=hand_made_facts.distance[:2, :2])
    assert describe(few) is None


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("The room has a red chair.", {("object", "red chair")}),
        (
            "I see an orange box, a striped red vase and a bed.",
            {("object", "orange box"), ("object", "striped red vase"), ("object", "bed")},
        ),
        ("The mug is on the table.", {("on", "mug", "table")}),
        ("On top of the table is the mug.", {("on", "mug", "table")}),
        ("The a b is to the left of the c d.", {("left of", "a b", "c d")}),
        ("In front of the sofa is the ball.", {("in front of", "ball", "sofa")}),
        ("the ROOM has a Red  Chair", {("object", "red chair")}),
        ("Nothing of this is ours.", set()),
        ("", set()),
    ],
)
def test_facts_are_read_from_single_sentences(text: str, facts: set[tuple[str, ...]]) -> None:
    assert facts_of(text) == facts
