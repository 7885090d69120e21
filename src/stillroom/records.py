"""What travels between the parts: scenes, questions, answers, labels, and the two seams.

Frames and units are those of ``docs/conventions.md``: metres, world z up, OpenCV camera axes
(x right, y down, z forward), the centre of the top-left pixel at (0.5, 0.5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt16

Split = Literal["train", "val", "test", "shifted"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "shifted")

#: The paper's four families: ``overall`` is the mean over their items.
FAMILIES = ("proximity", "contact", "size", "orientation")

#: Longest question taken from a user, in characters.
MAX_QUESTION_CHARS = 2_000


class BadInputError(ValueError):
    """Input from outside cannot be used; the message is one sentence for the person who gave it.

    The command line prints the message alone and exits with code 2; a server answers 4xx.
    """


def content_hash(parts: Iterable[bytes | str]) -> str:
    """16 hex digits that name a content: equal parts, equal name, on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class OrientedBox:
    """A box in metres: ``center``, full edge lengths ``size``, ``rotation`` from box to world."""

    center: Float[np.ndarray, "3"]
    size: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One convex solid of an object, in world metres: what is drawn is what touches.

    ``size`` are full edge lengths of the box around the solid; ``wxyz`` turns it into the world.
    A ``cylinder`` stands along its own z; a ``sphere`` has three equal sizes.
    """

    kind: Literal["box", "cylinder", "sphere"]
    center: Float[np.ndarray, "3"]
    size: Float[np.ndarray, "3"]
    wxyz: Float[np.ndarray, "4"]


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A thing in the room. ``name`` means it alone ("red chair"); pixels carry ``object_id``."""

    object_id: int
    category: str
    name: str
    colour: str
    box: OrientedBox
    # Exact geometry of made rooms; empty where only the box is known.
    parts: tuple[Part, ...] = ()
    # object_id of what carries it; 0 is the floor, None is unknown or hung on a wall.
    supported_by: int | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """One photo, with whatever is known of its camera and depth.

    ``depth`` is metres along the optical axis, 0 where there is none, in the photo's own pixels.
    ``instances`` holds an ``object_id`` per pixel, 0 for walls, floor and the unknown.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    intrinsics: Float[np.ndarray, "3 3"] | None = None
    c2w: Float[np.ndarray, "4 4"] | None = None
    depth: Float32[np.ndarray, "h w"] | None = None
    instances: UInt16[np.ndarray, "h w"] | None = None

    @property
    def depth_valid(self) -> Bool[np.ndarray, "h w"]:
        """Where depth was measured; nowhere if the view has none."""
        if self.depth is None:
            return np.zeros(self.rgb.shape[:2], dtype=bool)
        return np.isfinite(self.depth) & (self.depth > 0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A room as the project knows it: encoded once, asked many times.

    World: the source's own metric frame, z up; ``floor_z`` is the height of its floor in metres.
    ``source`` says where it comes from ("made:plain", "capture:scannet", "photos").
    """

    scene_id: str
    source: str
    views: tuple[View, ...]
    split: Split = "test"
    objects: tuple[SceneObject, ...] = ()
    floor_z: float = 0.0
    # Full width (x), depth (y) and height (z) of the room in metres, where known.
    room_size: Float[np.ndarray, "3"] | None = None

    def object(self, object_id: int) -> SceneObject:
        """The object with that id. Raises KeyError if the scene has none."""
        for thing in self.objects:
            if thing.object_id == object_id:
                return thing
        raise KeyError(object_id)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about one scene, with what geometry says of its answer.

    ``options`` lists the possible answers of a choice, in the order named; empty if free.
    ``margin`` says how clear the case is, in the family's own unit (see ``docs/world.md``).
    """

    scene_id: str
    question_id: str
    split: Split
    family: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    value: float | None = None
    unit: str = ""
    margin: float | None = None
    rationale: str = ""
    # Other wordings of the same truth; a description is scored by the best of them.
    renderings: tuple[str, ...] = ()
    # Facts of a description, for fact F1: ("object", "red chair"), ("on", "mug", "table") ...
    facts: tuple[tuple[str, ...], ...] = ()
    object_ids: tuple[int, ...] = ()
    # The whole prompt where a benchmark prescribes one; else it is made of question and options.
    asked_as: str = ""

    @property
    def prompt(self) -> str:
        """What an answerer reads, teacher and student alike.

        Lettered options ("A. left") stand below the question as VSI-Bench prints them; those of
        the four families stand in their sentences already.
        """
        return self.asked_as or prompt_of(self.question, self.options)


def prompt_of(question: str, options: Sequence[str]) -> str:
    """``Question.prompt`` of a row's own columns."""
    if not options or not options[0].startswith("A. "):
        return question
    return "\n".join([question, "Options:", *options])


def asked(scene_id: str, text: str) -> Question:
    """A person's own question: no truth is known.

    Raises:
        BadInputError: the question is empty or longer than ``MAX_QUESTION_CHARS``.
    """
    cleaned = " ".join(text.split())
    if not cleaned:
        raise BadInputError(
            "the question is empty; ask something like 'Is the lamp left of the sofa?'"
        )
    if len(cleaned) > MAX_QUESTION_CHARS:
        raise BadInputError(
            f"the question has {len(cleaned)} characters, at most {MAX_QUESTION_CHARS} are taken; "
            "shorten it"
        )
    return Question(
        scene_id=scene_id,
        question_id=content_hash([scene_id, "asked", cleaned]),
        split="test",
        family="asked",
        question=cleaned,
        answer="",
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an answerer said to one question."""

    question_id: str
    text: str


#: What lengths are told in: metres, or a unit that only one scene's lengths share.
DepthUnit = Literal["metre", "scene"]


@dataclass(frozen=True, kw_only=True)
class SceneGeometry:
    """What an answerer believes of a scene's shape; ``depth`` in ``depth_unit``, one map per view.

    ``boxes`` are kinds and boxes of things, those of a student in view0; ``box_scores`` says of
    each how sure it is (0 to 1), and is empty where nobody knows.
    """

    depth: Float32[np.ndarray, "views h w"] | None = None
    depth_unit: DepthUnit = "metre"
    boxes: tuple[tuple[str, OrientedBox], ...] = ()
    box_scores: tuple[float, ...] = ()


Signal = Literal[
    "answers",
    "topk_logits",
    "reference_logits",
    "last_hidden",
    "attention",
    "scene_features",
]
SIGNALS: tuple[Signal, ...] = get_args(Signal)


@dataclass(frozen=True, kw_only=True)
class TopLogits:
    """The k largest logits at every position of an answer, their ids, and the logsumexp over the
    whole vocabulary (nats)."""

    ids: Int[np.ndarray, "a k"]
    logits: Float[np.ndarray, "a k"]
    logsumexp: Float[np.ndarray, "a"]


@dataclass(frozen=True, kw_only=True)
class TeacherLabel:
    """What a teacher knows about one question, ready to be stored.

    ``answer_ids`` end with the end-of-sequence id. ``topk_*`` hold, for every answer position,
    the k largest logits and their ids; ``logsumexp`` is over the whole vocabulary (nats).
    """

    scene_id: str
    question_id: str
    answer: str
    answer_ids: Int[np.ndarray, "a"] | None = None
    # Log-probability of the answer with its end (nats), where the teacher tells.
    logprob: float | None = None
    topk_ids: Int[np.ndarray, "a k"] | None = None
    topk_logits: Float[np.ndarray, "a k"] | None = None
    logsumexp: Float[np.ndarray, "a"] | None = None
    # The true answer's ids, and the logits when the teacher is made to say it.
    reference_ids: Int[np.ndarray, "r"] | None = None
    reference: TopLogits | None = None
    # Last hidden states after the final norm, from which each answer token was predicted.
    last_hidden: Float[np.ndarray, "a d"] | None = None
    # Attention of each answer token over the scene's visual tokens: mean over the heads and layers
    # of a group, before normalising; ``attention_mass`` is its sum over all visual tokens.
    attention: Float[np.ndarray, "g a n"] | None = None
    attention_mass: Float[np.ndarray, "g a"] | None = None


@dataclass(frozen=True, kw_only=True)
class SceneFeatures:
    """What a teacher makes of one scene, shared by all its questions.

    ``n`` visual tokens in the order in which the language model reads them (and ``attention``
    counts them). For teachers that pool patches in voxels, ``points`` are the voxels' centres in
    the teacher's frame [m], ``patch_token`` says for every patch of every view (row by row) in
    which token it ended, -1 for one that was left out.
    """

    scene_id: str
    # Features before the projector.
    pooled: Float[np.ndarray, "n c"]
    # V_sem: mean over visual tokens of the last decoder layer's output, before the final norm.
    semantics: Float[np.ndarray, "d"] | None = None
    points: Float[np.ndarray, "n 3"] | None = None
    patch_token: Int[np.ndarray, "p"] | None = None
    # Which views were looked at, by number, and what a cap on the tokens was drawn from.
    views: tuple[int, ...] = ()
    cap_seed: int | None = None


@runtime_checkable
class Session(Protocol):
    """One opened scene; questions are cheap from here on."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order. Reads ``question`` and ``options`` only."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """Anything that answers: a student, a teacher or a baseline."""

    def open(self, scene: Scene) -> Session:
        """Do once what all questions of the scene share."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """Anything that labels."""

    def label(
        self, scene: Scene, questions: Sequence[Question], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """One label per question, in order, with the signals asked for."""
        ...


@runtime_checkable
class SceneBatchTeacher(Teacher, Protocol):
    """A teacher that is faster with several scenes at once."""

    def label_scenes(
        self, asked: Iterable[tuple[Scene, Sequence[Question]]], signals: Sequence[Signal]
    ) -> list[TeacherLabel]:
        """What ``label`` gives for each scene, one after another; read as they are needed."""
        ...


@runtime_checkable
class FeatureTeacher(Teacher, Protocol):
    """A teacher that also gives what all questions of a scene share."""

    def scene_features(self, scene: Scene) -> SceneFeatures:
        """Features of the scene's visual tokens and where they lie."""
        ...


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of ours says of itself; written last, read first."""

    kind: str
    version: int
    settings: dict[str, object] = field(default_factory=dict)


@lru_cache(maxsize=8)
def weights_digest(place: Path | str) -> str:
    """16 hex digits of a model folder's weights and configs; a hub id as it is."""
    if not isinstance(place, Path):
        return place
    digest = hashlib.sha256()
    kinds = ("safetensors", "json", "bin", "model")
    files = sorted(file for kind in kinds for file in place.glob(f"*.{kind}"))
    # How a student was made changes nothing of what it says.
    files = [file for file in files if file.name != "provenance.json"]
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as source:
            while part := source.read(1 << 24):
                digest.update(part)
    return digest.hexdigest()[:16]


def require_folder(out: Path) -> None:
    """Raises BadInputError where ``out`` is a file or lies under one."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise BadInputError(f"{place} is a file; --out names a folder")


def require_file(path: Path, what: str) -> Path:
    """``path`` if it is a file. Raises BadInputError naming ``what`` otherwise."""
    if not path.is_file():
        raise BadInputError(f"{what} not found: {path}")
    return path
