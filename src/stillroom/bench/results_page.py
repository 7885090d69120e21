"""``docs/results.md`` from the JSON in ``docs/results``: tables I to V in miniature.

    python -m stillroom.bench.results_page docs            # writes docs/results.md
    python -m stillroom.bench.results_page docs --check    # exit code 1 if it would change

Read are, whatever their names, the ``ABLATION.json`` of ``stillroom ablate`` (tables II, III and
the slots), the ``results.json`` of ``stillroom evaluate`` with a teacher (tables I and V), and
the ``latency.json`` of ``stillroom bench latency`` or the file that ``benchmarks/latency_mini.py
--out`` writes (table IV). A table without its record says so; no figure stands here that is not in
one of the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from stillroom.bench import ablation_report as ablations
from stillroom.bench.tables import Table, number, points, probability, seen_from, share
from stillroom.evaluate.intervals import DRAWS
from stillroom.evaluate.paired import INTERVAL, SeedFigure, over_seeds
from stillroom.evaluate.report_cases import AGREEMENT
from stillroom.recipes.ablations import SUITES
from stillroom.records import FAMILIES, BadInputError

_Made = TypeVar("_Made")
PAGE, FOLDER = "results.md", "results"
NOTHING = "No committed record yet.\n"

#: What the paper prints (arXiv 2605.09719; specs/hidden_cot.md section 6): 100 items, one seed,
#: agreement with the teacher. Validation loss / ROUGE-1 / spatial accuracy / depth RMSE.
PAPER: Mapping[str, Mapping[str, str]] = {
    "table2": {
        "all": "6.45 / 0.119 / 0.64 / 0.23",
        "hidden_cot": "4.79 / 0.148 / 0.71 / 0.21",
        "no_detection": "6.78 / 0.108 / 0.58 / 0.25",
        "no_depth": "6.92 / 0.095 / 0.52 / 0.31",
        "no_spatial": "6.65 / 0.112 / 0.59 / 0.24",
        "no_multi_view": "6.58 / 0.115 / 0.61 / 0.24",
        "no_feature": "6.71 / 0.102 / 0.56 / 0.26",
        "static_weights": "6.89 / 0.097 / 0.55 / 0.27",
    },
    "table3": {"k2": "5.21", "k4": "4.95", "k8": "4.79", "k16": "4.84"},
}
_PAPER_HEAD = {
    "table2": "paper: val loss / ROUGE-1 / spatial / RMSE",
    "table3": "paper: val loss",
}


def page(folder: Path) -> str:
    """The page that the records in ``folder`` make; the same for the same files.

    Raises:
        BadInputError: a file that is no record, or two of one suite.
    """
    held = read_records(folder)
    suites = {name: record for record, name in _ablations(held)}
    evaluations = [
        (file, record)
        for file, record in held
        if "rows" in record and _whole(file, _is_run, record)
    ]
    speeds = [(file, record) for file, record in held if record.get("kind") == "latency"]
    parts = [
        "# Results\n\nMade by `python -m stillroom.bench.results_page docs` from the records in "
        "`docs/results`; not written by hand. Scores are shares of right answers against the truth "
        "unless a column says otherwise, intervals 95 %. How each figure is made: "
        "[evaluate.md](evaluate.md), [ablations.md](ablations.md).\n",
        "## Table I: students, teacher and what they must beat\n",
        *[_whole(one[0], _table_one, *one) for one in evaluations],
        _over_seeds(evaluations),
        "" if evaluations else NOTHING,
        *_suite_part("table2", "Table II: what each term is worth", suites),
        *_suite_part("table3", "Table III: number of slots", suites),
        *_suite_part("slots", "Slots: do they cause anything?", suites),
        "## Table IV: speed\n",
        *[_whole(one[0], _table_four, *one) for one in speeds],
        "" if speeds else NOTHING,
        "## Table V: cases\n",
        *(found := [text for one in evaluations if (text := _whole(one[0], _table_five, *one))]),
        "" if found else NOTHING,
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _whole(file: str, make: Callable[..., _Made], *given: Any) -> _Made:
    """What ``make`` makes of a record; one that lacks something is named.

    Raises:
        BadInputError: it does.
    """
    try:
        return make(*given)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        lacking = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BadInputError(
            f"{file} is no whole record ({lacking}); take it out of the folder, or make it again"
        ) from None


def read_records(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a folder by file name.

    Raises:
        BadInputError: a file that is no record.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text())
        except (ValueError, UnicodeDecodeError) as error:
            raise BadInputError(f"{file} is not readable JSON ({error})") from None
        known = isinstance(record, dict) and (
            record.get("kind") in ("ablation", "latency")
            or all(isinstance(record.get(part), dict) for part in ("rows", "meta"))
        )
        if not known:
            raise BadInputError(
                f"{file} is no record of 'stillroom ablate', 'stillroom evaluate' or a latency "
                "benchmark; take it out of the folder"
            )
        found.append((file.name, record))
    return found


def _ablations(held: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[dict[str, Any], str]]:
    found: dict[str, str] = {}
    records = []
    for file, record in held:
        if record.get("kind") != "ablation":
            continue
        name = str(record.get("suite"))
        if name not in SUITES:
            raise BadInputError(f"{file} is of the suite {name!r}; known are {', '.join(SUITES)}")
        if name in found:
            raise BadInputError(
                f"{file} and {found[name]} are both of the suite {name}; keep one of them"
            )
        found[name] = file
        records.append((record | {"file": file}, name))
    return records


def _is_run(record: Mapping[str, Any]) -> bool:
    return record.get("kind") is None and "student" in record["meta"]


def _made(file: str, meta: Mapping[str, Any]) -> str:
    """Where figures come from, as the line below a table."""
    seeds = meta.get("seeds") or {}
    if isinstance(seeds, Mapping):
        seeds = [f"{what} {seed}" for what, seed in seeds.items()]
    said = [
        f"`{FOLDER}/{file}`",
        f"commit {meta.get('commit', 'unknown')}",
        f"seeds {', '.join(map(str, seeds))}" if seeds else "",
        f"{meta.get('questions', '?')} questions on {meta.get('scenes', '?')} scenes "
        f"({meta.get('split', '?')})"
        if "questions" in meta
        else "",
        str(meta.get("machine", "")),
        f"`{meta['command']}`" if meta.get("command") else "",
    ]
    return f"\n<sub>{'; '.join(part for part in said if part)}</sub>\n"


# Table I. ---------------------------------------------------------------------------------------


def _table_one(file: str, record: Mapping[str, Any]) -> str:
    meta, rows = record["meta"], []
    sizes = meta.get("parameters") or {}
    for name, row in record["rows"].items():
        count = sizes.get(name)
        large = sizes.get(meta.get("teacher"))
        against = row["metrics"].get("against_teacher", {}).get("rouge", {}).get("rouge1")
        kept = row.get("retention", {}).get("overall")
        rows.append(
            [
                name,
                "-" if count is None else f"{count / 1e6:.2f} M",
                "-" if not count or not large else f"{large / count:.2f}",
                *(share(_figure(row.get(group))) for group in ("overall", *FAMILIES)),
                share(_figure(kept)),
                _seeing(kept),
                number(_figure(against)),
                str(row["overall"]["n"]) if "overall" in row else "-",
            ]
        )
    head = ["row", "parameters", "teacher / row", "overall", *FAMILIES, "retention", "above blind"]
    table = Table(
        title=f"Split {meta.get('split', '?')}: {file.removesuffix('.json')}",
        head=[*head, "ROUGE-1 to teacher", "n"],
        rows=rows,
    )
    return table.markdown(level=3) + _made(file, meta)


def _figure(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An entry of ``results.json`` as the tables' own; None where it has no value or interval."""
    if not entry or entry.get("score") is None or entry.get("low") is None:
        return None
    return {"value": entry["score"], "low": entry["low"], "high": entry["high"]}


def _seeing(kept: Mapping[str, Any] | None) -> str:
    """What is kept above the stronger blind row, with its interval where it has one."""
    if not kept or kept["above_blind"] is None:
        return "-"
    low, high = kept.get("above_blind_low"), kept.get("above_blind_high")
    bounds = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    of = f", over {kept['blind']}" if kept.get("blind") else ""
    return f"{100 * kept['above_blind']:.1f} %{bounds}{of}"


def _over_seeds(evaluations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Students of one recipe and several seeds on one split: the mean, with t and scene interval.

    A student without a recipe or a seed in its record is in no group, and of two with the same seed
    the first file counts.
    """
    groups: dict[tuple[str, ...], dict[int, tuple[str, Mapping[str, Any]]]] = {}
    for file, record in evaluations:
        meta, name = record["meta"], record["meta"]["student"]
        made = (meta.get("students") or {}).get(name) or {}
        row = record["rows"].get(name, {})
        if made.get("recipe") and "seed" in made and "overall" in row:
            key = (made["recipe"], *(str(meta.get(k)) for k in ("split", "scenes", "questions")))
            groups.setdefault(key, {}).setdefault(int(made["seed"]), (file, row))
    rows = []
    for (recipe, split, *_), found in groups.items():
        if len(found) < 2:
            continue
        kept = [row.get("retention", {}).get("overall") for _, row in found.values()]
        cells = [
            _mean([row.get(group) for _, row in found.values()]) for group in ("overall", *FAMILIES)
        ]
        seeds = ", ".join(map(str, sorted(found)))
        rows.append(
            [recipe, split, seeds, *cells, _mean(kept), ", ".join(f for f, _ in found.values())]
        )
    return Table(
        title="Students over seeds",
        note=f"Mean over seeds, {INTERVAL}; the scenes' part is that of each record's own "
        "interval, taken for shared by all seeds.",
        head=["recipe", "split", "seeds", "overall", *FAMILIES, "retention", "records"],
        rows=rows,
    ).markdown(level=3)


def _mean(entries: Sequence[Mapping[str, Any] | None]) -> str:
    """A figure of several seeds; "-" where one of them lacks it."""
    figures = [_figure(entry) for entry in entries]
    if not all(figures):
        return "-"
    bell = stats.norm.ppf((np.arange(DRAWS) + 0.5) / DRAWS)
    seeds = [
        SeedFigure(
            value=one["value"], draws=one["value"] + bell * (one["high"] - one["low"]) / 3.92
        )
        for one in figures
        if one is not None
    ]
    spread = over_seeds(seeds, rng=np.random.default_rng(0))
    low, high = spread.interval
    return share({"value": spread.value, "low": low, "high": high})


# Tables II, III and the slots. ------------------------------------------------------------------


def _suite_part(name: str, title: str, suites: Mapping[str, dict[str, Any]]) -> list[str]:
    record = suites.get(name)
    if record is None:
        return [f"## {title}\n", NOTHING]
    return _whole(record["file"], _suite_lines, name, title, record)


def _suite_lines(name: str, title: str, record: dict[str, Any]) -> list[str]:
    parts = [f"## {title}\n", f"{ablations.lead(record)}\n"]
    if name == "slots":
        parts.append(slots_paragraph(record) + "\n")
    scores = ablations.score_table(record)
    if name in PAPER:
        printed = [PAPER[name].get(arm, "-") for arm in record["arms"]]
        scores = Table(
            title=scores.title,
            note=scores.note,
            head=[*scores.head, _PAPER_HEAD[name]],
            rows=[[*row, paper] for row, paper in zip(scores.rows, printed, strict=True)],
        )
    parts += [
        text
        for table in (
            scores,
            ablations.difference_table(record),
            ablations.family_table(record),
            ablations.pair_table(record),
            ablations.left_out_table(record),
        )
        if (text := table.markdown(level=3))
    ]
    return [*parts, _made(record["file"], record["meta"])]


def slots_paragraph(record: Mapping[str, Any]) -> str:
    """Do learned slots help, over which control, in which families, how sure: one paragraph."""
    base, arms = record["base"], record["arms"]
    if base not in arms:
        return f"The arm {base} is not finished, so nothing can be said."
    own = arms[base]["figures"]["score"]["overall"]
    said = [f"The student with {arms[base]['title']} answers {share(own)} right."]
    for name in record["primary"]:
        found = arms.get(name, {}).get("difference", {}).get("score", {})
        if "overall" not in found:
            continue
        title, one = arms[name]["title"], found["overall"]
        where = [f for f in FAMILIES if f in found and found[f]["verdict"] in ("better", "worse")]
        told = ", ".join(f"{f} {points(found[f])}" for f in where)
        said.append(
            f"{title[0].upper()}{title[1:]}: {points(one)} points, p "
            f"{probability(one['p_holm'])} after Holm, {one['verdict']}"
            + (f" ({seen_from(one)} would be seen)" if one["detectable"] is not None else "")
            + (
                f"; by family (Holm over these comparisons and families) {told}."
                if told
                else "; in no family by itself."
            )
        )
    others = {
        f"{name} - {record['base']}": row["difference"].get("score", {}).get("overall")
        for name, row in arms.items()
        if "difference" in row and name not in record["primary"]
    } | {name: pair.get("score", {}).get("overall") for name, pair in record["pairs"].items()}
    secondary = [
        f"{name} {points(one)}, p {probability(one['p'])}, {one['verdict']}"
        for name, one in others.items()
        if one
    ]
    if secondary:
        said.append(f"Secondary, p uncorrected: {'; '.join(secondary)}.")
    seeds = len(record["meta"]["seeds"])
    said.append(
        f"{seeds} seed{'s' if seeds != 1 else ''}, {own['n']} questions each. "
        f"{ablations.plateau_sentence(record)}"
    )
    return " ".join(said)


# Tables IV and V. -------------------------------------------------------------------------------


def _table_four(file: str, record: Mapping[str, Any]) -> str:
    """A row a model; each time is the median and, in brackets, the 95th percentile."""
    options, device, models = record["options"], record["device"], record["models"]
    rows = [
        [
            f"{role}: {one['name']}",
            f"{one['parameters'] / 1e6:,.2f} M",
            f"{one['weight_bytes'] / 1e6:,.1f} MB",
            "-" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e6:,.1f} MB",
            f"{one['views']} / {one['scene_tokens']}",
            *(_milliseconds(one["cold"][f"{stage}_ms"]) for stage in ("total", "see", "read")),
            *(_milliseconds(one["warm"][f"{stage}_ms"]) for stage in ("total", "per_token")),
        ]
        for role, one in models.items()
    ]
    said = [
        f"{device['name']}, {device['threads']} threads, {device['dtype']}"
        if device["device"] == "cpu"
        else f"{device['name']}, {device['dtype']}",
        f"questions of {options['question_tokens']} and answers of {options['tokens']} tokens",
        f"{options['repeats']} rounds in turns",
        *(["random weights"] if record.get("random_weights") else []),
    ]
    told = [f"{'; '.join(said)}.", _times_as_fast(record, "ratio", "The student is")]
    if "ratio_as_asked" in record:
        told.append(_times_as_fast(record, "ratio_as_asked", "On real questions it is"))
    if "ratio_extrapolated" in record:
        far = {role: one.get("extrapolated", one)["views"] for role, one in models.items()}
        told.append(
            _times_as_fast(
                record,
                "ratio_extrapolated",
                f"Extrapolated by operations to {far['teacher']} and {far['student']} photos it is",
            )
        )
    told.append(f"It has {record['parameter_ratio']:.2f} times fewer parameters.")
    if "answers_equal" in record:
        counts = record["answers_compared"].values()
        told.append(
            f"{sum(one['equal'] for one in counts)} of {sum(one['of'] for one in counts)} answers "
            "of sessions are those of the models' own forward."
        )
    head = ["model", "parameters", "weights", "peak memory", "photos / tokens", "cold [ms]"]
    table = Table(
        title=file.removesuffix(".json"),
        note=" ".join(told),
        head=[*head, "of it: see", "read", "warm [ms]", "a token [ms]"],
        rows=rows,
    )
    return table.markdown(level=3) + _made(file, record["meta"])


def _milliseconds(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "not told"
    return f"{entry['median']:,.2f} ({entry['p95']:,.2f})"


def _times_as_fast(record: Mapping[str, Any], key: str, begin: str) -> str:
    ratio = record[key]
    return f"{begin} {ratio['cold']:.2f} times as fast cold and {ratio['warm']:.2f} times warm."


def _table_five(file: str, record: Mapping[str, Any]) -> str:
    row = record["rows"].get(record["meta"]["student"], {})
    against = row.get("metrics", {}).get("against_teacher", {})
    if "cases" not in against:
        return ""
    cases = [
        [
            case["case"],
            case["question"],
            case["teacher"],
            case["student"],
            f"{case['rouge1']:.2f}",
            f"{case['bleu1']:.2f}",
            f"{case['meteor']:.2f}" if "meteor" in case else "-",
            f"{case['words']} / {case['teacher_words']}",
        ]
        for case in against["cases"]
    ]
    shown = Table(
        title=f"Cases: {file.removesuffix('.json')}",
        note="The best, the median and the worst description by ROUGE-1 against the teacher's.",
        head=["case", "question", "teacher", "student", "ROUGE-1", "BLEU-1", "meteor-1.5", "words"],
        rows=cases,
    )
    macro, corpus = against["agreement"]["macro"], against["agreement"]["corpus"]
    said = Table(
        title="How much is said",
        note="Macro: of each text, then the mean (n texts). Corpus: of all words together.",
        head=["figure", "macro", "corpus", "n"],
        rows=[
            [title, number(_figure(macro[name])), f"{corpus[name]:.3f}", str(macro[name]["n"])]
            for title, name, _ in AGREEMENT
        ],
    )
    return f"{shown.markdown(level=3)}\n{said.markdown(level=4)}{_made(file, record['meta'])}"


def main(words: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(
        prog="python -m stillroom.bench.results_page",
        description="Write docs/results.md from docs/results.",
    )
    parser.add_argument("docs", type=Path, help="folder of the documents")
    parser.add_argument("--check", action="store_true", help="only say whether it would change")
    given = parser.parse_args(words)
    path = given.docs / PAGE
    try:
        text = page(given.docs / FOLDER)
    except BadInputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not given.check:
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(
        f"{path} is not what {given.docs / FOLDER} makes; run this command without --check\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
