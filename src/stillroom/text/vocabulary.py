"""Which token stands behind which id, and whether two vocabularies agree on it.

Logits can be handed from teacher to student only where an id means the same to both. Merges and
splitting rules are not compared: a label store keeps the teacher's own ids of every answer, so
that only their meaning counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import tokenizers

from stillroom.records import BadInputError, content_hash, require_file


class Match(Enum):
    """How a student's vocabulary stands to a teacher's; the value is the word people read."""

    #: The same token behind every id, and as many rows in both models.
    IDENTICAL = "identical"
    #: The same tokens, but one model has more rows than tokens; the rest names nothing.
    PADDED = "padded"
    #: One has all tokens of the other at the same ids, and more of its own.
    SUBSET = "subset"
    #: An id means one token here and another there.
    DIFFERENT = "different"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens in the order of their ids; None where an id names nothing.

    ``rows`` counts the logits of the model, which may be more than there are tokens.
    """

    tokens: tuple[str | None, ...]
    rows: int

    @classmethod
    def of(cls, ids: Mapping[str, int], *, rows: int | None = None) -> Vocabulary:
        """From token to id, as tokenizers give it; ``rows`` defaults to the ids in use."""
        size = max(ids.values(), default=-1) + 1
        tokens: list[str | None] = [None] * size
        for token, number in ids.items():
            tokens[number] = token
        return cls(tokens=tuple(tokens), rows=max(size, rows or 0))

    @classmethod
    def from_tokenizer_file(cls, file: Path, *, rows: int | None = None) -> Vocabulary:
        """From a ``tokenizer.json``.

        Raises:
            BadInputError: the file is missing or no tokenizer.
        """
        require_file(file, "tokenizer")
        try:
            found = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise BadInputError(f"{file} is no tokenizer ({error})") from None
        return cls.of(found.get_vocab(with_added_tokens=True), rows=rows)

    @cached_property
    def hash(self) -> str:
        """Names the tokens and their ids; the number of rows is left out."""
        return content_hash("" if token is None else f"+{token}" for token in self.tokens)

    def write(self) -> bytes:
        """As a JSON file holds it."""
        return (json.dumps({"rows": self.rows, "tokens": list(self.tokens)}) + "\n").encode()

    @classmethod
    def read(cls, file: Path) -> Vocabulary:
        """From a file that holds what ``write`` gave.

        Raises:
            BadInputError: the file is missing or holds something else.
        """
        try:
            record = json.loads(require_file(file, "vocabulary").read_text(encoding="utf-8"))
            return cls(tokens=tuple(record["tokens"]), rows=int(record["rows"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{file} is no vocabulary of ours ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two vocabularies match, and why, as a clause for an error message."""

    match: Match
    reason: str

    @property
    def logits_fit(self) -> bool:
        """Whether the teacher's logits may teach the student."""
        return self.match in (Match.IDENTICAL, Match.PADDED)


def compare(student: Vocabulary, teacher: Vocabulary) -> Comparison:
    """Tell identical, padded, subset and different vocabularies apart."""
    mine, theirs = _trimmed(student.tokens), _trimmed(teacher.tokens)
    shared = min(len(mine), len(theirs))
    # Where only one side names an id there is no quarrel; where both do they must agree.
    clash = next(
        (i for i in range(shared) if None not in (mine[i], theirs[i]) and mine[i] != theirs[i]),
        None,
    )
    if clash is not None:
        return Comparison(
            match=Match.DIFFERENT,
            reason=f"id {clash} is {mine[clash]!r} to the student and {theirs[clash]!r} to the "
            "teacher",
        )
    more, fewer = _only_in(mine, theirs), _only_in(theirs, mine)
    if more and fewer:
        return Comparison(
            match=Match.DIFFERENT,
            reason=f"{more} of the student's tokens are unknown to the teacher and {fewer} of the "
            "teacher's to the student",
        )
    if fewer:
        return Comparison(
            match=Match.SUBSET,
            reason=f"the student lacks {fewer} of the teacher's {_named(theirs)} tokens",
        )
    if more:
        return Comparison(
            match=Match.SUBSET,
            reason=f"the teacher lacks {more} of the student's {_named(mine)} tokens",
        )
    if student.rows != teacher.rows:
        return Comparison(
            match=Match.PADDED,
            reason=f"both name the same {_named(mine)} tokens; the student has {student.rows} rows "
            f"and the teacher {teacher.rows}",
        )
    return Comparison(match=Match.IDENTICAL, reason=f"both name the same {_named(mine)} tokens")


def _trimmed(tokens: Sequence[str | None]) -> Sequence[str | None]:
    """Without the unnamed ids at the end: they are padding, however they are written down."""
    end = len(tokens)
    while end and tokens[end - 1] is None:
        end -= 1
    return tokens[:end]


def _only_in(one: Sequence[str | None], other: Sequence[str | None]) -> int:
    return sum(
        token is not None and (i >= len(other) or other[i] is None) for i, token in enumerate(one)
    )


def _named(tokens: Sequence[str | None]) -> int:
    return sum(token is not None for token in tokens)
