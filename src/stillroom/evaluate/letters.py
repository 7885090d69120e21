"""Which option an answer to a choice question names: the rules of the published scorers, and ours.

Each function takes the answer and the options' texts in order and gives a capital letter, or None
where it finds none. What a rule gets wrong is part of the rule and is kept under its name; the
stricter rule of ours stands in the second column of every table. All are total and take time
linear in the answer. VLMEvalKit's rules are in ``letters_vlmevalkit``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from stillroom.evaluate.letters_vlmevalkit import can_infer, spatial_match
from stillroom.evaluate.numbers import READ_CHARS, final_part
from stillroom.text.answers import option_index, words

LetterRule = Callable[[str, Sequence[str]], str | None]


def first_piece(text: str) -> str:
    """VSI-Bench, official-2024: the first space-separated piece without trailing full stops.

    Whatever it is: "(A)" stays "(A)", which is wrong under this rule.
    """
    return text.split(" ", 1)[0].rstrip(".").strip()


def vsi_letter(text: str, options: Sequence[str]) -> str | None:
    """The first piece where it is a letter of an option; VSI-Bench compares without case."""
    piece = first_piece(text).upper()
    return piece if piece in _letters_of(options) else None


def _letters_of(options: Sequence[str]) -> str | list[str]:
    return list(string.ascii_uppercase[: len(options)])


_THREEDSR = tuple(
    re.compile(pattern)
    for pattern in (
        r"^([A-D])[.\s)]",
        r"^([A-D])$",
        r"[Aa]nswer[:\s]+([A-D])",
        r"[Tt]he answer is[:\s]+([A-D])",
        r"[Mm]y answer is[:\s]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\.",
        r"\b([A-D])\b",
    )
)


def threedsr_letter(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval 0.7.3 on 3DSRBench: eight patterns in turn, capitals A to D only."""
    return _first_of(_THREEDSR, text.strip())


def _first_of(patterns: Sequence[re.Pattern[str]], text: str) -> str | None:
    for pattern in patterns:
        found = pattern.search(text)
        if found:
            return found[1].upper()
    return None


def blink_letter(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval 0.7.3 on BLINK: a short first line, the last "answer is X", the last "(X)", or the
    letter that the answer opens with; only letters that the question has.

    Known oddity, kept: with two options "Both A and C" opens with B.
    """
    letters = "".join(_letters_of(options)) or string.ascii_uppercase
    text = text.strip()
    first_line = text.split("\n", 1)[0].strip()
    if len(first_line) <= 4:
        alone = re.match(rf"\(?([{letters}])\)?[.\s:,)]*$", first_line, re.IGNORECASE)
        if alone:
            return alone[1].upper()
    said = rf"answers?(?:\s+is)?\s*(?:[:\-]\s*)?\(?([{letters}])\)?(?![A-Za-z])"
    for pattern, flags in ((said, re.IGNORECASE), (rf"\(([{letters}])\)", 0)):
        found = re.findall(pattern, text, flags)
        if found:
            return str(found[-1]).upper()
    opening = re.match(rf"[(\s]*([{letters}])", text, re.IGNORECASE)
    return opening[1].upper() if opening else None


def cvbench_letter(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval 0.7.3 on CV-Bench: the letter that the answer opens with, whatever word it is of.

    Known oddity, kept: "The answer is A" is T.
    """
    opening = re.match(r"[(\s]*([A-Z])", text.strip(), re.IGNORECASE)
    return opening[1].upper() if opening else None


_MMVP = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^\s*\(?([AB])\)?\.?\s*$",
        r"^\s*\(?([AB])\)?[.\s]",
        r"answer\s+is\s+\(?([AB])\)?",
        r"option\s+\(?([AB])\)?",
        r"\(?([AB])\)?(?:\s|$)",
        r"\A([AB])",
    )
)


def mmvp_letter(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval 0.7.3 on MMVP: patterns in turn, A and B only.

    Known oddity, kept: the last letter of a word counts, so "a slab" is B.
    """
    return _first_of(_MMVP, text.strip())


_VSTAR = tuple(
    re.compile(pattern)
    for pattern in (
        r"^([A-D])",
        r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
)


def vstar_letter(text: str, options: Sequence[str]) -> str | None:
    """lmms-eval 0.7.3 on V*: patterns in turn on the text in capitals, then an only A, B, C or D.

    Known oddity, kept: an answer that begins with one of these letters is that letter, so
    "Brown" is B.
    """
    upper = text.strip().upper()
    found = _first_of(_VSTAR, upper)
    if found:
        return found
    letters = re.findall(r"[A-D]", upper)
    return letters[0] if len(letters) == 1 else None


# Ours. -------------------------------------------------------------------------------------------

_LONE = re.compile(r"[\s*_`\"'(\[]*([A-Za-z])[\s*_`\"')\].:,]*")
_LABEL = re.compile(r"[\s*_`]*(?:\(([A-Z])\)|([A-Z])[.):])(?=\s|\*|$)")
_SAID = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*(?:[:\-]\s*)?[(*]*([A-Z])(?![\w'])")
# "A chair" is no letter, "A or B" are two.
_CAPITAL = re.compile(r"(?<![\w'])([A-Z])(?![\w'])(?!\s+(?!(?:and|or|nor)\b)[a-z])")
_DENIED = re.compile(r"\b(?i:not|isn't|isn’t|neither|nor|than)\s+[(*]*([A-Z])(?![\w'])")


def stated_letter(text: str, options: Sequence[str]) -> str | None:
    """The one option that an answer states, by letter or by text; None where that is not clear.

    Only the conclusion is read (``final_part``). In turn: the letter alone; a label before the
    text ("B. sofa"), unless that text is another option's; "the answer is B"; a single capital
    that is no article; an option's own words. An answer that names two options names none.
    """
    said = final_part(text)
    if not said or len(said) > READ_CHARS:
        return None
    known = _letters_of(options)
    alone = _LONE.fullmatch(said)
    if alone:
        return alone[1].upper() if alone[1].upper() in known else None
    label = _LABEL.match(said)
    if label:
        return _checked_label(label[1] or label[2], said[label.end() :], options)
    for pattern in (_SAID, _CAPITAL):
        denied = set(_DENIED.findall(said))
        # A letter that the question does not have still makes two: "Both A and E" is unclear.
        named = set(pattern.findall(said)) - denied - {"I"}
        if len(named) > 1:
            return None
        if named & set(known):
            return named.pop()
    if not words(said):
        return None
    index = option_index(said, options)
    return None if index is None else known[index]


def _checked_label(letter: str, rest: str, options: Sequence[str]) -> str | None:
    """The letter, unless the words behind it are those of another option."""
    if letter not in _letters_of(options):
        return None
    meant = option_index(rest, options) if words(rest) else None
    agrees = meant is None or meant == ord(letter) - ord("A")
    return letter if agrees else None


#: Scorer id -> its rule.
LETTER_RULES: dict[str, LetterRule] = {
    "vsi-letter/official-2024": vsi_letter,
    "3dsrbench-letter/lmms-eval-0.7.3": threedsr_letter,
    "blink-letter/lmms-eval-0.7.3": blink_letter,
    "cvbench-letter/lmms-eval-0.7.3": cvbench_letter,
    "mmvp-letter/lmms-eval-0.7.3": mmvp_letter,
    "vstar-letter/lmms-eval-0.7.3": vstar_letter,
    "spatial-letter/vlmevalkit-2026-08": spatial_match,
    "infer-letter/vlmevalkit-2026-08": can_infer,
    "letter/stillroom-1": stated_letter,
}
