"""A student as three graphs: encoder, prefill and decode, with connector and slots inside.

``encoder``  photos ``pixel_values [v 3 s s]`` to visual tokens ``vision [n d]`` and, where the
             student has a depth head, ``depth [v s s]`` in the
             student's ``depth_unit``.
``prefill``  visual tokens to the keys and values that every question of the scene shares.
``decode``   ``ids [t]`` and ``slots [k]`` (0 to K-1, or none) behind ``p`` cached positions to the
             logits of the last of them, and the keys and values of all of them. A question is read
             with its slots, an answer token by token without.

``onnx.py`` and ``executorch.py`` write them, ``runtime.py`` decodes with them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stillroom.engine.cache import head_width
from stillroom.engine.decoder import LeanDecoder
from stillroom.export.runtime import GraphStudent
from stillroom.records import BadInputError, asked
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentSession

#: Longest row that the table of rotary angles covers.
MOST_POSITIONS = 8_192
#: How far an exported graph's numbers may lie from torch's, over the largest of them.
TOLERANCE = 1e-3
_FAMILIES = ("gpt_neox", "llama", "qwen2")


@dataclass(frozen=True, kw_only=True)
class Most:
    """The most that a graph is made for, where memory is planned before it runs."""

    # Photos of a scene.
    views: int
    # Tokens of a question, and positions behind which one stands.
    words: int
    cached: int


def load(where: Path | str) -> tuple[StillroomStudent, StillroomProcessor]:
    """A student's folder or hub id in float32, ready to be traced.

    Raises:
        BadInputError: no student there, or one that graphs cannot hold.
    """
    student: StillroomStudent = StillroomStudent.from_pretrained(where, dtype=torch.float32)
    processor = StillroomProcessor.from_pretrained(where)
    _require_exportable(student)
    return student.requires_grad_(False).eval(), processor


def runtime_settings(student: StillroomStudent) -> dict[str, Any]:
    """What the runtime has to know beside the graphs."""
    config = student.config
    text = config.language_model
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return {
        "visibility": config.visibility,
        "slots": config.slot_count,
        "layers": text.num_hidden_layers,
        "heads": heads,
        "head_width": head_width(text),
        "max_answer_tokens": config.max_answer_tokens,
        "positions": _positions(student),
        "has_depth": bool(config.encoder_sizes.depth_head),
        "depth_unit": config.depth_unit,
    }


def _positions(student: StillroomStudent) -> int:
    return min(MOST_POSITIONS, int(student.config.language_model.max_position_embeddings))


# The graphs as modules. ---------------------------------------------------------------------------


class _Encoder(nn.Module):
    def __init__(self, student: StillroomStudent) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixel_values: Float[Tensor, "v 3 s s"]) -> tuple[Tensor, ...]:
        features = self.student.features(pixel_values[None])
        vision = self.student.vision_tokens(features)[0]
        return (vision,) if features.depth_map is None else (vision, features.depth_map[0])


class _Behind:
    """A cache for one traced reading: what was there, and behind it what is new."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values
        self.new: list[tuple[Tensor, Tensor]] = []

    def put(
        self, layer: int, keys: Tensor, values: Tensor, *, seen: int | None, at: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Everything that the new positions may look at, ``[1 heads l d]``."""
        self.new.append((keys[0], values[0]))
        if self.keys is None or self.values is None:
            return keys, values
        return (
            torch.cat([self.keys[layer][None], keys], dim=2),
            torch.cat([self.values[layer][None], values], dim=2),
        )

    @property
    def stacked(self) -> tuple[Tensor, Tensor]:
        """New keys and values, ``[layers heads q d]`` each."""
        keys, values = zip(*self.new, strict=True)
        return torch.stack(keys), torch.stack(values)


class _Language(nn.Module):
    """The language model, read as the engine reads it."""

    def __init__(self, student: StillroomStudent) -> None:
        super().__init__()
        self.lm = student.language_model
        self.decoder = LeanDecoder(self.lm, fused=False)
        cos, sin = self.decoder.table(_positions(student), next(self.lm.parameters()))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def read(self, x: Tensor, position: Tensor, mask: Tensor, cache: _Behind) -> Tensor:
        """Last hidden states ``[q d]``."""
        turns = (self.get_buffer("cos")[position], self.get_buffer("sin")[position])
        return self.decoder.through(x, turns, mask=mask, cache=cache)


class _Prefill(_Language):
    def forward(
        self, vision: Float[Tensor, "n d"], mask: Float[Tensor, "n n"]
    ) -> tuple[Tensor, Tensor]:
        cache = _Behind()
        position = torch.arange(vision.shape[0], device=vision.device)
        self.read(vision, position, mask, cache)
        return cache.stacked


class _Decode(_Language):
    def __init__(self, student: StillroomStudent) -> None:
        super().__init__(student)
        self.embedding = student.get_input_embeddings()
        self.after = student.config.slot_position == "after"
        self.register_buffer("slots", student.slots().detach().clone())

    def forward(
        self,
        ids: Int[Tensor, "t"],
        slots: Int[Tensor, "k"],
        position: Int[Tensor, "q"],
        mask: Float[Tensor, "q l"],
        keys: Float[Tensor, "layers heads p w"],
        values: Float[Tensor, "layers heads p w"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        words = self.embedding(ids)
        thoughts = self.get_buffer("slots")[slots]
        parts = [words[:-1], thoughts, words[-1:]] if self.after else [thoughts, words]
        cache = _Behind(keys, values)
        states = self.read(torch.cat(parts), position, mask, cache)
        return self.decoder.logits(states[-1:])[0], *cache.stacked


def described(
    name: str, student: StillroomStudent, most: Most | None = None
) -> tuple[nn.Module, dict[str, Tensor], list[str], dict[str, Any]]:
    """Module, example inputs, names of outputs and free sizes of a graph, up to ``most``."""
    config = student.config

    def free(high: int, low: int = 1) -> Any:
        kinds = torch.export.Dim
        if most is None:
            return kinds.DYNAMIC
        # What can only be 1 is no free size.
        return kinds.DYNAMIC(min=low, max=high) if high > 1 else kinds.STATIC

    views, words, cached = (most.views, most.words, most.cached) if most else (0, 0, 0)
    if name == "encoder":
        count = min(3, views) if most else 3
        photos = torch.rand(count, 3, config.image_size, config.image_size)
        outputs = ["vision", "depth"] if config.encoder_sizes.depth_head else ["vision"]
        sizes = {"pixel_values": {0: free(views)}}
        return _Encoder(student), {"pixel_values": photos}, outputs, sizes
    if name == "prefill":
        seen = student.vision_length(views) if most else 0
        n = min(7, seen) if most else 7
        inputs = {"vision": torch.randn(n, config.hidden_size), "mask": torch.zeros(n, n)}
        sizes = {"vision": {0: free(seen)}, "mask": {0: free(seen), 1: free(seen)}}
        return _Prefill(student), inputs, ["keys", "values"], sizes
    settings = runtime_settings(student)
    t, k, p = 5, max(config.slot_count, 0), 6
    past = (settings["layers"], settings["heads"], p, settings["head_width"])
    inputs = {
        "ids": torch.arange(3, 3 + t),
        "slots": torch.arange(k),
        "position": torch.arange(p, p + t + k),
        "mask": torch.zeros(t + k, p + t + k),
        "keys": torch.randn(past),
        "values": torch.randn(past),
    }
    sizes = {
        "ids": {0: free(words)},
        "slots": {0: free(k, 0)} if k else {},
        "position": {0: free(words + k)},
        "mask": {0: free(words + k), 1: free(cached + words + k)},
        "keys": {2: free(cached)},
        "values": {2: free(cached)},
    }
    return _Decode(student), inputs, ["logits", "new_keys", "new_values"], sizes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter talks to whoever listens; its faults come as exceptions all the same."""
    loud = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [one.level for one in loud]
    for one in loud:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loud, levels, strict=True):
            one.setLevel(level)


def try_graphs(
    student: StillroomStudent, processor: StillroomProcessor, written: GraphStudent
) -> None:
    """Hold written graphs against the student they came from.

    Raises:
        BadInputError: they say something else.
    """
    rng = np.random.default_rng(0)
    size = student.config.image_size
    photos = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(2)]
    theirs = written.open_scene(photos)
    ours = StudentSession(student, processor, photos, scene_id="tried")
    for name, expected, found in (
        ("keys", torch.stack([keys[0] for keys, _ in ours.layers]), theirs.keys),
        ("values", torch.stack([values[0] for _, values in ours.layers]), theirs.values),
    ):
        gap = float(np.abs(expected.numpy() - found).max() / expected.abs().max())
        if not gap <= TOLERANCE:
            raise BadInputError(
                f"the exported graphs are off: the scene's {name} differ from torch's by {gap:.1e} "
                f"of their largest, at most {TOLERANCE:.0e} is allowed"
            )
    question = asked("tried", "Is the lamp left or right of the table?")
    if theirs.answer([question])[0].text != ours.answer([question])[0].text:
        raise BadInputError("the exported graphs give another answer than the student itself")


def _require_exportable(student: StillroomStudent) -> None:
    config = student.config
    family = config.language_model.model_type
    if family not in _FAMILIES:
        raise BadInputError(
            f"An export knows language models of the kinds {', '.join(_FAMILIES)}, this is a "
            f"{family}"
        )
    if config.visibility == "full_prefix":
        raise BadInputError(
            "An export needs a scene that is read once; this student reads it anew with each "
            "question (visibility full_prefix)"
        )
    if config.weights != "full":
        raise BadInputError(
            f"this student has {config.weights} weights; export the one it was made of"
        )


def weight_bytes(where: Path) -> int:
    """Size of the safetensors of a folder; 0 of a hub id."""
    return sum(file.stat().st_size for file in where.glob("*.safetensors"))
