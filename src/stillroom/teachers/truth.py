"""The teacher that reads the answer from geometry: an upper bound and a control."""

from __future__ import annotations

from collections.abc import Sequence

from stillroom.records import Answer, BadInputError, Question, Scene, Signal, TeacherLabel


class TruthTeacher:
    """Answers with what geometry says; it has no logits."""

    def open(self, scene: Scene) -> TruthTeacher:
        """Nothing to prepare: questions carry their truth."""
        return self

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The true answers."""
        return [Answer(question_id=q.question_id, text=q.answer) for q in questions]

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """The true answers as labels.

        Raises:
            BadInputError: more than answers is asked for.
        """
        more = [name for name in signals if name != "answers"]
        if more:
            raise BadInputError(
                f"the teacher truth has answers alone, no {', '.join(more)}; label with "
                "--signals answers"
            )
        return [
            TeacherLabel(scene_id=scene.scene_id, question_id=q.question_id, answer=q.answer)
            for q in questions
        ]
