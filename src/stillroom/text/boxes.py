"""Boxes that a model says in words: centre and size in metres among other text.

LLaVA-3D writes ``[cx, cy, cz, dx, dy, dz]``, axis-aligned in its own frame; a sampled answer may
lose a bracket, a comma or its end. Total: no text makes these raise.
"""

from __future__ import annotations

import math
import re

import numpy as np

from stillroom.records import OrientedBox

_NUMBER = r"[-+−]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,2})?(?:\s?m\b)?"
_RUN = re.compile(
    rf"(?<![\w.])[\[(<{{]{{0,2}}\s{{0,4}}{_NUMBER}(?:(?:\s{{0,4}},\s{{0,4}}|\s{{1,4}}){_NUMBER})*\s{{0,4}}[\])>}}]{{0,2}}(?!\w)"
)
_LEAD = re.compile(
    r"\s*\b(?:it|the object|this object)?\s*(?:is|can be)?\s*"
    r"(?:localized|localised|located)\s+(?:at|in)\s*:?\s*$",
    re.IGNORECASE,
)
# Longer answers are read up to here.
_READ_CHARS = 4_000


def boxes_said(text: str) -> list[OrientedBox]:
    """Every box that the text names, axis-aligned, in reading order.

    Six numbers in a row are centre and full edge lengths [m]; of nine the last three, angles of a
    formatter that the release does not use, are left out. Other counts are no box, and neither is
    a size that is not positive.
    """
    return [box for _, box in _found(text[:_READ_CHARS])]


def caption_and_box(text: str) -> tuple[str, OrientedBox | None]:
    """A caption without its "It is localized at [...]", and the first box; None if there is none.

    The box may stand behind the caption or before it.
    """
    text = text[:_READ_CHARS]
    found = _found(text)
    if not found:
        return text.strip(), None
    match, box = found[0]
    before = _LEAD.sub("", text[: match.start()])
    after = text[match.end() :].lstrip(" \t\n.,;:")
    return " ".join(part for part in (before.strip(), after.strip()) if part), box


def _found(text: str) -> list[tuple[re.Match[str], OrientedBox]]:
    found = []
    for match in _RUN.finditer(text):
        numbers = re.findall(_NUMBER, match[0])
        if len(numbers) not in (6, 9):
            continue
        values = [float(number.replace("−", "-").rstrip("m ")) for number in numbers[:6]]
        center, size = np.array(values[:3]), np.array(values[3:])
        if all(map(math.isfinite, values)) and (size > 0).all():
            found.append((match, OrientedBox(center=center, size=size, rotation=np.eye(3))))
    return found
