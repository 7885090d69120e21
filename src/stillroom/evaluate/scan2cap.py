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
from jaxtyping import Float

from stillroom.evaluate.captions import bleu_counts, bleu_of, coco_cider, coco_rouge_l
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


@dataclass(frozen=True, kw_only=True)
class Framed:
    """Captions as they are compared: one entry an item, 0 to 1 (CIDEr 0 to 10)."""

    cider: Float[np.ndarray, "n"]
    rouge: Float[np.ndarray, "n"]
    # What an only "sos" and "eos" cannot earn, and doubled spaces do not count in.
    cider_corrected: Float[np.ndarray, "n"]
    rouge_corrected: Float[np.ndarray, "n"]
    bleu: Float[np.ndarray, "n 10"]
    said: list[str]
    known: list[list[str]]


def compared(captions: Sequence[Caption], *, threshold: float = 0.5) -> Framed:
    """Every caption against the published ones of its object, at the threshold."""
    if not captions:
        raise ValueError("no caption was scored: a mean over nothing has no value")
    kept = [one.text if one.iou >= threshold else "" for one in captions]
    said = [framed(text) for text in kept]
    known = [[framed(reference) for reference in one.references] for one in captions]
    words = [text.split() for text in said]
    references = [[text.split() for text in texts] for texts in known]
    spaced = [text.split(" ") for text in said]
    spaced_references = [[text.split(" ") for text in texts] for texts in known]
    cider = np.array(coco_cider(words, references), dtype=np.float64)
    speaks = np.array([says_something(text) for text in kept], dtype=np.float64)
    return Framed(
        cider=cider,
        rouge=np.array(coco_rouge_l(spaced, spaced_references), dtype=np.float64),
        cider_corrected=speaks * cider,
        rouge_corrected=speaks * np.array(coco_rouge_l(words, references), dtype=np.float64),
        bleu=bleu_counts(words, references),
        said=said,
        known=known,
    )


def scan2cap_scores(captions: Sequence[Caption], *, threshold: float = 0.5) -> dict[str, float]:
    """CIDEr (0..10), BLEU-4, ROUGE-L and, where java is there, METEOR 1.5, at the threshold.

    "ROUGE-L corrected" and "CIDEr corrected" count a missed or empty caption as 0.
    """
    found = compared(captions, threshold=threshold)
    scores = {
        "CIDEr": float(np.mean(found.cider)),
        "BLEU-4": float(bleu_of(found.bleu.sum(axis=0))[3]),
        "ROUGE-L": float(np.mean(found.rouge)),
        "CIDEr corrected": float(np.mean(found.cider_corrected)),
        "ROUGE-L corrected": float(np.mean(found.rouge_corrected)),
    }
    if not missing():
        scores["METEOR"] = meteor(found.said, found.known)[0]
    return scores
