"""A vision-language checkpoint's files: found or downloaded; its commit and its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from stillroom.records import BadInputError
from stillroom.teachers.llava3d_config import read_json
from stillroom.teachers.mobilevlm import MobileVLMConfig
from stillroom.teachers.prompts import HubTokenizer
from stillroom.teachers.vlm_processor import first_line
from stillroom.text.vocabulary import Vocabulary

#: What a checkpoint page may hold that we read; never code.
WORDS = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
WEIGHTS = ("*.safetensors", "*.bin")


def fetch(where: Path | str, *, weights: bool = True) -> Path:
    """The folder of a checkpoint; a hub id (owner/name) is downloaded, without any code in it.

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

    wanted = [*WORDS, *WEIGHTS] if weights else list(WORDS)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot fetch {name} from the hub: {first_line(error)}") from None


def commit_of(where: Path | str) -> str | None:
    """The hub's commit of a checkpoint, without its weights; None for a folder.

    Raises:
        BadInputError: as ``fetch``.
    """
    if Path(where).is_dir():
        return None
    # .../snapshots/<commit>
    return fetch(where, weights=False).name


def read_vocabulary(where: Path | str) -> Vocabulary | None:
    """The tokens behind a checkpoint's ids, without its weights; None where no file tells them.

    Raises:
        BadInputError: as ``fetch``, or a file that is not what its name says.
    """
    folder = fetch(where, weights=False)
    mobile = read_json(folder / "config.json", "config.json").get("model_type") == "mobilevlm"
    kind: Any = MobileVLMConfig if mobile else AutoConfig
    try:
        config = kind.from_pretrained(folder)
        rows = config.get_text_config().vocab_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{folder} holds no model that transformers takes photos and words for: "
            f"{first_line(error)}"
        ) from None
    if (folder / "tokenizer.json").is_file():
        return Vocabulary.from_tokenizer_file(folder / "tokenizer.json", rows=rows)
    if mobile:
        words = HubTokenizer(folder, bos_id=config.bos_token_id, eos_id=config.eos_token_id)
        return words.vocabulary(rows=rows)
    return None
