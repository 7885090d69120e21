"""A trained student asked with something else at its slots: does the answer need what they hold?

The weights stay as they are; only what stands at the slots of a question changes.

- ``zeroed``: zeros are read in instead of the learnt vectors. They still look at the photos.
- ``emptied``: the states at the slots are zero before every layer, so that nothing passes through.
- ``swapped``: before every layer the states at the slots are those of another question of the same
  family about another scene. The learnt vectors are the same for all questions, so what is
  exchanged is what the student made of them. A question whose family no other scene asks gets
  those of a question of any family; ``Intervened.without_donor`` counts them.
- ``shuffled``: the learnt vectors stand in another order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.recipes.ablations import Intervention
from stillroom.records import Answer, BadInputError, Question, Scene
from stillroom.scenes.store import SceneStore
from stillroom.students.connector import VisionFeatures
from stillroom.students.probe import SlotEdit, edited_answers, read_questions
from stillroom.students.session import StudentAnswerer, StudentSession

#: Scenes whose features are kept while several rows are asked about them.
FEATURES_KEPT = 256
#: Opened scenes that are kept: the one asked about and the one that gives its states.
SESSIONS_KEPT = 3


class RememberingAnswerer:
    """A student that looks at a scene once, whatever is asked of it how often."""

    def __init__(self, answerer: StudentAnswerer) -> None:
        self.student, self.processor = answerer.student, answerer.processor
        self._features: OrderedDict[str, VisionFeatures] = OrderedDict()

    def open(self, scene: Scene) -> StudentSession:
        """A session of its own on what was seen."""
        session = StudentSession(
            self.student,
            self.processor,
            [view.rgb for view in scene.views],
            scene_id=scene.scene_id,
            features=self._features.get(scene.scene_id),
        )
        self._features[scene.scene_id] = session.features
        if len(self._features) > FEATURES_KEPT:
            self._features.popitem(last=False)
        return session


def answer_nats(
    session: StudentSession,
    questions: Sequence[Question],
    answers: Sequence[Sequence[int]],
    edits: Sequence[SlotEdit | None] = (),
) -> list[Float[np.ndarray, "a"]]:
    """Cross-entropy [nats] of each id of an answer, given the ids before it."""
    readings = read_questions(
        session.student,
        session.prefix,
        [session.processor.question_ids(question.prompt) for question in questions],
        answers=answers,
        edits=edits,
    )
    return [-reading.answer_logprobs.double().cpu().numpy() for reading in readings]


class Intervened:
    """A student under one of the interventions; ``scene_ids`` are those that are asked about."""

    def __init__(
        self,
        answerer: RememberingAnswerer,
        kind: Intervention,
        store: SceneStore,
        scene_ids: Sequence[str],
        *,
        seed: int,
    ) -> None:
        slots = answerer.student.config.slot_count
        if slots < (2 if kind == "shuffled" else 1):
            raise BadInputError(f"a student with {slots} slots cannot have them {kind}")
        if kind == "swapped" and len(scene_ids) < 2:
            raise BadInputError(
                "swapped slots come from another scene, and only one is asked about; take more"
            )
        self.answerer, self.kind, self.seed = answerer, kind, seed
        self._store, self._ring = store, list(scene_ids)
        self._sessions: OrderedDict[str, StudentSession] = OrderedDict()

    @property
    def without_donor(self) -> int:
        """Questions whose family no other scene asks."""
        scenes: dict[str, set[str]] = {}
        questions = [q for scene_id in self._ring for q in self._store.questions(scene_id)]
        for question in questions:
            scenes.setdefault(question.family, set()).add(question.scene_id)
        return sum(len(scenes[question.family]) < 2 for question in questions)

    def open(self, scene: Scene) -> IntervenedSession:
        """The student's session; only its answers change."""
        return IntervenedSession(self, self._session(scene.scene_id, scene))

    def edits(self, session: StudentSession, questions: Sequence[Question]) -> list[SlotEdit]:
        """What stands at the slots of each question."""
        student = session.student
        if self.kind == "zeroed":
            zero = torch.zeros_like(student.slots().detach())
            return [SlotEdit(embeddings=zero) for _ in questions]
        if self.kind == "emptied":
            return [SlotEdit(states=_nothing) for _ in questions]
        if self.kind == "shuffled":
            own = student.slots().detach()
            orders = [self._order(question, len(own)) for question in questions]
            return [SlotEdit(embeddings=own[order]) for order in orders]
        donors = [self._donor(question) for question in questions]
        return self._exchanged(donors)

    def _order(self, question: Question, count: int) -> list[int]:
        """An order of the slots that is not their own, drawn from the question's id."""
        rng = self._rng(question)
        while True:
            order: list[int] = rng.permutation(count).tolist()
            if order != list(range(count)):
                return order

    def _rng(self, question: Question) -> np.random.Generator:
        return np.random.default_rng([self.seed, *question.question_id.encode()])

    def _donor(self, question: Question) -> Question:
        """A question of the same family about the next scene that has one; of any, if none has."""
        place = self._ring.index(question.scene_id)
        others = self._ring[place + 1 :] + self._ring[:place]
        for scene_id in others:
            same = [q for q in self._store.questions(scene_id) if q.family == question.family]
            if same:
                return same[int(self._rng(question).integers(len(same)))]
        asked = self._store.questions(others[0])
        return asked[int(self._rng(question).integers(len(asked)))]

    def _exchanged(self, donors: Sequence[Question]) -> list[SlotEdit]:
        edits: dict[str, SlotEdit] = {}
        for scene_id in dict.fromkeys(donor.scene_id for donor in donors):
            session = self._session(scene_id)
            asked = {d.question_id: d for d in donors if d.scene_id == scene_id}
            readings = read_questions(
                session.student,
                session.prefix,
                [session.processor.question_ids(donor.prompt) for donor in asked.values()],
            )
            for question_id, reading in zip(asked, readings, strict=True):
                kept = [level[reading.slots] for level in reading.levels[:-1]]
                edits[question_id] = SlotEdit(states=_Kept(kept))
        return [edits[donor.question_id] for donor in donors]

    def _session(self, scene_id: str, scene: Scene | None = None) -> StudentSession:
        if scene_id not in self._sessions:
            opened = self.answerer.open(self._store.scene(scene_id) if scene is None else scene)
            self._sessions[scene_id] = opened
            if len(self._sessions) > SESSIONS_KEPT:
                self._sessions.popitem(last=False)
        return self._sessions[scene_id]


class IntervenedSession:
    """A session in which something else stands at the slots; it offers no geometry."""

    def __init__(self, by: Intervened, session: StudentSession) -> None:
        self._by, self._session = by, session
        #: Which photos were looked at, by number.
        self.views = session.views

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order; one of its options where it has any."""
        processor = self._session.processor
        said = edited_answers(
            self._session.student,
            self._session.prefix,
            [processor.question_ids(question.prompt) for question in questions],
            edits=self._by.edits(self._session, questions),
            choices=[processor.tokenizer.encode_choices(q.options) for q in questions],
        )
        return [
            Answer(question_id=question.question_id, text=processor.decode(ids))
            for question, ids in zip(questions, said, strict=True)
        ]

    def answer_nats(
        self, questions: Sequence[Question], answers: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, "a"]]:
        """``answer_nats`` under the intervention."""
        edits = self._by.edits(self._session, questions)
        return answer_nats(self._session, questions, answers, edits)


class _Kept:
    """States of another question, layer by layer."""

    def __init__(self, levels: Sequence[Float[Tensor, "k d"]]) -> None:
        self._levels = levels

    def __call__(self, layer: int, _: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return self._levels[layer]


def _nothing(_: int, states: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    return torch.zeros_like(states)
