"""Every row about a made room, worked out again from its geometry and the words asked.

The things are read out of the sentence, and what the row says of them (answer, options, value,
unit, margin, object ids, all of the rationale) is measured anew from boxes, parts and pixels. The
measures themselves (``facts.py``; angles, first views and ways of ``vsi.py``; what a description
states) are those that the makers use: a fault in them is for their own tests to find.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from stillroom.records import Question, Scene
from stillroom.scenes.check_rules import RULES, SLACK, Measured, Sentence, WrongError, require
from stillroom.scenes.descriptions import LEAST_WORDS, MOST_WORDS, describe, facts_of
from stillroom.scenes.facts import RoomFacts
from stillroom.scenes.families import AHEAD_M, BEARING_DEG, SIZE_RATIO
from stillroom.scenes.vsi import CHOICES
from stillroom.scenes.wording import (
    VSI_CHOICE_TASKS,
    VSI_WORDING,
    lettered,
    listed,
    named,
    named_in_vsi,
)

# Kinds of sentence of a family that has several.
_KINDS = {"orientation": ("left_right", "front_behind")}
_NUMBER = re.compile(r"\{:\.(\d)f\}")


def check_scene(scene: Scene, questions: Sequence[Question]) -> list[str]:
    """What does not agree with the geometry of the room, one sentence each; empty if all does."""
    from stillroom.scenes.physics import surface_distances

    facts = RoomFacts(scene=scene, distance=surface_distances(scene.objects))
    return check_facts(facts, questions)


def check_facts(facts: RoomFacts, questions: Sequence[Question]) -> list[str]:
    """As ``check_scene``, with the distances given."""
    wrong = []
    for question_id, count in Counter(question.question_id for question in questions).items():
        if count > 1:
            wrong.append(f"{question_id}: {count} questions carry this id")
    for name, count in Counter(thing.name for thing in facts.things).items():
        if count > 1:
            wrong.append(f"{count} things are called {name!r}")
    for question in questions:
        try:
            _check(facts, question)
        except WrongError as error:
            wrong.append(f"{question.question_id} ({question.family}): {error}")
    return wrong


def _check(facts: RoomFacts, question: Question) -> None:
    scene = facts.scene
    require(
        (question.scene_id, question.split) == (scene.scene_id, scene.split),
        f"it says to be of scene {question.scene_id}, split {question.split}",
    )
    if question.family == "description":
        _check_description(facts, question)
        return
    kind, names = _read(question)
    ids = _indices(facts, kind, names)
    require(len(set(ids)) == len(ids), "one thing is named twice")
    _require_ids(facts, ids, question)
    require(set(ids) <= set(facts.shown.tolist()), "an object named is not seen well in two views")
    require(not question.facts and not question.renderings, "only descriptions have renderings")
    measured = RULES[kind](facts, ids, _choices(question, kind, names))
    _compare(question, measured)
    _check_rationale(facts, question, ids, measured.relation)


def _read(question: Question) -> tuple[str, dict[str, str]]:
    """(kind of sentence, the names in it)."""
    for kind in _KINDS.get(question.family, (question.family,)):
        if kind in VSI_WORDING:
            names = named_in_vsi(kind, question.question)
        else:
            names = named(kind, question.question, split=question.split)
        if names is not None:
            return kind, names
    raise WrongError(f"the sentence is none of this family's: {question.question!r}")


def _indices(facts: RoomFacts, kind: str, names: dict[str, str]) -> list[int]:
    """The objects named: a to c, then those of a list."""
    if kind == "object_counting":
        return [i for i, thing in enumerate(facts.things) if thing.category == names["a"]]
    said = [names[key] for key in sorted(names) if key in "abc"]
    said += names["choices"].split(", ") if "choices" in names else []
    return _places(facts, said)


def _places(facts: RoomFacts, names: Sequence[str]) -> list[int]:
    place = {thing.name: i for i, thing in enumerate(facts.things)}
    missing = [name for name in names if name not in place]
    require(not missing, f"the room has no {' and no '.join(map(repr, missing))}")
    return [place[name] for name in names]


def _require_ids(facts: RoomFacts, ids: list[int], question: Question) -> None:
    named_ids = tuple(facts.things[i].object_id for i in ids)
    require(
        question.object_ids == named_ids,
        f"it names the objects {named_ids}, the stored ids are {question.object_ids}",
    )


def _choices(question: Question, kind: str, names: dict[str, str]) -> tuple[str, ...]:
    """The answers to choose from, without letters; they must be those that the sentence offers."""
    if kind in VSI_WORDING:
        return _lettered_choices(question, kind, names)
    if kind == "contact":
        choices: tuple[str, ...] = ("yes", "no")
    elif "p" in names:
        choices = (names["p"], names["q"])
    else:
        choices = tuple(names[key] for key in sorted(names))[-2:]
    require(
        question.options == choices,
        f"the sentence names {choices}, the options are {question.options}",
    )
    require(len(set(choices)) == len(choices), f"the sentence offers {choices}")
    return choices


def _lettered_choices(question: Question, kind: str, names: dict[str, str]) -> tuple[str, ...]:
    options = question.options
    choices = tuple(option[3:] for option in options)
    fair = options == lettered(list(choices)) and len(set(choices)) == len(choices)
    if kind not in VSI_CHOICE_TASKS:
        fair = not options
    if "choices" in names:
        things = names["choices"].split(", ")
        fair &= len(choices) == CHOICES
        # Of an order of appearance the options are orders, which its rule looks at.
        if kind == "object_rel_distance":
            fair &= sorted(choices) == sorted(things)
        else:
            fair &= len(things) in (CHOICES - 1, CHOICES)
    require(fair, f"the options are {options}")
    return choices


def _compare(question: Question, measured: Measured) -> None:
    """The row's answer, value, unit and margin with those measured."""
    said = _said(question)
    require(
        said == measured.answer, f"the stored answer is {said!r}, geometry says {measured.answer!r}"
    )
    require(
        question.unit == measured.unit,
        f"the stored unit is {question.unit!r}, geometry says {measured.unit!r}",
    )
    for name, stored, found in (
        ("value", question.value, measured.value),
        ("margin", question.margin, measured.margin),
    ):
        same = stored is found if None in (stored, found) else abs(stored - found) <= SLACK  # type: ignore[operator]
        require(same, f"the stored {name} is {stored}, geometry says {found}")


def _said(question: Question) -> str:
    """The answer as text: of a lettered option what stands behind the letter."""
    if question.family not in VSI_CHOICE_TASKS:
        return question.answer
    for option in question.options:
        if option.startswith(f"{question.answer}. "):
            return option[3:]
    raise WrongError(f"no option carries the letter {question.answer!r}")


def _check_rationale(
    facts: RoomFacts, question: Question, ids: list[int], relation: Sentence
) -> None:
    """Locate, relate, conclude: every word, and every number to its last digit."""
    located = [f"the {facts.things[i].name} at ({{:.1f}}, {{:.1f}}, {{:.1f}})" for i in ids]
    where = f"I find {listed(located)}. " if located else ""
    numbers = (*facts.center[ids].ravel().tolist(), *relation.numbers)
    due = Sentence(
        words=f"{where}{relation.words}. So the answer is {question.answer}.", numbers=numbers
    )
    require(
        _says(question.rationale, due),
        f"the rationale says {question.rationale!r}, geometry says {str(due)!r}",
    )


def _says(text: str, due: Sentence) -> bool:
    """Whether a text has the sentence's words, and its numbers rounded to the decimals shown."""
    pieces = _NUMBER.split(due.words)
    words, decimals = pieces[::2], [int(digit) for digit in pieces[1::2]]
    pattern = re.escape(words[0])
    for count, word in zip(decimals, words[1:], strict=True):
        pattern += (rf"(-?\d+\.\d{{{count}}})" if count else r"(-?\d+)") + re.escape(word)
    match = re.fullmatch(pattern, text)
    return match is not None and all(
        abs(float(said) - number) <= 0.5 * 10**-count + SLACK
        for said, count, number in zip(match.groups(), decimals, due.numbers, strict=True)
    )


def _check_description(facts: RoomFacts, question: Question) -> None:
    spoken = named("description", question.question, split=question.split)
    require(spoken is not None, f"the sentence is none of this family's: {question.question!r}")
    row = (question.options, question.value, question.unit, question.margin, question.rationale)
    require(
        row == ((), None, "", None, ""),
        "a description has no options, value, unit, margin or rationale",
    )
    require(question.renderings[:1] == (question.answer,), "the answer is not the first rendering")
    for text in question.renderings:
        count = len(text.split())
        require(
            LEAST_WORDS <= count <= MOST_WORDS,
            f"a rendering has {count} words, not {LEAST_WORDS} to {MOST_WORDS}",
        )
        require(
            facts_of(text) == set(question.facts),
            f"a rendering does not say the stored facts: {text!r}",
        )
    for fact in question.facts:
        ids = _places(facts, fact[1:])
        require(_true(facts, fact[0], ids), f"not so in the room: {' '.join(fact)}")
    things = [fact[1] for fact in question.facts if fact[0] == "object"]
    _require_ids(facts, _places(facts, things), question)
    # What is said follows from the room alone, so that a model can know it.
    due = describe(facts)
    require(
        due is not None and due.facts == question.facts,
        "the facts are not those that a description of this room states",
    )


def _true(facts: RoomFacts, kind: str, ids: list[int]) -> bool:
    a, b = ids[0], ids[-1]
    match kind:
        case "object":
            return a in facts.shown
        case "on":
            return facts.things[a].supported_by == facts.things[b].object_id
        case "left of":
            return bool(facts.bearing_deg[b] - facts.bearing_deg[a] >= BEARING_DEG - SLACK)
        case "in front of":
            return bool(facts.center[b, 1] - facts.center[a, 1] >= AHEAD_M - SLACK)
        case "bigger than":
            return bool(facts.volume[a] >= SIZE_RATIO * facts.volume[b] - SLACK)
    return False
