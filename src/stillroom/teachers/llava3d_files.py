"""A checkpoint's weight files in the released layout, read one at a time."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillroom.records import BadInputError, require_file
from stillroom.teachers.llava3d_config import read_json


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision that ``config.json`` says its weights have; float32 if it says nothing."""
    raw = read_json(folder / "config.json", "config.json")
    name = str(raw.get("torch_dtype") or raw.get("dtype"))
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weight files, one file at a time; safetensors before .bin.

    Raises:
        BadInputError: no weights, an unreadable index, or a shard missing or damaged.
    """
    for kind, single in (("safetensors", "model"), ("bin", "pytorch_model")):
        index = folder / f"{single}.{kind}.index.json"
        if index.is_file():
            files = _indexed(index)
        elif (folder / f"{single}.{kind}").is_file():
            files = [f"{single}.{kind}"]
        else:
            continue
        _require_all(folder, files, index)
        read = _read_safetensors if kind == "safetensors" else _read_bin
        for name in files:
            yield from read(folder / name)
        return
    raise BadInputError(f"{folder} holds no weights (model.safetensors or its index)")


def names_of_weights(folder: Path) -> Iterator[str]:
    """Names of all weights, from an index where there is one.

    Raises:
        BadInputError: as ``stored_tensors``.
    """
    if (index := _index(folder)) is None:
        yield from (name for name, _ in stored_tensors(folder))
    else:
        _indexed(index)
        yield from map(str, read_json(index, "index")["weight_map"])


def require_whole(folder: Path) -> None:
    """Look whether every file that an index names is there, and no safetensors file is cut.

    Raises:
        BadInputError: naming the first that is missing or damaged.
    """
    if (index := _index(folder)) is not None:
        _require_all(folder, _indexed(index), index)
    for file in sorted(folder.glob("*.safetensors")):
        # Opening compares the header with the length of the file.
        next(_read_safetensors(file), None)


def _index(folder: Path) -> Path | None:
    """The index that is read: of safetensors before .bin; None for weights in one file."""
    names = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _require_all(folder: Path, files: Sequence[str], index: Path) -> None:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise BadInputError(
            f"{folder} lacks {missing[0]}, one of {len(files)} weight files that {index.name} "
            f"names ({len(missing)} missing); fetch it again"
        )


def _indexed(index: Path) -> list[str]:
    """File names that an index speaks of, without any path: a checkpoint lies in one folder."""
    weight_map = read_json(index, "index").get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    files = sorted({Path(name).name for name in names if isinstance(name, str)})
    if not files:
        raise BadInputError(f"{index} names no weight files; fetch it again")
    return files


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(require_file(file, "weights"), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise BadInputError(
            f"{file} is not a readable safetensors file ({error}); fetch it again"
        ) from None


def _read_bin(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Old pickles cannot be mapped into memory.
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends too early"
        raise BadInputError(
            f"{file} is not a readable weight file ({reason}); fetch it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInputError(f"{file} holds no tensors by name")
    yield from state.items()
