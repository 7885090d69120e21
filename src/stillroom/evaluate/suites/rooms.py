"""Questions and captions about ScanNet rooms: ScanQA, SQA3D and Scan2Cap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stillroom.evaluate.captions import (
    BLEU_ID,
    CIDER_ID,
    ROUGE_L_ID,
    coco_bleu,
    coco_cider,
    coco_rouge_l,
)
from stillroom.evaluate.coco_java import METEOR_ID, meteor, missing
from stillroom.evaluate.exact_match import (
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
from stillroom.evaluate.scan2cap import SCAN2CAP_ID, Caption, scan2cap_scores
from stillroom.evaluate.suites.base import (
    Item,
    RowData,
    Suite,
    Table,
    find_files,
    made_question,
    mean,
    means_by,
    read_rows,
    text_of,
)
from stillroom.records import BadInputError

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
            items.append(_room_item("scanqa", key, scene, question, known, where))
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


def _room_item(suite: str, key: str, scene: str, question: str, known: object, where: str) -> Item:
    if not isinstance(known, list) or not known:
        raise BadInputError(f"{where} has no answers; only splits with published answers are read")
    references = [str(answer) for answer in known]
    return Item(
        question=made_question(
            suite, key, scene, suite, question, references[0], references=references[1:]
        ),
        details={"question_type": SQA3D_TYPES[sqa3d_type(question)]},
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
        answers = annotated.get(key, {}).get("answers") or []
        if not answers:
            raise BadInputError(f"{beside.name} has no answer to question {key}")
        item = _room_item(
            "sqa3d",
            key,
            text_of(row, "scene_id", where),
            f"{text_of(row, 'situation', where).strip()} {question}",
            [text_of(answers[0], "answer", f"{beside.name}, question {key}")],
            where,
        )
        kind = SQA3D_TYPES[sqa3d_type(question)]
        items.append(
            Item(question=item.question, details={"question_type": kind}, media=item.media)
        )
    return items


def read_scan2cap(data: Path) -> list[Item]:
    """Captions of ScanRefer's form, one question per described object with all its captions.

    A row's ``bbox`` (centre and full size in metres, in the scan's frame) is named where it is
    there, else the object's name. The box is taken as met: a run with box proposals scores its
    captions with ``scan2cap_scores`` and its own IoUs.
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
    if isinstance(box, list) and len(box) >= 6:
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
    if not items:
        raise ValueError("no answer was scored: a mean over nothing has no value")
    return [exact_match(t, references_of(i)) for i, t in zip(items, answers, strict=True)]


def _em(item: Item, text: str) -> float:
    return float(exact_match(text, references_of(item)).em)


def scanqa_table(items: Sequence[Item], answers: Sequence[str]) -> Table:
    """EM@1, refined EM, and the caption scores on the cleaned text; METEOR where java is there.

    Corrected: no answer without a word is right, and such an answer scores 0 in every mean over
    items. BLEU and METEOR of a corpus have no trap of this kind and stand in the first column.
    """
    matched = _matched(items, answers)
    said = [ptb_words(one.cleaned) for one in matched]
    known = [[ptb_words(reference) for reference in one.references] for one in matched]
    rouge, cider = coco_rouge_l(said, known), coco_cider(said, known)
    exact = {"EM@1": mean([float(one.em) for one in matched])}
    official = exact | {"EM-R": mean([float(one.em_refined) for one in matched])}
    official |= {f"BLEU-{n}": value for n, value in enumerate(coco_bleu(said, known), start=1)}
    official |= {"ROUGE-L": mean(rouge), "CIDEr": mean(cider)}
    if not missing():
        texts = [[" ".join(words) for words in one] for one in known]
        official["METEOR"] = meteor([" ".join(words) for words in said], texts)[0]
    speaks = np.array([says_something(one.cleaned) for one in matched], dtype=float)
    corrected = exact | {
        "EM-R": mean([float(one.em_refined_corrected) for one in matched]),
        "ROUGE-L": float(np.mean(speaks * rouge)),
        "CIDEr": float(np.mean(speaks * cider)),
    }
    return {"official": official, "corrected": corrected}


def sqa3d_table(items: Sequence[Item], answers: Sequence[str]) -> Table:
    """EM@1 and refined EM, overall and for the six types that were asked."""
    matched = _matched(items, answers)
    kinds = [item.details["question_type"] for item in items]

    def figures(refined: Sequence[bool]) -> dict[str, float]:
        exact, loose = [float(one.em) for one in matched], [float(hit) for hit in refined]
        return {
            "EM@1": mean(exact),
            "EM-R": mean(loose),
            **{f"EM@1 {kind}": value for kind, value in means_by(kinds, exact).items()},
            **{f"EM-R {kind}": value for kind, value in means_by(kinds, loose).items()},
        }

    return {
        "official": figures([one.em_refined for one in matched]),
        "corrected": figures([one.em_refined_corrected for one in matched]),
    }


def scan2cap_table(items: Sequence[Item], answers: Sequence[str]) -> Table:
    """CIDEr, BLEU-4, ROUGE-L and METEOR at IoU 0.5, every box taken as met."""
    scores = scan2cap_scores(
        [
            Caption(text=text, references=tuple(references_of(item)), iou=1.0)
            for item, text in zip(items, answers, strict=True)
        ]
    )
    mended = {name: value for name, value in scores.items() if name.endswith(" corrected")}
    return {
        "official": {f"{n}@0.5": value for n, value in scores.items() if n not in mended},
        "corrected": {f"{n.removesuffix(' corrected')}@0.5": v for n, v in mended.items()},
    }


def _caption_score(item: Item, text: str) -> float:
    """ROUGE-L of one caption, 0 where it says nothing: what items are ordered by."""
    said = ptb_words(text)
    known = [ptb_words(reference) for reference in references_of(item)]
    return coco_rouge_l([said], [known])[0] if says_something(text) else 0.0


_TEXT_SCORERS = {
    "BLEU": f"{BLEU_ID} on {PTB_ID}",
    "ROUGE-L": f"{ROUGE_L_ID} on {PTB_ID}",
    "CIDEr": f"{CIDER_ID} on {PTB_ID}",
    "METEOR": METEOR_ID,
}
_EM_SCORERS = {"EM@1": EM_ID, "EM-R": EM_REFINED_ID, "EM-R corrected": EM_CORRECTED_ID}

SCANQA = Suite(
    name="scanqa",
    files=SCANQA_FILES,
    read=read_scanqa,
    score=_em,
    table=scanqa_table,
    scorers=_EM_SCORERS | _TEXT_SCORERS,
    prompt_id="scanqa/plain",
)
SQA3D = Suite(
    name="sqa3d",
    files=SQA3D_FILES,
    read=read_sqa3d,
    score=_em,
    table=sqa3d_table,
    scorers=_EM_SCORERS,
    prompt_id="sqa3d/situation-question",
)
SCAN2CAP = Suite(
    name="scan2cap",
    files=SCAN2CAP_FILES,
    read=read_scan2cap,
    score=_caption_score,
    table=scan2cap_table,
    scorers={"all": SCAN2CAP_ID, "METEOR": METEOR_ID, "item": f"{ROUGE_L_ID} on {PTB_ID}"},
    prompt_id="scan2cap/stillroom-1",
)
