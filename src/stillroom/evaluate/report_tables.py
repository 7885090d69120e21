"""The report's tables as HTML: scores with bars, retention, descriptions and depth, margins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from stillroom.records import FAMILIES

#: What stands under a row's name.
ABOUT_ROWS = {
    "truth": "computed from geometry",
    "teacher": "the large model",
    "student": "distilled from it",
    "student_no_slots": "the same, without slots",
    "majority": "the most frequent answer",
    "shuffled": "student, another room's pictures",
    "blind": "words of the question only",
}
#: Rows that a retention table leaves out: they have nothing from the teacher.
_GUESSERS = ("majority", "shuffled", "blind")
_COLOURS = {"teacher": "#c2702b", "student": "#1f6f8b", "student_no_slots": "#5c93a6"}
_OTHER = "#9aa1a9"
_BAR = 92


def percent(share: float | None, *, places: int = 1) -> str:
    """A fraction as "84.2 %"; "-" where there is none."""
    return "-" if share is None else f"{100 * share:.{places}f} %"


def interval(entry: Mapping[str, Any]) -> str:
    """ "81.0 to 87.1" in percent; empty where no interval is known."""
    if entry["low"] is None or entry["high"] is None:
        return ""
    return f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"


def families_of(rows: Mapping[str, Mapping[str, Any]], *, four: bool) -> list[str]:
    """Column names in the order of the tables: "overall" and the four, or all the others."""
    named = dict.fromkeys(
        key for row in rows.values() for key in row if key not in ("metrics", "retention")
    )
    ours = [name for name in ("overall", *FAMILIES) if name in named]
    return ours if four else [name for name in named if name not in ours]


def score_table(results: Mapping[str, Any], families: Sequence[str]) -> str:
    """Rows by families: score, interval, and a bar whose tick is the blind row."""
    rows, meta = results["rows"], results["meta"]
    blind = rows.get(meta.get("blind") or "", {})
    body = []
    for name, row in rows.items():
        role = _role(name, meta)
        cells = _numbers(_score_cell(row.get(f), blind.get(f), role) for f in families)
        body.append(_row(name, cells, meta))
    return _table(["", *(family_name(f) for f in families)], body)


def retention_table(results: Mapping[str, Any], families: Sequence[str]) -> str:
    """Share of the teacher's accuracy that each student keeps, and how much of that is seeing."""
    rows, meta = results["rows"], results["meta"]
    body = []
    for name, row in rows.items():
        kept = row.get("retention")
        if not kept or name in _GUESSERS:
            continue
        cells = _numbers(_retention_cell(kept.get(family)) for family in families)
        body.append(_row(name, cells, meta))
    return _table(["", *(family_name(f) for f in families)], body) if body else ""


def relative_table(results: Mapping[str, Any], families: Sequence[str]) -> str:
    """Score against the truth and, beside it, with the teacher's answers for the truth."""
    rows, meta = results["rows"], results["meta"]
    body = []
    for name, row in rows.items():
        relative = row["metrics"].get("teacher_relative")
        if not relative or name in _GUESSERS:
            continue
        cells = [_two_scores(row.get(family), relative.get(family)) for family in families]
        body.append(_row(name, _numbers(cells), meta))
    return _table(["", *(family_name(f) for f in families)], body) if body else ""


def _two_scores(truth: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None) -> str:
    if truth is None or teacher is None:
        return "-"
    return (
        f"<b>{percent(truth['score'])}</b> | <b>{percent(teacher['score'])}</b>"
        f"<span class='ci'>{interval(truth)} | {interval(teacher)} &middot; n {truth['n']} | "
        f"{teacher['n']}</span>"
    )


def text_table(results: Mapping[str, Any]) -> str:
    """ROUGE, BLEU and fact F1 of descriptions; "" where no row described anything."""
    body = []
    for name, row in results["rows"].items():
        metrics = row["metrics"]
        if "rouge" not in metrics:
            continue
        facts = metrics.get("fact_f1")
        against = metrics.get("against_teacher")
        cells = [
            _overlap(metrics["rouge"]["rouge1"]),
            _overlap(metrics["rouge"]["rouge2"]),
            _overlap(metrics["rouge"]["rougeL"]),
            " / ".join(f"{metrics['bleu'][f'bleu{n}']:.3f}" for n in (1, 2, 3, 4)),
            f"{metrics['meteor']:.3f}" if "meteor" in metrics else "-",
            _overlap(facts) if facts else "-",
            f"{against['rouge']['rouge1']['score']:.3f}" if against else "-",
            f"{metrics['length']['words']:.1f} <span class='ci'>truth "
            f"{metrics['length']['truth_words']:.1f}</span>",
        ]
        body.append(_row(name, _numbers(cells), results["meta"]))
    head = ["", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU-1 / 2 / 3 / 4", "meteor-1.5", "fact F1"]
    return _table([*head, "ROUGE-1 to teacher", "words"], body) if body else ""


def depth_table(results: Mapping[str, Any]) -> str:
    """Depth errors by alignment; "" where no row has depth."""
    body = []
    for name, row in results["rows"].items():
        for alignment, errors in row["metrics"].get("depth", {}).items():
            cells = [
                "as it is" if alignment == "none" else f"{escape(alignment)} scaled",
                f"{errors['rmse']:.3f} m",
                f"{errors['mae']:.3f} m",
                f"{errors['abs_rel']:.3f}",
                *(percent(errors[f"delta{k}"]) for k in (1, 2, 3)),
                str(errors["n"]),
            ]
            body.append(_row(name, _numbers(cells), results["meta"]))
    head = ["", "alignment", "RMSE", "MAE", "AbsRel", "&delta;1", "&delta;2", "&delta;3"]
    return _table([*head, "pictures"], body) if body else ""


def margin_table(results: Mapping[str, Any]) -> str:
    """Accuracy of teacher and student in the thirds of each family's margin."""
    meta = results["meta"]
    wanted = [meta.get("teacher"), meta.get("student")]
    body = []
    for name in (row for row in wanted if row in results["rows"]):
        thirds = results["rows"][name]["metrics"].get("by_margin", {})
        cells = [
            " &nbsp; ".join(percent(third["score"], places=0) for third in thirds[family])
            if family in thirds
            else "-"
            for family in FAMILIES
        ]
        if thirds:
            body.append(_row(name, _numbers(cells), meta))
    return _table(["", *FAMILIES], body) if body else ""


def meta_table(meta: Mapping[str, Any]) -> str:
    """Everything ``results.json`` says of its making, a line each."""
    lines = "".join(
        f"<tr><th>{escape(str(key)).replace('_', ' ')}</th><td>{escape(_plain(value))}</td></tr>"
        for key, value in meta.items()
        if value not in (None, "", {}, [])
    )
    return f'<div class="wide"><table class="meta">{lines}</table></div>'


def family_name(family: str) -> str:
    """A column's heading."""
    return escape(family.replace("_", " "))


def _score_cell(entry: Mapping[str, Any] | None, blind: Mapping[str, Any] | None, role: str) -> str:
    if entry is None:
        return "-"
    tick = None if blind is None else float(blind["score"])
    return (
        f"<b>{percent(entry['score'])}</b><span class='ci'>{interval(entry)} &middot; "
        f"n {entry['n']}</span>{_bar(entry, tick, _COLOURS.get(role, _OTHER))}"
    )


def _retention_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["score"] is None:
        return "-"
    seeing = entry["above_blind"]
    below = "" if seeing is None else f"<span class='ci'>above blind {percent(seeing)}</span>"
    return f"<b>{percent(entry['score'])}</b><span class='ci'>{interval(entry)}</span>{below}"


def _bar(entry: Mapping[str, Any], tick: float | None, colour: str) -> str:
    """A bar from 0 to 1 with the interval as a whisker; the tick is the blind row's score."""
    low, high = entry["low"] * _BAR, entry["high"] * _BAR
    mark = (
        ""
        if tick is None
        else f'<line x1="{tick * _BAR:.1f}" x2="{tick * _BAR:.1f}" y1="0" y2="12" '
        'stroke="#24292e" stroke-width="1" stroke-dasharray="2 1.5"/>'
    )
    return (
        f'<svg width="{_BAR}" height="12" viewBox="0 0 {_BAR} 12" aria-hidden="true">'
        f'<rect y="3" width="{_BAR}" height="6" rx="2" fill="#efece5"/>'
        f'<rect y="3" width="{entry["score"] * _BAR:.1f}" height="6" rx="2" fill="{colour}"/>'
        f'<path d="M{low:.1f} 6H{high:.1f}M{low:.1f} 3.5V8.5M{high:.1f} 3.5V8.5" '
        f'stroke="#24292e" stroke-width="1.1" fill="none"/>{mark}</svg>'
    )


def _overlap(entry: Mapping[str, Any]) -> str:
    return (
        f"<b>{entry['score']:.3f}</b><span class='ci'>P {entry['precision']:.3f} &middot; "
        f"R {entry['recall']:.3f}</span>"
    )


def _role(name: str, meta: Mapping[str, Any]) -> str:
    """A row's part in the comparison, whatever its name."""
    if name == meta.get("student"):
        return "student"
    return "teacher" if name == meta.get("teacher") else name


def _row(name: str, cells: str, meta: Mapping[str, Any]) -> str:
    role = _role(name, meta)
    about = ABOUT_ROWS.get(role, "")
    count = (meta.get("parameters") or {}).get(name)
    size = f"<small>{count / 1e6:.2f} M parameters</small>" if count else ""
    return (
        f'<tr class="{escape(role, quote=True) if role in ABOUT_ROWS else ""}">'
        f'<th class="rowname"><b>{escape(name)}</b><small>{about}</small>{size}</th>{cells}</tr>'
    )


def _numbers(cells: Iterable[str]) -> str:
    return "".join(f'<td class="number">{cell}</td>' for cell in cells)


def _table(head: Sequence[str], body: Sequence[str]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
