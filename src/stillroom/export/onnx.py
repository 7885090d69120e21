"""A student's graphs (``graphs.py``) as ONNX, asked by onnxruntime.

Numbers of views, tokens and cached positions are free. Prefill and decode share a file of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stillroom.export.folder import finished, write_record, written_whole
from stillroom.export.graphs import (
    described,
    load,
    quiet,
    runtime_settings,
    try_graphs,
    weight_bytes,
)
from stillroom.export.runtime import CONFIG_FILE, GRAPHS, GraphStudent
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent

#: Version of ONNX's operators.
OPSET = 20
#: Weights from this size on lie outside of the graphs, which may not be larger than 2 GB, each
#: where a page of memory can be mapped.
OUTSIDE_BYTES, ALIGNED = 1_024, 4_096


def export_onnx(where: Path | str, out: Path) -> dict[str, Any]:
    """Write the student of a folder or hub id to ``out`` as ONNX graphs, and try them.

    Returns sizes on disk in bytes, before and after; of an export that is there already, its own.

    Raises:
        BadInputError: no student there, one that cannot be exported, ``out`` is taken, a package is
            missing, or the graphs say something else than the student.
    """
    done = finished(where, out, "onnx")
    if done is not None:
        return done
    _require_packages()
    student, processor = load(where)
    models = {name: _graph(name, student) for name in GRAPHS}
    with written_whole(out) as folder:
        _write(models, folder)
        (folder / CONFIG_FILE).write_text(json.dumps(runtime_settings(student), indent=1) + "\n")
        processor.save_pretrained(folder)
        try_graphs(student, processor, GraphStudent.from_folder(folder))
        written = sum(file.stat().st_size for file in folder.iterdir())
        before = weight_bytes(Path(where))
        said = {"graphs": list(GRAPHS), "bytes_before": before, "bytes": written}
        write_record(folder, where, "onnx", said)
    return said


def _graph(name: str, student: StillroomStudent) -> Any:
    """One graph as an ONNX model."""
    module, inputs, outputs, sizes = described(name, student)
    module.eval()
    with torch.no_grad():
        # Tables that are made when first needed are made now, and are constants of the graph.
        module(*inputs.values())
        with quiet():
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


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise BadInputError(f"ONNX needs {package}: pip install 'stillroom[onnx]'") from None
