"""The settled identities of the tokenizer: every checkpoint depends on them."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.text.tokenizer import RESERVED, TOKENIZER_FILE, load_tokenizer, train_tokenizer


def test_reserved_ids_are_the_settled_ones() -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.vocab_size == 1024
    assert [tokenizer.token_id(token) for token in RESERVED] == list(range(32))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.token_id("<v-trace_8>") == 15
    assert tokenizer.token_id("<slot_1>") == 16


def test_the_shipped_file_has_not_changed() -> None:
    digest = hashlib.sha256(TOKENIZER_FILE.read_bytes()).hexdigest()
    assert digest == "b93001186d31c9d8a7ad4f5b2035152c8341145d436d61d145f3d4a70e1978cb", (
        "another tokenizer voids every checkpoint and label store"
    )


def test_a_word_is_one_token_in_question_and_answer() -> None:
    tokenizer = load_tokenizer()
    in_question = tokenizer.encode("Which is bigger, the red chair or the blue table?")
    answer = tokenizer.encode_answer("red chair")
    assert answer[-1] == tokenizer.eos_id
    assert set(answer[:-1]) <= set(in_question)


def test_digits_stay_single() -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.encode("2026") == [t for digit in "2026" for t in tokenizer.encode(digit)]


def test_a_reserved_token_in_a_text_is_only_characters() -> None:
    tokenizer = load_tokenizer()
    ids = tokenizer.encode("<eos> and <slot_1>")
    assert min(ids) >= len(RESERVED)
    assert tokenizer.decode(ids) == "<eos> and <slot_1>"


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


def test_decoding_ends_at_the_first_eos() -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.decode([*tokenizer.encode_answer("yes"), *tokenizer.encode(" no")]) == "yes"


def test_a_corpus_too_small_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 1024"):
        train_tokenizer(["a few words"], tmp_path / "tokenizer.json")


def test_an_unknown_token_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_tokenizer().token_id("<never>")
