"""What a world gives away to those who do not look: guessers of words, kinds and frequencies.

Every fifth of the scenes is answered by guessers fitted on the other four, so that all questions
of a store count and none is answered by who has learnt from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.evaluate.baselines import (
    CrossFitted,
    Fit,
    fit_blind,
    fit_kind_prior,
    fit_majority,
    kinds_named,
    right_option,
)
from stillroom.evaluate.intervals import Estimate, Resampler
from stillroom.evaluate.margins import margin_thirds
from stillroom.evaluate.tasks import kind_of, score
from stillroom.records import BadInputError, Question
from stillroom.scenes.facts import MIN_SHARE, MIN_VIEWS, pixel_shares
from stillroom.scenes.store import SceneStore, open_store

#: By what they know: how often an answer is right, the kinds of things named, all words.
GUESSERS = ("frequency", "kinds", "words")
#: A guesser may be so far above chance.
TOLERANCE = 0.03
#: With fewer questions of a family only a whole interval above the tolerance is a fault, and
#: nothing speaks for the family.
ENOUGH = 2_000
TOO_FEW = "too few to say"
#: Pairs of kinds asked at least so often are looked at for the balance of their answers.
OFTEN = 50

Progress = Callable[[int, int], None]


def audit(path: Path, *, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Accuracy of every guesser by family beside chance, and how fairly questions are asked.

    A family's ``verdict`` is "fair", "fault" or "too few to say"; ``undecided`` names the last.
    Number tasks have no chance of their own: there it is the score of always saying the commonest
    answer, and a guesser above it is no fault.

    Raises:
        BadInputError: the store has too few scenes or no questions.
    """
    if seed < 0:
        raise BadInputError(f"--seed must be 0 or more, got {seed}")
    store = open_store(path)
    ids = store.scene_ids()
    asked = [q for q in store.questions() if kind_of(q) in ("option", "letter", "number")]
    if not asked:
        raise BadInputError(f"{path} holds no questions with options or numbers to audit")
    fits: tuple[Fit, ...] = (
        fit_majority,
        fit_kind_prior,
        partial(fit_blind, rng=np.random.default_rng(seed)),
    )
    resampler = Resampler(ids, rng=np.random.default_rng(seed))
    scores: dict[str, np.ndarray] = {}
    for done, (name, fit) in enumerate(zip(GUESSERS, fits, strict=True)):
        guesser = CrossFitted(fit, store, ids, rng=np.random.default_rng(seed))
        answers = [guesser.answer(q) for q in asked]
        scores[name] = np.array([score(q, a).score for q, a in zip(asked, answers, strict=True)])
        if progress is not None:
            progress(done + 1, len(fits) + 1)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(asked):
        groups[question.family].append(i)
    families = [
        _family(name, [asked[i] for i in where], scores, np.array(where), resampler)
        for name, where in sorted(groups.items())
    ]
    shown = _shown(store)
    if progress is not None:
        progress(len(fits) + 1, len(fits) + 1)
    faults = [f"{row['family']}: {row['fault']}" for row in families if row["fault"]]
    if shown["hidden"]:
        faults.append(
            f"{shown['hidden']} questions name a thing that fewer than {MIN_VIEWS} views show well"
        )
    return {
        "scenes": len(ids),
        "questions": len(asked),
        "families": families,
        "shown": shown,
        "undecided": [row["family"] for row in families if row["verdict"] == TOO_FEW],
        "faults": faults,
        "ok": not faults,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report as a table for people."""
    rows = [f"{report['scenes']} scenes, {report['questions']} questions with options or numbers"]
    rows.append(
        f"{'family':30}{'n':>7}{'chance':>8}  {'frequency':20}{'kinds':20}{'words':20}"
        "words by margin   verdict         lopsided"
    )
    for row in report["families"]:
        said = "".join(f"{_shown_estimate(row[name]):20}" for name in GUESSERS)
        terciles = " ".join(f"{100 * value:4.1f}" for value in row["words_by_margin"])
        rows.append(
            f"{row['family']:30}{row['n']:>7}{100 * row['chance']:>8.1f}  {said}"
            f"{terciles or '-':18}{row['verdict'] or '-':16}{row['lopsided'] or '-'}"
        )
    shown = report["shown"]
    rows.append(
        f"things named: shown well by {shown['mean_views']:.1f} views on average; "
        f"{shown['hidden']} questions name one that fewer than {MIN_VIEWS} show"
    )
    if report["undecided"]:
        rows.append(
            f"{TOO_FEW} whether these are fair: {', '.join(report['undecided'])}; it takes "
            f"{ENOUGH:,} questions of a family: audit more rooms"
        )
    rows += [f"FAULT {fault}" for fault in report["faults"]]
    return rows


def _shown_estimate(value: dict[str, float]) -> str:
    return f"{100 * value['score']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def _family(
    name: str,
    asked: Sequence[Question],
    scores: Mapping[str, np.ndarray],
    where: np.ndarray,
    resampler: Resampler,
) -> dict[str, Any]:
    scenes = [q.scene_id for q in asked]
    found = {guesser: resampler.mean(values[where], scenes) for guesser, values in scores.items()}
    if asked[0].options:
        chance = float(np.mean([1 / len(q.options) for q in asked]))
    else:
        chance = found["frequency"].score
    # A bed is longer than a ball, whoever looks: numbers are shown, choices must be fair.
    verdict, fault = verdict_on(found, chance=chance) if asked[0].options else ("", "")
    by_margin = [float(scores["words"][where[third]].mean()) for third in margin_thirds(asked)]
    return {
        "family": name,
        "n": len(asked),
        "chance": chance,
        **{guesser: _plain(value) for guesser, value in found.items()},
        "words_by_margin": by_margin,
        "lopsided": _lopsided(asked),
        "verdict": verdict,
        "fault": fault,
    }


def verdict_on(found: Mapping[str, Estimate], *, chance: float) -> tuple[str, str]:
    """("fair" | "fault" | "too few to say", what the fault is) of one family's guessers."""
    enough = all(estimate.n >= ENOUGH for estimate in found.values())
    known = {name: e.score if enough else e.low for name, e in found.items()}
    best = max(known, key=lambda name: known[name])
    if known[best] > chance + TOLERANCE:
        return "fault", (
            f"the guesser of {best} has {100 * found[best].score:.1f} %, chance is "
            f"{100 * chance:.1f} %"
        )
    return ("fair" if enough else TOO_FEW), ""


def _plain(value: Estimate) -> dict[str, float]:
    return {"score": value.score, "low": value.low, "high": value.high}


def _lopsided(asked: Sequence[Question]) -> str:
    """The kinds whose commonest answer is commonest by most, of those that are asked often."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in asked:
        right = right_option(question)
        if right is None:
            return ""
        said = [_kind_said(option) for option in question.options]
        if len(set(said)) < len(said):
            continue  # two bins: their kinds cannot tell them apart
        counts[tuple(sorted(kinds_named(question.question)))][said[right]] += 1
    often = {kinds: count for kinds, count in counts.items() if count.total() >= OFTEN}
    if not often:
        return ""
    share = {k: count.most_common(1)[0][1] / count.total() for k, count in often.items()}
    worst = max(share, key=lambda kinds: share[kinds])
    answer = often[worst].most_common(1)[0][0]
    return f"{'/'.join(worst)}: {answer} {100 * share[worst]:.0f} % of {often[worst].total()}"


def _kind_said(option: str) -> str:
    """The kind an option names; of an option that names none, its words without the letter."""
    named = kinds_named(option)
    return named[-1] if named else option.partition(". ")[2] or option


def _shown(store: SceneStore) -> dict[str, Any]:
    """How many views show the things that questions name."""
    views: list[int] = []
    hidden = 0
    for scene in store.iter_scenes():
        well = (pixel_shares(scene.views, scene.objects) >= MIN_SHARE).sum(axis=0)
        by_id = {thing.object_id: int(n) for thing, n in zip(scene.objects, well, strict=True)}
        for question in store.questions(scene.scene_id):
            if question.family == "description":
                continue
            seen = [by_id[i] for i in question.object_ids if i in by_id]
            views += seen
            hidden += any(n < MIN_VIEWS for n in seen)
    return {"mean_views": float(np.mean(views)) if views else 0.0, "hidden": hidden}
