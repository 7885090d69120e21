"""VLMEvalKit's two rules for the letter of an option, as of August 2026.

``spatial_match`` serves its spatial benchmarks (VSI-Bench among them), ``can_infer`` the others
(3DSRBench, MMStar) before a language model is asked. Rewritten so that long answers take linear
time; what they find is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillroom.evaluate.numbers import after_thinking

_ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\ufeff]")
_TAGGED = re.compile(r"<\s*answer\b[^>]{0,80}>\s*+([A-J])", re.IGNORECASE)
_ANSWER_END = re.compile(r"<\s*/\s*answer\s*>", re.IGNORECASE)
_BEFORE_END = tuple(
    re.compile(rf"(?<![A-Za-z])([A-J])\s*(?:[)\]}}）】]\s*)?</\s*{tag}\s*>", re.IGNORECASE)
    for tag in ("answer", "think")
)
_TAIL_CHARS, _TAIL_LINES = 800, 6

# Lines that repeat the question's options say nothing.
_OPTION_LINE = re.compile(r"[*_>\-\s]*(?:option|选项)\s+[A-J]\s*[:：]", re.IGNORECASE)
_MARKS = r"[*_`>（）\[\]【】()]"
_LETTER_LINE = re.compile(rf"{_MARKS}*+\s*+([A-Fa-f])\s*+[*_`（）\[\]【】()]*+\s*+")
_LABELLED_LINE = re.compile(r"([A-F])\s*[.．:：)\]】、-]\s+", re.IGNORECASE)
# A capital that is no part of a word; a mark may follow it, then space, a stop or the end.
_TOKEN = re.compile(r"(?<![A-Za-z])([A-F])(?=[*_`）\]})]*+(?:$|[\s.,:;!?)\]】》」』，。；、：）]))")
_CONCLUSION = re.compile(
    r"(?:final\s*answer|the\s*answer\s*is|answer(?:\s*is)?|correct\s*answer"
    r"|答案|最终答案|结论|所以|因此|我选(?:择)?|选择|选)"
    r"\s*+(?:[:：>＝=]\s*+)?(?:[(\[{（【]\s*+)?([A-J])\b",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def spatial_match(text: str, options: Sequence[str]) -> str | None:
    """The letter by seven steps, from an answer tag to a capital that stands alone.

    Known oddity, kept: the steps that read single lines take A to F whatever the question has, the
    others only the question's own letters. So "Both A and C" is A where there are two options.
    """
    own = "ABCDEFGHIJ"[: len(options)] or "ABCDEF"
    text = _ZERO_WIDTH.sub("", text.strip())
    tail = text[-_TAIL_CHARS:]
    found = _in_tag(text)
    for pattern in _BEFORE_END:
        found = found or _first_own(pattern, tail, own)
    for part in (after_thinking(text), tail):
        found = found or _from_lines(part.splitlines()[-_TAIL_LINES:])
    found = found or _first_own(_CONCLUSION, text, own)
    if found:
        return found.upper()
    kept = [line for line in text.splitlines() if not _OPTION_LINE.match(line)]
    capitals = set(_CAPITAL.findall("\n".join(kept))) & set(own)
    return capitals.pop() if len(capitals) == 1 else None


def _first_own(pattern: re.Pattern[str], text: str, own: str) -> str | None:
    return next((m[1] for m in pattern.finditer(text) if m[1].upper() in own), None)


def _in_tag(text: str) -> str | None:
    """The letter that opens an answer tag which is closed somewhere behind it."""
    ends = list(_ANSWER_END.finditer(text))
    if not ends:
        return None
    for opening in _TAGGED.finditer(text):
        if opening.end() <= ends[-1].start():
            return opening[1]
    return None


def _from_lines(lines: Sequence[str]) -> str | None:
    """The letter of the last line that names exactly one."""
    for line in reversed([line.strip() for line in lines]):
        if not line or _OPTION_LINE.match(line):
            continue
        named = _LETTER_LINE.fullmatch(line) or _LABELLED_LINE.match(line)
        if named:
            return named[1]
        tokens = set(_TOKEN.findall(line))
        if len(tokens) == 1:
            return tokens.pop()
    return None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)


def can_infer(text: str, options: Sequence[str]) -> str | None:
    """The only option letter among the last five words, else "answer is X", else the only option
    whose text the answer holds (answers up to twice as long as all options together).

    "Z" stands for a refusal.
    """
    if "Failed to obtain answer via API" in text:
        return _by_text(text, options)
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    letters = [chr(ord("A") + i) for i in range(len(options))]
    pieces = text.translate(_SIGNS).split()
    present = [letter for letter in letters if letter in pieces]
    if len(present) == 1 and pieces.index(present[0]) > len(pieces) - 5:
        return present[0]
    if not present and "Z" in pieces:
        return "Z"
    stated = _STATED.search(text)
    if stated and stated[1].upper() in letters:
        return stated[1].upper()
    return _by_text(text, options)


def _by_text(text: str, options: Sequence[str]) -> str | None:
    if len(text) > 2 * sum(len(option) for option in options):
        return None
    said = text.lower()
    held = [i for i, option in enumerate(options) if option.lower() in said]
    return chr(ord("A") + held[0]) if len(held) == 1 else None
