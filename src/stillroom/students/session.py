"""A student in use: a scene opened once, questions cheap from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stillroom.engine.packed import pack
from stillroom.records import (
    Answer,
    OrientedBox,
    Question,
    Scene,
    SceneGeometry,
    View,
    asked,
    content_hash,
)
from stillroom.students.connector import VisionFeatures
from stillroom.students.detector import found_boxes
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import Photo, StillroomProcessor, photo_identity
from stillroom.students.quantised import pack_quantised

#: How sure a guess of the detector must be to be shown. Focal loss leaves even good guesses far
#: from certain.
LEAST_SCORE = 0.3


class StudentSession:
    """One scene: the encoder and the prefix have run, only questions are left."""

    def __init__(
        self,
        student: StillroomStudent,
        processor: StillroomProcessor,
        photos: Sequence[Photo],
        *,
        scene_id: str,
        features: VisionFeatures | None = None,
    ) -> None:
        """``features`` are what the encoder says of these photos, where that is known already."""
        self.student, self.processor, self.scene_id = student, processor, scene_id
        #: Which photos were looked at, by number.
        self.views = tuple(processor.chosen(len(photos)))
        if features is None:
            images = torch.from_numpy(processor.images(photos)).to(student.device)
            with torch.no_grad():
                features = student.features(images[None])
        #: What the encoder said of them, and what all questions share of the language model.
        self.features, self.prefix = features, student.open_prefix(features)

    @property
    def layers(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values of the scene by layer of the language model, ``[1 heads n d]`` each."""
        return self.prefix.layers

    @property
    def nbytes(self) -> int:
        """Memory of what has been read of the scene: features, keys and values."""
        seen = (self.features.tokens, self.features.depth, self.features.depth_map)
        return self.prefix.nbytes + sum(part.nbytes for part in seen if part is not None)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order; one of its options where it has any."""
        prompts = [self.processor.question_ids(question.prompt) for question in questions]
        choices = [self.processor.tokenizer.encode_choices(q.options) for q in questions]
        said = self.student.answer_ids(self.prefix, prompts, choices=choices)
        return [
            Answer(question_id=question.question_id, text=self.processor.decode(ids))
            for question, ids in zip(questions, said, strict=True)
        ]

    def plain_answer(self, questions: Sequence[Question]) -> list[Answer]:
        """What ``answer`` has to say, slowly: as ``generate`` does, the language model's own
        ``forward`` reads the scene anew for each question."""
        said = []
        for question in questions:
            (ids,) = self.student.answer_ids(
                self.student.open_prefix(self.features, plain=True),
                [self.processor.question_ids(question.prompt)],
                choices=[self.processor.tokenizer.encode_choices(question.options)],
                plain=True,
            )
            said.append(Answer(question_id=question.question_id, text=self.processor.decode(ids)))
        return said

    def ask(self, text: str) -> str:
        """The answer to a question in a person's own words.

        Raises:
            BadInputError: the question is empty or too long.
        """
        return self.answer([asked(self.scene_id, text)])[0].text

    def seen(self, scene: Scene) -> Scene:
        """The scene as this session looked at it: the chosen views, cut to the student's square."""
        rgb = self.processor.images([view.rgb for view in scene.views]).transpose(0, 2, 3, 1)
        depth = self.processor.depth(
            [np.where(view.depth_valid, _depth_of(view), 0.0) for view in scene.views]
        )
        views = tuple(
            View(name=scene.views[index].name, rgb=np.rint(255 * picture).astype(np.uint8), depth=z)
            for index, picture, z in zip(self.views, rgb, depth, strict=True)
        )
        return replace(scene, views=views)

    def geometry(self, *, least_score: float = LEAST_SCORE) -> SceneGeometry:
        """Depth of the photos in ``views``, as the processor cuts them, and boxes in view0 [m].

        Depth is the encoder's own, in metres or in a unit of the scene (``depth_unit``).

        Boxes are the guesses that are at least so sure, surest first; a student without a detector
        has none.
        """
        depth, detector = self.features.depth_map, self.student.detector
        boxes: tuple[tuple[str, OrientedBox], ...] = ()
        scores: tuple[float, ...] = ()
        if detector is not None:
            with torch.no_grad():
                said = detector(self.student.cells(self.features))
            kinds = self.student.config.detection_kinds or []
            boxes, scores = found_boxes(said, kinds, least_score=least_score)
        return SceneGeometry(
            depth=None if depth is None else depth[0].float().cpu().numpy().astype(np.float32),
            depth_unit=self.student.config.depth_unit or "metre",
            boxes=boxes,
            box_scores=scores,
        )

    def guesses(self) -> SceneGeometry:
        """Every guess of the detector, unsure ones too, which average precision is made of."""
        return self.geometry(least_score=0.0)


class StudentAnswerer:
    """A student and its processor: opens scenes."""

    def __init__(self, student: StillroomStudent, processor: StillroomProcessor) -> None:
        self.student, self.processor = student.eval(), processor

    @classmethod
    def from_folder(
        cls,
        where: Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> StudentAnswerer:
        """A student's folder or hub id, computed in ``dtype``.

        None is float32, also where weights are kept in half precision; of quantised weights it is
        bfloat16, which their kernels are made for.

        Raises:
            BadInputError: nothing there that can be read.
        """
        student: StillroomStudent = StillroomStudent.from_pretrained(
            where, dtype=torch.float32 if dtype is None else dtype
        )
        if dtype is None and student.config.weights != "full":
            student.to(torch.bfloat16)  # type: ignore[arg-type]
        student.to(torch.device(device))  # type: ignore[arg-type]  # transformers' wrapper
        pack(student, decoder=student.language_model)
        pack_quantised(student)
        return cls(student, StillroomProcessor.from_pretrained(where))

    def open(self, scene: Scene) -> StudentSession:
        """Look at a scene once."""
        photos = [view.rgb for view in scene.views]
        return StudentSession(self.student, self.processor, photos, scene_id=scene.scene_id)

    def open_scene(self, photos: Sequence[Photo]) -> StudentSession:
        """Look at loose photos of one scene: paths, Pillow images or arrays."""
        scene_id = content_hash(["photos", *map(photo_identity, photos)])
        return StudentSession(self.student, self.processor, photos, scene_id=scene_id)


def _depth_of(view: View) -> np.ndarray:
    return np.zeros(view.rgb.shape[:2], np.float32) if view.depth is None else view.depth
