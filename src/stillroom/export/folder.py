"""Where an export is written: a new folder, there as a whole or not at all; once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.records import BadInputError, require_folder, weights_digest

#: What a folder says of the export that made it.
EXPORT_FILE = "export.json"


def finished(where: Path | str, out: Path, form: str) -> dict[str, Any] | None:
    """What an earlier export of the same student in the same form said; None of a free folder.

    Raises:
        BadInputError: ``out`` is or lies under a file, or is a folder with something else in it.
    """
    require_folder(out.parent)
    if not out.is_file() and not (out.is_dir() and any(out.iterdir())):
        return None
    try:
        record = json.loads((out / EXPORT_FILE).read_text())
        if (record["form"], record["source"]) == (form, weights_digest(where)):
            said: dict[str, Any] = record["said"]
            return said
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not ours, or damaged: it holds something else
    raise BadInputError(f"{out} holds something else already; choose another --out")


def write_record(folder: Path, where: Path | str, form: str, said: Mapping[str, Any]) -> None:
    """Note in a folder what it was made of, and what the export said."""
    record = {"form": form, "source": weights_digest(where), "said": dict(said)}
    (folder / EXPORT_FILE).write_text(json.dumps(record, indent=1) + "\n")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write into, which becomes ``out`` once all is written."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        out.mkdir(exist_ok=True)  # an empty one may be there
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
