"""LLaVA-3D checkpoints in the released layout: read from a folder or the hub, written back."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from stillroom.records import BadInputError, require_file
from stillroom.teachers.llava3d import LLaVA3D
from stillroom.teachers.llava3d_config import LLaVA3DConfig, read_json

logger = logging.getLogger(__name__)

_CLIP = "model.vision_tower.vision_tower."
# Buffers that old checkpoints carry; they are computed here.
_DEAD = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
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
        dtype = _stored_dtype(folder) if large else torch.float32
    fill(model, _stored_tensors(folder), dtype=dtype)
    model.eval()
    # nn.Module.to, because transformers wraps it in a signature of its own.
    torch.nn.Module.to(model, device)
    return model


def fetch(where: str | Path) -> Path:
    """The folder of a checkpoint; a hub id (owner/name) is downloaded.

    Raises:
        BadInputError: no folder and no hub id, or the hub cannot give it.
    """
    folder = Path(where)
    if folder.is_dir():
        return folder
    name = str(where)
    if isinstance(where, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BadInputError(f"model not found: {where} is no folder and no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
        raise BadInputError(f"cannot fetch {name} from the hub: {reason}") from None


def fill(
    model: LLaVA3D, tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype = torch.float32
) -> None:
    """Put named tensors into a model, each exactly once.

    Keys are the release's; CLIP's may lack the ``vision_model.`` level. Where all of CLIP is
    missing it is fetched from the hub page that the config names, as the release does.

    Raises:
        BadInputError: a key is unexpected or missing, or a shape does not fit.
    """
    expected = dict(model.named_parameters())
    missing = set(expected)
    state: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for stored_name, tensor in tensors:
        name = _canonical(stored_name)
        if _DEAD.search(name):
            logger.info("ignored %s: it is computed here", stored_name)
        elif name not in expected:
            unexpected.append(stored_name)
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
    if missing and missing == {name for name in expected if name.startswith(_CLIP)}:
        state |= _clip_from_hub(model.settings, dtype)
        missing = set()
    if model.settings.tie_word_embeddings:
        missing.discard("lm_head.weight")
    if missing:
        raise BadInputError(f"the checkpoint lacks keys of LLaVA-3D: {_named(missing)}")
    model.load_state_dict(state, strict=False, assign=True)
    _compute_buffers(model)


def _canonical(name: str) -> str:
    """The release's key; CLIP saved by transformers 5 lacks one level."""
    if name.startswith(_CLIP) and not name.startswith(f"{_CLIP}vision_model."):
        return f"{_CLIP}vision_model.{name.removeprefix(_CLIP)}"
    return name


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _clip_from_hub(config: LLaVA3DConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    page = config.mm_vision_tower
    logger.info("the checkpoint has no CLIP weights; taking them from %s", page)
    try:
        clip = CLIPVisionModel.from_pretrained(page, dtype=dtype)
    except (OSError, ValueError):
        raise BadInputError(
            f"the checkpoint has no CLIP weights and they cannot be had from {page!r}; "
            "put them into the checkpoint or connect to the hub"
        ) from None
    return {f"{_CLIP}vision_model.{name}": tensor for name, tensor in clip.state_dict().items()}


def _compute_buffers(model: LLaVA3D) -> None:
    """What no checkpoint holds and a model built on ``meta`` lacks."""
    if model.settings.tie_word_embeddings:
        model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config)
    embeddings = model.model.vision_tower.vision_tower.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]


# Files. -----------------------------------------------------------------------------------------


def _stored_dtype(folder: Path) -> torch.dtype:
    name = read_json(folder / "config.json", "config.json").get("torch_dtype")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(str(name), torch.float32)


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all weight files, one file at a time."""
    for kind, single in (("safetensors", "model"), ("bin", "pytorch_model")):
        index = folder / f"{single}.{kind}.index.json"
        if index.is_file():
            files = sorted(set(read_json(index, "index").get("weight_map", {}).values()))
        elif (folder / f"{single}.{kind}").is_file():
            files = [f"{single}.{kind}"]
        else:
            continue
        read = _read_safetensors if kind == "safetensors" else _read_bin
        for name in files:
            yield from read(require_file(folder / Path(name).name, "weights named in the index"))
        return
    raise BadInputError(f"{folder} holds no weights (model.safetensors or its index)")


def _read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise BadInputError(
            f"{file} is not a readable safetensors file ({error}); fetch it again"
        ) from None


def _read_bin(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it ends too early"
        raise BadInputError(f"{file} is not a readable weight file ({reason})") from None
    yield from state.items()


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
