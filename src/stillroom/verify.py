"""Ports against recorded outputs: what was compared, and how far off the worst value is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One recorded output beside ours. ``worst`` is the largest absolute difference."""

    name: str
    worst: float
    ok: bool
    # Why it was not compared (an optional tool is missing); empty if it was.
    skipped: str = ""
