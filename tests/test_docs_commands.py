"""Every ``stillroom ...`` command in the documents is one that the command line understands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillroom import cli
from stillroom.cli import parsing
from stillroom.records import BadInputError

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("src/stillroom/models/*/README.md"),
    ]
)
#: Of a code block all lines, a continued one with those that follow; or what backticks enclose.
BLOCK = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"^stillroom (?:.*\\\n)*.*$", re.MULTILINE)
MENTION = re.compile(r"`(stillroom [^`]+)`")
#: What a word in capitals of a usage line stands for, where any text would not do.
STANDS_FOR = {
    **dict.fromkeys(("N", "S", "COUNT", "SEED"), "1"),
    "RECIPE": "mini_cpu",
    "SUITE": "vsibench",
}


def commands_in(page: str) -> list[str]:
    """The commands of the code blocks; of optional parts all, of alternatives the first."""
    return [_plain(line) for block in BLOCK.findall(page) for line in LINE.findall(block)]


def mentions_in(page: str) -> list[str]:
    """The commands that stand in a sentence: they may leave options out."""
    return [_plain(text) for text in MENTION.findall(BLOCK.sub("", page))]


def _plain(text: str) -> str:
    text = re.sub(r"[\[\]]", " ", text.replace("\\\n", " "))
    words = [
        STANDS_FOR.get(word, word.split("|")[0])
        for word in shlex.split(text, comments=True)
        if word != "..."
    ]
    return shlex.join(words[1:])


def all_of(find: Callable[[str], list[str]]) -> list[tuple[str, str]]:
    return sorted(
        {
            (page.relative_to(ROOT).as_posix(), command)
            for page in PAGES
            for command in find(page.read_text())
        }
    )


class ParsedError(Exception):
    """The options were understood; nothing more is wanted."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a command as far as its options are read."""
    parse = parsing.parse

    def stop(*given: Any) -> None:
        parse(*given)
        raise ParsedError

    monkeypatch.setattr(parsing, "parse", stop)

    def run(command: str) -> None:
        words = shlex.split(command)
        known = [n for n in (2, 1) if " ".join(words[:n]) in cli.VERBS]
        assert known, f"unknown verb: {command}"
        length = known[0]
        # Help is shown and ends it, too.
        with pytest.raises(SystemExit if "--help" in words else ParsedError):
            cli.VERBS[" ".join(words[:length])](words[length:])

    return run


@pytest.mark.parametrize(("page", "command"), all_of(commands_in))
def test_a_command_in_the_documents_is_understood(
    page: str, command: str, parse_only: Callable[[str], None]
) -> None:
    parse_only(command)


@pytest.mark.parametrize(("page", "command"), all_of(mentions_in))
def test_a_command_in_a_sentence_has_nothing_unknown(
    page: str, command: str, parse_only: Callable[[str], None]
) -> None:
    try:
        parse_only(command)
    except BadInputError as error:
        if not str(error).startswith(("Missing", "The following arguments are required")):
            raise


def test_commands_are_found_with_their_options_and_continued_lines() -> None:
    page = (
        "stillroom is prose. See `stillroom verify DIR` and\n```\nstillroom label DIR --teacher "
        "NAME \\\n  --out X [--workers N] [--layout a|b]  # once\n```\n"
    )
    assert mentions_in(page) == ["verify DIR"]
    assert commands_in(page) == ["label DIR --teacher NAME --out X --workers 1 --layout a"]
    assert len(all_of(commands_in)) >= 20
    assert {page for page, _ in all_of(commands_in)} >= {"README.md", "docs/teachers.md"}


@pytest.mark.parametrize(
    "command",
    ["scenes make --count 3 --seed 1 --out o --cuont 3", "scenes mkae", "labels look DIR"],
)
def test_a_command_that_has_rotted_is_noticed(
    command: str, parse_only: Callable[[str], None]
) -> None:
    with pytest.raises((BadInputError, AssertionError)):
        parse_only(command)
