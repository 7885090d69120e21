"""Answerers that a number must beat: truth, majority, blind, shuffled, no depth, blank; recorded.

``majority`` and ``blind`` see no picture. They are fitted on the train split; where the scenes
that are asked include it (``--split all`` or ``train``), each fifth of the scenes is answered by a
model of the other four.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from stillroom.evaluate.ngrams import Choice, ChoiceModel, NumberModel, fit_choices, fit_numbers
from stillroom.evaluate.tasks import kind_of
from stillroom.records import (
    SPLITS,
    Answer,
    Answerer,
    BadInputError,
    Question,
    Scene,
    Session,
)
from stillroom.scenes.rooms import CATEGORIES
from stillroom.scenes.store import SceneStore
from stillroom.text.answers import official_number, option_index, spoken

FOLDS = 5
#: Questions of a family that ``blind`` learns from, at most: the fit stays a matter of seconds.
MOST_QUESTIONS = 6_000

_KIND = re.compile(rf"\b({'|'.join(sorted(CATEGORIES, key=len, reverse=True))})\b")

_Key = TypeVar("_Key", int, str)


class _PerQuestion:
    """Answers each question by itself, whatever the scene looks like."""

    def __init__(self, say: Callable[[Question], str]) -> None:
        self._say = say

    def open(self, scene: Scene) -> _PerQuestion:
        """Nothing is looked at."""
        return self

    def frames(self) -> list[str]:
        """None of them."""
        return []

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        return [Answer(question_id=q.question_id, text=self._say(q)) for q in questions]


def truth() -> Answerer:
    """Answers with what geometry says: the row every scorer must give 1.0."""
    return _PerQuestion(lambda question: question.answer)


Fit = Callable[[Sequence[Question]], _PerQuestion]


class RecordedAnswers:
    """Answers read from a table by question id, such as a label store's."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels

    def open(self, scene: Scene) -> RecordedAnswers:
        """Nothing is looked at: the answers are there."""
        return self

    def frames(self) -> None:
        """What was looked at when they were given is not recorded here."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The recorded answers.

        Raises:
            BadInputError: a question was never answered.
        """
        missing = [q.question_id for q in questions if q.question_id not in self._labels]
        if missing:
            raise BadInputError(
                f"the labels hold no answer to {len(missing)} of {len(questions)} questions of "
                f"scene {questions[0].scene_id} (first: {missing[0]}); label those scenes first "
                "with 'stillroom label'"
            )
        return [
            Answer(question_id=q.question_id, text=self._labels[q.question_id]) for q in questions
        ]


def fit_majority(questions: Sequence[Question]) -> _PerQuestion:
    """Says what was most often right in a question's family: an option's place, or a text."""
    return _PerQuestion(_commonest_answer(questions))


def fit_kind_prior(questions: Sequence[Question]) -> _PerQuestion:
    """Says what was most often right where the same kinds of things were named in the same order.

    Kinds never named so, and numbers, get the majority's answer of the family.
    """
    places: dict[tuple[str, ...], Counter[int]] = {}
    for question in questions:
        right = right_option(question)
        if right is not None:
            places.setdefault(_kinds_asked(question), Counter())[right] += 1
    place = {key: _commonest(counts) for key, counts in places.items()}
    otherwise = _commonest_answer(questions)

    def say(question: Question) -> str:
        index = place.get(_kinds_asked(question)) if question.options else None
        return otherwise(question) if index is None else spoken(question.options, index)

    return _PerQuestion(say)


def _kinds_asked(question: Question) -> tuple[str, ...]:
    """Family and kinds named, options included, in reading order."""
    return (question.family, *kinds_named(f"{question.question} {' '.join(question.options)}"))


def fit_blind(questions: Sequence[Question], *, rng: np.random.Generator) -> _PerQuestion:
    """Answers from the words of the question alone, one n-gram model per family.

    Where words can say nothing (descriptions), it is the majority.
    """
    by_family: dict[str, list[Question]] = {}
    for question in questions:
        by_family.setdefault(question.family, []).append(question)
    choosers: dict[str, ChoiceModel] = {}
    guessers: dict[str, NumberModel] = {}
    for family, asked in sorted(by_family.items()):
        some = _at_most(asked, MOST_QUESTIONS, rng=rng)
        choices = [choice for question in some if (choice := _choice(question)) is not None]
        if choices:
            choosers[family] = fit_choices(choices, rng=rng)
        numbers = [q for q in some if kind_of(q) == "number"]
        if numbers:
            guessers[family] = fit_numbers(
                [q.question for q in numbers], [_number(q) for q in numbers]
            )
    whole = {family for family in guessers if all(_number(q) % 1 == 0 for q in by_family[family])}
    otherwise = _commonest_answer(questions)

    def say(question: Question) -> str:
        if question.options and question.family in choosers:
            chosen = choosers[question.family].choose(question.question, question.options)
            return spoken(question.options, chosen)
        if not question.options and question.family in guessers:
            guess = guessers[question.family].guess(question.question)
            return f"{guess:.0f}" if question.family in whole else f"{guess:.1f}"
        return otherwise(question)

    return _PerQuestion(say)


class CrossFitted:
    """Each fifth of the scenes answered by a model fitted on the other four."""

    def __init__(
        self, fit: Fit, store: SceneStore, scene_ids: Sequence[str], *, rng: np.random.Generator
    ) -> None:
        if len(scene_ids) < FOLDS:
            raise BadInputError(
                f"answering each fifth of the scenes from the other four needs at least {FOLDS} "
                f"scenes, {store.path} has {len(scene_ids)}; make more with 'stillroom scenes make'"
            )
        shuffled = rng.permutation(np.array(scene_ids)).tolist()
        self._fold = {scene_id: i % FOLDS for i, scene_id in enumerate(shuffled)}
        self._models = [
            fit([q for s in scene_ids if self._fold[s] != fold for q in store.questions(s)])
            for fold in range(FOLDS)
        ]

    def open(self, scene: Scene) -> Session:
        """The model that never learnt from this scene."""
        return self._models[self._fold[scene.scene_id]].open(scene)

    def answer(self, question: Question) -> str:
        """The same model's answer; what is fitted to words needs no scene to be opened."""
        return self._models[self._fold[question.scene_id]].answer([question])[0].text


def baseline(
    name: str,
    store: SceneStore,
    *,
    split: str | None,
    seed: int = 0,
    train: Sequence[Question] | None = None,
) -> Answerer:
    """``truth``, ``majority`` or ``blind`` for the scenes of a split (None and "all": every one).

    ``train`` are the questions to learn from where they lie in another store; by default those of
    this store's train split.

    Raises:
        BadInputError: no such baseline, or nothing to learn from.
    """
    if name == "truth":
        return truth()
    rng = np.random.default_rng(seed)
    if name == "majority":
        fit: Fit = fit_majority
    elif name == "blind":
        fit = partial(fit_blind, rng=rng)
    else:
        raise BadInputError(f"no baseline is named {name!r}; there are truth, majority and blind")
    if train is None:
        chosen = None if split == "all" else split
        if chosen in (None, "train"):
            return CrossFitted(fit, store, store.scene_ids(chosen), rng=rng)
        train = store.questions(split="train")
    if not train:
        raise BadInputError(
            f"{name} learns from the train split and {store.path} has no question in it; "
            "evaluate with --split all, where each fifth of the scenes is answered from the rest"
        )
    return fit(train)


class Shuffled:
    """Answers every scene's questions from the pictures of another scene of the same split."""

    def __init__(
        self, inner: Answerer, store: SceneStore, *, split: str | None, seed: int = 0
    ) -> None:
        self._inner = inner
        self._store = store
        chosen = store.scene_ids(None if split == "all" else split)
        by_split: dict[str, list[str]] = {}
        for name in SPLITS:
            members = set(store.scene_ids(name)).intersection(chosen)
            if members:
                by_split[name] = [scene_id for scene_id in chosen if scene_id in members]
        rng = np.random.default_rng(seed)
        self.other = {
            scene_id: stranger
            for name, members in by_split.items()
            for scene_id, stranger in _derangement(members, name, rng=rng).items()
        }

    def open(self, scene: Scene) -> _WordsOnly:
        """The inner model's session on the other scene; its depth is not offered as this one's."""
        other = self._store.scene(self.other[scene.scene_id])
        session = self._inner.open(other)
        return _WordsOnly(session, [f"{other.scene_id}/{n}" for n in looked_at(session, other)])


class NoDepth:
    """Answers from the same pictures and poses with every measured depth taken away (0)."""

    def __init__(self, inner: Answerer) -> None:
        self._inner = inner

    def open(self, scene: Scene) -> _WordsOnly:
        """The inner model's session on the scene without depth."""
        views = tuple(
            replace(view, depth=None if view.depth is None else np.zeros_like(view.depth))
            for view in scene.views
        )
        dark = replace(scene, views=views)
        session = self._inner.open(dark)
        return _WordsOnly(session, looked_at(session, dark))


class Blank:
    """Answers from black pictures of the same sizes: what is known without looking."""

    def __init__(self, inner: Answerer) -> None:
        self._inner = inner

    def open(self, scene: Scene) -> _WordsOnly:
        """The inner model's session on black pictures without depth."""
        views = tuple(
            replace(
                view,
                rgb=np.zeros_like(view.rgb),
                depth=None if view.depth is None else np.zeros_like(view.depth),
            )
            for view in scene.views
        )
        return _WordsOnly(self._inner.open(replace(scene, views=views)), [])


def looked_at(session: Session, scene: Scene) -> list[str]:
    """Names of the views that a session chose (its ``views``), or all of the scene's."""
    chosen = getattr(session, "views", None)
    return [scene.views[i].name for i in (range(len(scene.views)) if chosen is None else chosen)]


class _WordsOnly:
    def __init__(self, session: Session, frames: Sequence[str]) -> None:
        self._session = session
        self._frames = list(frames)

    def frames(self) -> list[str]:
        """Names of the pictures that the inner session looks at."""
        return self._frames

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The inner session's answers."""
        return self._session.answer(questions)


def _derangement(members: list[str], split: str, *, rng: np.random.Generator) -> dict[str, str]:
    """Each scene with another one, none with itself, no two with the same."""
    if len(members) < 2:
        raise BadInputError(
            f"shuffled takes another scene's pictures, and split {split!r} has one scene only; "
            "make more scenes"
        )
    ring = rng.permutation(np.array(members)).tolist()
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))


def kinds_named(text: str) -> list[str]:
    """Kinds of things that a text names, in reading order."""
    return _KIND.findall(text)


def right_option(question: Question) -> int | None:
    """Index of the true option; None for questions without options."""
    if not question.options or not question.answer:
        return None
    for index in range(len(question.options)):
        if question.answer in (question.options[index], spoken(question.options, index)):
            return index
    return option_index(question.answer, question.options)


def _choice(question: Question) -> Choice | None:
    right = right_option(question)
    if right is None:
        return None
    return Choice(
        scene_id=question.scene_id,
        question=question.question,
        options=question.options,
        right=right,
    )


def _number(question: Question) -> float:
    number = official_number(question.answer)
    assert number is not None, "only questions whose answer is a number come here"
    return number


def _at_most(questions: list[Question], count: int, *, rng: np.random.Generator) -> list[Question]:
    if len(questions) <= count:
        return questions
    return [questions[i] for i in np.sort(rng.choice(len(questions), size=count, replace=False))]


def _commonest_answer(questions: Sequence[Question]) -> Callable[[Question], str]:
    places: dict[str, Counter[int]] = {}
    texts: dict[str, Counter[str]] = {}
    for question in questions:
        right = right_option(question)
        if right is not None:
            places.setdefault(question.family, Counter())[right] += 1
        elif question.answer:
            texts.setdefault(question.family, Counter())[question.answer] += 1
    place = {family: _commonest(counts) for family, counts in places.items()}
    text = {family: _commonest(counts) for family, counts in texts.items()}

    def say(question: Question) -> str:
        if question.options:
            index = min(place.get(question.family, 0), len(question.options) - 1)
            return spoken(question.options, index)
        return text.get(question.family, "")

    return say


def _commonest(counts: Counter[_Key]) -> _Key:
    """The most frequent; the smallest of equals, so that it does not depend on the order."""
    return min(counts, key=lambda key: (-counts[key], key))
