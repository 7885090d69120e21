"""Which photos of a scene are shown to a teacher that looks at photos alone, and what is asked."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from stillroom.records import BadInputError, Question, Scene


def chosen_views(available: int, wanted: int) -> tuple[int, ...]:
    """Numbers of at most ``wanted`` views, evenly spaced, the first always among them."""
    count = min(available, wanted)
    return tuple(index * available // count for index in range(count))


def view_pictures(scene: Scene, views: Sequence[int], size: int | None) -> list[Image.Image]:
    """The chosen photos, shrunk to ``size`` pixels on the longer side where they are larger.

    Raises:
        BadInputError: there is none.
    """
    if not views:
        raise BadInputError(f"scene {scene.scene_id} has no photo to look at")
    pictures = [Image.fromarray(scene.views[number].rgb) for number in views]
    if size is not None:
        for picture in pictures:
            # Pillow's thumbnail keeps the proportions and never enlarges.
            picture.thumbnail((size, size), Image.Resampling.BICUBIC)
    return pictures


def with_instruction(question: Question, instruction: str) -> str:
    """What is asked, with how to answer below it where a short answer is wanted."""
    if not instruction or question.family in ("description", "asked"):
        return question.prompt
    return f"{question.prompt}\n{instruction}"
