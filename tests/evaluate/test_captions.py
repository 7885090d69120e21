import shutil

import pytest

from stillroom.evaluate import scan2cap
from stillroom.evaluate.captions import coco_bleu, coco_cider, coco_rouge_l
from stillroom.evaluate.coco_java import meteor, missing, ptb_tokens
from stillroom.evaluate.ptb import is_counted, ptb_words
from stillroom.evaluate.scan2cap import Caption, scan2cap_scores

needs_java = pytest.mark.skipif(bool(missing()), reason=missing() or "there")

SENTENCES = [
    "It's next to the door, isn't it?",
    "They cannot see the 3.5m x 2 m table (grey).",
    "An L-shaped desk; 80cm wide, 1,200 mm -- and/or 5'10\" tall!",
    "The dog's bed is at 12 o'clock... \"quoted\" text",
    "etc. e.g. this, 20 m^2 and 50% of it. end.Next",
    "A. sofa <answer>3</answer> 90's style 😀 hello😀world",
]


def test_tokens_by_hand():
    assert ptb_words("It isn't the dog's; it's 3.5 m (or so).") == (
        [
            "it",
            "is",
            "n't",
            "the",
            "dog",
            "'s",
            "it",
            "'s",
            "3.5",
            "m",
            "-lrb-",
            "or",
            "so",
            "-rrb-",
        ]
    )


@needs_java
def test_tokens_are_those_of_the_stanford_tokenizer():
    theirs = [[t for t in found if is_counted(t)] for found in ptb_tokens(SENTENCES)]
    assert [ptb_words(sentence) for sentence in SENTENCES] == theirs


@needs_java
def test_meteor_of_a_copy_is_one_and_of_nothing_is_nought():
    corpus, items = meteor(["a red chair", ""], [["a red chair"], ["a lamp"]])
    assert items == pytest.approx([1.0, 0.0], abs=1e-4)
    assert 0 < corpus < 1


def test_what_java_lacks_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert missing() == "no java on the path"
    with pytest.raises(RuntimeError, match="no java"):
        meteor(["a"], [["a"]])


def test_bleu_by_hand():
    # Three of four words, one of three pairs; the candidate is longer than its reference.
    said, known = ["a", "red", "chair", "here"], [[["a", "chair", "here"]]]
    bleu = coco_bleu([said, ["x"]], [*known, [["y"]]])
    assert bleu[0] == pytest.approx(3 / 5, abs=1e-6)
    assert bleu[1] == pytest.approx((3 / 5 * 1 / 3) ** 0.5, abs=1e-6)


def test_rouge_l_by_hand_takes_the_best_of_each_reference():
    # Longest common runs: 2 of 3 words said; 2 of 2 and 2 of 4 words known.
    precision, recall, beta = 2 / 3, 1.0, 1.2
    wanted = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    said = ["a", "red", "chair"]
    known = [["a", "chair"], ["the", "red", "wooden", "chair"]]
    assert coco_rouge_l([said], [known]) == pytest.approx([wanted])
    assert coco_rouge_l([[]], [known]) == [0.0]


def test_cider_is_ten_for_copies_and_nought_without_overlap_or_corpus():
    said = [["one", "two", "three", "four", "five"], ["six", "seven", "eight", "nine"]]
    assert coco_cider(said, [[text] for text in said]) == pytest.approx([10.0, 10.0])
    assert coco_cider([said[1], said[0]], [[text] for text in said]) == [0.0, 0.0]
    assert coco_cider(said[:1], [[said[0]]]) == [0.0]


def test_scores_of_nothing_are_errors():
    for score in (coco_bleu, coco_rouge_l, coco_cider):
        with pytest.raises(ValueError, match="0 predictions"):
            score([], [])
        with pytest.raises(ValueError, match="at least one reference"):
            score([["a"]], [[]])


def test_a_missed_box_makes_an_empty_caption_which_scores_nothing_when_corrected(monkeypatch):
    monkeypatch.setattr(scan2cap, "missing", lambda: "left out: METEOR takes seconds to start")

    def caption(iou):
        return Caption(text="a brown chair", references=("a brown chair",), iou=iou)

    hit = scan2cap_scores([caption(0.5), caption(0.9)])
    missed = scan2cap_scores([caption(0.49), caption(0.9)])
    assert hit["ROUGE-L"] == hit["ROUGE-L corrected"] == 1.0
    assert missed["ROUGE-L corrected"] == 0.5
    assert missed["ROUGE-L"] > 0.5
