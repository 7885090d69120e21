"""The settled identities of the tokenizer: every checkpoint depends on them."""

import hashlib
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from stillroom.records import BadInputError
from stillroom.text.mentions import mentions
from stillroom.text.tokenizer import (
    RESERVED,
    TOKENIZER_FILE,
    load_tokenizer,
    open_tokenizer,
    train_tokenizer,
)


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


# Those of published models. ------------------------------------------------------------------

SAID = "Which is closer to the lamp: the red table or the blue chair? a red chair, a blue lamp"


def write(folder: Path, bpe: tokenizers.Tokenizer, specials: list[str], **settings: object) -> Path:
    trainer = trainers.BpeTrainer(special_tokens=specials, vocab_size=400, show_progress=False)
    bpe.train_from_iterator([SAID] * 3, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Spaces are characters, and one stands before every text, as SentencePiece has it."""
    bpe = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    end = {"content": "</s>", "lstrip": False}
    return write(tmp_path, bpe, ["<unk>", "<s>", "</s>"], bos_token="<s>", eos_token=end)


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Bytes, and one special token for everything."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return write(tmp_path, bpe, ["<end>"], bos_token=None, eos_token="<end>")


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_an_answer_has_the_tokens_that_a_question_has_for_it(
    family: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(family))
    answer = tokenizer.encode_answer("red table")
    assert answer[-1] == tokenizer.eos_id
    asked = tokenizer.encode("closer to the red table")
    assert asked[-len(answer) + 1 :] == answer[:-1]
    assert tokenizer.decode(answer) == "red table"
    assert tokenizer.decode([*answer, *asked]) == "red table"
    places = [place for place, _ in mentions("the red table or", {"red table": 4}, tokenizer)]
    inside = [tokenizer.encode("the red table or")[place] for place in places]
    assert inside == answer[:-1]


def test_an_empty_answer_is_its_end_alone(llama: Path) -> None:
    for tokenizer in (load_tokenizer(), open_tokenizer(llama)):
        assert tokenizer.encode_answer("") == [tokenizer.eos_id]
        assert tokenizer.decode([tokenizer.eos_id]) == ""


def test_special_tokens_are_those_the_folder_names(llama: Path) -> None:
    tokenizer = open_tokenizer(llama)
    # Nothing pads in this one, so its end does.
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert 2 not in tokenizer.encode("</s>"), "a text must not end itself"


def test_where_nothing_begins_a_text_its_end_does(qwen: Path) -> None:
    tokenizer = open_tokenizer(qwen)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 0)


def test_folders_that_cannot_serve_are_refused(llama: Path, tmp_path: Path) -> None:
    settings = llama / "tokenizer_config.json"
    settings.write_text(json.dumps({"eos_token": "<over>"}))
    with pytest.raises(BadInputError, match="calls '<over>' its eos_token"):
        open_tokenizer(llama)
    settings.write_text("{}")
    with pytest.raises(BadInputError, match="names no eos_token"):
        open_tokenizer(llama)
    settings.write_text("{")
    with pytest.raises(BadInputError, match="no tokenizer that can be read"):
        open_tokenizer(llama)
    (llama / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match="no tokenizer that can be read"):
        open_tokenizer(llama)
    (llama / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match=r"holds no tokenizer\.json"):
        open_tokenizer(llama)


def test_a_single_token_reads_as_it_stands_in_a_text() -> None:
    tokenizer = load_tokenizer()
    ids = tokenizer.encode("Which is closer to the lamp?")
    assert "".join(tokenizer.token_text(token) for token in ids) == "Which is closer to the lamp?"
    assert tokenizer.token_text(tokenizer.eos_id) == "<eos>"
    assert tokenizer.token_text(999_999) == "#999999"
