"""Any vision-language model as a teacher: photos and a question in, words and signals out.

It looks at the photos alone: no depth, no poses. Views become several pictures in one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from transformers import PreTrainedModel

from stillroom.records import (
    Answer,
    BadInputError,
    Question,
    Scene,
    SceneFeatures,
    Signal,
    TeacherLabel,
    TopLogits,
)
from stillroom.teachers.options import TOPK, Device, TeacherOptions, layer_groups
from stillroom.teachers.photos import chosen_views, view_pictures
from stillroom.teachers.prompts import SHORT_ANSWER
from stillroom.teachers.vlm_features import tokens_before_projector
from stillroom.teachers.vlm_processor import PromptMaker
from stillroom.teachers.vlm_read import Reading, SceneReader, grouped_attention


@dataclass(frozen=True, kw_only=True)
class VlmOptions:
    """How a vision-language teacher is asked: ``TeacherOptions`` as these models know them."""

    # Photos of a scene that are shown, evenly spaced over its views.
    views: int = 8
    # Photos are shrunk to this many pixels on the longer side first; None: as they are.
    image_size: int | None = None
    # Longest answer, in tokens.
    max_new_tokens: int = 64
    # Stands below questions that want a short answer; empty: nothing.
    instruction: str = SHORT_ANSWER
    # Logits kept for every answer position of a label.
    topk: int = TOPK
    # Layers whose attention is averaged ("0-7", "24-31"); none: four equal parts.
    attention_layers: tuple[str, ...] = ()
    # One reading of the scene for all its questions, where that changes nothing.
    share_scene: bool = True
    # Questions read side by side, each with a copy of the scene's keys and values.
    questions_at_once: int = 4
    # Precision; auto: float32 up to 10^9 parameters, as stored above.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Where to compute; auto is the GPU if there is one.
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name in ("views", "max_new_tokens", "topk", "questions_at_once"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size is not None and self.image_size < 14:
            raise BadInputError(f"image_size must be at least 14 pixels, got {self.image_size}")

    @classmethod
    def of(cls, options: TeacherOptions) -> VlmOptions:
        """What a user chose; the rest as above.

        Raises:
            BadInputError: an option that these models have not.
        """
        known = {"frames", *(f.name for f in fields(cls))} - {"views"}
        chosen = options.only(known, of="a vlm: teacher")
        if options.dtype in ("int8", "int4"):
            raise BadInputError(
                f"a vlm: teacher's weights are not quantised, so {options.dtype} cannot be had; "
                "choose --options.dtype bfloat16 or float16"
            )
        if "frames" in chosen:
            chosen["views"] = chosen.pop("frames")
        return cls(**chosen)

    def describe(self) -> dict[str, Any]:
        """What a fingerprint must know: prompt, frames, precision, what is kept."""
        told = asdict(self)
        for name in ("questions_at_once", "device"):
            del told[name]
        return {"decoding": "greedy", **told, "attention_layers": list(self.attention_layers)}


class VlmSession:
    """One scene: its photos are read with the first question, or with each where they must be."""

    def __init__(self, teacher: VlmTeacher, scene: Scene) -> None:
        self.teacher, self.scene = teacher, scene
        options = teacher.options
        #: Which views are looked at, by number.
        self.views = chosen_views(len(scene.views), options.views)
        self.reader = SceneReader(
            teacher.model,
            teacher.prompts.open(view_pictures(scene, self.views, options.image_size)),
            image_token_id=teacher.prompts.image_token_id,
            at_once=options.questions_at_once,
        )

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order: what the model says most probably, word by word."""
        labels = self.label(questions, ["answers"])
        return [Answer(question_id=label.question_id, text=label.answer) for label in labels]

    def label(self, questions: Sequence[Question], signals: Sequence[Signal]) -> list[TeacherLabel]:
        """One label per question, in order.

        Raises:
            BadInputError: a question does not fit, or the model cannot give a signal.
        """
        if not questions:
            return []
        self.begin(questions[0])
        labels: list[TeacherLabel] = []
        for reading in self.reader.read(questions):
            batch = [questions[number] for number in reading.questions]
            labels += self._label_batch(batch, reading, signals)
        return labels

    def begin(self, question: Question) -> None:
        """Read the scene; the first time, check that sharing it changes no answer."""
        teacher = self.teacher
        self.reader.open(question, share=teacher.shares_scenes is not False)
        if teacher.shares_scenes is None:
            agrees = self.reader.agrees(question)
            if not agrees:
                self.reader.prefix = None
            teacher.shares_scenes = agrees and self.reader.prefix is not None

    def _label_batch(
        self, batch: Sequence[Question], reading: Reading, signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        said = self._greedy(reading, signals)
        labels = [self._label(*pair) for pair in zip(batch, said, strict=True)]
        if "reference_logits" in signals:
            labels = [
                replace(label, reference_ids=np.array(ids, dtype=np.int64), reference=top)
                for label, (ids, top) in zip(labels, self._reference(batch), strict=True)
            ]
        if "attention" in signals:
            labels = [
                replace(label, attention=looked, attention_mass=looked.sum(axis=-1))
                for label, looked in zip(labels, self._attention(batch, said), strict=True)
            ]
        return labels

    def _label(self, question: Question, said: _Said) -> TeacherLabel:
        top = said.top
        return TeacherLabel(
            scene_id=question.scene_id,
            question_id=question.question_id,
            answer=self.teacher.prompts.decode(said.ids),
            answer_ids=np.array(said.ids, dtype=np.int64),
            logprob=said.logprob,
            topk_ids=None if top is None else top.ids,
            topk_logits=None if top is None else top.logits,
            logsumexp=None if top is None else top.logsumexp,
            last_hidden=np.stack(said.hidden) if said.hidden else None,
        )

    def _greedy(self, reading: Reading, signals: Sequence[Signal]) -> list[_Said]:
        """Each question's likeliest next token, again and again, until its answer ends."""
        options = self.teacher.options
        answers = [_Said() for _ in reading.questions]
        ends = set(self.teacher.prompts.eos_ids)
        step = reading.first
        for count in range(1, options.max_new_tokens + 1):
            logits = step.logits[:, -1]
            chosen = logits.argmax(dim=-1)
            logprobs = (logits.amax(dim=-1) - logits.logsumexp(dim=-1)).tolist()
            best = _top(logits, options.topk) if "topk_logits" in signals else None
            states = _numpy(step.hidden[:, -1]) if "last_hidden" in signals else None
            for row, (answer, token) in enumerate(zip(answers, chosen.tolist(), strict=True)):
                if answer.ended:
                    continue
                answer.ids.append(token)
                answer.logprob += logprobs[row]
                answer.ended = token in ends
                if best is not None:
                    answer.tops.append((best.ids[row], best.logits[row], best.logsumexp[row]))
                if states is not None:
                    answer.hidden.append(states[row])
            if count == options.max_new_tokens or all(answer.ended for answer in answers):
                break
            step = self.reader.extend(reading, chosen[:, None])
        return answers

    def _reference(self, batch: Sequence[Question]) -> Iterator[tuple[list[int], TopLogits]]:
        """The true answers' ids, and the logits when the model is made to say them."""
        reader = self.reader
        for reading in reader.read(batch):
            ids = [reader.prompts.reference(batch[number]) for number in reading.questions]
            step = reader.extend(reading, _padded(ids, reader.model.device)[:, :-1])
            logits = torch.cat([reading.first.logits, step.logits], dim=1)
            for row, one in enumerate(ids):
                yield one, _top(logits[row, : len(one)], self.teacher.options.topk)

    def _attention(
        self, batch: Sequence[Question], said: Sequence[_Said]
    ) -> Iterator[Float32[np.ndarray, "g a n"]]:
        """Attention of the answers' tokens over the visual ones, by group of layers."""
        reader, groups = self.reader, self.teacher.layer_groups
        for reading in reader.read(batch):
            ids = [said[number].ids for number in reading.questions]
            step = reader.extend(reading, _padded(ids, reader.model.device), attentions=True)
            maps = grouped_attention(step.attentions, reading.visual, groups)
            for row, one in enumerate(ids):
                yield maps[row][:, : len(one)]

    def features(self, question: Question) -> SceneFeatures:
        """What the model makes of the scene; ``question`` shows what prompts are like.

        Raises:
            BadInputError: the model's projector is none that is known here.
        """
        self.begin(question)
        if self.reader.prefix is None:
            # Any question will do: what is asked for stands before the language model.
            reading = next(self.reader.read([question]))
            visual, semantics = reading.visual, None
        else:
            visual = self.reader.prefix.visual
            semantics = _semantics(self.reader.noted.before_norm, visual)
        inputs = self.reader.prompts.whole(question)
        noted = self.reader.noted.before_projector
        pooled = tokens_before_projector(self.teacher.model, noted, inputs, count=len(visual))
        return SceneFeatures(
            scene_id=self.scene.scene_id, pooled=pooled, semantics=semantics, views=self.views
        )


class VlmTeacher:
    """A vision-language model with its processor: opens scenes, answers, labels."""

    def __init__(
        self, model: PreTrainedModel, prompts: PromptMaker, options: VlmOptions | None = None
    ) -> None:
        self.model, self.prompts = model.eval(), prompts
        self.options = options or VlmOptions()
        #: Whether questions share one reading of their scene; None until the first was compared.
        self.shares_scenes: bool | None = None if self.options.share_scene else False
        #: Layers whose attention is averaged, group by group.
        self.layer_groups = layer_groups(
            self.options.attention_layers, model.config.get_text_config().num_hidden_layers
        )
        self._last: VlmSession | None = None

    @classmethod
    def from_folder(
        cls,
        where: Path | str,
        options: VlmOptions | None = None,
    ) -> VlmTeacher:
        """A folder or hub id of a transformers model or of MobileVLM.

        Raises:
            BadInputError: nothing there that can be read, or no image-text-to-text model.
        """
        # The loader builds models and so stands above this module.
        from stillroom.teachers.vlm_load import load_vlm

        options = options or VlmOptions()
        model, prompts = load_vlm(where, options)
        return cls(model, prompts, options)

    def open(self, scene: Scene) -> VlmSession:
        """Look at a scene; labels and features of the same scene share one reading.

        Raises:
            BadInputError: the scene has no photo.
        """
        if self._last is None or self._last.scene is not scene:
            self._last = VlmSession(self, scene)
        return self._last

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """One label per question, in order: the greedy answer with the signals asked for.

        ``scene_features`` is not a label's: see ``scene_features``.

        Raises:
            BadInputError: a question does not fit, or the model cannot give a signal.
        """
        return self.open(scene).label(questions, signals)

    def scene_features(self, scene: Scene) -> SceneFeatures:
        """Features of the scene's visual tokens before the projector, and their mean state.

        ``semantics`` is None for models whose visual tokens see the question.

        Raises:
            BadInputError: the model's projector is none that is known here.
        """
        any_question = Question(
            scene_id=scene.scene_id,
            question_id="",
            split="test",
            family="asked",
            question="What is in the room?",
            answer="",
        )
        return self.open(scene).features(any_question)


class _Said:
    """One answer as it grows, with what stood behind every token."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        #: Log-probability of the answer so far, with its end (nats).
        self.logprob = 0.0
        self.ended = False
        #: Ids, logits and logsumexp of every position, if they are kept.
        self.tops: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.hidden: list[np.ndarray] = []

    @property
    def top(self) -> TopLogits | None:
        """The largest logits of every position, if they were kept."""
        if not self.tops:
            return None
        ids, logits, logsumexp = (np.stack(part) for part in zip(*self.tops, strict=True))
        return TopLogits(ids=ids, logits=logits, logsumexp=logsumexp)


def _top(logits: Float[Tensor, "n v"], k: int) -> TopLogits:
    best = logits.topk(min(k, logits.shape[-1]))
    return TopLogits(
        ids=best.indices.cpu().numpy(),
        logits=_numpy(best.values),
        logsumexp=_numpy(logits.logsumexp(dim=-1)),
    )


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Rows filled up with zeros on the right, where nothing is read off."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


def _semantics(before_norm: Sequence[Tensor], visual: Tensor) -> np.ndarray | None:
    """Mean over visual tokens of the last layer's output; None where the norm is not known."""
    if not before_norm:
        return None
    return before_norm[-1][0, visual].float().mean(dim=0).cpu().numpy()
