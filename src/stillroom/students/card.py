"""A student's model card: where it comes from, what it scored, whose licences it carries.

``provenance.json`` in the student's folder holds the facts, ``README.md`` is made from them. Both
are written when a distillation ends; an evaluation puts its scores into the second.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"

#: Terms of what a student may be made of, by name, as far as we have read them.
LICENCES: Mapping[str, str] = {
    "encoder_mini": "Apache-2.0 (made by stillroom from made rooms)",
    "teacher_mini": "Apache-2.0 (made by stillroom from made rooms)",
    "student_mini": "Apache-2.0 (made by stillroom from made rooms)",
    "truth": "Apache-2.0 (computed by stillroom)",
    "made rooms": "Apache-2.0 (made by stillroom)",
    "made worlds' tokenizer": "Apache-2.0 (made by stillroom)",
    "facebook/VGGT-1B": "CC BY-NC 4.0, non-commercial",
    "facebook/VGGT-1B-Commercial": (
        "VGGT License v1 with its acceptable-use policy; commercial use allowed, military not"
    ),
    "ChaimZhu/LLaVA-3D-7B": (
        "readme CC BY-NC-SA 4.0, model page apache-2.0, base under the Llama 2 licence: treat as "
        "non-commercial"
    ),
    "depth-anything/DA3-SMALL": "Apache-2.0",
    "depth-anything/DA3-BASE": "Apache-2.0",
    "Qwen/Qwen2.5-0.5B": "Apache-2.0",
    "capture:scannet": "ScanNet Terms of Use: research, no redistribution",
    "capture:tum": "CC BY 4.0 (TUM RGB-D)",
}
#: What stands where nobody has looked.
UNREAD = "not known to stillroom: read its terms before you publish this student"
#: Of a student that is known by what it was made of.
LISTED = "that of what it was made of, in this table"
#: Open to every use and change.
_FREE = ("Apache-2.0",)


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` and a ``README.md`` without scores.

    ``facts`` is what ``distill.provenance`` gathers; JSON-able.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / PROVENANCE_FILE, json.dumps(facts, indent=1) + "\n")
    _replace(folder / CARD_FILE, card(facts))


def add_scores(folder: Path, results: Mapping[str, Any], *, row: str) -> bool:
    """Write the card again with the scores of ``row``; False where there is none to refresh.

    ``results`` is what ``evaluate`` writes as ``results.json``. A folder that may not be written,
    or that has no provenance, is left as it is.
    """
    source = folder / PROVENANCE_FILE
    if not source.is_file() or not os.access(folder, os.W_OK):
        logger.info("%s has no model card of ours to refresh", folder)
        return False
    facts = json.loads(source.read_text())
    _replace(folder / CARD_FILE, card(facts, results, row=row))
    return True


def card(
    facts: Mapping[str, Any], results: Mapping[str, Any] | None = None, *, row: str = ""
) -> str:
    """The model card as Markdown with the header that the hub reads."""
    licences = [_terms(facts, role, name) for role, name in ingredients(facts)]
    parts = [
        _header(facts, licences),
        f"# {facts['name']}\n\n{_opening(facts)}",
        "## What it is made of\n\n" + _ingredients(facts),
        "## How it was trained\n\n" + _training(facts),
        "## Scores\n\n" + ("Not evaluated yet." if results is None else _scores(results, row)),
        "## How to ask it\n\n" + _USE,
        "## What it is not\n\n" + _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def ingredients(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, name) of everything that the student was made from, over all its trainings."""
    found = [("teacher", facts["teacher"]["name"])]
    found += [
        (part.replace("_", " "), facts[part])
        for part in ("encoder", "language_model", "tokenizer")
        if facts[part]
    ]
    found += [("scenes", source) for source in facts["scenes"]["sources"]]
    for before in _ancestors(facts):
        found.append(("begun from", before["start_from"]))
        parent = before["parent"]
        if parent is not None:
            found.append(("its teacher", parent["teacher"]["name"]))
            found += [("its scenes", source) for source in parent["scenes"]["sources"]]
    return found


def _ancestors(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The facts, and those of each parent, that began from another student; youngest first.

    Of what stands under ``start_from``, ``parent`` are the facts, None where nobody recorded them.
    """
    found: list[Mapping[str, Any]] = []
    one: Mapping[str, Any] | None = facts
    while one is not None and one["start_from"]:
        found.append({"start_from": one["start_from"], "parent": one.get("parent")})
        one = one.get("parent")
    return found


def licence_of(name: str) -> str:
    """Terms of an ingredient by its name, or that nobody has read them."""
    if name.startswith("made:"):
        name = "made rooms"
    return LICENCES.get(name.removeprefix("llava3d:"), UNREAD)


def _terms(facts: Mapping[str, Any], role: str, name: str) -> str:
    """Terms of an ingredient; a student whose own ingredients are all listed has no further."""
    known = {one["start_from"] for one in _ancestors(facts) if one["parent"] is not None}
    if role == "begun from" and name in known and licence_of(name) == UNREAD:
        return LISTED
    return licence_of(name)


def _header(facts: Mapping[str, Any], licences: Sequence[str]) -> str:
    free = all(terms.startswith((*_FREE, LISTED)) for terms in licences)
    lines = [
        "---",
        f"license: {'apache-2.0' if free else 'other'}",
        *([] if free else ["license_name: see-ingredients"]),
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags:",
        "- stillroom",
        "- spatial-reasoning",
        "- distillation",
    ]
    named = [facts["encoder"], facts["language_model"], facts["start_from"]]
    published = [name for name in named if name.count("/") == 1 and not name.startswith((".", "/"))]
    if published:
        lines += ["base_model:", *(f"- {name}" for name in published)]
    return "\n".join([*lines, "---"])


def _opening(facts: Mapping[str, Any]) -> str:
    return (
        f"A student of {facts['parameters']['total']:,} parameters that answers questions about an "
        f"indoor scene from a few photos, distilled from {facts['teacher']['name']} with "
        f"[stillroom](https://github.com/stillroom/stillroom) {facts['version']}."
    )


def _ingredients(facts: Mapping[str, Any]) -> str:
    lines = ["| | | licence |", "|---|---|---|"]
    lines += [
        f"| {role} | {name} | {_terms(facts, role, name)} |" for role, name in ingredients(facts)
    ]
    sizes = ", ".join(f"{part} {count:,}" for part, count in facts["parameters"].items())
    return "\n".join(lines) + f"\n\nParameters: {sizes}."


def _training(facts: Mapping[str, Any]) -> str:
    scenes = facts["scenes"]
    counts = ", ".join(f"{count} {split}" for split, count in scenes["counts"].items())
    hours = facts["seconds"] / 3600
    revision = facts["teacher"].get("revision")
    lines = [
        f"- Recipe `{facts['recipe'] or 'without a name'}`, seed {facts['seed']}, "
        f"{facts['steps']} steps of {facts['scenes_per_step']} scenes; {hours:.2f} hours on "
        f"{facts.get('machine', 'a machine that is not recorded')}.",
        f"- Labels of {facts['teacher']['name']}" + (f", revision {revision}" if revision else ""),
        *(_begun(one) for one in _ancestors(facts)),
        f"- Scenes: {counts}.",
        f"- Commit {facts.get('commit', 'unknown')}. All settings are in `{PROVENANCE_FILE}`.",
    ]
    if facts.get("command"):
        lines += ["", "```", facts["command"], "```"]
    return "\n".join(lines)


def _begun(one: Mapping[str, Any]) -> str:
    """Where a student of its line began."""
    parent = one["parent"]
    if parent is None:
        return f"- Begun from {one['start_from']}, of which nothing more is recorded."
    return (
        f"- Begun from {one['start_from']}: recipe `{parent['recipe'] or 'without a name'}`, "
        f"{parent['steps']} steps of {parent['scenes_per_step']} scenes on labels of "
        f"{parent['teacher']['name']}."
    )


def _scores(results: Mapping[str, Any], row: str) -> str:
    rows, meta = results["rows"], results["meta"]
    families = [name for name in rows[row] if name not in ("metrics", "retention")]
    shown = [name for name in (row, *_beside(rows, row)) if "overall" in rows[name]]
    # Others know it by the name of the card, not by the path it was evaluated under.
    titles = ["this student", *(name.partition(":")[0] for name in shown[1:])]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for family in families:
        cells = [_score(rows[name].get(family)) for name in shown]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    kept = rows[row].get("retention", {}).get("overall")
    told = [
        "Share of answers that are right, in percent, with 95 % intervals clustered by scene and "
        "the number of questions."
    ]
    if kept:
        told.append(
            f"Of its teacher's score it keeps {_percent(kept['score'])} "
            f"({_percent(kept['low'])} to {_percent(kept['high'])})."
        )
    told.append(f"Split {meta.get('split') or 'all'}, commit {meta.get('commit', 'unknown')}.")
    text = "\n".join(lines) + "\n\n" + " ".join(told)
    return text + (f"\n\n```\n{meta['command']}\n```" if meta.get("command") else "")


def _beside(rows: Mapping[str, Any], row: str) -> Sequence[str]:
    """What a score has to be seen beside."""
    wanted = ("teacher", "blind", "majority")
    return [name for name in rows if name != row and (name in wanted or "shuffled" in name)]


def _score(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    shown = f"{_percent(entry['score'])} ({_percent(entry['low'])} to {_percent(entry['high'])})"
    return f"{shown}, n = {entry['n']}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


_USE = """```python
import stillroom
session = stillroom.open_scene("FOLDER_OR_HUB_ID", "PHOTOS")
print(session.ask("Is the lamp left or right of the sofa?"))
```

After `import stillroom.students.model`, `AutoModel` and `AutoProcessor` of transformers load it
without `trust_remote_code`. The weights are safetensors."""

_LIMITS = """It answers about indoor scenes of the kind it was trained on, in the frame of the first
photo. It is no instrument: distances are estimates, and an answer comes whether or not the photos
show what was asked for."""


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)
