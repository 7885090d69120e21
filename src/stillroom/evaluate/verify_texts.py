"""The text scorers against recorded figures: ScanQA, SQA3D, Scan2Cap, overlap of descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.evaluate.captions import coco_bleu, coco_cider, coco_rouge_l
from stillroom.evaluate.coco_java import meteor, missing, ptb_tokens
from stillroom.evaluate.exact_match import exact_match
from stillroom.evaluate.ptb import is_counted, ptb_words
from stillroom.evaluate.scan2cap import Caption, scan2cap_scores
from stillroom.evaluate.text_overlap import bleu, bleu_precisions, mean_overlap, nltk_bleu, rouge
from stillroom.evaluate.verify_tally import Tally

Fixture = Mapping[str, Any]
#: METEOR's tolerance: its program prints rounded statistics.
METEOR_TOLERANCE = 1e-4


def compare_scanqa(about: Fixture, tally: Tally) -> None:
    """Cleaning and exact match by item; exact match and caption scores of the corpus."""
    outputs = {"clean_prediction", "clean_answers", "em1", "em1_refined"}
    tally.known(about, {"metric", "items", "corpus"})
    matched = []
    for item in about["items"]:
        tally.known(item, {"question_id", "prediction", "answers", *outputs})
        one = exact_match(item["prediction"], item["answers"])
        tally.equal("items.clean_prediction", one.cleaned, item["clean_prediction"])
        tally.equal("items.clean_answers", list(one.references), item["clean_answers"])
        tally.equal("items.em1", int(one.em), item["em1"])
        tally.equal("items.em1_refined", int(one.em_refined), item["em1_refined"])
        matched.append(one)
    said = [ptb_words(one.cleaned) for one in matched]
    known = [[ptb_words(reference) for reference in one.references] for one in matched]
    ours = {
        "EM1": float(np.mean([one.em for one in matched])),
        "EM1_refined": float(np.mean([one.em_refined for one in matched])),
        **{f"Bleu_{n}": value for n, value in enumerate(coco_bleu(said, known), start=1)},
        "ROUGE_L": float(np.mean(coco_rouge_l(said, known))),
        "CIDEr": float(np.mean(coco_cider(said, known))),
    }
    recorded = dict(about["corpus"])
    _compare_meteor(tally, "corpus.METEOR", said, known, recorded.pop("METEOR", None))
    tally.numbers("corpus", ours, recorded)


def _compare_meteor(
    tally: Tally,
    name: str,
    said: Sequence[Sequence[str]],
    known: Sequence[Sequence[Sequence[str]]],
    recorded: float | int | None,
    items: Sequence[float | int] = (),
) -> None:
    """METEOR of a corpus, and of its items where they are recorded too."""
    if recorded is None:
        return
    if missing():
        tally.skip(name, missing())
        return
    corpus, each = meteor(
        [" ".join(words) for words in said],
        [[" ".join(words) for words in texts] for texts in known],
    )
    tally.number(name, corpus, recorded, tolerance=METEOR_TOLERANCE)
    for mine, theirs in zip(each, items):
        tally.number("items.coco.meteor", mine, theirs, tolerance=METEOR_TOLERANCE)


def compare_sqa3d(about: Fixture, tally: Tally) -> None:
    """Exact match, overall and for the six types; the original adds 1e-10 to each count."""
    tally.known(about, {"metric", "items", "scores"})
    for item in about["items"]:
        tally.known(item, {"question_id", "prediction", "answer", "type"})
    matched = [(i["type"], exact_match(i["prediction"], [i["answer"]])) for i in about["items"]]
    ours = {
        "EM1": float(np.mean([one.em for _, one in matched])),
        "EM1_refined": float(np.mean([one.em_refined for _, one in matched])),
    }
    for kind in sorted({kind for kind, _ in matched}):
        of_kind = [one for name, one in matched if name == kind]
        count = len(of_kind) + 1e-10
        ours[f"EM_type{kind}"] = sum(one.em for one in of_kind) / count
        ours[f"EM_refined_type{kind}"] = sum(one.em_refined for one in of_kind) / count
    tally.numbers("scores", ours, about["scores"])


def compare_captions(about: Fixture, tally: Tally) -> None:
    """Scan2Cap's four scores at IoU 0.5."""
    tally.known(about, {"metric", "items", "scores"})
    captions = []
    for item in about["items"]:
        tally.known(item, {"id", "prediction", "references", "iou"})
        references = tuple(item["references"])
        captions.append(Caption(text=item["prediction"], references=references, iou=item["iou"]))
    ours = {f"{name}@0.5": value for name, value in scan2cap_scores(captions).items()}
    recorded = dict(about["scores"])
    name = "METEOR@0.5"
    if name in recorded:
        theirs = recorded.pop(name)
        if name in ours:
            tally.number(f"scores.{name}", ours[name], theirs, tolerance=METEOR_TOLERANCE)
        else:
            tally.skip(f"scores.{name}", missing())
    tally.numbers("scores", ours, recorded)


def compare_overlap(about: Fixture, tally: Tally) -> None:
    """ROUGE, the BLEUs of three libraries, tokens, and the COCO scores, by item and corpus."""
    tally.known(about, {"metric", "items", "corpus"})
    items = about["items"]
    for item in items:
        outputs = {"rouge_score", "rouge_score_stem", "coco"}
        tally.known(item, {"id", "prediction", "reference", *outputs})
        for key, stem in (("rouge_score", False), ("rouge_score_stem", True)):
            ours = rouge(item["prediction"], item["reference"], stem=stem)
            tally.known(item[key], ours)
            for kind, recorded in item[key].items():
                tally.numbers(f"items.{key}.{kind}", vars(ours[kind]), recorded)
    _compare_coco(about, tally)
    _compare_corpus(about, tally)


def _compare_coco(about: Fixture, tally: Tally) -> None:
    items, corpus = about["items"], about["corpus"]["coco"]
    said = [ptb_words(item["prediction"]) for item in items]
    known = [[ptb_words(item["reference"])] for item in items]
    rouges, ciders = coco_rouge_l(said, known), coco_cider(said, known)
    names = {"tokens_prediction", "tokens_reference", "meteor", "rouge_l", "cider"}
    for item, mine, references, rouge_l, cider in zip(
        items, said, known, rouges, ciders, strict=True
    ):
        recorded = item["coco"]
        tally.known(recorded, names)
        tally.equal("items.coco.tokens", " ".join(mine), recorded["tokens_prediction"])
        tally.equal("items.coco.tokens", " ".join(references[0]), recorded["tokens_reference"])
        tally.number("items.coco.rouge_l", rouge_l, recorded["rouge_l"])
        tally.number("items.coco.cider", cider, recorded["cider"])
    tally.known(corpus, {"bleu", "meteor", "rouge_l", "cider"})
    for n, (mine_n, theirs) in enumerate(
        zip(coco_bleu(said, known), corpus["bleu"], strict=True), start=1
    ):
        tally.number(f"corpus.coco.bleu{n}", mine_n, theirs)
    tally.number("corpus.coco.rouge_l", float(np.mean(rouges)), corpus["rouge_l"])
    tally.number("corpus.coco.cider", float(np.mean(ciders)), corpus["cider"])
    _compare_meteor(
        tally,
        "corpus.coco.meteor",
        said,
        known,
        corpus["meteor"],
        [item["coco"]["meteor"] for item in items],
    )
    _compare_java_tokens(items, tally)


def _compare_java_tokens(items: Sequence[Fixture], tally: Tally) -> None:
    """The Stanford tokenizer itself, where it can be run."""
    name = "items.coco.tokens by java"
    if missing():
        tally.skip(name, missing())
        return
    for key in ("prediction", "reference"):
        found = ptb_tokens([item[key] for item in items])
        for item, tokens in zip(items, found, strict=True):
            words = " ".join(token for token in tokens if is_counted(token))
            tally.equal(name, words, item["coco"][f"tokens_{key}"])


def _compare_corpus(about: Fixture, tally: Tally) -> None:
    corpus, items = about["corpus"], about["items"]
    texts = [item["prediction"] for item in items]
    references = [[item["reference"]] for item in items]
    sacre, nltk = "sacrebleu_2.6.0_13a_exp (0..100)", "nltk_corpus_bleu_lower_whitespace (0..1)"
    tally.known(corpus, {"coco", sacre, nltk, "rouge_score_mean_f1"})
    if sacre in corpus:
        ours: dict[str, Any] = {k: 100 * value for k, value in bleu(texts, references).items()}
        recorded = dict(corpus[sacre])
        for n, (mine, theirs) in enumerate(
            zip(bleu_precisions(texts, references), recorded.pop("precisions", ())), start=1
        ):
            tally.number(f"corpus.sacrebleu.precision{n}", mine, theirs)
        tally.numbers("corpus.sacrebleu", ours, recorded)
    if nltk in corpus:
        tally.numbers("corpus.nltk", nltk_bleu(texts, references), corpus[nltk])
    if "rouge_score_mean_f1" in corpus:
        scored = [rouge(item["prediction"], item["reference"]) for item in items]
        means = {kind: mean_overlap([one[kind] for one in scored]).f1 for kind in scored[0]}
        tally.numbers("corpus.rouge", means, corpus["rouge_score_mean_f1"])
