"""A table made once, as Markdown and as HTML; cells are plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, a sentence on how to read it, column names, and rows of text."""

    title: str
    note: str = ""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self, *, level: int = 2) -> str:
        """Heading, note and table; empty where there is no row."""
        if not self.rows:
            return ""
        lines = [f"{'#' * level} {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        lines += [_line(self.head), _line(["---"] * len(self.head))]
        return "\n".join([*lines, *(_line(row) for row in self.rows)]) + "\n"

    def html(self) -> str:
        """Note and table; empty where there is no row."""
        if not self.rows:
            return ""
        heads = "".join(f"<th>{escape(cell)}</th>" for cell in self.head)
        body = "".join(
            f'<tr><th class="rowname">{escape(row[0])}</th>'
            + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        note = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'{note}<div class="wide"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


def _line(cells: Sequence[str]) -> str:
    safe = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(safe)} |"


def share(found: Mapping[str, Any] | None) -> str:
    """ "84.2 % (81.0 to 87.1)" of a fraction with its interval; "-" where there is none."""
    if found is None or found["value"] is None:
        return "-"
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def number(found: Mapping[str, Any] | None, *, places: int = 3) -> str:
    """ "0.412 (0.400 to 0.425)" of a figure with its interval; "-" where there is none."""
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value']:.{places}f} ({found['low']:.{places}f} to {found['high']:.{places}f})"


def points(found: Mapping[str, Any] | None) -> str:
    """ "+1.2 (-0.4 to 2.8)" in percentage points; "-" where there is none."""
    if found is None:
        return "-"
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def seen_from(found: Mapping[str, Any]) -> str:
    """The smallest difference that would have been seen, in percentage points."""
    return "-" if found["detectable"] is None else f"{100 * found['detectable']:.1f}"


def probability(p: float) -> str:
    """A p-value with as many digits as it means something."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
