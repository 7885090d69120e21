"""What a label store holds, and whether it is as it was written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.records import BadInputError
from stillroom.scenes.store import open_store
from stillroom.teachers.label import scene_content
from stillroom.teachers.label_ledger import (
    Entry,
    Layout,
    ledger_path,
    mark_of,
    part_file,
    read_labels_manifest,
    read_ledger,
    sha256,
    shard_file,
    shards_begun,
)
from stillroom.teachers.label_rows import lengths
from stillroom.teachers.label_store import VOCABULARY_FILE, read_table
from stillroom.teachers.label_tensors import TensorFile
from stillroom.teachers.leases import holder
from stillroom.text.vocabulary import Vocabulary


def status(path: Path) -> dict[str, Any]:
    """What a store holds: rows, scenes, the share that is done, bytes by kind, who is at work.

    Raises:
        BadInputError: ``path`` holds no label store.
    """
    manifest = read_labels_manifest(path)
    settings, layout = manifest["settings"], Layout(**manifest["layout"])
    shards = _shard_count(settings, layout)
    rows = scenes = whole = 0
    sizes: dict[str, int] = {}
    geometry: Counter[str] = Counter()
    for shard in shards_begun(path):
        ledger = read_ledger(path, shard)
        entries = ledger.parts.values() if ledger.whole is None else [ledger.whole]
        whole += ledger.whole is not None
        rows += sum(entry.rows for entry in entries)
        scenes += ledger.scenes
        for kind, file in _files(path, shard):
            if file.exists():
                sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
            if kind == "labels":
                geometry.update(_marks(file))
    runners = [holder(lock) for lock in sorted((path / "leases").glob("*.lock"))]
    return {
        "teacher": settings["teacher"],
        "signals": settings["signals"],
        "tail": settings["tail"],
        "rows": rows,
        "rows_wanted": settings["question_count"],
        "geometry": dict(geometry),
        "scenes": scenes,
        "scenes_wanted": settings["scene_count"],
        "done": scenes / settings["scene_count"],
        "shards": whole,
        "shards_wanted": shards,
        "bytes": sizes,
        "running": [f"pid {one.pid} on {one.host}" for one in runners if one is not None],
    }


def status_lines(path: Path) -> list[str]:
    """``status`` for people."""
    found = status(path)
    sizes = ", ".join(f"{kind} {shown_bytes(size)}" for kind, size in found["bytes"].items())
    guessed = found["geometry"].get("predicted", 0)
    noted = [f"depth and poses of {guessed:,} rows are predicted"] if guessed else []
    return [
        f"{path}: {found['rows']:,} rows on {found['scenes']:,} scenes, "
        f"{found['done']:.1%} of {found['rows_wanted']:,} rows on {found['scenes_wanted']:,}",
        f"teacher {found['teacher']['name']}, revision {found['teacher'].get('revision', '-')}",
        f"signals {', '.join(found['signals'])}",
        *noted,
        f"bytes {sizes or 'none'}; {found['shards']} of {found['shards_wanted']} shards finished",
        f"at work: {', '.join(found['running']) or 'nobody'}",
    ]


def _marks(file: Path) -> dict[str, int]:
    """How many rows of a file stand on whose geometry; nothing where it cannot be read."""
    try:
        marks = pq.read_table(file, columns=["geometry"])["geometry"]
    except (pa.ArrowInvalid, OSError):
        return {}  # gone since, as parts go when their shard is whole; verify names damage
    return {one["values"]: one["counts"] for one in marks.value_counts().to_pylist()}


def shown_bytes(size: int | float) -> str:
    """A size with its unit, powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the loop ends with TB")


def problems(path: Path, *, scenes: Sequence[Path] = ()) -> list[str]:
    """What is wrong with a store: a flipped byte, a missing shard, a doubled or lost row.

    With ``scenes``, the scene stores that were labelled, also what of them has changed since.

    Raises:
        BadInputError: ``path`` holds no label store, or a scene store cannot be read.
    """
    manifest = read_labels_manifest(path)
    settings, layout = manifest["settings"], Layout(**manifest["layout"])
    found = list(_vocabulary_problems(path, settings))
    begun = shards_begun(path)
    contents: dict[str, str] = {}
    rows = 0
    for shard in begun:
        ledger = read_ledger(path, shard)
        entries: Iterable[tuple[int | None, Entry]] = (
            ledger.parts.items() if ledger.whole is None else [(None, ledger.whole)]
        )
        for part, entry in entries:
            if entry.settings != mark_of(settings):
                found.append(
                    f"shard {shard} was labelled with other settings than {path / 'manifest.json'} "
                    f"names; delete {ledger_path(path, shard)} and label again"
                )
            found += _file_problems(path, shard, part, entry)
            for scene in entry.scenes:
                if scene.scene_id in contents:
                    found.append(f"scene {scene.scene_id} stands more than once")
                contents[scene.scene_id] = scene.content
            rows += entry.rows
        if ledger.whole is not None:
            found += _row_problems(path, shard, ledger.whole)
    wanted = _shard_count(settings, layout)
    open_shards = [s for s in range(wanted) if s not in begun or read_ledger(path, s).whole is None]
    if open_shards:
        found.append(
            f"{len(open_shards)} of {wanted} shards are not finished (first: {open_shards[0]}); "
            "the same label command goes on with them"
        )
    elif rows != settings["question_count"]:
        found.append(f"{rows} rows are there, {settings['question_count']} questions were asked")
    return found + (_stale(contents, scenes) if scenes else [])


def _shard_count(settings: dict[str, Any], layout: Layout) -> int:
    # A merged store has the shards of both, however full.
    merged = settings.get("merged_shards")
    return int(merged) if merged is not None else layout.shards(settings["scene_count"])


def _files(path: Path, shard: int) -> Iterator[tuple[str, Path]]:
    ledger = read_ledger(path, shard)
    if ledger.whole is not None:
        yield from ((kind, shard_file(path, kind, shard)) for kind in ledger.whole.files)
        return
    for part, entry in ledger.parts.items():
        yield from ((kind, part_file(path, kind, shard, part)) for kind in entry.files)


def _vocabulary_problems(path: Path, settings: dict[str, Any]) -> Iterator[str]:
    known = settings["vocabulary"]
    if known is None:
        return
    try:
        if Vocabulary.read(path / VOCABULARY_FILE).hash != known["hash"]:
            yield f"{path / VOCABULARY_FILE} is not as it was written"
    except BadInputError as error:
        yield f"{error}; delete it and give the same label command again"


def _file_problems(path: Path, shard: int, part: int | None, entry: Entry) -> Iterator[str]:
    for kind, sha in entry.files.items():
        whole = part is None
        file = shard_file(path, kind, shard) if whole else part_file(path, kind, shard, part or 0)
        if not file.exists():
            yield f"{file} is missing; the same label command makes it again"
        elif sha256(file) != sha:
            yield f"{file} is not as it was written: delete it and label again"


def _row_problems(path: Path, shard: int, entry: Entry) -> Iterator[str]:
    """Do the rows of a whole shard agree with its ledger and its tensors?"""
    file = shard_file(path, "labels", shard)
    try:
        table = read_table(path, shard)
    except BadInputError:
        return  # named already, by its hash or as missing
    scenes = [scene.scene_id for scene in entry.scenes for _ in range(scene.rows)]
    if table.column("scene_id").to_pylist() != scenes:
        yield f"{file} holds {len(table)} rows, its ledger names {len(scenes)} or other scenes"
    questions = table.column("question_id").to_pylist()
    if len(set(questions)) != len(questions):
        yield f"{file}: {len(questions) - len(set(questions))} rows stand more than once"
    if "tensors" in entry.files and shard_file(path, "tensors", shard).exists():
        yield from _offset_problems(table, file, shard_file(path, "tensors", shard))


def _offset_problems(table: pa.Table, file: Path, tensors: Path) -> Iterator[str]:
    try:
        opened = TensorFile(tensors)
    except BadInputError:
        return  # named already, by its hash
    shapes = {name: opened.shape(name) for name in opened.names}
    reach = lengths(shapes)
    for of in (False, True):
        counts = {
            shape[0]
            for name, shape in shapes.items()
            if name != "attention" and name.startswith("reference_") == of
        }
        if len(counts) > 1:
            yield f"{tensors} holds tensors of unlike lengths {sorted(counts)}"
    for kind, start, stop in (
        ("answers", "start", "stop"),
        ("reference", "reference_start", "reference_stop"),
    ):
        begins, ends = (table.column(name).to_pylist() for name in (start, stop))
        if begins != [0, *ends[:-1]] or (ends and ends[-1] != reach[kind]):
            yield f"{file} does not point at the whole of {tensors.name} ({start}, {stop})"
    if "topk_ids" in shapes or "last_hidden" in shapes:
        said = [len(ids) for ids in table.column("answer_ids").to_pylist()]
        spans = zip(table.column("start").to_pylist(), table.column("stop").to_pylist())
        if said != [stop - start for start, stop in spans]:
            yield f"{file}: an answer has more or fewer tokens than tensor rows"
    if {"attention", "attention_mass"} <= shapes.keys():
        groups = math.prod(shapes["attention_mass"][1:])
        size = sum(
            groups * (stop - start) * seen
            for start, stop, seen in zip(
                *(table.column(n).to_pylist() for n in ("start", "stop", "attention_tokens")),
                strict=True,
            )
        )
        if size != reach["attention"]:
            yield f"{tensors} holds {reach['attention']} numbers of attention, rows need {size}"


def _stale(contents: dict[str, str], scenes: Sequence[Path]) -> list[str]:
    """What of the labelled scenes is no longer as the teacher saw it."""
    changed, new, left = [], 0, set(contents)
    for path in scenes:
        store = open_store(path)
        for scene_id in store.scene_ids():
            left.discard(scene_id)
            if scene_id not in contents:
                new += 1
            elif (
                scene_content(store.scene(scene_id), store.questions(scene_id))
                != (contents[scene_id])
            ):
                changed.append(scene_id)
    shown = ", ".join(str(path) for path in scenes)
    found = []
    if changed:
        found.append(
            f"stale: {len(changed)} scenes of {shown} or their questions have changed since they "
            f"were labelled (first: {changed[0]})"
        )
    if new:
        found.append(f"stale: {new} scenes of {shown} are not in the label store")
    if left:
        found.append(f"stale: {len(left)} labelled scenes are no longer in {shown}")
    return found
