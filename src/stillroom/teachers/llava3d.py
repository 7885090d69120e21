"""A LLaVA-3D in use: opens scenes, answers, labels, and tells what it knows beside the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillroom.engine.generate import Decoded, greedy, greedy_scenes
from stillroom.engine.packed import pack
from stillroom.engine.prefix import prefill
from stillroom.records import (
    Answer,
    BadInputError,
    Question,
    Scene,
    SceneFeatures,
    Signal,
    TeacherLabel,
    content_hash,
)
from stillroom.teachers.hub import fetch
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_load import load_llava3d
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.teachers.llava3d_place import computing_dtype, place
from stillroom.teachers.llava3d_signals import Asked, Reading, last_layer_output, read_answers
from stillroom.teachers.options import TOPK, TeacherOptions
from stillroom.teachers.preprocess import object_points, photo_inputs, scene_inputs
from stillroom.teachers.prompts import COORDINATE_ID, TEMPLATES, PromptTokenizer, open_tokenizer
from stillroom.text.tokenizer import Tokenizer


class LLaVA3DSession:
    """One scene: its visual tokens and the words before them are read, only questions are left."""

    def __init__(self, teacher: LLaVA3DTeacher, scene: Scene) -> None:
        self.teacher, self.scene = teacher, scene
        model = teacher.model
        #: What the cap is drawn from: the scene's id alone, so that two runs agree.
        self.cap_seed = int(content_hash([scene.scene_id, "cap"])[:8], 16)
        before = teacher.template.prefix_ids(teacher.tokenizer)
        with torch.no_grad():
            read = self._read_photo if teacher.options.vision == "2d" else self._read_scene
            tokens = read(model)
            embeds = model.prefix_embeds(before, tokens)
            self._require_room(embeds.shape[1])
            #: Where the visual tokens stand in the prefix.
            self.visual = slice(len(before), embeds.shape[1])
            with last_layer_output(model) as outputs:
                self.prefix = prefill(model, embeds, visibility=model.settings.visibility)
            self._semantics = outputs[0][0, self.visual].float().mean(dim=0)

    def _read_scene(self, model: LLaVA3D) -> Float[Tensor, "n d"]:
        inputs = scene_inputs(self.scene, model.settings)
        #: Which views were looked at, by number.
        self.views = inputs.views
        arrays = (inputs.images, inputs.depths, inputs.poses, inputs.intrinsics)
        self.tokens = model.scene_tokens(
            *(torch.from_numpy(array)[None].to(model.device) for array in arrays),
            cap_seeds=[self.cap_seed],
        )[0]
        self._features = self.tokens.features
        self._points: Tensor | None = self.tokens.centres(model.settings.voxel_size)
        self._of_patch: Int[Tensor, "p"] = self.tokens.of_patch
        return self.tokens.tokens

    def _read_photo(self, model: LLaVA3D) -> Float[Tensor, "n d"]:
        image, self.views = photo_inputs(self.scene, model.settings)
        self._features = model.clip_features(torch.from_numpy(image).to(model.device))[0]
        self._points = None
        self._of_patch = torch.arange(len(self._features))
        return model.model.mm_projector(self._features)

    def _require_room(self, prefix: int) -> None:
        positions = self.teacher.model.settings.max_position_embeddings
        if prefix >= positions:
            raise BadInputError(
                f"scene {self.scene.scene_id} takes {prefix} of the teacher's {positions} "
                "positions, which leaves none for a question; its config should cap "
                "max_visual_tokens lower"
            )

    @property
    def nbytes(self) -> int:
        """Memory of what has been read of the scene: features, keys and values."""
        return self.prefix.nbytes + self._features.nbytes + self._of_patch.nbytes

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        said = self.decode(questions, topk=0, scored=False)
        return [
            Answer(question_id=question.question_id, text=self.teacher.tokenizer.decode(one.ids))
            for question, one in zip(questions, said, strict=True)
        ]

    def plain_answer(self, questions: Sequence[Question]) -> list[Answer]:
        """What ``answer`` has to say, slowly: each question with the scene read anew by the model's
        own ``forward``."""
        model, answers = self.teacher.model, []
        visibility = model.settings.visibility
        for question in questions:
            (said,) = greedy(
                model,
                prefill(model, self.prefix.embeds, visibility=visibility, plain=True),
                self._prompts([question]),
                visibility=visibility,
                max_new_tokens=model.settings.max_new_tokens,
                eos_id=self.teacher.tokenizer.eos_id,
                choices=[self.teacher._choices(question)],
                plain=True,
            )
            text = self.teacher.tokenizer.decode(said.ids)
            answers.append(Answer(question_id=question.question_id, text=text))
        return answers

    def decode(
        self, questions: Sequence[Question], *, topk: int, scored: bool = True
    ) -> list[Decoded]:
        """Greedy ids, with the ``topk`` largest logits of every answer position if above 0.

        Without ``scored`` there are no log-probabilities.

        Raises:
            BadInputError: a question does not fit into the model's positions, or points at an
                object whose place is not known.
        """
        return self.teacher.decode([(self, questions)], topk=topk, scored=scored)[0]

    def read(
        self, questions: Sequence[Question], said: Sequence[Decoded], signals: Sequence[Signal]
    ) -> list[Reading]:
        """The signals that need the model to be led through given answers, one per question."""
        teacher, reference = self.teacher, "reference_logits" in signals
        ids = [teacher.reference_ids(q) if reference else None for q in questions]
        return read_answers(
            teacher.model,
            self.prefix,
            [
                Asked(prompt=prompt, said=answer.ids, reference=truth)
                for prompt, answer, truth in zip(self._prompts(questions), said, ids, strict=True)
            ],
            visual=self.visual,
            hidden="last_hidden" in signals,
            layer_groups=teacher.layer_groups if "attention" in signals else (),
            topk=teacher.topk,
        )

    def features(self) -> SceneFeatures:
        """What all questions of the scene share, in the order of the visual tokens."""
        dropped = bool((self._of_patch < 0).any())
        points = None if self._points is None else self._points.cpu().numpy()
        return SceneFeatures(
            scene_id=self.scene.scene_id,
            pooled=self._features.half().cpu().numpy(),
            semantics=self._semantics.cpu().numpy(),
            points=points,
            patch_token=self._of_patch.cpu().numpy(),
            views=self.views,
            cap_seed=self.cap_seed if dropped else None,
        )

    def _prompts(self, questions: Sequence[Question]) -> list[Float[Tensor, "_ d"]]:
        """The embeddings of each question with the words around it."""
        teacher = self.teacher
        settings = teacher.model.settings
        room = settings.max_position_embeddings - self.prefix.length - settings.max_new_tokens
        prompts = []
        for question in questions:
            ids = teacher.template.question_ids(
                teacher.tokenizer, question, task=teacher.options.task
            )
            if len(ids) > room:
                raise BadInputError(
                    f"the question has {len(ids)} tokens, but beside this scene the teacher has "
                    f"room for {max(room, 0)}; shorten it"
                )
            points = self._pointed_at(question) if COORDINATE_ID in ids else []
            with torch.no_grad():
                prompts.append(teacher.model.embed_prompt(ids, points))
        return prompts

    def _pointed_at(self, question: Question) -> list[tuple[float, float, float]]:
        if self.teacher.options.vision == "2d":
            raise BadInputError(
                f"question {question.question_id} points at places in the room, which a teacher "
                "that reads a single photo (vision 2d) does not know"
            )
        return object_points(self.scene, question.object_ids, self.teacher.model.settings)


class LLaVA3DTeacher:
    """A LLaVA-3D with its tokenizer: opens scenes, answers, labels."""

    def __init__(
        self, model: LLaVA3D, tokenizer: PromptTokenizer, options: TeacherOptions | None = None
    ) -> None:
        self.options = options or TeacherOptions()
        model.settings = model.settings.adjusted(self.options)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.template = TEMPLATES[model.settings.prompt]
        #: Logits kept for every answer position.
        self.topk = self.options.topk or TOPK
        #: Layers whose attention is averaged, group by group.
        self.layer_groups = self.options.layer_groups(model.settings.num_hidden_layers)
        # The scene read last: its features are asked for just before or just after its labels.
        self._last: LLaVA3DSession | None = None

    @classmethod
    def from_folder(
        cls, where: Path | str, options: TeacherOptions | None = None
    ) -> LLaVA3DTeacher:
        """A folder or hub id in the released layout; on the GPU if there is one.

        Raises:
            BadInputError: nothing there that can be read, or an option that cannot be met here.
        """
        options = options or TeacherOptions()
        folder = fetch(where)
        # What is cheap to refuse comes before the weights.
        settings = LLaVA3DConfig.read(folder).adjusted(options)
        tokenizer = open_tokenizer(
            folder,
            bos_id=settings.bos_token_id,
            eos_id=settings.eos_token_id,
            vocab_size=settings.vocab_size,
        )
        options.layer_groups(settings.num_hidden_layers)
        model = load_llava3d(folder, dtype=computing_dtype(options))
        place(model, options)
        pack(model, decoder=model.model.layers)
        return cls(model, tokenizer, options)

    def open(self, scene: Scene) -> LLaVA3DSession:
        """Read a scene once.

        Raises:
            BadInputError: the scene has no depth, poses or intrinsics.
        """
        return LLaVA3DSession(self, scene)

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """One label per question, in order: the greedy answer, with the signals asked for.

        ``scene_features`` are no part of a label and come from the method of that name.
        """
        return self.label_scenes([(scene, questions)], signals)

    def label_scenes(
        self, asked: Iterable[tuple[Scene, Sequence[Question]]], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """The labels of several scenes, one scene after another; their answers grow together.

        Signals that lead the model through its answers need the scene's cache once more, so that
        scenes are then finished one by one.
        """
        topk = self.topk if "topk_logits" in signals else 0
        sessions = self._opened(asked)
        labels: list[TeacherLabel] = []
        if {"reference_logits", "last_hidden", "attention"} & set(signals):
            for session, questions in sessions:
                said = session.decode(questions, topk=topk)
                readings = session.read(questions, said, signals)
                labels += map(self._label, questions, said, readings)
            return labels
        known: list[Question] = []

        def noted() -> Iterator[tuple[LLaVA3DSession, Sequence[Question]]]:
            # One by one: only scenes that are decoded together are held at once.
            for session, questions in sessions:
                known.extend(questions)
                yield session, questions

        answers = [said for scene in self.decode(noted(), topk=topk) for said in scene]
        return [self._label(question, said, Reading()) for question, said in zip(known, answers)]

    def scene_features(self, scene: Scene) -> SceneFeatures:
        """Features of the scene's visual tokens and where they lie.

        A scene that was labelled last, or is labelled next, is read once for both.

        Raises:
            BadInputError: the scene has no depth, poses or intrinsics.
        """
        return self._read_once(scene).features()

    def decode(
        self,
        asked: Iterable[tuple[LLaVA3DSession, Sequence[Question]]],
        *,
        topk: int,
        scored: bool = True,
    ) -> list[list[Decoded]]:
        """Greedy ids by scene, with the ``topk`` largest logits of every position if above 0.

        Without ``scored`` there are no log-probabilities.

        Raises:
            BadInputError: a question does not fit into the model's positions.
        """
        settings = self.model.settings
        return greedy_scenes(
            self.model,
            (
                (session.prefix, session._prompts(questions), [self._choices(q) for q in questions])
                for session, questions in asked
            ),
            visibility=settings.visibility,
            max_new_tokens=settings.max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            topk=topk,
            scored=scored,
        )

    def reference_ids(self, question: Question) -> list[int] | None:
        """Ids of the true answer with its end, cut at ``max_new_tokens``; None if none is known."""
        if not question.answer.strip():
            return None
        ids = self.tokenizer.encode_answer(question.answer)
        return ids[: self.model.settings.max_new_tokens]

    def _opened(
        self, asked: Iterable[tuple[Scene, Sequence[Question]]]
    ) -> Iterator[tuple[LLaVA3DSession, Sequence[Question]]]:
        """A session for each scene, or for each question where nothing is to be shared."""
        for scene, questions in asked:
            if self.options.share_scene:
                yield self._read_once(scene), questions
            else:
                for question in questions:
                    yield self.open(scene), [question]

    def _read_once(self, scene: Scene) -> LLaVA3DSession:
        if self._last is None or self._last.scene is not scene:
            self._last = None  # its cache makes room first
            self._last = self.open(scene)
        return self._last

    def _label(self, question: Question, said: Decoded, reading: Reading) -> TeacherLabel:
        truth = None if reading.reference is None else self.reference_ids(question)
        return TeacherLabel(
            scene_id=question.scene_id,
            question_id=question.question_id,
            answer=self.tokenizer.decode(said.ids),
            answer_ids=np.array(said.ids, dtype=np.int64),
            logprob=said.logprob,
            topk_ids=said.topk_ids,
            topk_logits=said.topk_logits,
            logsumexp=said.logsumexp,
            reference_ids=None if truth is None else np.array(truth, dtype=np.int64),
            reference=reading.reference,
            last_hidden=reading.hidden,
            attention=reading.attention,
            attention_mass=reading.attention_mass,
        )

    def _choices(self, question: Question) -> list[list[int]]:
        """A miniature answers with one of the options; the release says what it wants."""
        if not isinstance(self.tokenizer, Tokenizer):
            return []
        return self.tokenizer.encode_choices(question.options)
