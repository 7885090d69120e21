"""LLaVA-3D checkpoints in the released layout: into a model, and written back."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stillroom.records import BadInputError
from stillroom.teachers.hub import commit_of, fetch
from stillroom.teachers.llava3d_config import LLaVA3DConfig, tower_folder
from stillroom.teachers.llava3d_files import names_of_weights, stored_dtype, stored_tensors
from stillroom.teachers.llava3d_model import LLaVA3D

logger = logging.getLogger(__name__)

_CLIP = "model.vision_tower.vision_tower."
# Buffers that old checkpoints carry, computed here, and a vector that the release never reads.
_DEAD = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids|image_newline)$")
# What wrappers of a training run put in front of a name.
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
# Modules that stand below ``model.``; some tools write them without it.
_INNER = ("embed_tokens.", "layers.", "norm.", "mm_projector.", "vision_tower.", "video_tower.")
_State = dict[str, Tensor]

# Above this many parameters a model is held as it was stored, below it in float32.
_LARGE = 1_000_000_000


def load_llava3d(
    where: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LLaVA3D:
    """A LLaVA-3D from a folder or a hub id, ready to answer.

    Without ``dtype`` a model of more than 10^9 parameters keeps its stored precision, a smaller
    one computes in float32.

    Raises:
        BadInputError: nothing there, a damaged file, or weights that do not fit the config.
    """
    folder = fetch(where)
    config = LLaVA3DConfig.read(folder)
    with torch.device("meta"):
        model = LLaVA3D(config)
    if dtype is None:
        large = sum(p.numel() for p in model.parameters()) > _LARGE
        dtype = stored_dtype(folder) if large else torch.float32
    fill(model, stored_tensors(folder), dtype=dtype, folder=folder)
    model.eval()
    # nn.Module.to, because transformers wraps it in a signature of its own.
    torch.nn.Module.to(model, device)
    return model


def fill(
    model: LLaVA3D,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
) -> None:
    """Put named tensors into a model, each exactly once.

    Keys are the release's; what training wrappers put before them is taken off, a lacking
    ``model.`` or ``vision_model.`` is put in. Where all of CLIP is missing it is taken from the
    folder (perhaps within ``folder``) or hub page that the config names, as the release does;
    where it is there and that page is on this machine, both are compared.

    Raises:
        BadInputError: a key is unexpected, missing or there twice, or a shape does not fit.
    """
    expected = dict(model.named_parameters())
    missing = set(expected)
    state: _State = {}
    unexpected: list[str] = []
    for stored_name, tensor in tensors:
        name = _canonical(stored_name)
        if _DEAD.search(name):
            logger.info("ignored %s: the model does not read it", stored_name)
        elif name not in expected:
            unexpected.append(stored_name)
        elif name in state:
            raise BadInputError(f"the checkpoint holds {stored_name} twice")
        else:
            if tensor.shape != expected[name].shape:
                raise BadInputError(
                    f"the checkpoint's {stored_name} has shape {tuple(tensor.shape)}, the config "
                    f"asks for {tuple(expected[name].shape)}"
                )
            state[name] = tensor.to(dtype)
            missing.discard(name)
    if unexpected:
        raise BadInputError(f"the checkpoint has keys that LLaVA-3D lacks: {_named(unexpected)}")
    page = model.settings.mm_vision_tower
    clip = {name: tensor for name, tensor in expected.items() if name.startswith(_CLIP)}
    if missing == clip.keys():
        logger.info("the checkpoint has no CLIP weights; taking them from %s", page)
        state |= _clip_from(tower_folder(page, folder) or page, dtype, clip)
        missing = set()
    elif folder is not None and page and not missing & clip.keys():
        _compare_clip(state, page, folder)
    if model.settings.tie_word_embeddings:
        missing.discard("lm_head.weight")
    if missing:
        raise BadInputError(f"the checkpoint lacks keys of LLaVA-3D: {_named(missing)}")
    model.load_state_dict(state, strict=False, assign=True)
    _compute_buffers(model)


def _canonical(name: str) -> str:
    """The release's key of a name that a tool has shortened or wrapped."""
    name = _WRAPPED.sub("", name)
    if name.startswith(_INNER):
        name = f"model.{name}"
    if name.startswith(_CLIP) and not name.startswith(f"{_CLIP}vision_model."):
        return f"{_CLIP}vision_model.{name.removeprefix(_CLIP)}"
    return name


def outside_tower(where: str | Path) -> Path | str | None:
    """Where the vision tower of a checkpoint lies if not in it: a folder, or a hub id at a commit.

    Of a hub id the weights are fetched only where no index says what is in them.

    Raises:
        BadInputError: as ``fetch``, or the files cannot be read.
    """
    folder = fetch(where, weights=False)
    if not any(folder.glob("*.index.json")):
        folder = fetch(where)
    if any(_canonical(name).startswith(_CLIP) for name in names_of_weights(folder)):
        return None
    page = LLaVA3DConfig.read(folder).mm_vision_tower
    place = tower_folder(page, folder)
    return place or f"{page}@{commit_of(page)}"


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _clip_from(page: Path | str, dtype: torch.dtype, wanted: Mapping[str, Tensor]) -> _State:
    """CLIP's weights from its own folder or hub page, under the release's keys."""
    try:
        return _read_clip(fetch(page), dtype, wanted)
    except BadInputError as error:
        raise BadInputError(
            f"the checkpoint has no CLIP weights and they cannot be had from {str(page)!r} "
            f"({error}); put them into the checkpoint or connect to the hub"
        ) from None


def _compare_clip(state: _State, page: str, folder: Path) -> None:
    """Say whether the checkpoint's CLIP is its page's, where that can be known without a download.

    The release reads the page's and ignores the checkpoint's; the tower is frozen, so that they
    should be equal. The checkpoint's is used in any case.
    """
    clip = {name: tensor for name, tensor in state.items() if name.startswith(_CLIP)}
    try:
        place = tower_folder(page, folder) or fetch(page, local_only=True)
        dtype = next(iter(clip.values())).dtype
        other = _read_clip(place, dtype, clip)
    except BadInputError as error:
        logger.info("the checkpoint's CLIP is not compared with its page: %s", error)
        return
    apart = sum(not torch.equal(tensor, other[name]) for name, tensor in clip.items())
    if apart:
        logger.warning(
            "the checkpoint's CLIP differs from %s in %d of %d tensors; the checkpoint's is used",
            page,
            apart,
            len(clip),
        )
    else:
        logger.info("the checkpoint's CLIP equals %s", page)


def _read_clip(folder: Path, dtype: torch.dtype, wanted: Mapping[str, Tensor]) -> _State:
    """CLIP's weights from a folder of its own, with or without the text half, as ``wanted``."""
    found = {}
    for stored_name, tensor in stored_tensors(folder):
        name = f"{_CLIP}vision_model.{stored_name.removeprefix('vision_model.')}"
        if name in wanted:
            if tensor.shape != wanted[name].shape:
                raise BadInputError(f"{folder} is another vision tower: {stored_name} differs")
            found[name] = tensor.to(dtype)
    lacking = wanted.keys() - found.keys()
    if lacking:
        raise BadInputError(f"{folder} lacks weights of CLIP: {_named(lacking)}")
    return found


def _compute_buffers(model: LLaVA3D) -> None:
    """What no checkpoint holds and a model built on ``meta`` lacks."""
    if model.settings.tie_word_embeddings:
        model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config)
    embeddings = model.model.vision_tower.vision_tower.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]


# Written back. ----------------------------------------------------------------------------------


def save_llava3d(
    model: LLaVA3D,
    folder: Path,
    *,
    tokenizer_file: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the released layout: ``config.json``, shards with an index, ``tokenizer.json``.

    The config is written last, so that a folder with one is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(model, dtype, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, name)
        save_file(shard, folder / f".{name}", metadata={"format": "pt"})
        os.replace(folder / f".{name}", folder / name)
    # An index of an earlier, larger save would be read first.
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    torch_dtype = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", model.settings.to_json(torch_dtype=torch_dtype))
    # safetensors makes files that only their owner may read, which a shared folder should not have.
    for name in set(weight_map.values()):
        shutil.copymode(folder / "config.json", folder / name)


def _shards(model: LLaVA3D, dtype: torch.dtype, limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to("cpu", dtype).contiguous()
        bytes_here = tensor.numel() * tensor.element_size()
        if size and size + bytes_here > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += bytes_here
    return shards


def _write_json(file: Path, content: dict[str, object]) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, file)
