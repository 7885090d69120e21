"""Four ways in which a student's vocabulary can stand to a teacher's."""

from pathlib import Path

import pytest

from stillroom.records import BadInputError
from stillroom.text.tokenizer import TOKENIZER_FILE, load_tokenizer
from stillroom.text.vocabulary import Match, Vocabulary, compare

TEACHER = Vocabulary(tokens=("<pad>", "<eos>", "red", "blue"), rows=4)


def a_vocabulary(*tokens: str | None, rows: int = 0) -> Vocabulary:
    return Vocabulary(tokens=tokens, rows=max(rows, len(tokens)))


@pytest.mark.parametrize(
    ("student", "match", "reason"),
    [
        (a_vocabulary("<pad>", "<eos>", "red", "blue"), Match.IDENTICAL, "the same 4 tokens"),
        (
            a_vocabulary("<pad>", "<eos>", "red", "blue", rows=64),
            Match.PADDED,
            "the student has 64 rows and the teacher 4",
        ),
        # The same padding, written down as ids that name nothing.
        (a_vocabulary("<pad>", "<eos>", "red", "blue", None, None), Match.PADDED, "has 6 rows"),
        (a_vocabulary("<pad>", "<eos>", "red"), Match.SUBSET, "the student lacks 1 of"),
        (a_vocabulary("<pad>", "<eos>", None, "blue"), Match.SUBSET, "the student lacks 1 of"),
        (
            a_vocabulary("<pad>", "<eos>", "red", "blue", "green"),
            Match.SUBSET,
            "the teacher lacks 1 of",
        ),
        (a_vocabulary("<pad>", "<eos>", "blue", "red"), Match.DIFFERENT, "id 2 is 'blue'"),
        (
            a_vocabulary("<pad>", "<eos>", "red", None, "green"),
            Match.DIFFERENT,
            "1 of the student's tokens are unknown to the teacher and 1 of",
        ),
    ],
)
def test_each_way_to_match_is_told_apart(student: Vocabulary, match: Match, reason: str) -> None:
    found = compare(student, TEACHER)
    assert found.match is match
    assert reason in found.reason
    assert found.logits_fit == (match in (Match.IDENTICAL, Match.PADDED))


def test_the_hash_names_tokens_and_ids_and_leaves_rows_out() -> None:
    assert a_vocabulary("a", "b").hash == a_vocabulary("a", "b", rows=9).hash
    assert a_vocabulary("a", "b").hash != a_vocabulary("b", "a").hash
    assert a_vocabulary("a", None).hash != a_vocabulary("a", "").hash


def test_a_tokenizer_and_its_file_give_the_same_vocabulary_back_from_disk(tmp_path: Path) -> None:
    own = load_tokenizer().vocabulary(rows=1100)
    assert own.tokens[2] == "<eos>"
    assert len(own.tokens) == 1024
    assert Vocabulary.from_tokenizer_file(TOKENIZER_FILE, rows=1100) == own
    file = tmp_path / "vocabulary.json"
    file.write_bytes(own.write())
    assert Vocabulary.read(file) == own


def test_what_is_no_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"rows": 3}'):
        (tmp_path / "vocabulary.json").write_text(text)
        with pytest.raises(BadInputError, match="vocabulary of ours"):
            Vocabulary.read(tmp_path / "vocabulary.json")
    with pytest.raises(BadInputError, match="not found"):
        Vocabulary.read(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match="is no tokenizer"):
        Vocabulary.from_tokenizer_file(tmp_path / "tokenizer.json")
