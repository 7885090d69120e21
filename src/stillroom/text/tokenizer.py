"""The tokenizer of the made worlds: byte-level BPE, 1,024 entries, shared by students and teachers.

Ids are settled: retraining it voids every checkpoint and label store. 0..31 are reserved, 32..287
are the 256 bytes, the rest are merges learnt once from the made corpus (``train_tokenizer``).
Answers are encoded with a leading space, so that "chair" is the same token when a question names
it and when an answer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

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
    """Text to ids and back. Reserved tokens in a text are ordinary characters, never specials."""

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, file: Path) -> None:
        self.file = file
        self._bpe = tokenizers.Tokenizer.from_file(str(file))
        # A user's "<eos>" must not end a prompt: specials are placed by code, by id.
        self._bpe.encode_special_tokens = True
        self.vocab_size = self._bpe.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added."""
        return list(self._bpe.encode(text, add_special_tokens=False).ids)

    def token_ends(self, text: str) -> list[int]:
        """Where each token of ``encode(text)`` ends, in characters from the start."""
        return [end for _, end in self._bpe.encode(text, add_special_tokens=False).offsets]

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer as both models learn it: a leading space, the text, ``<eos>``."""
        return [*self.encode(" " + text), self.eos_id]

    def encode_choices(self, options: Sequence[str]) -> list[list[int]]:
        """What may be answered to a question with these options; empty if it has none."""
        return [self.encode_answer(spoken(options, i)) for i in range(len(options))]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, up to the first ``<eos>``, without specials and outer spaces."""
        kept = list(ids)
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return self._bpe.decode([i for i in kept if i >= len(RESERVED)]).strip()

    def vocabulary(self, *, rows: int | None = None) -> Vocabulary:
        """Which token stands behind which id; ``rows`` is how many logits the model has."""
        return Vocabulary.of(self._bpe.get_vocab(with_added_tokens=True), rows=rows)

    def token_id(self, token: str) -> int:
        """Id of one token by its name. Raises KeyError if there is none."""
        found = self._bpe.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return int(found)


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The shipped tokenizer of the made worlds."""
    return Tokenizer(TOKENIZER_FILE)


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
