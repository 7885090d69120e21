"""An ablation for people: ``ABLATION.md``, ``ABLATION.html`` and the plot ``ABLATION.png``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stillroom.bench.ablation_table import LEAST_SEEDS, PLATEAU_WINDOW, WHOLE
from stillroom.bench.tables import Table, number, points, probability, seen_from, share
from stillroom.evaluate.report import html_page
from stillroom.evaluate.report_figures import COLOURS, FAINT, STYLE, address_of
from stillroom.evaluate.report_tables import meta_table
from stillroom.records import FAMILIES
from stillroom.scenes.store import write_atomically


def write_report(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write page, table and plot of ``ABLATION.json``'s record into ``out``."""
    picture = plot(record)
    files = {"ABLATION.md": markdown(record).encode(), "ABLATION.html": _page(record, picture)}
    if picture is not None:
        files["ABLATION.png"] = picture
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """All tables of an ablation; those without a row stay empty."""
    return [
        score_table(record),
        difference_table(record),
        family_table(record),
        pair_table(record),
        other_table(record),
        left_out_table(record),
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """The whole of it as one page of text."""
    meta = record["meta"]
    parts = [f"# {record['title']}\n", f"{lead(record)}\n"]
    parts += [f"- {sentence}" for sentence in findings(record)]
    parts[-1] += "\n"
    parts += [text for table in tables(record) if (text := table.markdown())]
    made = ", ".join(
        f"{name} {meta[name]}" for name in ("commit", "command", "machine") if meta.get(name)
    )
    return "\n".join([*parts, f"Made by: {made}" if made else ""]).rstrip() + "\n"


def lead(record: Mapping[str, Any]) -> str:
    """On what the arms were compared, in two or three sentences."""
    meta = record["meta"]
    seeds = len(meta["seeds"])
    said = (
        f"Recipe {meta.get('recipe', '?')}, {meta.get('steps', '?')} steps of "
        f"{meta.get('scenes_per_step', '?')} scenes, {seeds} seed{'s' if seeds != 1 else ''}; "
        f"{meta.get('questions', '?')} questions on {meta.get('scenes', '?')} scenes of the split "
        f"{meta.get('split', '?')!r}. Intervals are {meta['interval']}."
    )
    taught = record.get("teacher", {}).get("overall")
    if taught:
        said += f" The teacher answers {100 * taught['score']:.1f} % right."
    if seeds < LEAST_SEEDS:
        said += f" Fewer than {LEAST_SEEDS} seeds: nothing here is a claim about an arm."
    return said + f" {plateau_sentence(record)}"


def plateau_sentence(record: Mapping[str, Any]) -> str:
    """Where the base arm stands, and so whether a missing difference says anything."""
    held = record["plateau"]
    low, high = (round(100 * end) for end in PLATEAU_WINDOW)
    if held is None:
        return (
            "No plateau is known, so nothing is said of arms that do not differ: --plateau auto "
            "measures what the base arm comes to at the end."
        )
    if held["base_share"] is None:
        return "The base arm is not finished."
    place = (
        f"{100 * held['base_share']:.0f} % of its plateau ({100 * held['score']:.1f} %, "
        f"{held['source']})"
    )
    if held["null_counts"]:
        return (
            f"The base arm {record['base']} stands at {place}: a missing difference counts where "
            f"{100 * record['null_size']:.1f} points would have been seen."
        )
    return (
        f"The base arm {record['base']} stands at {place}, outside {low} to {high} %: a missing "
        "difference says nothing."
    )


def findings(record: Mapping[str, Any]) -> list[str]:
    """A sentence for every comparison of the overall score."""
    said = []
    for name, row in record["arms"].items():
        found = row.get("difference", {}).get("score", {}).get("overall")
        if found is not None:
            said.append(_sentence(f"{name} ({row['title']})", record["base"], found))
    for name, pair in record["pairs"].items():
        found = pair.get("score", {}).get("overall")
        if found is not None:
            one, other = name.split(" - ")
            said.append(_sentence(one, other, found))
    return said


def _sentence(one: str, other: str, found: Mapping[str, Any]) -> str:
    return (
        f"{one} against {other}: {points(found)} points, p {probability(found['p'])} "
        f"({corrected(found)}): {found['verdict']}"
        + ("." if found["detectable"] is None else f"; {seen_from(found)} points would be seen.")
    )


def corrected(found: Mapping[str, Any]) -> str:
    """Holm's p of a primary comparison; of the others, that they are secondary."""
    if not found["primary"]:
        return "secondary, uncorrected"
    return f"{probability(found['p_holm'])} after Holm"


def score_table(record: Mapping[str, Any]) -> Table:
    """Scores by family, the likelihood of the teacher's answers, descriptions and depth."""
    groups = [g for g in ("overall", *FAMILIES) if _has(record, "score", g)]
    rows = [
        [
            _name(name, row, record),
            str(len(row["seeds"])),
            *(share(_figure(row, "score", group)) for group in groups),
            number(_figure(row, "answer_ce", WHOLE)),
            number(_figure(row, "rouge1_to_teacher", WHOLE)),
            number(_figure(row, "depth_rmse", WHOLE)),
        ]
        for name, row in record["arms"].items()
    ]
    head = ["arm", "seeds", *groups, "answer CE [nats/token]", "ROUGE-1 to teacher"]
    note = (
        "Share of right answers against the truth, mean over seeds with its interval; cross-entropy"
        " of the teacher's answers; ROUGE-1 of descriptions against the teacher's; error of the"
        " student's own depth head."
    )
    return Table(title="Scores", note=note, head=[*head, "depth RMSE [m]"], rows=rows)


def difference_table(record: Mapping[str, Any]) -> Table:
    """Every arm minus the base arm, overall."""
    rows = []
    for name, row in record["arms"].items():
        found = row.get("difference", {})
        overall = found.get("score", {}).get("overall")
        if overall is None:
            continue
        ce = found.get("answer_ce", {}).get(WHOLE)
        rows.append(
            [
                _name(name, row, record),
                points(overall),
                probability(overall["p"]),
                _holm(overall),
                seen_from(overall),
                overall["verdict"],
                "-"
                if ce is None
                else f"{ce['value']:+.3f} ({ce['low']:+.3f} to {ce['high']:+.3f})",
            ]
        )
    head = ["arm", "points", "p", "p (Holm)", "would have been seen", "verdict", "answer CE"]
    note = (
        f"Minus {record['base']}, paired by scene and seed, in percentage points. Primary: "
        f"{', '.join(record['primary'])}; all others are secondary and uncorrected. p: "
        f"{record['meta']['p']}. Would have been seen: {record['meta']['detectable']}."
    )
    return Table(title=f"Against {record['base']}", note=note, head=head, rows=rows)


def family_table(record: Mapping[str, Any]) -> Table:
    """Every arm minus the base arm, family by family."""
    families = [f for f in FAMILIES if _has(record, "score", f)]
    rows = []
    for name, row in record["arms"].items():
        found = row.get("difference", {}).get("score")
        if found:
            cells = [
                f"{points(found[f])}, p {probability(found[f]['p'])} ({corrected(found[f])}), "
                f"seen from {seen_from(found[f])}"
                if f in found
                else "-"
                for f in families
            ]
            rows.append([_name(name, row, record), *cells])
    note = (
        "Percentage points with interval, p, and what would have been seen. Holm's correction is "
        "over the primary comparisons and the four families together."
    )
    title = f"Against {record['base']}, by family"
    return Table(title=title, note=note, head=["arm", *families], rows=rows)


def pair_table(record: Mapping[str, Any]) -> Table:
    """Further pairs of arms."""
    rows = [
        [
            name,
            points(found),
            probability(found["p"]),
            _holm(found),
            seen_from(found),
            found["verdict"],
        ]
        for name, pair in record["pairs"].items()
        if (found := pair.get("score", {}).get("overall"))
    ]
    head = ["arms", "points", "p", "p (Holm)", "would have been seen", "verdict"]
    return Table(title="Other pairs", head=head, rows=rows)


def other_table(record: Mapping[str, Any]) -> Table:
    """Further families, where there are any."""
    every = {g for row in record["arms"].values() for g in row["figures"].get("score", {})}
    groups = sorted(every - {"overall", *FAMILIES})
    rows = [
        [_name(name, row, record), *(share(_figure(row, "score", g)) for g in groups)]
        for name, row in record["arms"].items()
        if groups
    ]
    return Table(title="Further families", head=["arm", *groups], rows=rows)


def left_out_table(record: Mapping[str, Any]) -> Table:
    """What is not in the table, and why; and what the arms cost."""
    rows = [[name, f"left out: {why}"] for name, why in record["skipped"].items()]
    rows += [[name, f"failed: {why}"] for name, why in record["failed"].items()]
    for name, row in record["arms"].items():
        if row.get("of"):
            continue
        facts = list(row["seeds"].values())
        steps = ", ".join(str(one["steps"]) for one in facts)
        seconds = np.mean([one["seconds"] for one in facts])
        sizes = facts[0]["parameters"]
        rows.append(
            [
                name,
                f"{row['title']}; steps {steps}; {seconds:.0f} s a seed; "
                f"{sizes['total']:,} parameters, {sizes['trained']:,} trained{_boxes(facts)}"
                f"{_strangers(facts)}",
            ]
        )
    return Table(title="Arms", head=["arm", "what it is, what it took, or why not"], rows=rows)


def _boxes(facts: Sequence[Mapping[str, Any]]) -> str:
    """The boxes' average precision, mean over seeds; nothing of an arm without a detector."""
    found = [one["boxes"] for one in facts if "boxes" in one]
    if not found:
        return ""
    parts = [f"{t} {np.mean([one[t]['map'] for one in found]):.3f}" for t in found[0]]
    return f"; mAP at IoU {', '.join(parts)}"


def _strangers(facts: Sequence[Mapping[str, Any]]) -> str:
    count = max((one.get("other_family_donors", 0) for one in facts), default=0)
    if not count:
        return ""
    return f"; {count} questions were swapped with another family's, for no other scene asks theirs"


def _page(record: Mapping[str, Any], picture: bytes | None) -> bytes:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(record))
    sections = [("findings", "Comparisons", f"<ul>{said}</ul>" if said else "")]
    if picture is not None:
        address = address_of("image/png", picture)
        alt = escape(f"Scores of the arms and differences from {record['base']}", quote=True)
        shown = f'<figure><img src="{address}" alt="{alt}"><figcaption>{alt}.</figcaption></figure>'
        sections.append(("plot", "At a glance", shown))
    sections += [
        (f"table{number}", escape(table.title), table.html())
        for number, table in enumerate(tables(record))
    ]
    sections.append(("making", "How this was made", meta_table(record["meta"])))
    return html_page(record["title"], escape(lead(record)), sections).encode()


def plot(record: Mapping[str, Any]) -> bytes | None:
    """Left the scores with each seed as a dot, right the differences; a PNG, None without arms.

    The grey band on the right is what would not have been seen.
    """
    names = [n for n, row in record["arms"].items() if _figure(row, "score", "overall")]
    if not names:
        return None
    arms = record["arms"]
    with rc_context(STYLE):
        height = 1.1 + 0.34 * len(names)
        figure = Figure(figsize=(9.6, height), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(names):
            row = arms[name]
            colour = COLOURS[0] if name == record["base"] else COLOURS[1]
            colour = COLOURS[3] if row.get("of") else colour
            found = row["figures"]["score"]["overall"]
            _whisker(left, place, found, colour)
            seeds = [100 * s["figures"]["score"]["overall"] for s in row["seeds"].values()]
            left.plot(seeds, [place] * len(seeds), "|", color=FAINT, markersize=7)
            away = row.get("difference", {}).get("score", {}).get("overall")
            if away is not None:
                span = 100 * (away["detectable"] or 0.0)
                right.barh(place, 2 * span, left=-span, height=0.62, color="#ebe8e1", zorder=0)
                _whisker(right, place, away, colour)
        right.axvline(0, color=FAINT, linewidth=0.8)
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        left.set(title="right answers, %", xlabel="overall; bars 95 %, ticks single seeds")
        right.set(title=f"minus {record['base']}, points", xlabel="grey: would not have been seen")
        sink = io.BytesIO()
        figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
    return sink.getvalue()


def _whisker(axis: Axes, place: int, found: Mapping[str, Any], colour: str) -> None:
    low, value, high = (100 * found[name] for name in ("low", "value", "high"))
    axis.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot([value], [place], "o", color=colour, markersize=4.5)


def _figure(row: Mapping[str, Any], measure: str, group: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = row["figures"].get(measure, {}).get(group)
    return found


def _holm(found: Mapping[str, Any]) -> str:
    return probability(found["p_holm"]) if found["primary"] else "secondary"


def _has(record: Mapping[str, Any], measure: str, group: str) -> bool:
    return any(_figure(row, measure, group) for row in record["arms"].values())


def _name(name: str, row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    return f"{name} (base)" if name == record["base"] else name
