"""stillroom's models inside lmms-eval (0.7.3), found through its entry-point group.

Only lmms-eval imports this module, in its own environment (docs/evaluate.md):
``lmms-eval --model stillroom --model_args model=student_mini --tasks ... --include_path ...``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from PIL import Image

from stillroom import registry
from stillroom.evaluate.suites.attach import frame_grid
from stillroom.records import BadInputError, Question, Scene, View, content_hash
from stillroom.text.answers import lettered

_PICTURES = (".jpg", ".jpeg", ".png")


def manifest() -> ModelManifest:
    """What the entry point gives lmms-eval."""
    return ModelManifest(
        model_id="stillroom", chat_class_path="stillroom.lmms_eval_plugin.StillroomModel"
    )


class StillroomModel(lmms):  # type: ignore[misc]
    """A student (or anything that needs photos alone) as a chat model of lmms-eval.

    ``prompt="plain"`` asks the document's bare question instead of the task's whole prompt.
    """

    is_simple = False

    def __init__(
        self, model: str = "student_mini", prompt: str = "official", batch_size: int = 1, **_: Any
    ) -> None:
        super().__init__()
        if registry.kind_of(model)[0] in (*registry.BASELINES, *registry.CONTROLS):
            raise BadInputError(f"{model!r} does not look at photos; name a student or a teacher")
        if prompt not in ("official", "plain"):
            raise BadInputError(f"prompt must be official or plain, got {prompt!r}")
        # Models that look at photos take nothing from a store.
        self._answerer = registry.answerer(model, None, split="all")  # type: ignore[arg-type]
        self._plain = prompt == "plain"
        self._opened: tuple[str, Any] | None = None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer a request; neighbours about the same pictures share an opened scene."""
        return [self._answer(*request.args) for request in requests]

    def _answer(
        self, _: str, doc_to_messages: Any, gen: Any, doc_id: int, task: str, split: str
    ) -> str:
        doc = self.task_dict[task][split][doc_id]
        messages = ChatMessages(messages=doc_to_messages(doc))
        images, videos, _audio = messages.extract_media()
        frames = [_pixels(image) for image in images]
        frames += [pixels for video in videos for pixels in _frames(Path(str(video)))]
        if not frames:
            raise BadInputError(f"document {doc_id} of {task} shows no picture")
        scene_id = content_hash([pixels.tobytes() for pixels in frames])
        if self._opened is None or self._opened[0] != scene_id:
            views = tuple(View(name=str(n), rgb=pixels) for n, pixels in enumerate(frames))
            scene = Scene(scene_id=scene_id, source="photos", views=views)
            self._opened = (scene_id, self._answerer.open(scene))
        question = self._question(scene_id, doc, _text(messages))
        return str(self._opened[1].answer([question])[0].text)

    def _question(self, scene_id: str, doc: dict[str, Any], text: str) -> Question:
        options = [str(option) for option in doc.get("options") or ()]
        return Question(
            scene_id=scene_id,
            question_id=content_hash([scene_id, text]),
            split="test",
            family=str(doc.get("question_type") or "asked"),
            question=str(doc.get("question") or text),
            answer="",
            options=tuple(options) if lettered(options) else (),
            asked_as="" if self._plain and doc.get("question") else text,
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: students answer, they do not score texts."""
        raise NotImplementedError("stillroom answers questions; it gives no likelihood of a text")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: every question stands alone."""
        raise NotImplementedError("stillroom answers single questions; it holds no conversation")


def _text(messages: ChatMessages) -> str:
    parts = [
        part.text
        for message in messages.messages
        for part in message.content
        if part.type == "text"
    ]
    return "\n".join(parts)


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _frames(video: Path) -> list[np.ndarray]:
    """An even grid of frames of a video, or of a folder of frames."""
    if video.is_dir():
        files = sorted(file for file in video.iterdir() if file.suffix.lower() in _PICTURES)
        return [_pixels(files[i]) for i in frame_grid(len(files))] if files else []
    import av

    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[i] for i in frame_grid(len(frames))] if frames else []
