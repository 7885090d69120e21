"""Joins questions with scenes into one store, which labelling and evaluation then read.

Scenes of a data folder are looked for by their published names, in turn: a store ``scenes/NAME``
of one capture (``stillroom scenes import ... --out DATA/scenes/NAME``), a store ``scenes`` or the
folder itself that has the name as a scene id, frames in ``frames/MEDIA/`` or ``MEDIA/``, a video
``MEDIA.mp4``. Benchmarks of single pictures bring theirs in their rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stillroom.evaluate.run import PLAIN_PROMPT
from stillroom.evaluate.suites.base import Item, Suite
from stillroom.records import BadInputError, Question, Scene, View, content_hash
from stillroom.scenes.store import (
    SceneStore,
    open_store,
    read_manifest,
    shard_path,
    write_manifest,
    write_shard,
)

#: Frames taken of a video: an even grid from the first to the last (specs/benchmarks.md section 1).
FRAMES = 32
FRAME_RULE = f"even grid of {FRAMES}, first and last included"
SCENES_PER_SHARD = 8
_PICTURES = (".jpg", ".jpeg", ".png")

FindScene = Callable[[Item], Scene | None]


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What was joined: questions in the store, and names of scenes that were not there."""

    questions: int
    scenes: int
    missing: tuple[str, ...]


def attach_items(
    items: Sequence[Item],
    find: FindScene,
    out: Path,
    *,
    settings: dict[str, object],
    progress: Callable[[int, int], None] | None = None,
) -> Attached:
    """Write a store of the scenes found, with the items' questions bound to them.

    The same call goes on after a kill. Questions take their scene's id and split.

    Raises:
        BadInputError: no scene was found at all, or ``out`` holds something else.
    """
    by_name: dict[str, list[Item]] = {}
    for item in items:
        by_name.setdefault(item.question.scene_id, []).append(item)
    _begin(out, {**settings, "questions": content_hash(_told(i.question) for i in items)})
    names = list(by_name)
    held = _held(out)
    for index, start in enumerate(range(0, len(names), SCENES_PER_SHARD)):
        group = names[start : start + SCENES_PER_SHARD]
        lacking = [name for name in group if by_name[name][0].question.question_id not in held]
        # A scene that was not there last time may have been imported since.
        there = shard_path(out, "scenes", index).is_file()
        if not there or any(find(by_name[name][0]) is not None for name in lacking):
            found = {name: find(by_name[name][0]) for name in group}
            bound = {name: scene for name, scene in found.items() if scene is not None}
            questions = [q for name, scene in bound.items() for q in _bound(by_name[name], scene)]
            write_shard(out, index, list(bound.values()), questions)
        if progress is not None:
            progress(min(start + SCENES_PER_SHARD, len(names)), len(names))
    held = _held(out)
    missing = [name for name in names if by_name[name][0].question.question_id not in held]
    if not held:
        shutil.rmtree(out)  # nothing of worth: a store that this call began
        raise BadInputError(
            f"none of the {len(names)} scenes that the questions name was found "
            f"(first: {names[0]}); import it with 'stillroom scenes import SOURCE --out "
            f"DATA/scenes/{names[0]}'"
        )
    scenes = len(names) - len(missing)
    return Attached(questions=len(held), scenes=scenes, missing=tuple(missing))


def _told(question: Question) -> str:
    """A question by its id, with what answers to it are scored by."""
    known = [question.answer, *question.options, *question.renderings]
    return json.dumps([question.question_id, *known])


def _held(out: Path) -> set[str]:
    """Ids of the questions that the store has, with their scenes."""
    if not shard_path(out, "scenes", 0).is_file():
        return set()
    return {question.question_id for question in open_store(out).questions()}


def _bound(items: Sequence[Item], scene: Scene) -> list[Question]:
    return [replace(item.question, scene_id=scene.scene_id, split=scene.split) for item in items]


def _begin(out: Path, settings: dict[str, object]) -> None:
    if out.exists() and any(out.iterdir()):
        if read_manifest(out)["settings"] != settings:
            raise BadInputError(f"{out} holds other questions or scenes. Choose another --out.")
        return
    write_manifest(out, settings)


def attach_questions(store: SceneStore, questions: Sequence[Question], out: Path) -> Attached:
    """Write a store of ``store``'s scenes with these questions instead of their own.

    A question's ``scene_id`` names a scene of the store; scenes without a question are left out.

    Raises:
        BadInputError: no question names a scene of the store, or ``out`` holds something else.
    """
    known = set(store.scene_ids())

    def find(item: Item) -> Scene | None:
        name = item.question.scene_id
        return store.scene(name) if name in known else None

    settings: dict[str, object] = {"scenes": content_hash(store.scene_ids())}
    return attach_items([Item(question=q) for q in questions], find, out, settings=settings)


def attach_suite(
    suite: Suite,
    items: Sequence[Item],
    data: Path,
    out: Path,
    *,
    official_prompt: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Attached:
    """Write a store of a suite's questions and the scenes of its data folder.

    Raises:
        BadInputError: no scene of it was found, or ``out`` holds something else.
    """
    settings: dict[str, object] = {
        "suite": suite.name,
        "revision": revision(suite, data),
        "prompt": suite.prompt_id if official_prompt else PLAIN_PROMPT,
        "frames": FRAME_RULE,
    }
    if not official_prompt:
        items = [replace(item, question=replace(item.question, asked_as="")) for item in items]
    return attach_items(items, _finder(data), out, settings=settings, progress=progress)


def revision(suite: Suite, data: Path) -> str:
    """16 hex digits of the published files that are read."""
    digest = hashlib.sha256()
    for path in suite.read_files(data):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _finder(data: Path) -> FindScene:
    folder = data if data.is_dir() else data.parent
    stores = [place for place in (folder / "scenes", folder) if (place / "manifest.json").is_file()]
    opened = [open_store(place) for place in stores]

    def find(item: Item) -> Scene | None:
        name = item.question.scene_id
        if item.images:
            return _picture_scene(name, item.images)
        own = folder / "scenes" / name
        if name and (own / "manifest.json").is_file():
            store = open_store(own)
            return store.scene(store.scene_ids()[0])
        for store in opened:
            if name in store.scene_ids():
                return store.scene(name)
        return _filmed_scene(name, folder, item.media)

    return find


def _picture_scene(name: str, images: Sequence[bytes]) -> Scene:
    views = tuple(
        View(name=f"image_{n}", rgb=_decoded(image, name)) for n, image in enumerate(images, 1)
    )
    return Scene(scene_id=name, source="photos", views=views)


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise BadInputError(f"a picture of {where} cannot be read ({error})") from None


def _filmed_scene(name: str, folder: Path, media: str) -> Scene | None:
    if not media:
        return None
    for place in (folder / "frames" / media, folder / media):
        # "a/../../b" of a foreign file leads nowhere outside the data folder.
        if not place.resolve().is_relative_to(folder.resolve()):
            return None
        files = sorted(f for f in place.glob("*") if f.suffix.lower() in _PICTURES)
        if files:
            chosen = [files[i] for i in frame_grid(len(files))]
            frames = [_decoded(file.read_bytes(), str(file)) for file in chosen]
            return _frames_scene(name, [file.stem for file in chosen], frames)
    video = (folder / media).with_name(Path(media).name + ".mp4")
    return _video_scene(name, video) if video.is_file() else None


def frame_grid(count: int) -> list[int]:
    """Which of ``count`` frames are taken: all, or an even grid of 32 from first to last."""
    return np.linspace(0, count - 1, min(FRAMES, count)).astype(int).tolist()


def _frames_scene(name: str, names: Sequence[str], frames: Sequence[np.ndarray]) -> Scene:
    views = tuple(View(name=n, rgb=rgb) for n, rgb in zip(names, frames, strict=True))
    return Scene(scene_id=name, source="video", views=views)


def _video_scene(name: str, video: Path) -> Scene:
    if find_spec("av") is None:
        raise BadInputError(f"{video} is a video, which needs av: pip install av")
    import av

    try:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
        wanted = set(frame_grid(count)) if count else set()
        with av.open(str(video)) as container:
            frames = {
                i: frame.to_ndarray(format="rgb24")
                for i, frame in enumerate(container.decode(video=0))
                if i in wanted
            }
    except (av.FFmpegError, IndexError) as error:
        raise BadInputError(f"{video} cannot be read as a video ({error})") from None
    if not frames:
        raise BadInputError(f"{video} holds no frame")
    return _frames_scene(name, [f"frame_{i:06d}" for i in frames], list(frames.values()))
