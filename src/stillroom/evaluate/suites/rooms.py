"""Questions and captions about ScanNet rooms: ScanQA, SQA3D and Scan2Cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stillroom.evaluate.captions import (
    BLEU_ID,
    CIDER_ID,
    ROUGE_L_ID,
    bleu_counts,
    bleu_of,
    coco_cider,
    coco_rouge_l,
)
from stillroom.evaluate.coco_java import METEOR_ID, meteor, missing
from stillroom.evaluate.exact_match import (
    EM_CORRECTED_EM_ID,
    EM_CORRECTED_ID,
    EM_ID,
    EM_REFINED_ID,
    SQA3D_TYPES,
    Matched,
    exact_match,
    says_something,
    sqa3d_type,
)
from stillroom.evaluate.ptb import PTB_ID, ptb_words
from stillroom.evaluate.scan2cap import SCAN2CAP_ID, Caption, Framed, compared
from stillroom.evaluate.suites.base import (
    Column,
    Item,
    RowData,
    Suite,
    find_files,
    made_question,
    read_rows,
    scenes_of,
    text_of,
)
from stillroom.evaluate.suites.figures import (
    Figure,
    Figures,
    corpus_figure,
    mean_figure,
    means_by,
)
from stillroom.records import BadInputError
from stillroom.text.scanqa import clean_answer

SCANQA_FILES = ("ScanQA*val*.json", "*scanqa*val*question*.json*", "ScanQA*.json")
SQA3D_FILES = ("*sqa*question*test*.json", "*balanced_questions_test*.json", "*questions*.json")
SCAN2CAP_FILES = ("ScanRefer*val*.json", "*scan2cap*val*.json", "ScanRefer*.json")


def read_scanqa(data: Path) -> list[Item]:
    """ScanQA v1.0 as its authors publish it, or LLaVA-3D's pair of question and answer files.

    Raises:
        BadInputError: a row has no answers (the hidden test splits), or lacks a field.
    """
    items = []
    for path in find_files(data, SCANQA_FILES)[:1]:
        answers = _llava3d_answers(path)
        for number, row in enumerate(read_rows(path)):
            where = f"{path.name}, row {number}"
            key = text_of(row, "question_id", where)
            if "video" in row:  # LLaVA-3D's form
                scene = text_of(row, "video", where).rsplit("/", 1)[-1]
                question, known = text_of(row, "text", where), answers.get(key)
            else:
                scene, question = (text_of(row, name, where) for name in ("scene_id", "question"))
                known = row.get("answers")
            kind = SQA3D_TYPES[sqa3d_type(question)]
            items.append(_room_item("scanqa", kind, key, scene, question, known, where))
    return items


def _llava3d_answers(path: Path) -> dict[str, list[str]]:
    beside = path.with_name(path.name.replace("question", "answer"))
    if beside == path or not beside.is_file():
        return {}
    found: dict[str, list[str]] = {}
    for number, row in enumerate(read_rows(beside)):
        texts = row.get("text")
        key = text_of(row, "question_id", f"{beside.name}, row {number}")
        found[key] = [str(text) for text in (texts if isinstance(texts, list) else [texts])]
    return found


def _room_item(
    suite: str, kind: str, key: str, scene: str, question: str, known: object, where: str
) -> Item:
    if not isinstance(known, list) or not known:
        raise BadInputError(f"{where} has no answers; only splits with published answers are read")
    references = [str(answer) for answer in known]
    return Item(
        question=made_question(
            # The kind of question is the family: guessers say each kind's own commonest answer.
            suite,
            key,
            scene,
            f"{suite}_{kind}",
            question,
            references[0],
            references=references[1:],
        ),
        details={"question_type": kind},
        media=f"scannet/{scene}",
    )


def read_sqa3d(data: Path) -> list[Item]:
    """SQA3D's question file joined with its annotation file, by question id; the first answer.

    The prompt is the situation, a space, the question (prompt id ``sqa3d/situation-question``).

    Raises:
        BadInputError: there is no annotation file beside the question file, or a question in none.
    """
    (path, *_) = find_files(data, SQA3D_FILES)
    beside = path.with_name(path.name.replace("questions", "sqa_annotations"))
    if beside == path or not beside.is_file():
        raise BadInputError(f"{path.name} needs its annotations beside it: {beside.name}")
    annotated = {str(row.get("question_id")): row for row in read_rows(beside)}
    items = []
    for number, row in enumerate(read_rows(path)):
        where = f"{path.name}, row {number}"
        key, question = text_of(row, "question_id", where), text_of(row, "question", where)
        answers = annotated.get(key, {}).get("answers")
        if not isinstance(answers, list) or not answers or not isinstance(answers[0], dict):
            raise BadInputError(f"{beside.name} has no answer to question {key}")
        item = _room_item(
            "sqa3d",
            SQA3D_TYPES[sqa3d_type(question)],
            key,
            text_of(row, "scene_id", where),
            f"{text_of(row, 'situation', where).strip()} {question}",
            [text_of(answers[0], "answer", f"{beside.name}, question {key}")],
            where,
        )
        items.append(item)
    return items


def read_scan2cap(data: Path) -> list[Item]:
    """Captions of ScanRefer's form, one question per described object with all its captions.

    A row's ``bbox`` (centre and full size in metres, in the scan's frame) is named where it is
    there, else the object's name. The box is given, so that no IoU is measured, and every figure
    says so: a run with box proposals scores its captions with ``scan2cap_scores`` and its own IoUs.
    """
    (path, *_) = find_files(data, SCAN2CAP_FILES)
    objects: dict[tuple[str, str], list[RowData]] = {}
    for number, row in enumerate(read_rows(path)):
        where = f"{path.name}, row {number}"
        key = (text_of(row, "scene_id", where), text_of(row, "object_id", where))
        text_of(row, "description", where)
        objects.setdefault(key, []).append(row)
    return [_caption_item(scene, thing, rows) for (scene, thing), rows in objects.items()]


def _caption_item(scene: str, thing: str, rows: Sequence[RowData]) -> Item:
    name = str(rows[0].get("object_name") or "object").replace("_", " ")
    box = rows[0].get("bbox")
    which = f"the {name}"
    if box is not None:
        numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
        if not numbers or len(box) < 6:
            raise BadInputError(
                f"the bbox of {scene}, object {thing}, must be centre and size as six numbers, "
                f"got {box!r}"
            )
        center, size = (", ".join(f"{v:.2f}" for v in part) for part in (box[:3], box[3:6]))
        which = f"the object in the box with centre ({center}) and size ({size}) in metres"
    captions = [str(row["description"]) for row in rows]
    return Item(
        question=made_question(
            "scan2cap",
            thing,
            scene,
            "scan2cap",
            f"Describe {which}: what it looks like and where it stands.",
            captions[0],
            references=captions[1:],
            object_ids=[int(thing)] if thing.isdigit() else [],
        ),
        media=f"scannet/{scene}",
    )


def references_of(item: Item) -> list[str]:
    """Every published answer of an item."""
    return [item.question.answer, *item.question.renderings]


def _matched(items: Sequence[Item], answers: Sequence[str]) -> list[Matched]:
    return [exact_match(t, references_of(i)) for i, t in zip(items, answers, strict=True)]


def _em(item: Item, text: str) -> float:
    return float(exact_match(text, references_of(item)).em)


def _em_corrected(item: Item, text: str) -> float:
    return _em(item, text) if says_something(clean_answer(text)) else 0.0


def _cleaned(item: Item, text: str) -> str | None:
    """The answer as it is compared; None where it holds no letter and no digit."""
    cleaned = clean_answer(text)
    return cleaned if says_something(cleaned) else None


def scanqa_figures(items: Sequence[Item], answers: Sequence[str]) -> Figures:
    """EM@1, refined EM, and the caption scores on the cleaned text; METEOR where java is there."""
    matched, scenes = _matched(items, answers), scenes_of(items)
    said, known = _words(matched)
    found = {
        "EM@1": mean_figure([float(one.em) for one in matched], scenes),
        "EM-R": mean_figure([float(one.em_refined) for one in matched], scenes),
        **_bleu_figures(bleu_counts(said, known), scenes),
        "ROUGE-L": mean_figure(coco_rouge_l(said, known), scenes),
        "CIDEr": mean_figure(coco_cider(said, known), scenes),
    }
    if not missing():
        texts = [[" ".join(words) for words in one] for one in known]
        score = meteor([" ".join(words) for words in said], texts)[0]
        found["METEOR"] = corpus_figure(score, scenes)
    return found


def scanqa_corrected(items: Sequence[Item], answers: Sequence[str]) -> Figures:
    """No answer without a word is right, and such an answer scores 0 in every mean over items.

    BLEU and METEOR of a corpus have no trap of this kind and stand in the first column alone.
    """
    matched, scenes = _matched(items, answers), scenes_of(items)
    said, known = _words(matched)
    speaks = np.array([says_something(one.cleaned) for one in matched], dtype=float)
    exact = np.array([float(one.em) for one in matched])
    return {
        "EM@1": mean_figure((speaks * exact).tolist(), scenes),
        "EM-R": mean_figure([float(one.em_refined_corrected) for one in matched], scenes),
        "ROUGE-L": mean_figure((speaks * coco_rouge_l(said, known)).tolist(), scenes),
        "CIDEr": mean_figure((speaks * coco_cider(said, known)).tolist(), scenes),
    }


def _words(matched: Sequence[Matched]) -> tuple[list[list[str]], list[list[list[str]]]]:
    said = [ptb_words(one.cleaned) for one in matched]
    return said, [[ptb_words(reference) for reference in one.references] for one in matched]


def _bleu_figures(counts: Float[np.ndarray, "n 10"], scenes: Sequence[str]) -> Figures:
    def of_order(order: int) -> Figure:
        return Figure(
            stats=counts, scenes=tuple(scenes), of=lambda sums: bleu_of(sums)[..., order - 1]
        )

    return {f"BLEU-{order}": of_order(order) for order in (1, 2, 3, 4)}


def _sqa3d_figures(
    exactly: Callable[[Matched], bool], refined: Callable[[Matched], bool]
) -> Callable[[Sequence[Item], Sequence[str]], Figures]:
    """EM@1 and refined EM, overall and for each of the six types that was asked."""

    def figures(items: Sequence[Item], answers: Sequence[str]) -> Figures:
        matched, scenes = _matched(items, answers), scenes_of(items)
        kinds = [item.details["question_type"] for item in items]
        exact = [float(exactly(one)) for one in matched]
        loose = [float(refined(one)) for one in matched]
        return {
            "EM@1": mean_figure(exact, scenes),
            "EM-R": mean_figure(loose, scenes),
            **means_by(kinds, exact, scenes, name="EM@1 {}"),
            **means_by(kinds, loose, scenes, name="EM-R {}"),
        }

    return figures


def _captioned(items: Sequence[Item], answers: Sequence[str]) -> Framed:
    return compared(
        [
            Caption(text=text, references=tuple(references_of(item)), iou=1.0)
            for item, text in zip(items, answers, strict=True)
        ]
    )


def scan2cap_figures(items: Sequence[Item], answers: Sequence[str]) -> Figures:
    """CIDEr, BLEU-4, ROUGE-L and METEOR of captions of given boxes: no IoU is measured."""
    found, scenes = _captioned(items, answers), scenes_of(items)
    figures = {
        "CIDEr (given boxes)": mean_figure(found.cider.tolist(), scenes),
        "BLEU-4 (given boxes)": _bleu_figures(found.bleu, scenes)["BLEU-4"],
        "ROUGE-L (given boxes)": mean_figure(found.rouge.tolist(), scenes),
    }
    if not missing():
        figures["METEOR (given boxes)"] = corpus_figure(meteor(found.said, found.known)[0], scenes)
    return figures


def scan2cap_corrected(items: Sequence[Item], answers: Sequence[str]) -> Figures:
    """An empty caption scores 0, and doubled spaces do not count."""
    found, scenes = _captioned(items, answers), scenes_of(items)
    return {
        "CIDEr (given boxes)": mean_figure(found.cider_corrected.tolist(), scenes),
        "ROUGE-L (given boxes)": mean_figure(found.rouge_corrected.tolist(), scenes),
    }


def _caption_score(item: Item, text: str) -> float:
    """ROUGE-L of one caption, 0 where it says nothing: what items are ordered by."""
    said = ptb_words(text)
    known = [ptb_words(reference) for reference in references_of(item)]
    return coco_rouge_l([said], [known])[0] if says_something(text) else 0.0


def _spoken(item: Item, text: str) -> str | None:
    return text if says_something(text) else None


_EM_SCORERS = {"": EM_ID, "EM-R": EM_REFINED_ID}
_EM_CORRECTED = {"": EM_CORRECTED_EM_ID, "EM-R": EM_CORRECTED_ID}
_ROUGE, _CIDER = f"{ROUGE_L_ID} on {PTB_ID}", f"{CIDER_ID} on {PTB_ID}"
_TEXT_SCORERS = {
    "BLEU": f"{BLEU_ID} on {PTB_ID}",
    "ROUGE-L": _ROUGE,
    "CIDEr": _CIDER,
    "METEOR": METEOR_ID,
}
_SPEAKS = ", empty answers 0"
_GIVEN = f"{SCAN2CAP_ID}, given boxes"

SCANQA = Suite(
    name="scanqa",
    files=SCANQA_FILES,
    read=read_scanqa,
    columns={
        "official": Column(
            scorers=_EM_SCORERS | _TEXT_SCORERS, parse=_cleaned, score=_em, figures=scanqa_figures
        ),
        "corrected": Column(
            scorers=_EM_CORRECTED | {"ROUGE-L": _ROUGE + _SPEAKS, "CIDEr": _CIDER + _SPEAKS},
            parse=_cleaned,
            score=_em_corrected,
            figures=scanqa_corrected,
        ),
    },
    prompt_id="scanqa/plain",
    beside=("question", "answer"),
)
SQA3D = Suite(
    name="sqa3d",
    files=SQA3D_FILES,
    read=read_sqa3d,
    columns={
        "official": Column(
            scorers=_EM_SCORERS,
            parse=_cleaned,
            score=_em,
            figures=_sqa3d_figures(lambda one: one.em, lambda one: one.em_refined),
        ),
        "corrected": Column(
            scorers=_EM_CORRECTED,
            parse=_cleaned,
            score=_em_corrected,
            figures=_sqa3d_figures(
                lambda one: one.em and says_something(one.cleaned),
                lambda one: one.em_refined_corrected,
            ),
        ),
    },
    prompt_id="sqa3d/situation-question",
    beside=("questions", "sqa_annotations"),
)
SCAN2CAP = Suite(
    name="scan2cap",
    files=SCAN2CAP_FILES,
    read=read_scan2cap,
    columns={
        "official": Column(
            scorers={"": _GIVEN, "METEOR": f"{METEOR_ID}, given boxes", "item": _ROUGE},
            parse=_spoken,
            score=_caption_score,
            figures=scan2cap_figures,
        ),
        "corrected": Column(
            scorers={"": _GIVEN + _SPEAKS},
            parse=_spoken,
            score=_caption_score,
            figures=scan2cap_corrected,
        ),
    },
    prompt_id="scan2cap/stillroom-1",
)
