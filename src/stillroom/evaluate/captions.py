"""BLEU, ROUGE-L and CIDEr as the COCO caption tools (pycocoevalcap 1.2) give them, without java.

Texts come in as lists of words: ``ptb.ptb_words`` for ScanQA and descriptions, plain words between
"sos" and "eos" for Scan2Cap. METEOR needs java and is in ``coco_java``. An empty answer scores 0
by all three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]

BLEU_ID = "coco-bleu/pycocoevalcap-1.2"
ROUGE_L_ID = "coco-rouge-l/pycocoevalcap-1.2"
CIDER_ID = "coco-cider-d/pycocoevalcap-1.2"

ORDERS = 4
# What the original adds to counts, so that none is divided by zero.
_TINY, _SMALL = 1e-15, 1e-9
# Recall counts 1.2 times as much as precision in ROUGE-L.
_BETA = 1.2
# Width of CIDEr-D's length penalty, in words.
_SIGMA = 6.0


def _grams(words: Words) -> Grams:
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, ORDERS + 1)
        for start in range(len(words) - size + 1)
    )


def _require_pairs(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(references)} lists of references for {len(predictions)} predictions"
        )
    if not all(references):
        raise ValueError("every prediction needs at least one reference")


def coco_bleu(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (0..1).

    The reference of nearest length counts for brevity, the shorter of two; for a corpus of one
    item it is the references' mean length, as in the original.
    """
    return bleu_of(bleu_counts(predictions, references).sum(axis=0)).tolist()


def bleu_counts(
    predictions: Sequence[Words], references: Sequence[Sequence[Words]]
) -> Float[np.ndarray, "n 10"]:
    """What BLEU adds up over items: n-grams said (4 orders), of them right (4), words said, words
    wanted."""
    _require_pairs(predictions, references)
    counts = np.zeros((len(predictions), 2 * ORDERS + 2))
    for row, words, known in zip(counts, predictions, references, strict=True):
        most: Grams = Counter()
        for reference in known:
            most |= _grams(reference)
        row[:ORDERS] = np.maximum(len(words) - np.arange(ORDERS), 0)
        for gram, count in (_grams(words) & most).items():
            row[ORDERS + len(gram) - 1] += count
        lengths = [len(reference) for reference in known]
        nearest = min((abs(length - len(words)), length) for length in lengths)[1]
        wanted = float(np.mean(lengths)) if len(predictions) == 1 else nearest
        row[2 * ORDERS :] = len(words), wanted
    return counts


def bleu_of(sums: Float[np.ndarray, "*d 10"]) -> Float[np.ndarray, "*d 4"]:
    """BLEU-1 to BLEU-4 of a corpus with these sums."""
    guessed, right = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    said, wanted = sums[..., -2], sums[..., -1]
    precision = np.cumprod((right + _TINY) / (guessed + _SMALL), axis=-1)
    ratio = (said + _TINY) / (wanted + _SMALL)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1.0)), 1.0)
    return np.asarray(precision ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None])


def coco_rouge_l(
    predictions: Sequence[Words], references: Sequence[Sequence[Words]]
) -> list[float]:
    """ROUGE-L of each item (0..1): the best precision and the best recall over its references.

    The two may come from different references, as in the original.
    """
    _require_pairs(predictions, references)
    return [_rouge_l(words, known) for words, known in zip(predictions, references, strict=True)]


def _rouge_l(words: Words, known: Sequence[Words]) -> float:
    common = [_common_length(words, reference) for reference in known]
    # A text without words counts as one empty word in the original.
    precision = max(common) / max(len(words), 1)
    recall = max(c / max(len(r), 1) for c, r in zip(common, known, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(one: Words, other: Words) -> int:
    """Length of the longest common subsequence, row by row over the longer text."""
    short, long = sorted((one, other), key=len)
    row = [0] * (len(short) + 1)
    for word in long:
        diagonal = 0
        for i, mine in enumerate(short, start=1):
            above = row[i]
            row[i] = diagonal + 1 if word == mine else max(above, row[i - 1])
            diagonal = above
    return row[-1]


def coco_cider(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each item (0..10; papers print it times 100, on 0..1000).

    A corpus measure all the same: an n-gram weighs log(items / items whose references have it), so
    scores of different corpora cannot be compared, and a corpus of one item scores 0.
    """
    _require_pairs(predictions, references)
    frequency: Grams = Counter()
    for known in references:
        frequency.update(set().union(*(_grams(reference) for reference in known)))
    items = float(len(references))
    scores = []
    for words, known in zip(predictions, references, strict=True):
        mine = _weighted(words, frequency, items)
        theirs = [_weighted(reference, frequency, items) for reference in known]
        scores.append(10.0 * float(np.mean([_cosine(mine, one) for one in theirs])))
    return scores


class _Weighted:
    """The tf-idf vectors of a text, one per order, with their norms."""

    def __init__(
        self,
        vectors: list[dict[tuple[str, ...], float]],
        norms: Float[np.ndarray, "o"],
        length: int,
    ) -> None:
        self.vectors = vectors
        self.norms = norms
        # Pairs of words: what the original's length penalty counts.
        self.length = length


def _weighted(words: Words, frequency: Grams, items: float) -> _Weighted:
    vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for gram, count in _grams(words).items():
        rarity = np.log(items) - np.log(max(1.0, frequency[gram]))
        vectors[len(gram) - 1][gram] = count * float(rarity)
    norms = np.array([np.sqrt(sum(value**2 for value in one.values())) for one in vectors])
    return _Weighted(vectors, norms, max(len(words) - 1, 0))


def _cosine(mine: _Weighted, theirs: _Weighted) -> float:
    """Mean over the orders of the clipped cosine, times the length penalty."""
    similar = np.zeros(ORDERS)
    for order in range(ORDERS):
        other = theirs.vectors[order]
        dot = sum(
            min(value, other[gram]) * other[gram]
            for gram, value in mine.vectors[order].items()
            if gram in other
        )
        norm = float(mine.norms[order] * theirs.norms[order])
        similar[order] = dot / norm if norm > 0 else 0.0
    gap = float(mine.length - theirs.length)
    return float(np.mean(similar)) * float(np.exp(-(gap**2) / (2 * _SIGMA**2)))
