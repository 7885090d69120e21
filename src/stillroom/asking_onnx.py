"""What an exported student says of photos: ``asking.reply`` without torch."""

from __future__ import annotations

from typing import Any

from stillroom.asking import Reply
from stillroom.records import BadInputError, Scene, SceneGeometry, asked


def reply(
    model: str,
    scene: Scene,
    question: str,
    *,
    boxes: bool = False,
    depth: bool = False,
    **more: Any,
) -> Reply:
    """What the ONNX graphs in the folder ``model`` say about the photos of a scene.

    Raises:
        BadInputError: no graphs there, the question is empty or too long, or something is asked for
            that graphs do not tell.
    """
    from stillroom.export.runtime import GraphStudent

    wanted = asked(scene.scene_id, question)
    for name, value in {"boxes": boxes, **more}.items():
        if value:
            raise BadInputError(
                f"ONNX graphs give no {name}; leave it out, or leave --runtime onnx out"
            )
    student = GraphStudent.from_folder(model)
    if depth and not student.settings.get("has_depth"):
        raise BadInputError(f"{model!r} has no depth head and gives no depth")
    session = student.open(scene)
    answer = session.answer([wanted])[0].text
    return Reply(
        question=question,
        answer=answer,
        geometry=session.geometry() if depth else SceneGeometry(),
        views=tuple(scene.views[number].name for number in session.views),
    )
