import json
from pathlib import Path

import pytest

from stillroom.evaluate.text_overlap import best_rouge, bleu, mean_overlap, rouge

RECORD = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "metrics" / "text_overlap.json").read_text()
)


@pytest.mark.parametrize("item", RECORD["items"], ids=lambda item: item["id"])
def test_rouge_matches_the_recorded_scores(item):
    for key, stem in (("rouge_score", False), ("rouge_score_stem", True)):
        ours = rouge(item["prediction"], item["reference"], stem=stem)
        for kind, recorded in item[key].items():
            assert ours[kind].precision == pytest.approx(recorded["precision"], abs=1e-6)
            assert ours[kind].recall == pytest.approx(recorded["recall"], abs=1e-6)
            assert ours[kind].f1 == pytest.approx(recorded["f1"], abs=1e-6)


def test_mean_overlap_and_corpus_bleu_match_the_recorded_corpus():
    items = RECORD["items"]
    scored = [rouge(item["prediction"], item["reference"]) for item in items]
    for kind, recorded in RECORD["corpus"]["rouge_score_mean_f1"].items():
        assert mean_overlap([one[kind] for one in scored]).f1 == pytest.approx(recorded, abs=1e-6)
    recorded = RECORD["corpus"]["sacrebleu_2.6.0_13a_exp (0..100)"]
    ours = bleu([i["prediction"] for i in items], [[i["reference"]] for i in items])
    for order in (1, 2, 3, 4):
        assert 100 * ours[f"bleu{order}"] == pytest.approx(recorded[f"bleu{order}"], abs=1e-6)


def test_the_best_rendering_counts():
    best = best_rouge("a red chair", ["two blue lamps", "a red chair"])
    assert best["rouge1"].f1 == 1.0


def test_bleu_takes_texts_with_unequal_numbers_of_renderings():
    scores = bleu(
        ["a red chair stands here now", "the mug is on the table"],
        [["no", "a red chair stands here now"], ["the mug is on the table"]],
    )
    assert scores["bleu4"] == pytest.approx(1.0)


def test_overlap_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no text was scored"):
        mean_overlap([])
    with pytest.raises(ValueError, match="BLEU needs"):
        bleu([], [])
    with pytest.raises(ValueError, match="at least one rendering"):
        best_rouge("a", [])
