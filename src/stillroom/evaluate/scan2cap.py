"""Scan2Cap (Chen et al. 2021): dense captions of boxes, scored at an IoU as the LEO line does it.

A caption whose box overlaps the described one by less than the threshold counts as empty. Texts
become "sos <lower case, full stops and commas spaced> eos" and are split at spaces: no PTB
tokenizer. Two traps, kept: an empty caption still has "sos" and "eos", for which ROUGE-L gives a
little, and a doubled space is a word to ROUGE-L. In the corrected column neither is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.evaluate.captions import coco_bleu, coco_cider, coco_rouge_l
from stillroom.evaluate.coco_java import meteor, missing
from stillroom.evaluate.exact_match import says_something

SCAN2CAP_ID = "scan2cap/leo-vgllm"


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption, the published ones of its object, and how well its box was met (0..1)."""

    text: str
    references: tuple[str, ...]
    iou: float | int


def framed(text: str) -> str:
    """The text between "sos" and "eos", as the original scorer has it, doubled spaces and all."""
    return f"sos {text.lower().replace('.', ' . ').replace(',', ' , ')} eos"


def scan2cap_scores(captions: Sequence[Caption], *, threshold: float = 0.5) -> dict[str, float]:
    """CIDEr (0..10), BLEU-4, ROUGE-L and, where java is there, METEOR 1.5, at the threshold.

    "ROUGE-L corrected" and "CIDEr corrected" count a missed or empty caption as 0.
    """
    if not captions:
        raise ValueError("no caption was scored: a mean over nothing has no value")
    kept = [one.text if one.iou >= threshold else "" for one in captions]
    said = [framed(text) for text in kept]
    known = [[framed(reference) for reference in one.references] for one in captions]
    words = [text.split() for text in said]
    references = [[text.split() for text in texts] for texts in known]
    spaced = [text.split(" ") for text in said]
    spaced_references = [[text.split(" ") for text in texts] for texts in known]
    cider = coco_cider(words, references)
    silent = np.array([not says_something(text) for text in kept])
    scores = {
        "CIDEr": float(np.mean(cider)),
        "BLEU-4": coco_bleu(words, references)[3],
        "ROUGE-L": float(np.mean(coco_rouge_l(spaced, spaced_references))),
        "CIDEr corrected": float(np.mean(np.where(silent, 0.0, cider))),
        "ROUGE-L corrected": float(np.mean(np.where(silent, 0.0, coco_rouge_l(words, references)))),
    }
    if not missing():
        scores["METEOR"] = meteor(said, known)[0]
    return scores
