"""Ports and scorers against recorded outputs: what was compared, and how far the worst is off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from stillroom.records import BadInputError


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One recorded output beside ours. ``worst`` is the largest absolute difference."""

    name: str
    worst: float
    ok: bool
    # Why it was not compared (an optional tool is missing); empty if it was.
    skipped: str = ""


#: kind -> where its comparison lives. Imported when asked for: ports need torch.
KINDS = {
    "llava3d": ("stillroom.teachers.verify_llava3d", "verify_llava3d"),
    "metrics": ("stillroom.evaluate.verify_metrics", "verify_metrics"),
    "vggt": ("stillroom.students.encoders.verify_vggt", "verify_vggt"),
}


def verify_all(fixtures: Sequence[Path], *, kind: str | None) -> tuple[bool, list[str]]:
    """Compare every fixture named; whether all agree, and the lines to print.

    A fixture is a stem, its .safetensors, its .json, or a folder of them. The kind is the name of
    the parent folder unless given.

    Raises:
        BadInputError: no such fixture, an unknown kind, or a recorded output nobody knows.
    """
    stems = [stem for fixture in fixtures for stem in _stems(fixture)]
    if not stems:
        raise BadInputError("name at least one fixture: a stem, a file or a folder")
    good, lines = True, []
    for stem in stems:
        compared = _comparison(kind or stem.parent.name)(stem)
        done = [entry for entry in compared if not entry.skipped]
        failed = [entry for entry in done if not entry.ok]
        good = good and not failed and bool(done)
        verdict = "agree" if not failed else f"DIFFER in {len(failed)}"
        lines.append(f"{stem.parent.name}/{stem.name}: {len(done)} recorded outputs, {verdict}")
        lines += [
            f"  {'ok  ' if entry.ok else 'FAIL'} {entry.name:36} worst error {entry.worst:.2e}"
            for entry in done
        ]
        lines += [f"  skip {entry.name:36} {entry.skipped}" for entry in compared if entry.skipped]
    return good, lines


def _comparison(kind: str) -> Callable[[Path], list[Compared]]:
    if kind not in KINDS:
        raise BadInputError(f"unknown kind of fixture {kind!r}; use --kind {'|'.join(KINDS)}")
    module, name = KINDS[kind]
    function: Callable[[Path], list[Compared]] = getattr(import_module(module), name)
    return function


def _stems(fixture: Path) -> list[Path]:
    if fixture.is_dir():
        names = {
            file.stem for file in fixture.iterdir() if file.suffix in (".safetensors", ".json")
        }
        if not names:
            raise BadInputError(f"{fixture} holds no fixture (.safetensors or .json)")
        return [fixture.resolve() / name for name in sorted(names)]
    if fixture.suffix in (".safetensors", ".json"):
        if not fixture.is_file():
            raise BadInputError(f"fixture not found: {fixture}")
        return [fixture.resolve().with_suffix("")]
    # A stem may hold a dot: append, do not replace.
    if not any(Path(f"{fixture}{suffix}").is_file() for suffix in (".safetensors", ".json")):
        raise BadInputError(f"fixture not found: {fixture}.safetensors or {fixture}.json")
    return [fixture.resolve()]
