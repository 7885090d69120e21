"""Which number an answer states: the three rules in use for VSI-Bench, and a stricter one of ours.

The published rules disagree by many points on the same answers (specs/benchmarks.md section 1),
so a figure names the one that it was made with. All are total: no text makes them raise, and what
is not a finite number is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from stillroom.text.answers import official_number

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_TENS = ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
#: Number words and their values; "hundred" and "thousand" multiply what stands before them.
_WORD_VALUES = {
    **{word: float(n) for n, word in enumerate(_UNITS)},
    **{word: 10.0 * n for n, word in enumerate(_TENS, start=3)},
    "hundred": 100.0,
    "thousand": 1000.0,
}

_WORD = re.compile(r"[a-z]+")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")

#: No sign, exponent or point is left out: "1e1" and ".5" are read as they are meant.
_SCIENTIFIC = re.compile(r"[-+]?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?")
_ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\ufeff]")
_SMALL_WORD = re.compile(rf"\b({'|'.join(_UNITS)})\b", re.IGNORECASE)
_TAGGED_NUMBER = re.compile(
    r"<\s*answer\b[^>]{0,80}>\s*+(" + _SCIENTIFIC.pattern + r")(?:[^\d<][^<]*)?<\s*/\s*answer\s*>",
    re.IGNORECASE,
)
_THINK_END = re.compile(r"</\s*think\s*>", re.IGNORECASE)
_THINK_START = re.compile(r"<\s*think\s*>", re.IGNORECASE)
_ANSWER_START = re.compile(r"<\s*answer\b[^>]{0,80}>", re.IGNORECASE)
_ANSWER_END = re.compile(r"<\s*/\s*answer\s*>", re.IGNORECASE)


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def lmms_number(text: str) -> float | None:
    """lmms-eval 0.7.3: the first number, in digits or in English words, anywhere in the text.

    Known oddities, kept: "1e1" is 1, ".5" is 5, "1/2" is 1, "1,5" is 1.
    """
    lowered = text.strip().lower()
    digits = _PLAIN.search(lowered)
    start, run = _first_word_run(lowered)
    if digits is not None and (start is None or digits.start() < start):
        return _finite(digits[0])
    return _value_of(run)


def _first_word_run(text: str) -> tuple[int | None, list[str]]:
    """Where the first number words stand, and the words; "and" may stand between them."""
    start: int | None = None
    run: list[str] = []
    for match in _WORD.finditer(text):
        word = match[0]
        if word in _WORD_VALUES:
            start = match.start() if start is None else start
            run.append(word)
        elif start is not None and word != "and":
            break
    return start, run


def _value_of(words: list[str]) -> float | None:
    """The value of number words: ["three", "hundred", "twenty", "one"] is 321."""
    if not words:
        return None
    total = current = 0.0
    for word in words:
        value = _WORD_VALUES[word]
        if word == "hundred":
            current = max(current, 1.0) * value
        elif word == "thousand":
            total, current = total + max(current, 1.0) * value, 0.0
        else:
            current += value
    return total + current if math.isfinite(total + current) else None


def vlmevalkit_number(text: str) -> float | None:
    """VLMEvalKit, August 2026: the number in an answer tag, else the last one behind the thinking,
    else the last one at all; number words up to twenty are read as digits.

    Known oddities, kept: "20 m^2" is 2, "1,5" is 5, "twenty-one" is -1.
    """
    cleaned = _ZERO_WIDTH.sub("", text.strip())
    cleaned = _SMALL_WORD.sub(lambda word: str(_UNITS.index(word[0].lower())), cleaned)
    tagged = _TAGGED_NUMBER.search(cleaned)
    if tagged is not None:
        return _finite(tagged[1])
    for part in (after_thinking(cleaned), cleaned):
        numbers = _SCIENTIFIC.findall(part)
        if numbers:
            return _finite(numbers[-1])
    return None


def after_thinking(text: str) -> str:
    """What stands behind the last closing think tag, else behind the last opening one, else all."""
    for tag in (_THINK_END, _THINK_START):
        found = list(tag.finditer(text))
        if found:
            return text[found[-1].end() :].strip()
    return text


# Ours. -------------------------------------------------------------------------------------------

#: Nobody states a number in a page of text; longer answers state none.
READ_CHARS = 4_000
_EXPONENT = re.compile(r"\^\s*\d+|[²³]|(?<=\bm)[23]\b|(?<=\b[kcm]m)[23]\b")
_STATED = re.compile(
    r"(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    r"|(?P<grouped>(?:(?<![\d.])[-+])?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,]))"
    r"|(?P<comma>(?:(?<![\d.])[-+])?\d+,\d+)"
    r"|(?P<plain>(?:(?<![\d.])[-+])?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?)"
)


def final_part(text: str) -> str:
    """What an answer concludes with: inside its last answer tag, else behind its thinking."""
    said = after_thinking(text)
    starts = list(_ANSWER_START.finditer(said))
    if starts:
        inside = said[starts[-1].end() :]
        end = _ANSWER_END.search(inside)
        said = inside[: end.start()] if end else inside
    return said.strip()


def stated_number(text: str) -> float | None:
    """The one number that an answer states; None where it states none, or several that differ.

    Reads digits and English words, exponents (1e1), leading points (.5), fractions (1/2), grouped
    thousands (1,200) and decimal commas (1,5); the exponent of a unit (m^2) is no number.
    """
    said = final_part(text)
    if len(said) > READ_CHARS:
        return None
    said = _EXPONENT.sub(" ", said)
    values = {_stated_value(match) for match in _STATED.finditer(said)}
    values |= {_value_of(run) for run in _word_runs(said.lower())}
    return values.pop() if len(values) == 1 else None


def _stated_value(match: re.Match[str]) -> float | None:
    if match["top"] is not None:
        bottom = float(match["bottom"])
        return None if bottom == 0 else _finite(str(float(match["top"]) / bottom))
    if match["grouped"] is not None:
        return _finite(match["grouped"].replace(",", ""))
    if match["comma"] is not None:
        return _finite(match["comma"].replace(",", "."))
    return _finite(match["plain"])


def _word_runs(text: str) -> list[list[str]]:
    """Number words that belong together: parted by spaces, hyphens and "and" only."""
    runs: list[list[str]] = []
    end = -1
    for match in _WORD.finditer(text):
        if match[0] not in _WORD_VALUES:
            continue
        if runs and re.fullmatch(r"[\s-]*(?:and)?[\s-]*", text[end : match.start()]):
            runs[-1].append(match[0])
        else:
            runs.append([match[0]])
        end = match.end()
    return runs


NumberRule = Callable[[str], float | None]
#: Scorer id -> how it finds the number. The first is the headline, the last is ours.
NUMBER_RULES: dict[str, NumberRule] = {
    "vsi-mra/official-2024": official_number,
    "vsi-mra/lmms-eval-0.7.3": lmms_number,
    "vsi-mra/vlmevalkit-2026-08": vlmevalkit_number,
    "vsi-mra/stillroom-1": stated_number,
}
