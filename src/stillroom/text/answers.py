"""What an answer says: which option, which letter, which number. Total: no text makes it raise."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ARTICLES = frozenset({"a", "an", "the"})
_LETTER_LABEL = re.compile(r"\s*([A-Z])[.)]\s+\S")
# A whole answer that is only a letter, as people and models write it: "B", "(b)", "B.".
_LONE_LETTER = re.compile(r"\s*\(?([A-Za-z])\)?[.:)]?\s*")
_NEGATIONS = frozenset({"not", "isn't", "isn’t", "neither", "never"})
# Longer answers are read up to here: nobody names the option after a page of text.
_READ_CHARS = 4_000


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    return [word for word in _WORDS.findall(text.casefold()) if word not in _ARTICLES]


def lettered(options: Sequence[str]) -> bool:
    """Whether the options carry their letters, as in VSI-Bench: "A. chair", "B. lamp"."""
    return bool(options) and all(
        (match := _LETTER_LABEL.match(option)) is not None and match[1] == chr(ord("A") + i)
        for i, option in enumerate(options)
    )


def spoken(options: Sequence[str], index: int) -> str:
    """How the option is answered: by its letter where options carry letters, else by its text."""
    return chr(ord("A") + index) if lettered(options) else options[index]


def option_index(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that ``text`` means, or None when it names none or more than one.

    Tried in order: the option alone; the option before a comma, stop or line end; the one option
    mentioned without "not" before it; a lone letter. Case, punctuation and articles do not count.
    """
    text = text[:_READ_CHARS]
    wanted = [words(option) for option in options]
    lead = words(re.split(r"[,.;:!?\n]", text.strip(), maxsplit=1)[0])
    for said in (words(text), lead):
        same = [i for i, option in enumerate(wanted) if option and option == said]
        if len(same) == 1:
            return same[0]
    mentioned = _mentions(words(text), wanted)
    if len(mentioned) == 1:
        return mentioned.pop()
    lone = _LONE_LETTER.fullmatch(text)
    if lone is not None and not mentioned:
        index = ord(lone[1].upper()) - ord("A")
        return index if index < len(options) else None
    return None


def _mentions(said: list[str], options: list[list[str]]) -> set[int]:
    """Options that stand in the text; a longer option hides the shorter ones inside it."""
    found: set[int] = set()
    by_length = sorted(range(len(options)), key=lambda i: -len(options[i]))
    start = 0
    while start < len(said):
        step = 1
        for i in by_length:
            size = len(options[i])
            if size and said[start : start + size] == options[i]:
                # "not to the left" reaches two words back.
                if not _NEGATIONS.intersection(said[max(0, start - 2) : start]):
                    found.update(k for k, same in enumerate(options) if same == options[i])
                step = size
                break
        start += step
    return found


def official_letter(text: str) -> str:
    """VSI-Bench, official-2024: the first space-separated piece, trailing full stops removed.

    Upper case; whatever it is, so "(A)" stays "(A)" and is wrong under this rule.
    """
    return text.split(" ", 1)[0].rstrip(".").strip().upper()


def official_number(text: str) -> float | None:
    """VSI-Bench, official-2024: the first space-separated piece as a plain float, or None.

    "three", "2.4m" and "There are 4" give None; infinity and not-a-number count as None.
    """
    piece = text.split(" ", 1)[0].rstrip(".").strip()
    try:
        number = float(piece)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
