"""Checkpoints of the hub: found or downloaded at one commit, never with any code in them.

``OWNER/NAME@REVISION`` names a commit, tag or branch of a hub page; without it main is meant. A run
resolves it once and hands ``OWNER/NAME@COMMIT`` to all who load, so that weights, words and
fingerprint are of one commit, however main moves.
"""

from __future__ import annotations

import re
from pathlib import Path

from stillroom.records import BadInputError

#: What a checkpoint page may hold that we read beside its weights; never code.
WORDS = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


def fetch(
    where: Path | str,
    *,
    revision: str | None = None,
    weights: bool = True,
    local_only: bool = False,
) -> Path:
    """The folder of a checkpoint; a hub id is downloaded, .bin files only if there are no others.

    ``revision`` stands for one within the id. With ``local_only`` what was downloaded earlier is
    found, and nothing else.

    Raises:
        BadInputError: no folder and no hub id, or the hub cannot give it.
    """
    folder = Path(where)
    if folder.is_dir():
        return folder
    match = None if isinstance(where, Path) else _HUB_ID.fullmatch(where)
    if match is None:
        raise BadInputError(f"model not found: {where} is no folder and no hub id (owner/name)")
    name = match[1]
    from huggingface_hub import snapshot_download

    def downloaded(revision: str | None, *more: str) -> Path:
        wanted = [*WORDS, *more]
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=wanted, local_files_only=local_only
            )
        )

    try:
        if not weights:
            return downloaded(revision or match[2])
        found = downloaded(revision or match[2], "*.safetensors")
        if not any(found.glob("*.safetensors")):
            # .../snapshots/COMMIT: main may have moved since.
            found = downloaded(found.name, "*.bin")
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else "no answer"
        raise BadInputError(f"cannot fetch {name} from the hub: {reason}") from None
    return found


def commit_of(where: Path | str) -> str | None:
    """The commit that a hub id means now, found without its weights; None for a folder.

    Raises:
        BadInputError: as ``fetch``.
    """
    if Path(where).is_dir():
        return None
    # .../snapshots/COMMIT
    return fetch(where, weights=False).name


def without_revision(where: str) -> str:
    """``OWNER/NAME`` of ``OWNER/NAME@REVISION``; anything else as it is."""
    match = _HUB_ID.fullmatch(where)
    return match[1] if match and not Path(where).is_dir() else where
