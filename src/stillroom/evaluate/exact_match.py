"""Exact match as ScanQA and SQA3D are scored in the LEO and LLaVA-3D line: EM@1 and refined EM.

Trap of the original: an empty answer is a substring of everything, so it is right by refined EM.
``em_refined`` keeps that for comparison; in ``em_refined_corrected`` an answer without a letter or
digit is wrong, and a reference without one holds nothing. Nothing else differs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.text.scanqa import clean_answer, matches

EM_ID = "em/llava3d-leo"
EM_REFINED_ID = "em-refined/llava3d-leo"
EM_CORRECTED_EM_ID = "em/stillroom-1"
EM_CORRECTED_ID = "em-refined/stillroom-1"

#: SQA3D's types of question, 0 to 5.
SQA3D_TYPES = ("what", "is", "how", "can", "which", "other")

_SAYS_SOMETHING = re.compile(r"[^\W_]")


def says_something(text: str) -> bool:
    """Whether an answer holds a letter or a digit: one that does not is empty."""
    return bool(_SAYS_SOMETHING.search(text))


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One answer after cleaning, and by which of the three rules it is right."""

    cleaned: str
    references: tuple[str, ...]
    em: bool
    em_refined: bool
    em_refined_corrected: bool


def exact_match(text: str, references: Sequence[str]) -> Matched:
    """Match an answer with its references, both cleaned by the benchmarks' rules."""
    cleaned = clean_answer(text)
    wanted = tuple(clean_answer(reference) for reference in references)
    exact, refined = matches(cleaned, wanted)
    saying = [one for one in wanted if says_something(one)]
    return Matched(
        cleaned=cleaned,
        references=wanted,
        em=exact,
        em_refined=refined,
        em_refined_corrected=says_something(cleaned) and matches(cleaned, saying)[1],
    )


def sqa3d_type(question: str) -> int:
    """The type of an SQA3D question, 0..5 as in ``SQA3D_TYPES``: by how it begins, as in LEO."""
    begin = question.lstrip().lower()
    return next((i for i, word in enumerate(SQA3D_TYPES[:5]) if begin.startswith(word)), 5)
