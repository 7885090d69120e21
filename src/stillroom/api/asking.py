"""Questions to a model about photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.api.scenes import open_photos
from stillroom.records import BadInputError

if TYPE_CHECKING:
    from stillroom.engine.scene_cache import SceneCache
    from stillroom.students.session import StudentSession


#: Memory that open scenes may take where nobody says how much.
OPEN_SCENES_BYTES = 1 << 30


def open_scene(model: str, photos: Path | str) -> StudentSession:
    """A session of a student on a folder of photos: ``.ask("...")`` from there on."""
    from stillroom import registry
    from stillroom.students.session import StudentAnswerer

    return StudentAnswerer.from_folder(registry.locate(model)).open(open_photos(photos))


def open_model(model: str, *, budget_bytes: int = OPEN_SCENES_BYTES) -> SceneCache:
    """A student or a LLaVA-3D, loaded once: ``.open(SCENE)`` gives the scene's session.

    Scenes stay open for their next question as long as all of them take at most ``budget_bytes``;
    those asked for longest ago are closed first.
    """
    from stillroom import registry
    from stillroom.engine.scene_cache import SceneCache

    kind, where = registry.kind_of(model)
    if kind == "student":
        from stillroom.students.session import StudentAnswerer

        return SceneCache(
            StudentAnswerer.from_folder(registry.locate(where)), budget_bytes=budget_bytes
        )
    if kind == "llava3d":
        from stillroom.teachers.llava3d import LLaVA3DTeacher

        return SceneCache(
            LLaVA3DTeacher.from_folder(registry.locate(where)), budget_bytes=budget_bytes
        )
    raise BadInputError(
        f"{model!r} looks at no scene that could be kept open; name student_mini, teacher_mini, a "
        "folder or a hub id"
    )


def ask(model: str, photos: Path | str, question: str) -> str:
    """One answer about a folder of photos or a capture."""
    from stillroom.asking import reply

    return reply(model, open_photos(photos), question).answer
