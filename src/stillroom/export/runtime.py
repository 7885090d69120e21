"""A student in exported graphs, answering with onnxruntime, numpy and Pillow; no torch is imported.

Decoding is that of ``engine/generate.py``: greedy, bound to a question's options where it has any,
behind a scene that is read once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float32

from stillroom.records import (
    Answer,
    BadInputError,
    DepthUnit,
    Question,
    Scene,
    SceneGeometry,
    asked,
    content_hash,
)
from stillroom.students.processor import Photo, StillroomProcessor, photo_identity

GRAPHS = ("encoder", "prefill", "decode")
CONFIG_FILE = "onnx.json"
#: Whole numbers that the runtime has to know beside the graphs, and the least that each may be.
_LEAST = {
    "layers": 1,
    "heads": 1,
    "head_width": 1,
    "slots": 0,
    "positions": 1,
    "max_answer_tokens": 1,
}
#: Keys and values get room in steps of so many positions.
ROOM = 64


@runtime_checkable
class Graph(Protocol):
    """One graph, whatever runs it."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Its outputs, in order; inputs that it has no use for are left out."""
        ...


class GraphStudent:
    """The graphs of an exported student: opens scenes."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], graphs: Mapping[str, Graph]
    ) -> None:
        self.settings, self.graphs = settings, graphs
        self.processor = StillroomProcessor.from_pretrained(folder)

    @classmethod
    def from_folder(cls, where: Path | str, *, threads: int | None = None) -> GraphStudent:
        """A folder that ``stillroom export CHECKPOINT --to onnx`` wrote; ``threads`` of the CPU.

        Raises:
            BadInputError: another folder, a graph that is missing or damaged, or no onnxruntime.
        """
        folder = Path(where)
        settings = read_settings(folder / CONFIG_FILE, "onnx")
        graphs = {name: OnnxGraph(folder / f"{name}.onnx", threads) for name in GRAPHS}
        return cls(folder, settings, graphs)

    def open(self, scene: Scene) -> GraphSession:
        """Look at a scene once."""
        return GraphSession(self, [view.rgb for view in scene.views], scene_id=scene.scene_id)

    def open_scene(self, photos: Sequence[Photo]) -> GraphSession:
        """Look at loose photos of one scene: paths, Pillow images or arrays."""
        scene_id = content_hash(["photos", *map(photo_identity, photos)])
        return GraphSession(self, photos, scene_id=scene_id)

    def run(self, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of a graph, in order."""
        return self.graphs[graph](inputs)


class GraphSession:
    """One scene: encoder and prefill have run, only questions are left."""

    def __init__(self, student: GraphStudent, photos: Sequence[Photo], *, scene_id: str) -> None:
        self.student, self.scene_id = student, scene_id
        processor = student.processor
        #: Which photos were looked at, by number.
        self.views = tuple(processor.chosen(len(photos)))
        vision, *depth = student.run("encoder", pixel_values=processor.images(photos))
        self._depth = depth[0] if depth else None
        #: What the questions of the scene share, ``[layers heads n width]`` each.
        self.keys, self.values = student.run(
            "prefill", vision=vision, mask=self._first_mask(vision)
        )

    def _first_mask(self, vision: np.ndarray) -> Float32[np.ndarray, "n n"]:
        count = len(vision)
        causal = self.student.settings["visibility"] == "causal"
        return _hidden(np.tril(np.ones((count, count), bool)) if causal else None, count, count)

    @property
    def nbytes(self) -> int:
        """Memory of what has been read of the scene."""
        return self.keys.nbytes + self.values.nbytes

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order; one of its options where it has any."""
        processor = self.student.processor
        answers = []
        for question in questions:
            prompt = [*processor.question_ids(question.prompt), processor.tokenizer.bos_id]
            choices = processor.tokenizer.encode_choices(question.options)
            said = processor.decode(self._decode(prompt, choices))
            answers.append(Answer(question_id=question.question_id, text=said))
        return answers

    def ask(self, text: str) -> str:
        """The answer to a question in a person's own words.

        Raises:
            BadInputError: the question is empty or too long.
        """
        return self.answer([asked(self.scene_id, text)])[0].text

    def geometry(self) -> SceneGeometry:
        """Depth of the photos in ``views``, as the processor cuts them; no boxes."""
        unit: DepthUnit = self.student.settings.get("depth_unit") or "metre"
        return SceneGeometry(depth=self._depth, depth_unit=unit, boxes=(), box_scores=())

    def _decode(self, prompt: list[int], choices: list[list[int]]) -> list[int]:
        """Ids of the greedy answer, its end included where it came in time."""
        settings = self.student.settings
        eos = self.student.processor.tokenizer.eos_id
        row = _Row(self.student, self.keys, self.values)
        logits = row.read(prompt, slots=settings["slots"])
        said: list[int] = []
        while True:
            left = [ids for ids in choices if ids[: len(said)] == said]
            if left and all(ids == left[0] for ids in left):
                return left[0][: settings["max_answer_tokens"]]
            # Of equally likely tokens the one with the least id, as in the engine.
            allowed = sorted({ids[len(said)] for ids in left})
            chosen = allowed[int(logits[allowed].argmax())] if allowed else int(logits.argmax())
            said.append(chosen)
            if chosen == eos or len(said) == settings["max_answer_tokens"]:
                return said
            logits = row.read([chosen], slots=0)


class _Row:
    """Keys and values that grow behind a scene's."""

    def __init__(self, student: GraphStudent, keys: np.ndarray, values: np.ndarray) -> None:
        self.student, self.length = student, keys.shape[2]
        #: Positions of the scene, before any question.
        self.scene = self.length
        self.keys, self.values = keys, values

    def read(self, ids: list[int], *, slots: int) -> Float32[np.ndarray, "v"]:
        """Logits behind so many new tokens, the slots among them."""
        settings = self.student.settings
        count, start = len(ids) + slots, self.length
        room = min(settings["positions"] - start - slots, settings.get("words", len(ids)))
        if len(ids) > room and start > self.scene:
            raise BadInputError(
                f"the answer needs more than the {settings['positions']} positions that the graphs "
                f"were made for, of which the scene takes {self.scene}; ask about fewer photos"
            )
        if len(ids) > room:
            raise BadInputError(
                f"the question has {len(ids)} tokens, but beside this scene there is room for "
                f"{max(room, 0)}; shorten it"
            )
        seen = None
        if settings["visibility"] == "causal" and count > 1:
            seen = np.concatenate(
                [np.ones((count, start), bool), np.tril(np.ones((count, count), bool))], axis=1
            )
        logits, keys, values = self.student.run(
            "decode",
            ids=np.array(ids, dtype=np.int64),
            slots=np.arange(slots, dtype=np.int64),
            position=np.arange(start, start + count, dtype=np.int64),
            mask=_hidden(seen, count, start + count),
            keys=self.keys[:, :, :start],
            values=self.values[:, :, :start],
        )
        self._reserve(start + count)
        self.keys[:, :, start : start + count] = keys
        self.values[:, :, start : start + count] = values
        self.length = start + count
        return logits

    def _reserve(self, room: int) -> None:
        """Room of its own, so that the scene's keys and values are never written to."""
        if room <= self.keys.shape[2]:
            return
        room = -(-room // ROOM) * ROOM
        for name in ("keys", "values"):
            held = getattr(self, name)
            grown = np.zeros((*held.shape[:2], room, held.shape[3]), held.dtype)
            grown[:, :, : self.length] = held[:, :, : self.length]
            setattr(self, name, grown)


def _hidden(seen: np.ndarray | None, rows: int, columns: int) -> Float32[np.ndarray, "q l"]:
    """A mask to be added: 0 where something is seen, minus infinity elsewhere."""
    if seen is None:
        return np.zeros((rows, columns), np.float32)
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def read_settings(file: Path, form: str) -> dict[str, Any]:
    """What an export wrote beside its graphs.

    Raises:
        BadInputError: it is not there, or damaged.
    """
    if not file.is_file():
        raise BadInputError(
            f"{file.parent} holds no graphs for {form}; write them with stillroom export "
            f"CHECKPOINT --to {form} --out DIR, and name DIR"
        )
    try:
        settings: dict[str, Any] = json.loads(file.read_text())
        complaint = _complaint(settings)
    except (ValueError, KeyError, TypeError) as error:
        complaint = str(error)
    if complaint:
        raise BadInputError(f"{file} is damaged ({complaint}); export the student again")
    return settings


def _complaint(settings: Mapping[str, Any]) -> str:
    """What is wrong with the settings beside graphs; empty where nothing is."""
    counts = {name: settings[name] for name in _LEAST}
    if "words" in settings:
        counts["words"] = settings["words"]
    for name, value in counts.items():
        least = _LEAST.get(name, 1)
        if type(value) is not int or value < least:
            return f"{name} must be a whole number from {least} on, got {value!r}"
    one_of = {
        "visibility": (settings["visibility"], ("prefix", "causal")),
        "has_depth": (settings.get("has_depth", False), (True, False)),
        "depth_unit": (settings.get("depth_unit"), (None, *get_args(DepthUnit))),
    }
    for name, (value, known) in one_of.items():
        if value not in known:
            return f"{name} must be one of {', '.join(map(str, known))}, got {value!r}"
    return ""


class OnnxGraph:
    """A graph run by onnxruntime, with so many ``threads`` (default: its own choice)."""

    def __init__(self, file: Path, threads: int | None) -> None:
        self.file, self.session = file, _session(file, threads)
        self.inputs = {one.name for one in self.session.get_inputs()}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """As the protocol says.

        Raises:
            BadInputError: the graph was made for other inputs: a file beside it was changed.
        """
        taken = {name: array for name, array in inputs.items() if name in self.inputs}
        try:
            found: list[np.ndarray] = self.session.run(None, taken)
        except Exception as error:  # onnxruntime's own exceptions have no common class
            raise BadInputError(
                f"{self.file} cannot be run on what {CONFIG_FILE} and processor_config.json beside "
                f"it ask for ({_first_line(error)}); export the student again"
            ) from None
        return found


def _session(file: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BadInputError("the onnx runtime needs onnxruntime: pip install onnxruntime") from None
    if not file.is_file():
        raise BadInputError(f"{file.parent} holds no {file.name}; export the student again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and said by us
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class
        reason = _first_line(error)
        raise BadInputError(f"{file} cannot be read ({reason}); export the student again") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
