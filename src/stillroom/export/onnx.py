"""A student as three ONNX graphs: encoder, prefill and decode, with connector and slots inside.

``encoder``  photos ``pixel_values [v 3 s s]`` to visual tokens ``vision [n d]`` and, where the
             student has a depth head, ``depth [v s s]`` in metres.
``prefill``  visual tokens to the keys and values that every question of the scene shares.
``decode``   ``ids [t]`` and ``slots [k]`` (0 to K-1, or none) behind ``p`` cached positions to the
             logits of the last of them, and the keys and values of all of them. A question is read
             with its slots, an answer token by token without.

Numbers of views, tokens and cached positions are free. Prefill and decode share a file of weights.
``runtime.py`` decodes with them; it imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stillroom.engine.decoder import LeanDecoder
from stillroom.export.folder import require_free, written_whole
from stillroom.export.runtime import CONFIG_FILE, GRAPHS, OnnxStudent
from stillroom.records import BadInputError, asked
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentSession

#: Version of ONNX's operators.
OPSET = 20
#: Longest row that the table of rotary angles covers.
MOST_POSITIONS = 8_192
#: Weights from this size on lie outside of the graphs, which may not be larger than 2 GB, each
#: where a page of memory can be mapped.
OUTSIDE_BYTES, ALIGNED = 1_024, 4_096
#: How far an exported graph's numbers may lie from torch's, over the largest of them.
TOLERANCE = 1e-3
_FAMILIES = ("gpt_neox", "llama", "qwen2")


def export_onnx(where: Path | str, out: Path) -> dict[str, Any]:
    """Write the student of a folder or hub id to ``out`` as ONNX graphs, and try them.

    Returns sizes on disk in bytes, before and after.

    Raises:
        BadInputError: no student there, one that cannot be exported, ``out`` is taken, a package is
            missing, or the graphs say something else than the student.
    """
    _require_packages()
    require_free(out)
    student: StillroomStudent = StillroomStudent.from_pretrained(where, dtype=torch.float32)
    processor = StillroomProcessor.from_pretrained(where)
    _require_exportable(student)
    student.requires_grad_(False).eval()
    models = {name: _graph(name, student) for name in GRAPHS}
    with written_whole(out) as folder:
        _write(models, folder)
        (folder / CONFIG_FILE).write_text(json.dumps(_settings(student), indent=1) + "\n")
        processor.save_pretrained(folder)
        _try(student, processor, folder)
    written = sum(file.stat().st_size for file in out.iterdir())
    return {"graphs": list(GRAPHS), "bytes_before": _size(Path(where)), "bytes": written}


def _settings(student: StillroomStudent) -> dict[str, Any]:
    """What the runtime has to know beside the graphs."""
    config = student.config
    text = config.language_model
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return {
        "visibility": config.visibility,
        "slots": config.slot_count,
        "layers": text.num_hidden_layers,
        "heads": heads,
        "head_width": config.hidden_size // text.num_attention_heads,
        "max_answer_tokens": config.max_answer_tokens,
        "positions": _positions(student),
        "has_depth": bool(config.encoder_sizes.depth_head),
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


# Tracing and writing. -----------------------------------------------------------------------------


def _graph(name: str, student: StillroomStudent) -> Any:
    """One graph as an ONNX model."""
    module, inputs, outputs, sizes = _described(name, student)
    module.eval()
    with torch.no_grad():
        # Tables that are made when first needed are made now, and are constants of the graph.
        module(*inputs.values())
        with _quiet():
            traced = torch.export.export(
                module, tuple(inputs.values()), dynamic_shapes=sizes, strict=False
            )
            program = torch.onnx.export(
                traced,
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=outputs,
                opset_version=OPSET,
                verbose=False,
            )
    assert program is not None
    return program.model_proto


def _described(
    name: str, student: StillroomStudent
) -> tuple[nn.Module, dict[str, Tensor], list[str], dict[str, Any]]:
    """Module, example inputs, names of outputs and free sizes of a graph."""
    config = student.config
    free = torch.export.Dim.DYNAMIC
    if name == "encoder":
        photos = torch.rand(3, 3, config.image_size, config.image_size)
        outputs = ["vision", "depth"] if config.encoder_sizes.depth_head else ["vision"]
        return _Encoder(student), {"pixel_values": photos}, outputs, {"pixel_values": {0: free}}
    if name == "prefill":
        n = 7
        inputs = {"vision": torch.randn(n, config.hidden_size), "mask": torch.zeros(n, n)}
        sizes = {"vision": {0: free}, "mask": {0: free, 1: free}}
        return _Prefill(student), inputs, ["keys", "values"], sizes
    settings = _settings(student)
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
        "ids": {0: free},
        "slots": {0: free} if k else {},
        "position": {0: free},
        "mask": {0: free, 1: free},
        "keys": {2: free},
        "values": {2: free},
    }
    return _Decode(student), inputs, ["logits", "new_keys", "new_values"], sizes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


#: Where the weights of each graph lie.
_DATA = {"encoder": "encoder.data", "prefill": "language.data", "decode": "language.data"}


def _write(models: Mapping[str, Any], out: Path) -> None:
    """Write the graphs, and beside them their weights; equal ones lie in a file once."""
    from onnx.external_data_helper import set_external_data

    places: dict[tuple[str, str], tuple[int, int]] = {}
    for name, model in models.items():
        # Where each node was traced: paths of this machine, and most of a graph's size.
        for part in (model.graph, *model.graph.node, *model.graph.value_info):
            part.ClearField("metadata_props")
        with (out / _DATA[name]).open("ab") as file:
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < OUTSIDE_BYTES:
                    continue
                key = (_DATA[name], hashlib.sha256(data).hexdigest())
                if key not in places:
                    file.write(b"\0" * (-file.tell() % ALIGNED))
                    places[key] = (file.tell(), len(data))
                    file.write(data)
                offset, length = places[key]
                set_external_data(tensor, _DATA[name], offset=offset, length=length)
                tensor.ClearField("raw_data")
        (out / f"{name}.onnx").write_bytes(model.SerializeToString())


def _try(student: StillroomStudent, processor: StillroomProcessor, out: Path) -> None:
    """Hold the written graphs against the student they came from."""
    rng = np.random.default_rng(0)
    size = student.config.image_size
    photos = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(2)]
    theirs = OnnxStudent.from_folder(out).open_scene(photos)
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


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise BadInputError(f"ONNX needs {package}: pip install 'stillroom[onnx]'") from None


def _require_exportable(student: StillroomStudent) -> None:
    config = student.config
    family = config.language_model.model_type
    if family not in _FAMILIES:
        raise BadInputError(
            f"ONNX export knows language models of the kinds {', '.join(_FAMILIES)}, this is a "
            f"{family}"
        )
    if config.visibility == "full_prefix":
        raise BadInputError(
            "ONNX export needs a scene that is read once; this student reads it anew with each "
            "question (visibility full_prefix)"
        )
    if config.weights != "full":
        raise BadInputError(
            f"this student has {config.weights} weights; export the one it was made of"
        )


def _size(where: Path) -> int:
    return sum(file.stat().st_size for file in where.glob("*.safetensors"))
