"""Weights files of encoders: their names and shapes, read before their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stillroom.records import BadInputError


class Checkpoint:
    """Names, shapes and, when asked for, tensors of one weights file."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], path: Path
    ) -> None:
        self.shapes = shapes
        self.read = read
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """A safetensors file (read lazily) or a ``.pt`` state dict (weights only).

        Raises:
            BadInputError: the file is missing, truncated or something else.
        """
        if not path.is_file():
            raise BadInputError(f"encoder weights not found: {path}")
        if path.suffix != ".safetensors":
            return cls._open_pickle(path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise BadInputError(
                f"{path} is truncated or no safetensors file ({error}); fetch it again"
            ) from None
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return cls(shapes, file.get_tensor, path)

    @classmethod
    def _open_pickle(cls, path: Path) -> Checkpoint:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadInputError(f"{path} is no readable PyTorch state dict ({reason})") from None
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise BadInputError(f"{path} must hold a plain state dict of tensors")
        return cls({key: tuple(v.shape) for key, v in state.items()}, state.__getitem__, path)

    def take(self, prefix: str) -> Checkpoint:
        """The keys under ``prefix``, with it removed."""
        shapes = {
            key.removeprefix(prefix): s for key, s in self.shapes.items() if key.startswith(prefix)
        }
        return Checkpoint(shapes, lambda key: self.read(prefix + key), self.path)


def locate(where: Path | str, names: Sequence[str]) -> tuple[Path, Path]:
    """Folder and weights of an encoder; ``names`` are what its weights may be called, best first.

    Raises:
        BadInputError: no such folder, or a hub id that cannot be fetched.
    """
    path = Path(where)
    if path.is_file():
        return path.parent, path
    if not path.is_dir():
        return _download(str(where), names)
    for name in names:
        if (path / name).is_file():
            return path, path / name
    raise BadInputError(f"{path} holds no encoder weights; expected one of {', '.join(names)}")


def _download(hub_id: str, names: Sequence[str]) -> tuple[Path, Path]:
    """Folder and weights of a hub model; of several files of weights one is fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    reason = ""
    try:
        for name in names:
            try:
                weights = Path(hf_hub_download(hub_id, name))
            except EntryNotFoundError as error:
                reason = str(error).splitlines()[0]
                continue
            # Without its config.json a checkpoint is read by its shapes.
            with suppress(EntryNotFoundError):
                hf_hub_download(hub_id, "config.json")
            return weights.parent, weights
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
    raise BadInputError(
        f"encoder {hub_id!r} is neither a folder nor a hub model that can be fetched ({reason})"
    )
