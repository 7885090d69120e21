"""Which layouts a folder holds, in the order of preference."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stillroom.records import BadInputError
from stillroom.scenes.importers.nerfstudio import transforms_file
from stillroom.scenes.importers.photos import photo_files
from stillroom.scenes.importers.scannet_export import is_scannet
from stillroom.scenes.importers.tum import is_tum

KnownLayout = Literal["scannet", "tum", "transforms", "photos"]
Layout = Literal["auto", "scannet", "tum", "transforms", "photos"]

#: What each layout is known by, for people.
DESCRIPTIONS: dict[KnownLayout, str] = {
    "scannet": "color/, pose/ and intrinsic/ of a ScanNet-style export",
    "tum": "rgb.txt (or associations.txt) and groundtruth.txt of the TUM RGB-D benchmark",
    "transforms": "transforms.json",
    "photos": "photos (.jpg, .jpeg, .png, .webp)",
}


def layouts_in(source: Path) -> list[KnownLayout]:
    """The layouts that the folder (or file) holds, best known first; may be empty.

    Raises:
        BadInputError: there is no such folder.
    """
    if not source.exists():
        raise BadInputError(f"capture not found: {source}")
    if source.is_file():
        kind: KnownLayout = "transforms" if source.suffix == ".json" else "photos"
        return [kind] if kind == "transforms" or photo_files(source) else []
    tests: dict[KnownLayout, bool] = {
        "scannet": is_scannet(source),
        "tum": is_tum(source),
        "transforms": transforms_file(source) is not None,
        "photos": bool(photo_files(source)),
    }
    return [name for name, found in tests.items() if found]
