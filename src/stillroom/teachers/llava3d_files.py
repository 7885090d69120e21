"""A checkpoint's files in the released layout: found or downloaded, and read one at a time."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillroom.records import BadInputError, require_file
from stillroom.teachers.llava3d_config import LLaVA3DConfig, read_json

_HUB_ID = r"[\w.-]+/[\w.-]+"


def fetch(where: str | Path, *, local_only: bool = False) -> Path:
    """The folder of a checkpoint; a hub id (owner/name) is downloaded, .bin shards only if need be.

    With ``local_only`` what was downloaded earlier is found, and nothing else.

    Raises:
        BadInputError: no folder and no hub id, or the hub cannot give it.
    """
    folder = Path(where)
    if folder.is_dir():
        return folder
    name = _hub_id(where)
    from huggingface_hub import snapshot_download

    def downloaded(weights: str) -> Path:
        wanted = ["*.json", "*.model", weights]
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local_only))

    try:
        found = downloaded("*.safetensors")
        if not any(found.glob("*.safetensors")):
            found = downloaded("*.bin")
    except (OSError, ValueError) as error:
        raise _unreachable(name, error) from None
    return found


def read_config(where: str | Path) -> tuple[LLaVA3DConfig, str | None]:
    """A checkpoint's config, and the hub's commit of it; of a hub id nothing else is downloaded.

    Raises:
        BadInputError: as ``fetch`` and ``LLaVA3DConfig.read``.
    """
    folder = Path(where)
    if folder.is_dir():
        return LLaVA3DConfig.read(folder), None
    name = _hub_id(where)
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError) as error:
        raise _unreachable(name, error) from None
    # .../snapshots/<commit>/config.json
    return LLaVA3DConfig.read(file.parent), file.parent.name


def _hub_id(where: str | Path) -> str:
    if isinstance(where, Path) or not re.fullmatch(_HUB_ID, where):
        raise BadInputError(f"model not found: {where} is no folder and no hub id (owner/name)")
    return where


def _unreachable(name: str, error: Exception) -> BadInputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
    return BadInputError(f"cannot fetch {name} from the hub: {reason}")


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
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise BadInputError(
                f"{folder} lacks {missing[0]}, one of {len(files)} weight files that {index.name} "
                f"names ({len(missing)} missing); fetch it again"
            )
        read = _read_safetensors if kind == "safetensors" else _read_bin
        for name in files:
            yield from read(folder / name)
        return
    raise BadInputError(f"{folder} holds no weights (model.safetensors or its index)")


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
