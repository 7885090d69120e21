"""From the items of all arms and seeds to ``ABLATION.json``: figures, differences, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from stillroom.bench.arm import STUDENT, read_arm, read_depth, read_items, teacher_scores
from stillroom.evaluate.intervals import Resampler
from stillroom.evaluate.paired import (
    DETECTABLE,
    INTERVAL,
    P_VALUE,
    Difference,
    SeedFigure,
    SeedNoise,
    difference,
    holm,
    over_seeds,
    seed_noise,
)
from stillroom.recipes.ablations import SUITES, Suite, SuiteName
from stillroom.records import FAMILIES, BadInputError

#: Fewer seeds than this claim nothing about an arm.
LEAST_SEEDS = 3
#: Where the base arm must stand for "no difference" to count, as shares of its plateau: below,
#: nothing is learnt yet; above, every arm ties.
PLATEAU_WINDOW = (0.85, 0.95)
#: p-values below this tell arms apart.
LEVEL = 0.05
#: "No difference seen" is said of scores only where at most such a difference (a share of the
#: answers) could have been overlooked.
NULL_SIZE = 0.03

#: Measures of a row and their unit; smaller is better for the last two and for ``answer_ce``.
MEASURES: Mapping[str, str] = {
    "score": "share of right answers (of numbers MRA, of descriptions ROUGE-1 to the truth)",
    "answer_ce": "nats a token of the teacher's answers",
    "rouge1_to_teacher": "ROUGE-1 (F1) of descriptions against the teacher's",
    "depth_rmse": "m, of the student's own depth head over all measured cells",
}
#: Where a measure has one figure and no families.
WHOLE = "all"

Figures = dict[str, dict[str, SeedFigure]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: an arm, or a trained arm under an intervention, by seed."""

    title: str
    # The arm whose weights it has, of an intervention.
    of: str = ""
    figures: Mapping[int, Figures]
    counts: Mapping[str, Mapping[str, int]]
    facts: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """The overall score of the base arm when it gains no more, and who says so."""

    score: float
    source: str


def ablation_record(
    name: SuiteName,
    homes: Mapping[tuple[str, int], Path],
    *,
    meta: Mapping[str, Any],
    skipped: Mapping[str, str],
    failed: Mapping[str, str],
    plateau: Plateau | None,
    null_size: float = NULL_SIZE,
) -> dict[str, Any]:
    """What ``ABLATION.json`` holds. ``homes`` are the folders of finished arms by arm and seed."""
    suite = SUITES[name]
    rows, scenes = _rows(suite, homes)
    base = rows.get(suite.base)
    share = None
    if base is not None and plateau is not None and "overall" in _groups(base, "score"):
        share = _over(base, "score", "overall").value / plateau.score
    arms = {arm: _row_record(row) for arm, row in rows.items()}
    differ = _Differences(rows=rows, suite=suite, scenes=scenes)
    compared = {
        arm: differ.between(arm, suite.base)
        for arm, row in rows.items()
        # Interventions on another arm are set against that one (``pairs``).
        if suite.base in rows and arm != suite.base and row.of in ("", suite.base)
    }
    judge = _Judge(suite=suite, share=share, null_size=null_size)
    for arm, found in judge.judged(compared).items():
        arms[arm]["difference"] = found
    pairs = {
        (one, other): differ.between(one, other)
        for one, other in suite.pairs
        if one in rows and other in rows
    }
    record: dict[str, Any] = {
        "kind": "ablation",
        "version": 1,
        "suite": name,
        "title": suite.title,
        "base": suite.base,
        "plateau": None
        if plateau is None
        else {
            **asdict(plateau),
            "base_share": share,
            "window": list(PLATEAU_WINDOW),
            "null_counts": share is not None and _in_window(share),
        },
        "arms": arms,
        "primary": list(suite.primary),
        "null_size": null_size,
        "pairs": judge.judged({f"{one} - {other}": found for (one, other), found in pairs.items()}),
        "skipped": dict(skipped),
        "failed": dict(failed),
        "meta": {
            **meta,
            # Training and asking of all arms, whenever that was.
            "seconds": round(sum(_seconds(row) for row in rows.values()), 1),
            "seeds": sorted({seed for _, seed in homes}),
            "measures": dict(MEASURES),
            "interval": INTERVAL,
            "p": P_VALUE,
            "detectable": DETECTABLE,
        },
    }
    if homes:
        record["teacher"] = teacher_scores(next(iter(homes.values())))
    return record


def _rows(suite: Suite, homes: Mapping[tuple[str, int], Path]) -> tuple[dict[str, Row], int]:
    """Finished rows in the suite's order, an arm's interventions behind it; and the scenes asked
    about."""
    if not homes:
        return {}, 0
    tables = {key: read_items(home) for key, home in homes.items()}
    first = next(iter(tables.values()))
    resampler = Resampler(first["scene_id"].to_pylist(), rng=np.random.default_rng(0))
    asked = _asked(first)
    found: dict[str, Row] = {}
    for name, arm in suite.arms.items():
        seeds = sorted(seed for arm_name, seed in homes if arm_name == name)
        kinds = [STUDENT, *(k for k in arm.interventions if k in _kinds(tables, name, seeds))]
        for kind in kinds if seeds else ():
            figures: dict[int, Figures] = {}
            facts: dict[int, Mapping[str, Any]] = {}
            counts: Mapping[str, Mapping[str, int]] = {}
            for seed in seeds:
                table, home = tables[name, seed], homes[name, seed]
                if _asked(table) != asked:
                    raise BadInputError(
                        f"{home} holds answers to other questions than the arms beside it; delete "
                        "it and give the same command again"
                    )
                chosen = table.filter(pa.compute.equal(table["row"], kind))
                depth = read_depth(home) if kind == STUDENT else None
                figures[seed], counts = _figures(chosen, depth, resampler)
                facts[seed] = _facts(read_arm(home) or {}) if kind == STUDENT else {}
            own = kind == STUDENT
            found[name if own else f"{name}/{kind}"] = Row(
                title=arm.title if own else f"{name}, slots {kind} when asked",
                of="" if own else name,
                figures=figures,
                counts=counts,
                facts=facts,
            )
    return found, len(first["scene_id"].unique())


def _kinds(tables: Mapping[tuple[str, int], pa.Table], arm: str, seeds: Sequence[int]) -> set[str]:
    return {row for seed in seeds for row in tables[arm, seed]["row"].unique().to_pylist()}


def _asked(table: pa.Table) -> list[str]:
    """Questions of the student's own row."""
    own = table.filter(pa.compute.equal(table["row"], STUDENT))
    ids: list[str] = own["question_id"].to_pylist()
    return ids


def _facts(arm: Mapping[str, Any]) -> dict[str, Any]:
    kept = (
        *("steps", "best_step", "seconds", "asked_seconds", "parameters", "validation"),
        *("boxes", "other_family_donors", "meta"),
    )
    return {name: arm[name] for name in kept if arm.get(name)}


def _seconds(row: Row) -> float:
    return sum(
        float(facts.get(name, 0.0))
        for facts in row.facts.values()
        for name in ("seconds", "asked_seconds")
    )


def _figures(
    table: pa.Table, depth: pa.Table | None, resampler: Resampler
) -> tuple[Figures, dict[str, dict[str, int]]]:
    """Every measure of one row and seed, and how many items each is made of."""
    scenes = np.array(table["scene_id"].to_pylist())
    families = np.array(table["family"].to_pylist())
    columns = {
        name: np.array(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
        for name in ("score", "rouge1", "nats", "tokens")
    }
    groups = {name: families == name for name in dict.fromkeys(families.tolist())}
    four = np.isin(families, FAMILIES)
    groups = {"overall": four, **groups} if four.any() else groups
    found: Figures = {"score": {}, "answer_ce": {}}
    counts: dict[str, dict[str, int]] = {"score": {}, "answer_ce": {}}

    def add(measure: str, group: str, values: Any, where: Any, weights: Any = None) -> None:
        if where.any():
            found.setdefault(measure, {})[group] = _mean(
                resampler, values[where], scenes[where], None if weights is None else weights[where]
            )
            counts.setdefault(measure, {})[group] = int(where.sum())

    tokens = columns["tokens"]
    a_token = np.divide(columns["nats"], tokens, out=np.full(len(tokens), np.nan), where=tokens > 0)
    said = np.isfinite(a_token)
    for group, where in groups.items():
        add("score", group, columns["score"], where & np.isfinite(columns["score"]))
        add("answer_ce", group, a_token, where & said, tokens)
    add("answer_ce", WHOLE, a_token, said, tokens)
    add("rouge1_to_teacher", WHOLE, columns["rouge1"], np.isfinite(columns["rouge1"]))
    if depth is not None and depth.num_rows:
        found["depth_rmse"] = {WHOLE: _rmse(depth, resampler)}
        counts["depth_rmse"] = {WHOLE: int(np.sum(depth["cells"].to_numpy()))}
    return found, counts


def _mean(
    resampler: Resampler,
    values: Float[np.ndarray, "n"],
    scenes: np.ndarray,
    weights: Float[np.ndarray, "n"] | None,
) -> SeedFigure:
    return SeedFigure(
        value=float(np.average(values, weights=weights)),
        draws=resampler.draws(values, scenes.tolist(), weights),
    )


def _rmse(depth: pa.Table, resampler: Resampler) -> SeedFigure:
    scenes = depth["scene_id"].to_pylist()
    squared, cells = depth["squared_error"].to_numpy(), depth["cells"].to_numpy()
    sums = resampler.sums(np.stack([squared, cells.astype(np.float64)], axis=1), scenes)
    with np.errstate(invalid="ignore"):
        draws = np.sqrt(sums[:, 0] / sums[:, 1])
    return SeedFigure(value=float(np.sqrt(squared.sum() / cells.sum())), draws=draws)


def overall_score(home: Path) -> float:
    """The share of right answers of a finished arm's student in the four families.

    Raises:
        BadInputError: none of them was asked.
    """
    items = read_items(home)
    own = items.filter(pa.compute.equal(items["row"], STUDENT))
    four = own.filter(pa.compute.is_in(own["family"], pa.array(FAMILIES)))
    if not four.num_rows:
        raise BadInputError(f"{home} has no answer to a question of {', '.join(FAMILIES)}")
    return float(np.mean(four["score"].to_numpy()))


# What is said of them. --------------------------------------------------------------------------


def _groups(row: Row, measure: str) -> list[str]:
    """Groups of a measure that all seeds of a row have."""
    parts = [figures.get(measure, {}) for figures in row.figures.values()]
    return [group for group in parts[0] if all(group in part for part in parts)]


def _by_seed(row: Row, measure: str, group: str) -> dict[int, SeedFigure]:
    return {
        seed: figures[measure][group]
        for seed, figures in row.figures.items()
        if group in figures.get(measure, {})
    }


def _over(row: Row, measure: str, group: str) -> Any:
    return over_seeds(list(_by_seed(row, measure, group).values()), rng=_rng())


def _rng() -> np.random.Generator:
    # The same for every figure, so that none depends on what was computed before it.
    return np.random.default_rng(1)


def _each(row: Row, make: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
    """{measure: {group: what is made of it}}, without what is not there."""
    return {
        measure: found
        for measure in MEASURES
        if (found := {g: value for g in _groups(row, measure) if (value := make(measure, g))})
    }


def _row_record(row: Row) -> dict[str, Any]:
    def figure(measure: str, group: str) -> dict[str, Any]:
        spread = _over(row, measure, group)
        low, high = spread.interval
        if measure in ("score", "rouge1_to_teacher"):  # shares end at 0 and at 1
            low, high = max(low, 0.0), min(high, 1.0)
        return {
            "value": spread.value,
            "low": low,
            "high": high,
            "n": row.counts[measure][group],
            "seeds": spread.seeds,
        }

    return {
        "title": row.title,
        **({"of": row.of} if row.of else {}),
        "figures": _each(row, figure),
        "seeds": {
            str(seed): {
                "figures": {
                    measure: {group: one.value for group, one in groups.items()}
                    for measure, groups in figures.items()
                },
                **row.facts[seed],
            }
            for seed, figures in row.figures.items()
        },
    }


@dataclass(frozen=True, kw_only=True)
class _Differences:
    """Differences of a suite's rows, paired by scene and seed."""

    rows: Mapping[str, Row]
    suite: Suite
    scenes: int
    # What was pooled already, by arm that was intervened on, base, measure and group.
    _pooled: dict[tuple[str, str, str, str], dict[str, SeedNoise | None]] = field(
        default_factory=dict
    )

    def between(self, one: str, other: str) -> dict[str, dict[str, Any]]:
        """{measure: {group: difference}} over what both have."""

        def differ(measure: str, group: str) -> Difference | None:
            planned = _planned(self.suite, group) if one in self.suite.primary else 1
            return difference(
                _by_seed(self.rows[one], measure, group),
                _by_seed(self.rows[other], measure, group),
                scenes=self.scenes,
                noise=self._noise(self.rows[one].of, other, measure, group).get(one),
                level=LEVEL / planned,
            )

        return _each(self.rows[one], differ)

    def _noise(self, of: str, other: str, measure: str, group: str) -> dict[str, SeedNoise | None]:
        """Between seeds: pooled over trained arms, or over the interventions on one of them."""
        key = (of, other, measure, group)
        if key not in self._pooled:
            values = {
                name: {seed: figure.value for seed, figure in found.items()}
                for name, row in self.rows.items()
                if (name == other or row.of == of) and (found := _by_seed(row, measure, group))
            }
            self._pooled[key] = seed_noise(values, other)
        return self._pooled[key]


def _planned(suite: Suite, group: str) -> int:
    """Primary tests that are corrected together: the four families are one lot."""
    return max(len(suite.primary), 1) * (len(FAMILIES) if group in FAMILIES else 1)


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """What is said of a suite's differences; ``share`` is where its base stands of its plateau."""

    suite: Suite
    share: float | None
    null_size: float

    def judged(
        self, compared: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    ) -> dict[str, dict[str, Any]]:
        """Differences as plain numbers, with Holm's p for the primary ones and a verdict."""
        corrected = self._corrected(compared)
        judged: dict[str, dict[str, Any]] = {}
        for name, measures in compared.items():
            judged[name] = {}
            for measure, groups in measures.items():
                judged[name][measure] = {}
                for group, one in groups.items():
                    p_holm = corrected.get((name, measure, group))
                    p = one.p if p_holm is None else p_holm
                    judged[name][measure][group] = {
                        **asdict(one),
                        "primary": p_holm is not None,
                        "p_holm": p_holm,
                        "verdict": verdict(one, p, measure, self.share, null_size=self.null_size),
                    }
        return judged

    def _corrected(
        self, compared: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    ) -> dict[tuple[str, str, str], float]:
        """Holm's p by row, measure and group, of the primary comparisons."""
        lots: dict[tuple[str, str], dict[tuple[str, str, str], float]] = {}
        planned: dict[tuple[str, str], int] = {}
        for name in self.suite.primary:
            for measure, groups in compared.get(name, {}).items():
                for group, one in groups.items():
                    lot = (measure, "families" if group in FAMILIES else group)
                    lots.setdefault(lot, {})[name, measure, group] = one.p
                    planned[lot] = _planned(self.suite, group)
        return {key: p for lot in lots for key, p in holm(lots[lot], of=planned[lot]).items()}


def verdict(
    found: Difference, p: float, measure: str, share: float | None, *, null_size: float = NULL_SIZE
) -> str:
    """What a difference may be called; ``share`` is where the base arm stands of its plateau.

    ``p`` is Holm's of a primary comparison. Nothing is called no difference unless the base stands
    where arms can differ and a difference of ``null_size`` would have been told.
    """
    if found.detectable is None:
        return "no item differs"
    if found.seeds < LEAST_SEEDS:
        return f"too few seeds to say ({found.seeds})"
    if p < LEVEL:
        more = measure in ("score", "rouge1_to_teacher")
        return "better" if (found.value > 0) == more else "worse"
    told = measure == "score" and found.detectable <= null_size
    if told and share is not None and _in_window(share):
        return "no difference seen"
    return "not told apart"


def _in_window(share: float) -> bool:
    return PLATEAU_WINDOW[0] <= share <= PLATEAU_WINDOW[1]
