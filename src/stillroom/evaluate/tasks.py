"""One answer against one question: what was understood, and a score from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from stillroom.evaluate.letters import stated_letter
from stillroom.evaluate.metrics import mean_relative_accuracy
from stillroom.evaluate.numbers import stated_number
from stillroom.evaluate.text_overlap import best_rouge
from stillroom.records import Question
from stillroom.text.answers import (
    lettered,
    official_letter,
    official_number,
    option_index,
    spoken,
    words,
)

Kind = Literal["option", "letter", "number", "description", "text", "unknown"]

#: Rule and version behind a score, kept with every item.
SCORERS: dict[Kind, str] = {
    "option": "option/1",
    "letter": "vsi-letter/official-2024",
    "number": "vsi-mra/official-2024",
    "description": "rouge1-best-rendering/1",
    "text": "words-equal/1",
    "unknown": "none",
}


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What was understood (None: nothing) and its score; None where no truth is known.

    ``corrected_*``: the same by our stricter rule, where the scorer is a published one.
    """

    parsed: str | None
    score: float | None
    scorer: str
    corrected_parsed: str | None = None
    corrected_score: float | None = None


def kind_of(question: Question) -> Kind:
    """By which rule a question is scored; its form says it, not its family's name."""
    if not question.answer:
        return "unknown"
    if lettered(question.options):
        return "letter"
    if question.options:
        return "option"
    if question.renderings or question.facts or question.family == "description":
        return "description"
    if official_number(question.answer) is not None:
        return "number"
    return "text"


def score(question: Question, text: str) -> Scored:
    """The answer's score; what cannot be parsed is wrong, never left out."""
    kind = kind_of(question)
    parsed, value = _RULES[kind](question, text)
    understood, corrected = _CORRECTED[kind](question, text) if kind in _CORRECTED else (None, None)
    return Scored(
        parsed=parsed,
        score=value,
        scorer=SCORERS[kind],
        corrected_parsed=understood,
        corrected_score=corrected,
    )


def renderings_of(question: Question) -> tuple[str, ...]:
    """Every wording of the truth, the answer first."""
    return tuple(dict.fromkeys((question.answer, *question.renderings)))


def _option(question: Question, text: str) -> tuple[str | None, float]:
    index = option_index(text, question.options)
    if index is None:
        return None, 0.0
    truth = option_index(question.answer, question.options)
    return spoken(question.options, index), float(index == truth)


def _letter(question: Question, text: str) -> tuple[str | None, float]:
    letter = official_letter(text)
    known = [spoken(question.options, i) for i in range(len(question.options))]
    return letter if letter in known else None, float(letter == _true_letter(question, known))


def _stated_letter(question: Question, text: str) -> tuple[str | None, float]:
    known = [spoken(question.options, i) for i in range(len(question.options))]
    letter = stated_letter(text, _bare(question))
    return letter, float(letter is not None and letter == _true_letter(question, known))


def _true_letter(question: Question, known: Sequence[str]) -> str:
    truth = official_letter(question.answer)
    if truth in known:
        return truth
    # The store may hold the option's text instead of its letter.
    index = option_index(question.answer, _bare(question))
    return known[index] if index is not None else truth


def _bare(question: Question) -> list[str]:
    return [option.split(maxsplit=1)[1] for option in question.options]


def _number(question: Question, text: str) -> tuple[str | None, float]:
    number = official_number(text)
    truth = official_number(question.answer)
    assert truth is not None, "kind_of calls a question a number only where its answer is one"
    return None if number is None else f"{number:g}", mean_relative_accuracy(number, truth)


def _stated_number(question: Question, text: str) -> tuple[str | None, float]:
    number, truth = stated_number(text), official_number(question.answer)
    assert truth is not None, "kind_of calls a question a number only where its answer is one"
    return None if number is None else f"{number:g}", mean_relative_accuracy(number, truth)


def _description(question: Question, text: str) -> tuple[str | None, float]:
    said = " ".join(text.split())
    return said or None, best_rouge(said, renderings_of(question))["rouge1"].f1


def _text(question: Question, text: str) -> tuple[str | None, float]:
    said = words(text)
    return " ".join(said) or None, float(bool(said) and said == words(question.answer))


def _unknown(question: Question, text: str) -> tuple[str | None, None]:
    return " ".join(text.split()) or None, None


_RULES: dict[Kind, Callable[[Question, str], tuple[str | None, float | None]]] = {
    "option": _option,
    "letter": _letter,
    "number": _number,
    "description": _description,
    "text": _text,
    "unknown": _unknown,
}
#: The stricter rules beside the published ones.
_CORRECTED: dict[Kind, Callable[[Question, str], tuple[str | None, float | None]]] = {
    "letter": _stated_letter,
    "number": _stated_number,
}
