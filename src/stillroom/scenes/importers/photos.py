"""A folder of plain photos: no cameras, no depth; answers about them carry no metric claim."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from stillroom.records import BadInputError, View
from stillroom.scenes.importers.images import PHOTO_SUFFIXES, evenly, read_rgb

#: Larger photos are shrunk to this many pixels on the longer side; every model here sees less.
LONGEST_SIDE = 1024


def photo_files(source: Path) -> list[Path]:
    """The photos of a folder in the order of their names, numbers by value; or the one photo."""
    if source.is_file():
        return [source] if source.suffix.lower() in PHOTO_SUFFIXES else []
    files = [
        path
        for path in source.iterdir()
        if path.is_file()
        and path.suffix.lower() in PHOTO_SUFFIXES
        and not path.name.startswith(".")
    ]
    return sorted(files, key=_by_number)


def _by_number(path: Path) -> tuple[list[tuple[int, str]], str]:
    """ "img2" before "img10"; the plain name settles what is then still equal."""
    pieces = re.findall(r"\d+|\D+", path.name.lower())
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces], path.name


def read_photos(source: Path) -> tuple[list[View], list[str]]:
    """Views in the order of names, turned upright, and notes.

    Raises:
        BadInputError: no photo there, or one that is no picture.
    """
    files = photo_files(source)
    if not files:
        raise BadInputError(_nothing_in(source))
    kept = [files[index] for index in evenly(len(files))]
    notes = ["plain photos: no cameras and no depth, so nothing metric can be checked"]
    if len(kept) < len(files):
        notes.append(f"took {len(kept)} of {len(files)} photos, evenly spaced")
    views = [
        View(name=path.name, rgb=read_rgb(path, longest_side=LONGEST_SIDE, upright=True))
        for path in kept
    ]
    return views, notes


def _nothing_in(source: Path) -> str:
    kinds = ", ".join(PHOTO_SUFFIXES)
    if source.is_file():
        return f"{source} is not a photo; expected a folder of photos ({kinds}) or one of them"
    others = Counter(
        path.suffix.lower() for path in source.iterdir() if path.is_file() and path.suffix
    )
    if others:
        suffix, count = others.most_common(1)[0]
        return (
            f"{source} holds no photo ({kinds}), only other files ({count} {suffix}); "
            "convert them or name another folder"
        )
    return f"{source} holds no photo; put some in it ({kinds}) or name another folder"
