"""Names in questions: which tokens they are, and which thing they mean."""

from __future__ import annotations

from stillroom.text.mentions import mentions, word_tokens
from stillroom.text.tokenizer import load_tokenizer

NAMES = {"red chair": 1, "pink armchair": 2, "blue bin": 3, "striped blue bin": 4}


def said(text: str) -> list[tuple[str, int]]:
    tokenizer = load_tokenizer()
    ids = tokenizer.encode(text)
    return [
        (tokenizer.decode([ids[place]]), thing) for place, thing in mentions(text, NAMES, tokenizer)
    ]


def test_every_token_of_every_name_is_found_in_reading_order() -> None:
    text = "Is the red chair or the pink armchair closer to the blue bin?"
    assert said(text) == [
        ("red", 1),
        ("chair", 1),
        ("pink", 2),
        ("armchair", 2),
        ("blue", 3),
        ("bin", 3),
    ]


def test_of_two_names_that_fit_the_longer_one_is_meant() -> None:
    assert {thing for _, thing in said("Does the striped blue bin touch the red chair?")} == {1, 4}


def test_parts_of_words_and_unknown_things_are_no_names() -> None:
    assert said("Is the red chairlift near the red bench?") == []
    assert mentions("Is the red chair near?", {}, load_tokenizer()) == []


def test_a_word_stands_for_itself_inside_a_sentence() -> None:
    tokenizer = load_tokenizer()
    (chair,), (red,), mug, rug = word_tokens(["chair", "red", "mug", "rug"], tokenizer)
    ids = tokenizer.encode("Is the red chair big?")
    assert ids.index(chair) == ids.index(red) + 1
    assert mug != rug
