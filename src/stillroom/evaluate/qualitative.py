"""A student's texts beside its teacher's: what overlaps, how much is said, and which cases show it.

A mean over texts (macro) and a figure of all words together (corpus) differ, and papers mix them
(specs/hidden_cot.md, section 7, items 18 and 19); here both are given, each under its name. Words
are those of rouge-score: lower case, letters and digits.

- ``precision``, ``recall``, ``f1``: ROUGE-1 of each text, then the mean; of all words, once.
- ``length_ratio``: words of the student over words of the teacher.
- ``per_word``: overlap per word said. Of each text, ROUGE-1 (F1) over its words, then the mean; and
  the sum of all F1 over all words. The teacher's own stands beside it (F1 is 1, so 1 over its
  words): a student that says little has more per word, whatever it says.
- ``bleu1``: of each text, its brevity penalty included, then the mean; and of the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stillroom.evaluate.intervals import Resampler
from stillroom.evaluate.metrics import Overlap
from stillroom.evaluate.text_overlap import bleu, rouge

#: Texts are ranked by this, and these are shown.
RANKED_BY = "ROUGE-1 (F1) against the teacher's"
CASES = ("best", "median", "worst")


def text_agreement(
    said: Sequence[str], taught: Sequence[str], scene_ids: Sequence[str], resampler: Resampler
) -> dict[str, Any]:
    """Macro and corpus figures of a student's texts against its teacher's, as named above.

    Macro figures have ``score``, ``low``, ``high`` and ``n``.
    """
    counts = np.array([_counts(*pair) for pair in zip(said, taught, strict=True)], dtype=float)
    words, known, hits = counts.T
    each = [overlap(*row) for row in counts]
    f1 = np.array([one.f1 for one in each])
    ratio = np.divide(words, known, out=np.zeros_like(words), where=known > 0)
    dense = np.divide(f1, words, out=np.zeros_like(words), where=words > 0)
    own = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)

    def mean(values: Any) -> dict[str, Any]:
        return asdict(resampler.mean(np.asarray(values, dtype=float), list(scene_ids)))

    corpus = overlap(words.sum(), known.sum(), hits.sum())
    return {
        "macro": {
            "precision": mean([one.precision for one in each]),
            "recall": mean([one.recall for one in each]),
            "f1": mean(f1),
            "length_ratio": mean(ratio),
            "per_word": mean(dense),
            "teacher_per_word": mean(own),
            "bleu1": mean([sentence_bleu1(*pair) for pair in zip(said, taught, strict=True)]),
        },
        "corpus": {
            **asdict(corpus),
            "length_ratio": _over(words.sum(), known.sum()),
            "per_word": _over(f1.sum(), words.sum()),
            "teacher_per_word": _over(float(len(known)), known.sum()),
            "bleu1": bleu(list(said), [[text] for text in taught])["bleu1"],
        },
        "words": {"student": float(words.mean()), "teacher": float(known.mean())},
    }


def text_cases(
    said: Sequence[str],
    taught: Sequence[str],
    about: Sequence[dict[str, Any]],
    meteors: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """The best, the median and the worst text by ``RANKED_BY``, with its own figures.

    ``about`` says what each text answers and goes in as it is; of equals the first one is taken.
    """
    scores = np.array(
        [rouge(text, words)["rouge1"].f1 for text, words in zip(said, taught, strict=True)]
    )
    ranked = np.argsort(-scores, kind="stable").tolist()
    places = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    cases: list[dict[str, Any]] = []
    for name in CASES:
        place = places[name]
        if any(case["place"] == place for case in cases):
            continue  # fewer texts than cases
        one = rouge(said[place], taught[place])["rouge1"]
        words, known, _ = _counts(said[place], taught[place])
        cases.append(
            {
                "case": name,
                "place": place,
                **about[place],
                "student": said[place],
                "teacher": taught[place],
                "rouge1": one.f1,
                "precision": one.precision,
                "recall": one.recall,
                "bleu1": sentence_bleu1(said[place], taught[place]),
                **({} if meteors is None else {"meteor": meteors[place]}),
                "words": int(words),
                "teacher_words": int(known),
            }
        )
    return [{name: case[name] for name in case if name != "place"} for case in cases]


def sentence_bleu1(text: str, reference: str) -> float:
    """BLEU-1 of one text (0..1), its brevity penalty included."""
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(max_ngram_order=1, effective_order=True)
    return float(scorer.sentence_score(text, [reference]).score) / 100.0


def overlap(words: float, known: float, hits: float) -> Overlap:
    """Precision, recall and F1 of so many common words; nothing said has none."""
    precision, recall = _over(hits, words), _over(hits, known)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return Overlap(precision=precision, recall=recall, f1=f1)


def _counts(text: str, reference: str) -> tuple[int, int, int]:
    """Words of a text, of its reference, and how many they share, each as often as in both."""
    from rouge_score.tokenize import tokenize

    said, known = Counter(tokenize(text, None)), Counter(tokenize(reference, None))
    return said.total(), known.total(), (said & known).total()


def _over(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
