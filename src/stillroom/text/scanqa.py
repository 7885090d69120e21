"""How ScanQA and SQA3D answers are cleaned and matched before anything is scored.

The order of the steps is part of the rule: it decides what "let 2" or "The the" become. Recorded
pairs of the public evaluation hold it fixed (``stillroom verify`` on ``llava3d/text``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Typing errors of the annotators, whole words, in the order in which they are mended.
_MENDED = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
}
_NUMBERS = [
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
_SPELT = {**{str(n): word for n, word in enumerate(_NUMBERS)}, "23": "twenty-three", "none": "zero"}

_ODD_SIGNS = re.compile(r"[^a-z0-9,'\s:-]+")
_SPLIT_CLOCK = re.compile(r"\bo' +clock\b")
_DIGIT_AFTER_WORD = re.compile(r"\b([A-Za-z]+)\d\b")
_WORD = re.compile(r"\b(?:" + "|".join(sorted(_MENDED, key=len, reverse=True)) + r")\b")
_NUMBER = re.compile(r"\b(?:" + "|".join(sorted(_SPELT, key=len, reverse=True)) + r")\b")


def clean_answer(text: str) -> str:
    """The answer as both benchmarks compare it: lower case, few signs, small numbers in words."""
    text = re.sub(" {2,}", " ", text.lower().strip(" "))
    text = _ODD_SIGNS.sub("", text)
    text = _WORD.sub(lambda found: _MENDED[found[0]], text)
    text = _SPLIT_CLOCK.sub("o'clock", text)
    text = _NUMBER.sub(lambda found: _SPELT[found[0]], text)
    text = _DIGIT_AFTER_WORD.sub(r"\1", text)
    # One article after the other, so that "a the chair" loses both and "the the chair" one.
    for article in ("a", "an", "the"):
        text = re.sub(rf"\b{article} ([A-Za-z]+)", r"\1", text)
    return re.sub(r"\bbackwards\b", "backward", text)


def matches(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """Exact and refined match of a cleaned prediction with cleaned references.

    Refined also counts when, without any whitespace, one contains the other; so an empty
    prediction always matches.
    """
    exact = prediction in references
    said = "".join(prediction.split())
    wanted = ["".join(reference.split()) for reference in references]
    return exact, exact or any(said in truth or truth in said for truth in wanted)
