"""The verbs of rooms and captures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stillroom.cli import parsing
from stillroom.cli.parsing import Folder, Prompt, SuiteName
from stillroom.console import progress_bar

Layout = Literal["auto", "scannet", "tum", "transforms", "photos"]


def scenes_make(words: Sequence[str]) -> int:
    """Make rooms."""

    def options(
        *,
        count: int,
        seed: int,
        out: Path,
        density: Literal["plain", "furnished"] = "plain",
        questions: int = 24,
        split: Literal["train", "val", "test", "shifted"] | None = None,
        workers: int | None = None,
    ) -> dict[str, Any]:
        """Make rooms with questions; the same command goes on where it stopped.

        Args:
            count: Rooms to make.
            seed: Room i is drawn from the pair (seed, i).
            out: Folder of the store.
            density: plain has 4 to 9 things, furnished 20 to 40.
            questions: Questions in all per room.
            split: Put every room into this split; default is 70/10/20 by room.
            workers: Processes; default is one per core.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "scenes make")
    with progress_bar("making rooms") as progress:
        made = api.make_scenes(**given, progress=progress)
    state = "was finished already" if not made else f"holds {given['count']} rooms"
    parsing.say(f"{given['out']} {state}")
    return 0


def scenes_import(words: Sequence[str]) -> int:
    """Import a capture."""

    def options(
        source: Positional[Folder], /, *, out: Path, layout: Layout = "auto"
    ) -> dict[str, Any]:
        """Read a capture (posed RGB-D or plain photos) into a scene store.

        Args:
            source: Folder of the capture.
            out: Folder of the store.
            layout: What the folder is; auto looks and says what it took.
        """
        return locals()

    from stillroom import api

    notes = api.import_scenes(**parsing.parse(options, words, "scenes import"))
    parsing.say("\n".join(notes))
    return 0


def scenes_check(words: Sequence[str]) -> int:
    """Check a store or a capture."""

    def options(path: Positional[Folder], /, *, json: bool = False) -> dict[str, Any]:
        """Do poses, intrinsics and depth agree, and does geometry give the stored answers?

        Args:
            path: A scene store, or a capture's own folder.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "scenes check")
    with progress_bar("checking") as progress:
        report = api.check_scenes(given["path"], progress=progress)
    parsing.say(json.dumps(report) if given["json"] else "\n".join(report["lines"]))
    return 0 if report["ok"] else 1


def scenes_audit(words: Sequence[str]) -> int:
    """Look for shortcuts."""

    def options(
        path: Positional[Folder], /, *, seed: int = 0, json: bool = False
    ) -> dict[str, Any]:
        """Can the questions be answered without looking? Exit code 1 if a guesser can.

        Guessers of words, of the kinds named and of frequencies answer each fifth of the scenes
        from the other four; each may be 3 points above chance.

        Args:
            path: A scene store.
            seed: Which scenes make a fifth.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "scenes audit")
    as_json = given.pop("json")
    with progress_bar("auditing") as progress:
        report, lines = api.audit_scenes(**given, progress=progress)
    parsing.say(json.dumps(report) if as_json else "\n".join(lines))
    return 0 if report["ok"] else 1


def scenes_show(words: Sequence[str]) -> int:
    """Draw a contact sheet."""

    def options(
        path: Positional[Folder], /, *, scene: str = "0", out: Path = Path("contact_sheet.png")
    ) -> dict[str, Any]:
        """Draw views, depth, boxes, plan and three questions of one scene.

        Args:
            path: A scene store.
            scene: Scene id, or its number in the store.
            out: PNG to write.
        """
        return locals()

    from stillroom import api

    parsing.say(str(api.show_scene(**parsing.parse(options, words, "scenes show"))))
    return 0


def scenes_ask(words: Sequence[str]) -> int:
    """Join published questions with scenes."""

    def options(
        data: Positional[Folder], /, *, suite: SuiteName, out: Path, prompt: Prompt = "official"
    ) -> dict[str, Any]:
        """Join a benchmark's published questions with their scenes, for label or evaluate.

        Args:
            data: Folder with the published files and the scenes (docs/evaluate.md says which).
            suite: Which benchmark.
            out: Folder of the store.
            prompt: official asks in the benchmark's words, plain with question and options alone.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "scenes ask")
    with progress_bar("joining") as progress:
        lines = api.ask_scenes(**given, progress=progress)
    parsing.say("\n".join(lines))
    return 0


def scenes_export(words: Sequence[str]) -> int:
    """Export scenes."""

    def options(
        scenes: Positional[Folder], /, *, out: Path, to: Literal["vsibench"] = "vsibench"
    ) -> dict[str, Any]:
        """Write a store's questions and frames in a benchmark's own format.

        Args:
            scenes: A scene store with questions of VSI-Bench's types.
            out: Folder to write.
            to: Whose format.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "scenes export")
    given.pop("to")
    with progress_bar("exporting") as progress:
        lines = api.export_scenes(**given, progress=progress)
    parsing.say("\n".join(lines))
    return 0
