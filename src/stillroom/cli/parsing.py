"""Options of a verb from words, complaints in one sentence, and what is printed."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from stillroom.console import process_number
from stillroom.records import BadInputError

ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Photos = Annotated[Path, tyro.conf.arg(metavar="PHOTOS")]
Text = Annotated[str, tyro.conf.arg(metavar="QUESTION")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
RecipeName = Annotated[str, tyro.conf.arg(metavar="RECIPE")]
SuiteName = Literal[
    "vsibench",
    "vsibench-debiased",
    "3dsrbench",
    "spatialbench",
    "scanqa",
    "sqa3d",
    "scan2cap",
    "blink",
    "cvbench",
    "mmvp",
    "vstar",
    "mmstar",
]
Prompt = Literal["official", "plain"]


def parse(cls: Any, words: Sequence[str], prog: str) -> Any:
    """Options of one verb as an object; the parser's complaint as one sentence."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, args=list(words), prog=f"stillroom {prog}")
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInputError(_one_sentence(complaint.getvalue(), prog)) from None


def _one_sentence(boxed: str, prog: str) -> str:
    """What the option parser drew as a box, as one line: the complaint without its help."""
    kept: list[str] = []
    # The first line is the box's title; frames are missing where the terminal has no UTF-8.
    for line in (line[1:].rstrip("│ ") for line in boxed.splitlines()[1:]):
        if kept and not line.strip(" ─-"):  # below the rule stands only where to find help
            break
        # Eight spaces in: the help text of an option that was named before.
        if line.strip(" ─-╰╯") and not line.startswith(9 * " "):
            kept.append(line.strip())
    text = re.sub(r"\s+", " ", " ".join(kept)).strip()
    return f"{text.rstrip('.:;')}; see stillroom {prog} --help"


def unknown(what: str, given: str, known: Mapping[str, Any], *, help_from: str = "") -> str:
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
    return f"unknown {what} {given!r}{hint}" + (f" See {help_from}" if help_from else "")


def say(text: str) -> None:
    if not process_number():  # under torchrun the first process speaks for all
        sys.stdout.write(text + "\n")
