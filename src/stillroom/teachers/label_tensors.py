"""Safetensors files of a label store: joined without being loaded, read a slice at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from stillroom.records import BadInputError

#: Bytes of one number by the format's name for its kind.
_ITEM_BYTES = {"U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "I32": 4, "F32": 4, "I64": 8}


class TensorFile:
    """One safetensors file, mapped into memory; only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None
        self.names: tuple[str, ...] = tuple(self._file.keys())
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._file.get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """The format's name for the tensor's type, "F16" for one."""
        return str(self._file.get_slice(name).get_dtype())

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """A tensor, or rows [start, stop) of it.

        Raises:
            BadInputError: the file is cut short there.
        """
        try:
            if start is None and stop is None:
                whole: np.ndarray = self._file.get_tensor(name)
                return whole
            part: np.ndarray = self._file.get_slice(name)[start:stop]
            return part
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.path, error) from None


def join(sources: Sequence[Path], target: Path) -> str:
    """Tensors of the same name end to end along their first axis, in ``target``; its sha256.

    One tensor of one source is in memory at a time, whatever the size of the result, which
    appears whole, by rename. Metadata of all sources is kept.

    Raises:
        BadInputError: a source cannot be read, or shapes do not go together.
    """
    files = [TensorFile(source) for source in sources]
    names = list(dict.fromkeys(name for file in files for name in file.names))
    # Wide numbers first: so each tensor begins at a multiple of its numbers' size.
    kinds = {name: next(f.kind(name) for f in files if name in f.names) for name in names}
    names.sort(key=lambda name: -_ITEM_BYTES[kinds[name]])
    header: dict[str, Any] = {}
    metadata = {key: value for file in files for key, value in file.metadata.items()}
    if metadata:
        # Sorted: safetensors writes it in an order of its own, and the same labels shall be the
        # same bytes.
        header["__metadata__"] = dict(sorted(metadata.items()))
    start = 0
    for name in names:
        shape = _joined_shape(name, kinds[name], files, target)
        stop = start + _ITEM_BYTES[kinds[name]] * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": kinds[name], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as sink:
            sha = _write(sink, header, names, files)
        os.replace(partial, target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return sha


def _joined_shape(
    name: str, kind: str, files: Sequence[TensorFile], target: Path
) -> tuple[int, ...]:
    holding = [file for file in files if name in file.names]
    shapes = [file.shape(name) for file in holding]
    if any(shape[1:] != shapes[0][1:] for shape in shapes) or any(
        file.kind(name) != kind for file in holding
    ):
        raise BadInputError(
            f"{target} cannot be put together: {name} has shapes {sorted(set(shapes))} in its "
            "parts; the teacher changed between them, label again in another folder"
        )
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _write(
    sink: BinaryIO, header: Mapping[str, Any], names: Sequence[str], files: Sequence[TensorFile]
) -> str:
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        sink.write(data)

    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    put(len(text).to_bytes(8, "little") + text)
    for name in names:
        for file in files:
            if name in file.names:
                put(np.ascontiguousarray(file.read(name)).tobytes())
    sink.flush()
    os.fsync(sink.fileno())
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> BadInputError:
    return BadInputError(
        f"{path} cannot be read ({str(error).splitlines()[0]}); 'stillroom labels verify' says "
        "what else is wrong"
    )
