"""What a benchmark is here: how its files are read, how it is asked, and how it is scored."""

from __future__ import annotations

import base64
import binascii
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.evaluate.suites.figures import Figures
from stillroom.records import BadInputError, Question, content_hash

#: What a reader makes of one line of a published file.
RowData = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One published question, and what its scorer and its scene need beside it.

    ``question.scene_id`` is the published name of the scene until a scene is bound to it.
    """

    question: Question
    # What only the scorer needs: qid, category, source ...
    details: Mapping[str, str] = field(default_factory=dict)
    # Encoded pictures where the benchmark brings its own; else the scene comes from elsewhere.
    images: tuple[bytes, ...] = ()
    # Where the frames or the video lie, relative to the data folder, without ending.
    media: str = ""


#: Column -> figure -> value: "official" as published, "corrected" without its traps.
Table = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One way of scoring: what is read in an answer, its score, the figures of a run."""

    # Figure, or how its name begins -> the scorer behind it, with its version; "item" for the
    # score of one answer, "" for all others.
    scorers: Mapping[str, str]
    # What the rule understood; None where it understood nothing.
    parse: Callable[[Item, str], str | None]
    # The score of one answer, 0..1.
    score: Callable[[Item, str], float]
    figures: Callable[[Sequence[Item], Sequence[str]], Figures]

    def scorer_of(self, figure: str) -> str:
        """The scorer behind a figure, by the longest name that it begins with."""
        fitting = [name for name in self.scorers if figure.startswith(name)]
        return self.scorers[max(fitting, key=len)]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark. Its first column is "official", the headline; the last is "corrected"."""

    name: str
    # Published file names, as patterns; the first that is there is read.
    files: tuple[str, ...]
    read: Callable[[Path], list[Item]]
    columns: Mapping[str, Column]
    prompt_id: str
    # Parts of a file's name and what stands there in the name of the file read beside it.
    beside: tuple[str, str] | None = None

    def read_files(self, data: Path) -> list[Path]:
        """Every published file that ``read`` reads, but for pictures."""
        files = find_files(data, self.files)
        if self.beside is not None:
            others = [path.with_name(path.name.replace(*self.beside)) for path in files]
            files += [path for path in others if path.is_file() and path not in files]
        return files

    def score(self, item: Item, text: str) -> float:
        """The headline's score of one answer, by the published rule."""
        return self.columns["official"].score(item, text)

    def table(self, items: Sequence[Item], answers: Sequence[str]) -> Table:
        """Every figure of every column."""
        return {
            name: {key: one.value for key, one in column.figures(items, answers).items()}
            for name, column in self.columns.items()
        }


#: The figures of a run from its items' scores.
FiguresOf = Callable[[Sequence[Item], Sequence[float]], Figures]


def item_column(
    scorer: str,
    parse: Callable[[Item, str], str | None],
    score: Callable[[Item, str], float],
    figures: FiguresOf,
) -> Column:
    """A column whose figures are made of its items' scores alone."""

    def of_answers(items: Sequence[Item], answers: Sequence[str]) -> Figures:
        return figures(items, [score(i, text) for i, text in zip(items, answers, strict=True)])

    return Column(scorers={"": scorer}, parse=parse, score=score, figures=of_answers)


def scenes_of(items: Sequence[Item]) -> list[str]:
    """The scene of each item."""
    return [item.question.scene_id for item in items]


def made_question(
    suite: str,
    published_id: str,
    scene: str,
    family: str,
    question: str,
    answer: str,
    *,
    options: Sequence[str] = (),
    references: Sequence[str] = (),
    asked_as: str = "",
    object_ids: Sequence[int] = (),
) -> Question:
    """A question of a benchmark; its id is a hash of suite, published id, scene and wording."""
    return Question(
        scene_id=scene,
        question_id=content_hash([suite, published_id, scene, question]),
        split="test",
        family=family,
        question=question,
        answer=answer,
        options=tuple(options),
        renderings=tuple(references),
        asked_as=asked_as,
        object_ids=tuple(object_ids),
    )


def find_files(data: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that fits anything; ``data`` may be such a file itself.

    Raises:
        BadInputError: nothing fits.
    """
    if data.is_file():
        return [data]
    for pattern in patterns:
        found = sorted(path for path in data.glob(pattern) if path.is_file())
        if found:
            return found
    raise BadInputError(f"{data} holds none of {', '.join(patterns)}")


def read_rows(path: Path) -> list[RowData]:
    """The rows of a .json, .jsonl, .txt (JSON), .tsv, .csv or .parquet file.

    Raises:
        BadInputError: the file cannot be read as what its ending says.
    """
    try:
        return _READERS[path.suffix.lower()](path)
    except KeyError:
        raise BadInputError(f"{path}: rows are read from {', '.join(_READERS)}") from None
    except (ValueError, pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f"{path} is not readable as {path.suffix} ({reason})") from None


def _json(path: Path) -> list[RowData]:
    found = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(found, dict):
        # SQA3D keeps its rows under one of these names.
        found = next((found[key] for key in ("questions", "annotations") if key in found), None)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("expected a list of objects")
    return found


def _json_lines(path: Path) -> list[RowData]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object a line")
    return rows


def _separated(path: Path) -> list[RowData]:
    # Pictures stand in these files as base64 and are longer than the reader's own limit.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as source:
        return list(csv.DictReader(source, delimiter="\t" if path.suffix == ".tsv" else ","))


def _parquet(path: Path) -> list[RowData]:
    return pq.read_table(path).to_pylist()


_READERS: dict[str, Callable[[Path], list[RowData]]] = {
    ".json": _json,
    ".txt": _json,
    ".jsonl": _json_lines,
    ".tsv": _separated,
    ".csv": _separated,
    ".parquet": _parquet,
}


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be there, as text.

    Raises:
        BadInputError: it is not; the message names the field.
    """
    value = row.get(name)
    if value is None:
        raise BadInputError(f"{where} has no {name!r}; it has {', '.join(sorted(row))}")
    return str(value)


def texts_of(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A list of a row as texts; empty where it is not there.

    Raises:
        BadInputError: it is no list.
    """
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise BadInputError(f"{where}: {name!r} must be a list, got {value!r}")
    return [str(one) for one in value]


def require_lettered(answer: str, count: int, where: str) -> str:
    """A right answer that is the letter of one of ``count`` options.

    Raises:
        BadInputError: it is not.
    """
    if len(answer) != 1 or not 0 <= ord(answer) - ord("A") < count:
        raise BadInputError(f"{where}: the answer {answer!r} is the letter of no option")
    return answer


def picture(value: object, data: Path, where: str) -> bytes:
    """The encoded bytes of a picture that a row holds: embedded, base64, or a file's name.

    Raises:
        BadInputError: none of these.
    """
    if isinstance(value, Mapping):  # how ``datasets`` embeds pictures in Parquet
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        folder = data if data.is_dir() else data.parent
        name = value.rsplit("/", 1)[-1]
        short = len(value) < 1_000 and "\0" not in value
        for place in (folder / value, folder / "images" / name) if short else ():
            if place.is_file():
                return place.read_bytes()
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise BadInputError(
        f"{where}: its picture is neither embedded nor a file in {data} (put downloaded pictures "
        "into its folder 'images')"
    )


def bare(option: str) -> str:
    """An option without its letter: "A. left" and "(A) left" are "left"."""
    for start in (1, 2):
        if option[start : start + 1] in (".", ")", ":") and option[start - 1].isalpha():
            return option[start + 1 :].strip()
    return option.strip()


def lettered_options(texts: Sequence[str]) -> tuple[str, ...]:
    """Options as ``Question.options`` holds them: "A. left"."""
    return tuple(f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(texts))


def bare_options(item: Item) -> list[str]:
    """The texts of an item's options."""
    return [bare(option) for option in item.question.options]
