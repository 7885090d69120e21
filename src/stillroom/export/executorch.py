"""A student's graphs (``graphs.py``) as ExecuTorch programs for XNNPACK, for phones and boards.

``encoder.pte``, ``prefill.pte`` and ``decode.pte`` each have one method, ``forward``, with the
inputs of ``graphs.py`` in their order. Memory is planned for as many photos as the student looks
at and for questions of ``MOST_WORDS`` tokens. A device decodes as ``runtime.py`` does; here that
is done through ExecuTorch's own Python runtime, which needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.export.folder import finished, write_record, written_whole
from stillroom.export.graphs import (
    Most,
    described,
    load,
    quiet,
    runtime_settings,
    try_graphs,
    weight_bytes,
)
from stillroom.export.runtime import GRAPHS, GraphStudent, read_settings
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent

CONFIG_FILE = "executorch.json"
#: Tokens of the longest question that memory is planned for.
MOST_WORDS = 256


def export_executorch(where: Path | str, out: Path) -> dict[str, Any]:
    """Write the student of a folder or hub id to ``out`` as ExecuTorch programs, and try them.

    Returns sizes on disk in bytes, before and after; of an export that is there already, its own.

    Raises:
        BadInputError: no student there, one that cannot be exported, ``out`` is taken, ExecuTorch
            is missing, or the programs say something else than the student.
    """
    done = finished(where, out, "executorch")
    if done is not None:
        return done
    _require_executorch()
    student, processor = load(where)
    settings = runtime_settings(student)
    behind = MOST_WORDS + settings["slots"] + settings["max_answer_tokens"]
    cached = min(student.vision_length(processor.max_views) + behind, settings["positions"])
    most = Most(views=processor.max_views, words=MOST_WORDS, cached=cached)
    inputs = {name: list(described(name, student)[1]) for name in GRAPHS}
    settings |= {"positions": cached, "words": MOST_WORDS, "inputs": inputs}
    with written_whole(out) as folder:
        for name in GRAPHS:
            (folder / f"{name}.pte").write_bytes(_program(name, student, most))
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=1) + "\n")
        processor.save_pretrained(folder)
        try_graphs(student, processor, open_programs(folder))
        written = sum(file.stat().st_size for file in folder.iterdir())
        before = weight_bytes(Path(where))
        said = {"graphs": list(GRAPHS), "bytes_before": before, "bytes": written}
        write_record(folder, where, "executorch", said)
    return said


def open_programs(where: Path | str) -> GraphStudent:
    """A folder that ``stillroom export CHECKPOINT --to executorch`` wrote.

    Raises:
        BadInputError: another folder, a program that is missing or damaged, or no ExecuTorch.
    """
    _require_executorch()
    folder = Path(where)
    settings = read_settings(folder / CONFIG_FILE, "executorch")
    programs = {name: Program(folder / f"{name}.pte", settings["inputs"][name]) for name in GRAPHS}
    return GraphStudent(folder, settings, programs)


class Program:
    """A graph run by ExecuTorch; ``inputs`` are their names, in order."""

    def __init__(self, file: Path, inputs: list[str]) -> None:
        from executorch.runtime import Runtime

        if not file.is_file():
            raise BadInputError(f"{file.parent} holds no {file.name}; export the student again")
        try:
            # The program has to live as long as its method.
            self._program = Runtime.get().load_program(file)
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise BadInputError(
                f"{file} cannot be read ({error}); export the student again"
            ) from None
        self.inputs = inputs

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """As ``runtime.Graph`` says."""
        taken = [_in_order(inputs[name]) for name in self.inputs]
        # Its outputs lie in memory that the next call writes to.
        return [found.numpy().copy() for found in self._method.execute(taken)]


def _in_order(array: np.ndarray) -> torch.Tensor:
    """A copy with the strides of its shape, also where it is empty: others are misread."""
    given = torch.from_numpy(array)
    return torch.empty(given.shape, dtype=given.dtype).copy_(given)


def _program(name: str, student: StillroomStudent, most: Most) -> bytes:
    """One graph, lowered to XNNPACK where that knows an operator."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    module, inputs, _, sizes = described(name, student, most)
    module.eval()
    with torch.no_grad(), quiet():
        module(*inputs.values())  # tables that are made when first needed become constants
        traced = torch.export.export(
            module, tuple(inputs.values()), dynamic_shapes=sizes, strict=False
        )
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        written: bytes = lowered.to_executorch().buffer
    return written


def _require_executorch() -> None:
    try:
        with quiet():  # it says of itself that it is experimental
            import executorch.exir
            import executorch.extension.pybindings.portable_lib
            import executorch.runtime  # noqa: F401
    except ImportError:
        raise BadInputError(
            "programs for ExecuTorch need it: pip install 'stillroom[executorch]'"
        ) from None
