"""From items to the rows of ``results.json``: scores with intervals, metrics, retention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from stillroom.evaluate.box_precision import box_table
from stillroom.evaluate.coco_java import METEOR_ID, meteor
from stillroom.evaluate.coco_java import missing as meteor_missing
from stillroom.evaluate.depth_metrics import mean_errors
from stillroom.evaluate.intervals import Resampler, above_blind, interval_of
from stillroom.evaluate.margins import margin_thirds
from stillroom.evaluate.metrics import Overlap, fact_overlap, is_vsi, vsi_overall, vsi_task_scores
from stillroom.evaluate.qualitative import text_agreement, text_cases
from stillroom.evaluate.tasks import kind_of, renderings_of, score
from stillroom.evaluate.text_overlap import (
    BLEU_ID,
    ROUGE_ID,
    ROUGE_KINDS,
    best_rouge,
    bleu,
    mean_overlap,
)
from stillroom.records import FAMILIES, Question

#: Share of the draws in which a teacher may fall to blind; with more, what it keeps is unbounded.
LEAST_UNBOUND = 0.025
FactsOf = Callable[[str], Iterable[tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class RowItems:
    """One row's scored items, in the order of the questions."""

    question_ids: list[str]
    scene_ids: list[str]
    families: list[str]
    answers: list[str]
    scores: Float[np.ndarray, "n"]
    parsed: list[str | None]
    # By the stricter rule; None where the scorer has none beside it.
    corrected: list[float | None]

    @classmethod
    def of(cls, table: pa.Table) -> RowItems:
        """The items with a known truth."""
        known = table.filter(table["score"].is_valid())
        return cls(
            question_ids=known["question_id"].to_pylist(),
            scene_ids=known["scene_id"].to_pylist(),
            families=known["family"].to_pylist(),
            answers=known["answer"].to_pylist(),
            scores=np.array(known["score"].to_pylist(), dtype=np.float64),
            parsed=known["parsed"].to_pylist(),
            corrected=known["corrected_score"].to_pylist(),
        )

    def groups(self) -> dict[str, list[int]]:
        """Positions by what a table names: "overall" (the four families), then each family."""
        groups: dict[str, list[int]] = {}
        for i, family in enumerate(self.families):
            groups.setdefault(family, []).append(i)
        four = [i for i, family in enumerate(self.families) if family in FAMILIES]
        ordered = {name: groups[name] for name in FAMILIES if name in groups}
        ordered |= {name: groups[name] for name in sorted(groups) if name not in FAMILIES}
        return {"overall": four, **ordered} if four else ordered

    def at(self, where: Sequence[int]) -> tuple[Float[np.ndarray, "k"], list[str]]:
        """Scores and scene ids at those positions."""
        return self.scores[list(where)], [self.scene_ids[i] for i in where]


def score_table(items: RowItems, resampler: Resampler) -> dict[str, Any]:
    """{"overall" | FAMILY: {"score", "low", "high", "n"}}."""
    return {
        name: asdict(resampler.mean(*items.at(where))) for name, where in items.groups().items()
    }


def retention_table(
    student: RowItems, teacher: RowItems, blind: Mapping[str, RowItems], resampler: Resampler
) -> dict[str, Any]:
    """{"overall" | FAMILY: {"score", "low", "high", "above_blind", ...}} on the same items.

    ``above_blind`` is set against the strongest of the ``blind`` rows, named ``blind``, and has
    its interval from the same draws.
    """
    if student.question_ids != teacher.question_ids:
        raise ValueError("student and teacher were not asked the same questions")
    table: dict[str, Any] = {}
    for name, where in student.groups().items():
        scores, scenes = student.at(where)
        taught, _ = teacher.at(where)
        guessed = {row: items.at(where)[0] for row, items in blind.items()}
        table[name] = {
            **asdict(resampler.ratio(scores, taught, scenes)),
            **_above_blind(scores, taught, guessed, scenes, resampler),
        }
    return table


def _above_blind(
    student: Float[np.ndarray, "n"],
    teacher: Float[np.ndarray, "n"],
    blind: Mapping[str, Float[np.ndarray, "n"]],
    scenes: Sequence[str],
    resampler: Resampler,
) -> dict[str, Any]:
    found: dict[str, Any] = {"above_blind": None, "above_blind_low": None}
    found |= {"above_blind_high": None, "blind": None}
    if not blind:
        return found
    row = max(blind, key=lambda name: float(np.mean(blind[name])))
    means = [float(np.mean(scores)) for scores in (student, teacher, blind[row])]
    found |= {"above_blind": above_blind(*means), "blind": row}
    if found["above_blind"] is None or len(set(scenes)) < 2:
        return found
    mine, theirs, none = (resampler.draws(x, scenes) for x in (student, teacher, blind[row]))
    # Where the teacher is not above blind there is nothing to keep a share of; where that may well
    # be so, the share has no bounds.
    kept = theirs > none
    if np.mean(~kept[np.isfinite(theirs)]) <= LEAST_UNBOUND:
        shares = (mine[kept] - none[kept]) / (theirs[kept] - none[kept])
        found["above_blind_low"], found["above_blind_high"] = interval_of(shares)
    return found


def metric_table(
    items: RowItems,
    questions: Mapping[str, Question],
    depth: pa.Table,
    boxes: pa.Table,
    resampler: Resampler,
    *,
    facts_of: FactsOf,
    teacher: RowItems | None,
    relative: bool = True,
    with_meteor: bool = False,
) -> dict[str, Any]:
    """Whatever else a row has: text overlap, fact F1, depth errors, boxes, VSI, margins,
    unparsed.

    METEOR starts a java program for some seconds, so it is asked for by name.
    """
    groups = items.groups()
    table: dict[str, Any] = {}
    described = [
        i for i, key in enumerate(items.question_ids) if kind_of(questions[key]) == "description"
    ]
    if described:
        table |= _text_metrics(
            items, described, questions, resampler, facts_of, with_meteor=with_meteor
        )
        if teacher is not None:
            table["against_teacher"] = _against(
                items, teacher, described, questions, resampler, with_meteor=with_meteor
            )
    if depth.num_rows:
        table["depth"] = _depth_metrics(depth)
    if boxes.num_rows and (found := box_table(boxes, resampler)):
        table["boxes"] = found
    means = {
        name: float(np.mean(items.at(where)[0])) for name, where in groups.items() if is_vsi(name)
    }
    if means:
        table["vsi"] = {"tasks": vsi_task_scores(means), "overall": vsi_overall(means)}
        table["vsi"]["corrected"] = _vsi_corrected(items, {name: groups[name] for name in means})
    if teacher is not None and relative:
        table["teacher_relative"] = _teacher_relative(items, teacher, questions, resampler)
    table["by_margin"] = _by_margin(items, groups, questions)
    table["unparsed"] = {
        name: sum(items.parsed[i] is None for i in where) for name, where in groups.items()
    }
    return table


def _text_metrics(
    items: RowItems,
    where: Sequence[int],
    questions: Mapping[str, Question],
    resampler: Resampler,
    facts_of: FactsOf,
    *,
    with_meteor: bool,
) -> dict[str, Any]:
    asked = [questions[items.question_ids[i]] for i in where]
    said = [items.answers[i] for i in where]
    scenes = [items.scene_ids[i] for i in where]
    truths = [renderings_of(question) for question in asked]
    rouges = [best_rouge(text, truth) for text, truth in zip(said, truths, strict=True)]
    table: dict[str, Any] = {
        "rouge": _rouge_table(rouges, scenes, resampler),
        "bleu": bleu(said, truths),
        "text_scorers": {"rouge": ROUGE_ID, "bleu": BLEU_ID},
        "length": {
            "words": float(np.mean([len(text.split()) for text in said])),
            "truth_words": float(np.mean([len(question.answer.split()) for question in asked])),
        },
    }
    if with_meteor and not meteor_missing():
        table["meteor"] = meteor(said, truths)[0]
        table["text_scorers"]["meteor"] = METEOR_ID
    known = [i for i, question in enumerate(asked) if question.facts]
    if known:
        facts = [fact_overlap(set(facts_of(said[i])), asked[i].facts) for i in known]
        table["fact_f1"] = _with_interval(facts, [scenes[i] for i in known], resampler)
    return table


def _with_interval(
    overlaps: Sequence[Overlap], scenes: Sequence[str], resampler: Resampler
) -> dict[str, float]:
    """Mean F1 with its interval, and mean precision and recall beside it."""
    mean = mean_overlap(overlaps)
    f1 = resampler.mean(np.array([one.f1 for one in overlaps]), scenes)
    return {**asdict(f1), "precision": mean.precision, "recall": mean.recall}


def _against(
    items: RowItems,
    teacher: RowItems,
    where: Sequence[int],
    questions: Mapping[str, Question],
    resampler: Resampler,
    *,
    with_meteor: bool,
) -> dict[str, Any]:
    """Overlap with the teacher's own words, as distillation papers print it, and cases of it."""
    said = [items.answers[i] for i in where]
    taught = [teacher.answers[i] for i in where]
    scenes = [items.scene_ids[i] for i in where]
    rouges = [best_rouge(text, [words]) for text, words in zip(said, taught, strict=True)]
    keys = [items.question_ids[i] for i in where]
    about = [
        {"scene_id": scene, "question_id": key, "question": questions[key].question}
        for scene, key in zip(scenes, keys, strict=True)
    ]
    corpus, each = None, None
    if with_meteor and not meteor_missing():
        corpus, each = meteor(said, [[words] for words in taught])
    return {
        "rouge": _rouge_table(rouges, scenes, resampler),
        "bleu": bleu(said, [[w] for w in taught]),
        **({} if corpus is None else {"meteor": corpus}),
        "agreement": text_agreement(said, taught, scenes, resampler),
        "cases": text_cases(said, taught, about, each),
    }


def _vsi_corrected(items: RowItems, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """VSI-Bench's figures by the stricter reading of the answers."""
    means = {}
    for name, where in groups.items():
        known = [score for i in where if (score := items.corrected[i]) is not None]
        if known:
            means[name] = float(np.mean(known))
    return {"tasks": vsi_task_scores(means), "overall": vsi_overall(means)}


def _teacher_relative(
    items: RowItems, teacher: RowItems, questions: Mapping[str, Question], resampler: Resampler
) -> dict[str, Any]:
    """{"overall" | FAMILY: score} of the answers with the teacher's taken for the truth.

    Questions to which the teacher gave no answer that can be understood are left out; ``n`` says
    how many were counted.
    """
    if items.question_ids != teacher.question_ids:
        raise ValueError("student and teacher were not asked the same questions")
    scores: dict[int, float] = {}
    for i, (key, taught) in enumerate(zip(items.question_ids, teacher.parsed, strict=True)):
        if taught is not None:
            told = replace(questions[key], answer=taught, renderings=(), facts=())
            scored = score(told, items.answers[i]).score
            if scored is not None:
                scores[i] = scored
    table = {}
    for name, where in items.groups().items():
        known = [i for i in where if i in scores]
        if known:
            scenes = [items.scene_ids[i] for i in known]
            table[name] = asdict(resampler.mean(np.array([scores[i] for i in known]), scenes))
    return table


def _rouge_table(
    rouges: Sequence[Mapping[str, Overlap]], scenes: Sequence[str], resampler: Resampler
) -> dict[str, Any]:
    return {
        kind: _with_interval([one[kind] for one in rouges], scenes, resampler)
        for kind in ROUGE_KINDS
    }


def _depth_metrics(depth: pa.Table) -> dict[str, Any]:
    """{alignment: mean over pictures of each error [m where it has a unit], and their count}."""
    names = [name for name in depth.column_names if depth.schema.field(name).type == pa.float64()]
    pictures: dict[str, list[dict[str, float]]] = {}
    for line in depth.to_pylist():
        pictures.setdefault(line["alignment"], []).append({name: line[name] for name in names})
    return {
        alignment: {**mean_errors(lines), "n": len(lines)} for alignment, lines in pictures.items()
    }


def _by_margin(
    items: RowItems, groups: Mapping[str, Sequence[int]], questions: Mapping[str, Question]
) -> dict[str, Any]:
    """Accuracy in the thirds of each family's margins: hardest, middle, clearest."""
    table: dict[str, Any] = {}
    for family in FAMILIES:
        where = groups.get(family, ())
        thirds = margin_thirds([questions[items.question_ids[i]] for i in where])
        if thirds:
            parts = [items.scores[[where[i] for i in third]] for third in thirds]
            table[family] = [{"score": float(np.mean(part)), "n": len(part)} for part in parts]
    return table
