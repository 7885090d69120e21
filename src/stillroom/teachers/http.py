"""Any endpoint that speaks OpenAI's chat completions as a teacher; photos travel as data URLs."""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from PIL import Image

from stillroom.records import (
    Answer,
    BadInputError,
    Question,
    Scene,
    Signal,
    TeacherLabel,
)
from stillroom.teachers.http_client import JsonEndpoint, Patience, Refused, checked_url
from stillroom.teachers.options import PATIENCE, TeacherOptions
from stillroom.teachers.photos import chosen_views, view_pictures, with_instruction
from stillroom.teachers.prompts import SHORT_ANSWER

logger = logging.getLogger(__name__)

#: What an endpoint can tell; the rest never leaves the machine that computes it.
GIVEN: tuple[Signal, ...] = ("answers", "topk_logits")
_TOKEN_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How a remote teacher is asked: ``TeacherOptions`` as endpoints know them."""

    # Photos of a scene that are sent, evenly spaced over its views.
    views: int = 8
    # Photos are shrunk to this many pixels on the longer side; None: sent as they are.
    image_size: int | None = 768
    # Quality of the JPEGs that are sent, 1 to 95.
    jpeg_quality: int = 90
    # Longest answer, in tokens.
    max_new_tokens: int = 64
    # Stands below questions that want a short answer; empty: nothing.
    instruction: str = SHORT_ANSWER
    # Logprobs asked for at every position when topk_logits is wanted; OpenAI gives up to 20.
    topk: int = 20
    # How hard the endpoint is tried.
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        for name in ("views", "max_new_tokens", "topk"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size is not None and self.image_size < 1:
            raise BadInputError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if not 1 <= self.jpeg_quality <= 95:
            raise BadInputError(f"jpeg_quality must lie in 1..95, got {self.jpeg_quality}")

    @classmethod
    def of(cls, options: TeacherOptions) -> HttpOptions:
        """What a user chose; the rest as above.

        Raises:
            BadInputError: an option that endpoints have not.
        """
        own = {f.name for f in fields(cls)} - {"views", "patience"}
        chosen = options.only({"frames", *own, *PATIENCE}, of="an http: teacher")
        patience = Patience(**{name: chosen.pop(name) for name in PATIENCE if name in chosen})
        if "frames" in chosen:
            chosen["views"] = chosen.pop("frames")
        return cls(**chosen, patience=patience)

    def describe(self) -> dict[str, Any]:
        """What a fingerprint must know: prompt, frames, decoding."""
        told = {name: value for name, value in asdict(self).items() if name != "patience"}
        return {"decoding": "temperature 0", **told}


def split_address(where: str) -> tuple[str, str]:
    """("https://HOST/v1", "MODEL") of "https://HOST/v1#MODEL".

    Raises:
        BadInputError: no plain web address, or no model behind it.
    """
    url, _, model = where.partition("#")
    url = checked_url(url).rstrip("/").removesuffix("/chat/completions")
    if not model:
        raise BadInputError(f"name the endpoint's model behind a #: http:{url}#MODEL")
    return url, model


class HttpSession:
    """One scene: its photos are encoded once and sent with every question."""

    def __init__(self, teacher: HttpTeacher, scene: Scene) -> None:
        options = teacher.options
        self.teacher, self.scene_id = teacher, scene.scene_id
        #: Which views are sent, by number.
        self.views = chosen_views(len(scene.views), options.views)
        pictures = view_pictures(scene, self.views, options.image_size)
        self.photos = [data_url(picture, quality=options.jpeg_quality) for picture in pictures]

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order."""
        labels = self.label(questions, ["answers"])
        return [Answer(question_id=label.question_id, text=label.answer) for label in labels]

    def label(self, questions: Sequence[Question], signals: Sequence[Signal]) -> list[TeacherLabel]:
        """One label per question, in order.

        Raises:
            BadInputError: a signal that no endpoint tells, or no good reply.
        """
        beyond = [signal for signal in signals if signal not in GIVEN]
        if beyond:
            raise BadInputError(
                f"an endpoint does not tell {', '.join(beyond)}; label with --signals answers"
            )
        labels = [self.teacher.ask(self.photos, question, signals) for question in questions]
        self.teacher.tally.tell(self.scene_id, self.teacher.options.max_new_tokens)
        return labels


class Tally:
    """How many answers came whole, by scene and in all; what did not is said, never hidden."""

    def __init__(self) -> None:
        self._scene: Counter[str] = Counter()
        self._all: Counter[str] = Counter()

    def add(self, answer: str, finish: object) -> None:
        """One answer and why it ended."""
        found = {"answers": True, "cut": finish == "length", "empty": not answer}
        for count in (self._scene, self._all):
            count.update(name for name, holds in found.items() if holds)

    def tell(self, scene_id: str, max_new_tokens: int) -> None:
        """One line about the scene that ends here, if any answer of it was cut or empty."""
        scene, every = self._scene, self._all
        if scene["cut"] or scene["empty"]:
            logger.warning(
                "scene %s: of %d answers %d were cut at %d tokens (--options.max-new-tokens) and "
                "%d are empty; so far %d and %d of %d",
                *(scene_id, scene["answers"], scene["cut"], max_new_tokens, scene["empty"]),
                *(every["cut"], every["empty"], every["answers"]),
            )
        self._scene = Counter()


class HttpTeacher:
    """A model behind a web address: opens scenes, answers, labels.

    Raises:
        BadInputError: no plain address with a model, or no HTTP library.
    """

    def __init__(self, where: str, options: HttpOptions | None = None) -> None:
        self.options = options or HttpOptions()
        self.url, self.model = split_address(where)
        self._endpoint = JsonEndpoint(f"{self.url}/chat/completions", self.options.patience)
        #: Whether logprobs are asked for; an endpoint that refuses them is asked without.
        self._asks_logprobs = True
        self.tally = Tally()

    def open(self, scene: Scene) -> HttpSession:
        """Encode the scene's photos.

        Raises:
            BadInputError: the scene has no photo.
        """
        return HttpSession(self, scene)

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """One label per question, in order.

        ``topk_logits`` are the endpoint's logprobs (so ``logsumexp`` is 0), and need one that
        names tokens by their ids, as vLLM does.

        Raises:
            BadInputError: a signal that this endpoint does not tell, or no good reply.
        """
        return self.open(scene).label(questions, signals)

    def ask(
        self, photos: Sequence[str], question: Question, signals: Sequence[Signal]
    ) -> TeacherLabel:
        """The label of one question about photos given as data URLs."""
        with_logits = "topk_logits" in signals
        reply = self._reply(self._body(photos, question, with_logits=with_logits), with_logits)
        choice = _choice(reply, self.url)
        answer = _text(choice, self.url, question.question_id)
        content = _logprobs(choice)
        ids = top_ids = top_logits = None
        if with_logits:
            ids, top_ids, top_logits = _top(content, self.options.topk, self.url)
        self.tally.add(answer, choice.get("finish_reason"))
        return TeacherLabel(
            scene_id=question.scene_id,
            question_id=question.question_id,
            answer=answer,
            answer_ids=ids,
            logprob=sum(entry["logprob"] for entry in content) if content else None,
            topk_ids=top_ids,
            topk_logits=top_logits,
            logsumexp=None if top_logits is None else np.zeros(len(top_logits), np.float32),
        )

    def _body(
        self, photos: Sequence[str], question: Question, *, with_logits: bool
    ) -> dict[str, Any]:
        text = with_instruction(question, self.options.instruction)
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": photo}} for photo in photos
        ]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "temperature": 0,
            "max_tokens": self.options.max_new_tokens,
        }
        if with_logits:
            more = {"top_logprobs": self.options.topk, "return_tokens_as_token_ids": True}
            return body | {"logprobs": True} | more
        return body | ({"logprobs": True} if self._asks_logprobs else {})

    def _reply(self, body: dict[str, Any], with_logits: bool) -> Any:
        try:
            return self._endpoint.post(body)
        except Refused as refusal:
            if with_logits or "logprobs" not in body or refusal.status not in (400, 422):
                raise
        plain = {name: value for name, value in body.items() if name != "logprobs"}
        reply = self._endpoint.post(plain)
        logger.info("%s gives no logprobs; labels have answers only", self.url)
        self._asks_logprobs = False
        return reply


def data_url(picture: Image.Image, *, quality: int) -> str:
    """A picture as a JPEG inside of a URL."""
    sink = io.BytesIO()
    picture.save(sink, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


# What an endpoint said. -------------------------------------------------------------------------


def _choice(reply: Any, url: str) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or not isinstance(first.get("message"), dict):
        raise BadInputError(
            f"{url} answered JSON, but no chat completion (choices[0].message); is it an "
            "OpenAI-compatible endpoint?"
        )
    return first


def _text(choice: Mapping[str, Any], url: str, question_id: str) -> str:
    """The words of an answer; those of a refusal where the model refused.

    Raises:
        BadInputError: there are none, and the reply tells that the model did not choose so: it was
            filtered, used up its tokens before the first word, or left the content out.
    """
    message, finish = choice["message"], choice.get("finish_reason")
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise BadInputError(f"{url} answered a message whose content is no text")
    text = (content or "").strip()
    if text:
        return text
    if finish == "content_filter":
        raise BadInputError(
            f"{url} filters its answer to question {question_id}; leave that question out"
        )
    if finish == "length":
        raise BadInputError(
            f"{url} used up all tokens of its answer to question {question_id} before the first "
            "word, as models do that think first; raise --options.max-new-tokens"
        )
    if content is None:
        raise BadInputError(f"{url} answered question {question_id} with a message without content")
    return text


def _logprobs(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of the answer's tokens; none where the endpoint tells no logprobs."""
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    return content if isinstance(content, list) and all(map(_has_logprob, content)) else []


def _has_logprob(entry: object) -> bool:
    found = entry.get("logprob") if isinstance(entry, dict) else None
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)


def _top(
    content: Sequence[Mapping[str, Any]], topk: int, url: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the answer [a], and ids and logprobs of the ``topk`` best tokens [a k].

    Raises:
        BadInputError: the endpoint tells no logprobs, fewer than asked for, or such that are no
            numbers, or names tokens by text, of which one may stand for several ids.
    """
    rows = [entry.get("top_logprobs") for entry in content]
    whole = [row for row in rows if isinstance(row, list) and row]
    if not whole or len(whole) < len(rows):
        raise BadInputError(f"{url} tells no top logprobs; label with --signals answers")
    if not all(_has_logprob(one) for row in whole for one in row):
        raise BadInputError(
            f"{url} tells top logprobs of which one is no number; label with --signals answers"
        )
    said = [_token_id(entry) for entry in content]
    # Endpoints add the token that was said where it is not among the best.
    best = [sorted(row, key=lambda one: -one["logprob"])[:topk] for row in whole]
    ids = [[_token_id(one) for one in row] for row in best]
    if None in said or any(None in row for row in ids):
        raise BadInputError(
            f"{url} names tokens by their text, not by their ids, so its logits cannot be stored; "
            "label with --signals answers"
        )
    fewest = min(map(len, whole))
    if fewest < topk:
        raise BadInputError(
            f"{url} tells {fewest} top logprobs of a token where {topk} were asked for; choose "
            f"--options.topk {fewest}"
        )
    logits = [[one["logprob"] for one in row] for row in best]
    return np.array(said), np.array(ids), np.array(logits, dtype=np.float32)


def _token_id(entry: Mapping[str, Any]) -> int | None:
    found = _TOKEN_ID.fullmatch(str(entry.get("token", "")))
    return int(found[1]) if found else None
