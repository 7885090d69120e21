"""stillroom: distil the 3D spatial reasoning of a large vision-language model into a small one.

The public names, one by one. Each loads what it needs when it is first used, so that importing
stillroom is instant and loads no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.api import ask as ask
    from stillroom.api import distill as distill
    from stillroom.api import evaluate as evaluate
    from stillroom.api import label as label
    from stillroom.api import make_scenes as make_scenes
    from stillroom.api import open_model as open_model
    from stillroom.api import open_photos as open_photos
    from stillroom.api import open_scene as open_scene
    from stillroom.api import pretrain_encoder as pretrain_encoder
    from stillroom.api import teach as teach
    from stillroom.records import Answer as Answer
    from stillroom.records import BadInputError as BadInputError
    from stillroom.records import OrientedBox as OrientedBox
    from stillroom.records import Question as Question
    from stillroom.records import Scene as Scene
    from stillroom.records import TeacherLabel as TeacherLabel
    from stillroom.records import View as View

__version__ = "0.1.0"

_WHERE = {
    **dict.fromkeys(
        ("Answer", "BadInputError", "OrientedBox", "Question", "Scene", "TeacherLabel", "View"),
        "stillroom.records",
    ),
    **dict.fromkeys(
        (
            "ask",
            "distill",
            "evaluate",
            "label",
            "make_scenes",
            "open_model",
            "open_photos",
            "open_scene",
            "pretrain_encoder",
            "teach",
        ),
        "stillroom.api",
    ),
}
__all__ = sorted(_WHERE)


class _Package(ModuleType):
    """``stillroom.distill`` is the verb, also after the sub-package of that name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
