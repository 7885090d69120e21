"""Where an export is written: a new folder, there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillroom.records import BadInputError


def require_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        BadInputError: ``out`` is a file, or a folder with something in it.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInputError(f"{out} holds something already; choose another --out")


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
