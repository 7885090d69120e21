"""Where a question names the things of a room, and the tokens that their names are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from stillroom.text.tokenizer import Tokenizer


def mentions(text: str, names: Mapping[str, int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """(place of a token, object) for all tokens of every name in ``text``, in reading order.

    ``names`` gives the object of each name. Of two names that fit, the longer one is meant.
    """
    if not names:
        return []
    longest_first = sorted(names, key=len, reverse=True)
    said = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b")
    ends = tokenizer.token_ends(text)
    return [
        (place, names[m[0]])
        for m in said.finditer(text)
        for place, end in enumerate(ends)
        if m.start() < end <= m.end()
    ]


def word_tokens(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each word as it stands inside a sentence."""
    return [tokenizer.encode_inside(word) for word in words]
