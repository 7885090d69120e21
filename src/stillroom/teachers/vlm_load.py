"""Vision-language checkpoints from a folder or the hub: all weights there, or a refusal."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedModel

from stillroom.records import BadInputError
from stillroom.teachers.device import chosen_device
from stillroom.teachers.hub import fetch
from stillroom.teachers.llava3d_config import read_json
from stillroom.teachers.mobilevlm import MobileVLM, MobileVLMPrompts
from stillroom.teachers.vlm import VlmOptions
from stillroom.teachers.vlm_processor import PromptMaker, TransformersPrompts, first_line

logger = logging.getLogger(__name__)

# Above this many parameters a model is held as it was stored, below it in float32.
_LARGE = 1_000_000_000
# Buffers that old checkpoints carry; they are computed here.
_DEAD = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")


def load_vlm(where: Path | str, options: VlmOptions) -> tuple[PreTrainedModel, PromptMaker]:
    """A model and its prompts from a folder or a hub id.

    Raises:
        BadInputError: nothing there, a damaged file, keys that do not fit, another model, or no
            such device.
    """
    device = chosen_device(options.device)
    folder = fetch(where)
    config = read_json(folder / "config.json", "config.json")
    model_type = str(config.get("model_type", ""))
    if model_type in ("llava_llama", "llava3d"):
        raise BadInputError(f"{where} is of LLaVA-3D's kind; name it llava3d:{where}")
    kind: Any = MobileVLM if model_type == "mobilevlm" else AutoModelForImageTextToText
    model = read_model(kind, folder, options.dtype)
    torch.nn.Module.to(model, device)
    if isinstance(model, MobileVLM):
        return model, MobileVLMPrompts(folder, model, instruction=options.instruction)
    return model, TransformersPrompts(
        folder,
        eos_ids=_ends(model),
        instruction=options.instruction,
        image_token_id=_image_token(model, folder),
    )


def read_model(cls: Any, folder: Path, dtype: str) -> PreTrainedModel:
    """``cls`` filled with a folder's weights, each key exactly once; on the CPU.

    Raises:
        BadInputError: a file or key is missing, damaged, unexpected or of another shape.
    """
    try:
        model, told = cls.from_pretrained(
            folder,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
        )
    except BadInputError:
        raise  # a config that MobileVLM refuses, which is a ValueError too
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise BadInputError(
            f"the weights in {folder} cannot be read, fetch them again: {first_line(error)}"
        ) from None
    except ImportError as error:
        raise BadInputError(
            f"{folder.name} needs a package that is not installed: {first_line(error)}"
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BadInputError(
            f"{folder} holds no model that transformers takes photos and words for: "
            f"{first_line(error)}"
        ) from None
    missing = told["missing_keys"]
    if missing and isinstance(model, MobileVLM):
        missing = model.fill_missing(missing)
    faults = {
        "lacks": missing,
        "has keys unknown to its config:": [
            k for k in told["unexpected_keys"] if not _DEAD.search(k)
        ],
        "has other shapes than its config says:": [str(k[0]) for k in told["mismatched_keys"]],
    }
    for fault, keys in faults.items():
        if keys:
            raise BadInputError(f"the checkpoint {folder} {fault} {_named(keys)}")
    small = sum(p.numel() for p in model.parameters()) <= _LARGE
    if dtype == "auto" and small:
        model = model.float()
    return model.eval()


def _ends(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end an answer, as the checkpoint's generation settings list them."""
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        return ()
    ids = tuple(given) if isinstance(given, Iterable) else (int(given),)
    # A family's default may lie outside of a smaller vocabulary.
    return tuple(id_ for id_ in ids if id_ < model.get_input_embeddings().num_embeddings)


def _image_token(model: PreTrainedModel, folder: Path) -> int:
    for name in ("image_token_id", "image_token_index"):
        given = getattr(model.config, name, None)
        if isinstance(given, int):
            return given
    raise BadInputError(f"{folder} does not say which token stands for a photo (image_token_id)")


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more
