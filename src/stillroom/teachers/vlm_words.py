"""The words of a vision-language checkpoint, read without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from stillroom.records import BadInputError
from stillroom.teachers.hub import fetch
from stillroom.teachers.llava3d_config import read_json
from stillroom.teachers.mobilevlm import MobileVLMConfig
from stillroom.teachers.prompts import HubTokenizer
from stillroom.teachers.vlm_processor import first_line
from stillroom.text.vocabulary import Vocabulary


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
