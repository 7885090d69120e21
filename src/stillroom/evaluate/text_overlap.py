"""ROUGE-1/2/L and BLEU-1..4 through the libraries whose numbers others print.

ROUGE is rouge-score without stemming, per item; BLEU is sacrebleu over the whole corpus
(tokenizer 13a, exponential smoothing), as a fraction. Where a truth has several renderings, ROUGE
takes the best one and BLEU takes them all as references.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from stillroom.evaluate.metrics import Overlap

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
BLEU_ID = "sacrebleu, tokenizer 13a, exponential smoothing, corpus"
NLTK_BLEU_ID = "nltk, lower case, white space, no smoothing, corpus"
ROUGE_ID = "rouge-score, no stemming, best rendering, mean over items"


@lru_cache(maxsize=2)
def _rouge_scorer(stem: bool) -> RougeScorer:
    # Imported here: the library brings nltk, half a second that only evaluation should pay.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_KINDS), use_stemmer=stem)


def rouge(prediction: str, reference: str, *, stem: bool = False) -> dict[str, Overlap]:
    """ROUGE-1, -2 and -L of one text against one reference, with precision and recall."""
    scores = _rouge_scorer(stem).score(reference, prediction)
    return {
        kind: Overlap(
            precision=float(scores[kind].precision),
            recall=float(scores[kind].recall),
            f1=float(scores[kind].fmeasure),
        )
        for kind in ROUGE_KINDS
    }


def best_rouge(prediction: str, renderings: Sequence[str]) -> dict[str, Overlap]:
    """Each ROUGE against the rendering that it agrees with most (by F1)."""
    if not renderings:
        raise ValueError("best_rouge needs at least one rendering to compare with")
    scored = [rouge(prediction, rendering) for rendering in renderings]
    return {kind: max((one[kind] for one in scored), key=lambda o: o.f1) for kind in ROUGE_KINDS}


def bleu(predictions: Sequence[str], renderings: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU-1..4 (0..1); BLEU-n weighs the orders 1 to n equally."""
    if not predictions or len(predictions) != len(renderings):
        raise ValueError(
            f"BLEU needs one list of renderings per prediction, got {len(renderings)} "
            f"for {len(predictions)}"
        )
    from sacrebleu.metrics.bleu import BLEU

    streams = _streams(renderings)
    return {
        f"bleu{order}": BLEU(max_ngram_order=order).corpus_score(list(predictions), streams).score
        / 100.0
        for order in (1, 2, 3, 4)
    }


def _streams(renderings: Sequence[Sequence[str]]) -> list[list[str]]:
    """sacrebleu wants one stream per reference; a reference said twice changes nothing."""
    depth = max(len(texts) for texts in renderings)
    return [[texts[min(i, len(texts) - 1)] for texts in renderings] for i in range(depth)]


def bleu_precisions(predictions: Sequence[str], renderings: Sequence[Sequence[str]]) -> list[float]:
    """The precisions of the orders 1 to 4 behind sacrebleu's BLEU-4 [percent]."""
    from sacrebleu.metrics.bleu import BLEU

    found = BLEU().corpus_score(list(predictions), _streams(renderings)).precisions
    return [float(value) for value in found]


def nltk_bleu(predictions: Sequence[str], renderings: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU-1 to BLEU-4 (0..1) of nltk: lower case, split at white space, no smoothing.

    For comparison with papers that print it; where no n-gram of an order agrees it is 0.
    """
    from nltk.translate.bleu_score import corpus_bleu

    said = [text.lower().split() for text in predictions]
    known = [[text.lower().split() for text in texts] for texts in renderings]
    with warnings.catch_warnings():
        # It warns where an order has no overlap; the score says so too.
        warnings.simplefilter("ignore", UserWarning)
        return {
            f"bleu{order}": float(corpus_bleu(known, said, weights=[1 / order] * order))
            for order in (1, 2, 3, 4)
        }


def mean_overlap(overlaps: Sequence[Overlap]) -> Overlap:
    """Mean of precision, recall and F1, each on its own (macro: F1 is not made from the means)."""
    if not overlaps:
        raise ValueError("no text was scored: a mean over nothing has no value")
    n = len(overlaps)
    return Overlap(
        precision=sum(o.precision for o in overlaps) / n,
        recall=sum(o.recall for o in overlaps) / n,
        f1=sum(o.f1 for o in overlaps) / n,
    )
