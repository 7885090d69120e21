"""Byte-pair tokenizers: the made worlds' own, 1,024 entries, and those of published models.

The made worlds' is shared by students and teachers. Its ids are settled: retraining it voids every
checkpoint and label store. 0..31 are reserved, 32..287 are the 256 bytes, the rest are merges
learnt once from the made corpus (``train_tokenizer``). Answers are encoded as they stand behind a
space, so that "chair" is the same token when a question names it and when an answer does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stillroom.records import BadInputError
from stillroom.text.answers import spoken
from stillroom.text.vocabulary import Vocabulary

VOCAB_SIZE = 1024

#: Ids 0..31, in this order; the ones no part uses yet are held for LaViT and GEODE.
RESERVED = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<image>",
    "<boxes>",
    "<Spatio>",
    "<REG_S>",
    "<REG_B>",
    *(f"<v-trace_{n}>" for n in range(1, 9)),
    *(f"<slot_{n}>" for n in range(1, 17)),
)
assert len(RESERVED) == 32

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")


class Tokenizer:
    """Text to ids and back. Special tokens in a text are ordinary characters, never specials.

    ``bos_id`` stands right before an answer, ``eos_id`` ends it.
    """

    # Those of the made worlds' tokenizer; an object has its own.
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 0

    def __init__(
        self, file: Path, *, bos_id: int = bos_id, eos_id: int = eos_id, pad_id: int = pad_id
    ) -> None:
        self.file = file
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self._bpe = tokenizers.Tokenizer.from_file(str(file))
        # A user's "<eos>" must not end a prompt: specials are placed by code, by id.
        self._bpe.encode_special_tokens = True
        self.vocab_size = self._bpe.get_vocab_size()
        # SentencePiece's way: every text begins as if it stood behind a space.
        first = self._bpe.encode("a", add_special_tokens=False).tokens[:1]
        self._space = "" if first and first[0].startswith("\N{LOWER ONE EIGHTH BLOCK}") else " "

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def encode_inside(self, text: str) -> list[int]:
        """Ids of a text as they are behind a space, in the middle of a sentence."""
        return self.encode(self._space + text)

    def token_ends(self, text: str) -> list[int]:
        """Where each token of ``encode(text)`` ends, in characters from the start."""
        return [end for _, end in self._bpe.encode(text, add_special_tokens=False).offsets]

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer as both models learn it: the text behind a space, ``eos_id``.

        An empty answer is its end alone.
        """
        return [*(self.encode_inside(text) if text else []), self.eos_id]

    def encode_choices(self, options: Sequence[str]) -> list[list[int]]:
        """What may be answered to a question with these options; empty if it has none."""
        return [self.encode_answer(spoken(options, i)) for i in range(len(options))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, up to the first ``eos_id``, without specials and outer spaces."""
        kept = list(ids)
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return str(self._bpe.decode(kept, skip_special_tokens=True)).strip()

    def vocabulary(self, *, rows: int | None = None) -> Vocabulary:
        """Which token stands behind which id; ``rows`` is how many logits the model has."""
        return Vocabulary.of(self._bpe.get_vocab(with_added_tokens=True), rows=rows)

    def token_id(self, token: str) -> int:
        """Id of one token by its name. Raises KeyError if there is none."""
        found = self._bpe.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return int(found)

    def token_text(self, token_id: int) -> str:
        """One token as it reads, specials by name; "#1030" where the id has no entry."""
        name = self._bpe.id_to_token(token_id)
        if name is None:
            return f"#{token_id}"
        return str(self._bpe.decode([token_id], skip_special_tokens=False)) or str(name)

    def save(self, file: Path) -> None:
        """Write the entries and merges as ``tokenizer.json`` has them; the three ids are not in it.

        Nothing is done where ``file`` is the one this was read from.
        """
        if self.file.resolve() != file.resolve():
            shutil.copyfile(self.file, file)


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The shipped tokenizer of the made worlds."""
    return Tokenizer(TOKENIZER_FILE)


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a published language model's folder.

    Where the model has no token to begin with, its end stands before an answer too; where it has
    none to pad with, the end pads.

    Raises:
        BadInputError: the folder has no ``tokenizer.json``, or does not say what ends a text.
    """
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        raise BadInputError(
            f"{folder} holds no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR), and name DIR"
        )
    try:
        tokenizer = Tokenizer(file)
        said = json.loads(settings.read_text()) if settings.is_file() else {}
    except Exception as error:  # the Rust library raises Exception itself
        raise BadInputError(f"{folder} holds no tokenizer that can be read ({error})") from None
    end = _id_of(tokenizer, said, "eos_token", folder)
    if end is None:
        raise BadInputError(
            f"{settings} names no eos_token; a student has to know what ends an answer"
        )
    begin = _id_of(tokenizer, said, "bos_token", folder)
    padding = _id_of(tokenizer, said, "pad_token", folder)
    return Tokenizer(
        file,
        bos_id=end if begin is None else begin,
        eos_id=end,
        pad_id=end if padding is None else padding,
    )


def _id_of(tokenizer: Tokenizer, said: Any, name: str, folder: Path) -> int | None:
    """Id of a special token that a ``tokenizer_config.json`` names, as text or as an object."""
    token = said.get(name) if isinstance(said, dict) else None
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return None
    try:
        return tokenizer.token_id(str(text))
    except KeyError:
        raise BadInputError(
            f"{folder}: tokenizer_config.json calls {text!r} its {name}, tokenizer.json has no "
            "such token"
        ) from None


def train_tokenizer(texts: Iterable[str], file: Path) -> None:
    """Learn the merges from a corpus and write ``file``.

    Digits stay single, so that numbers are spelt the same way wherever they stand. The same texts
    give the same file.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(RESERVED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(
            f"the corpus gave {bpe.get_vocab_size()} entries, expected {VOCAB_SIZE}; use more text"
        )
    bpe.save(str(file))
