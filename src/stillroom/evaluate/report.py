"""``report.html``: one file that opens anywhere and shows what the numbers mean; a terminal table.

Everything is inside the page (style, pictures, curves); it asks no network for anything. Sections
whose material is missing are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.evaluate import report_sections as part
from stillroom.evaluate import report_tables as tables
from stillroom.evaluate.items import ItemStore
from stillroom.evaluate.report_cases import cases_section
from stillroom.evaluate.report_tables import interval, percent
from stillroom.evaluate.suites.report import html_table
from stillroom.records import Answerer
from stillroom.scenes.store import SceneStore, write_atomically

if TYPE_CHECKING:
    from rich.table import Table


def write_report(
    results: Mapping[str, Any],
    *,
    out: Path,
    store: SceneStore | None = None,
    log: Path | None = None,
    student: Callable[[], Answerer] | None = None,
    capture: part.Capture | None = None,
) -> Path:
    """Write ``out/report.html`` from the results and items of an evaluation in ``out``.

    ``log`` is a training run's ``log.jsonl``. ``student`` is asked for depth where the evaluation
    kept none; without it that section is left out.
    """
    items = part.Items.read(out, results["meta"])
    sections = [
        ("scores", "Scores", part.scores_section(results)),
        ("benchmark", "Benchmark", html_table(results)),
        ("retention", "What is left of the teacher", part.retention_section(results)),
        ("text", "Descriptions", part.text_section(results)),
        ("training", "Training", part.training_section(log)),
        ("answers", "Questions and answers", part.answers_section(items, store)),
        ("cases", "Best, median and worst", _cases(results, items, store)),
        ("depth", "Depth", part.depth_section(results, items, store, ItemStore(out), student)),
        ("capture", "A real capture", part.capture_section(capture)),
        ("making", "How this was made", tables.meta_table(results["meta"])),
    ]
    page = html_page(_title(results), _lead(results), sections, tiles=_tiles(results))
    path = out / "report.html"
    write_atomically(path, page.encode())
    return path


def _cases(results: Mapping[str, Any], items: part.Items, store: SceneStore | None) -> str:
    student, teacher = (items.rows.get(name, {}) for name in ("student", "teacher"))
    return cases_section(results, student, teacher, store) if teacher else ""


def html_page(
    title: str, lead: str, sections: Sequence[tuple[str, str, str]], *, tiles: str = ""
) -> str:
    """A page that opens anywhere, of sections (key, title, HTML); empty ones are left out."""
    present = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in present)
    body = "".join(f'<h2 id="{key}">{name}</h2>{text}' for key, name, text in present)
    style = Path(__file__).with_name("report.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>stillroom: {escape(title)}</title><style>{style}</style></head><body>"
        f'<main><div class="brand">stillroom</div><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p>{tiles}<nav>{links}</nav>{body}'
        "</main></body></html>\n"
    )


def terminal_table(results: Mapping[str, Any]) -> Table:
    """Rows by overall and families in percent with intervals, for a terminal."""
    from rich.table import Table

    families = tables.families_of(results["rows"], four=True) or tables.families_of(
        results["rows"], four=False
    )
    meta = results["meta"]
    asked = f"{meta['questions']} questions on {meta['scenes']} scenes, split {meta['split']}"
    table = Table(title=f"accuracy in %, 95 % interval ({asked})")
    table.add_column("")
    for family in families:
        table.add_column(family, justify="right")
    if meta.get("teacher"):
        table.add_column("retention", justify="right")
        table.add_column("above blind", justify="right")
        table.add_column("against teacher", justify="right")
    for name, row in results["rows"].items():
        cells = [_terminal_cell(row.get(family)) for family in families]
        kept = row["retention"].get("overall")
        if meta.get("teacher"):
            cells.append(_terminal_cell(kept))
            cells.append("" if not kept else percent(kept["above_blind"]))
            relative = row["metrics"].get("teacher_relative", {})
            cells.append(_terminal_cell(relative.get("overall")))
        table.add_row(name, *cells, style="bold" if name == meta.get("student") else None)
    return table


def print_table(results: Mapping[str, Any]) -> None:
    """``terminal_table`` on the terminal, or as plain text where there is none."""
    from rich.console import Console

    console = Console()
    # Piped output has no width of its own and must not be cut.
    if not console.is_terminal:
        console = Console(width=160)
    console.print(terminal_table(results))


def _terminal_cell(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["score"] is None:
        return ""
    low, high = entry["low"], entry["high"]
    between = "" if low is None else f" ({100 * low:.0f}-{100 * high:.0f})"
    return f"{100 * entry['score']:.1f}{between}"


def _title(results: Mapping[str, Any]) -> str:
    meta = results["meta"]
    if meta.get("student") in results["rows"] and meta.get("teacher") in results["rows"]:
        return "How much of the teacher survived"
    return f"What {meta.get('student') or ' and '.join(results['rows'])} sees in a room"


def _lead(results: Mapping[str, Any]) -> str:
    """The result in three sentences."""
    rows, meta = results["rows"], results["meta"]
    student = rows.get(meta.get("student") or "", {})
    teacher = rows.get(meta.get("teacher") or "", {})
    blind = rows.get(meta.get("blind") or "", {})
    said = []
    if "overall" in student and "overall" in teacher:
        kept = student["retention"]["overall"]
        said.append(
            f"The student answers <b>{percent(student['overall']['score'])}</b> of the questions "
            f"about unseen rooms correctly, its teacher {percent(teacher['overall']['score'])}"
        )
        if kept["score"] is not None:
            between = f" ({interval(kept)})" if interval(kept) else ""
            said[-1] += f": it keeps <b>{percent(kept['score'])}</b>{between} of its accuracy"
    elif "overall" in student:
        said.append(
            f"{escape(str(meta['student']))} answers <b>{percent(student['overall']['score'])}</b> "
            f"({interval(student['overall'])}) of the questions correctly"
        )
    if "overall" in blind and student is not blind:
        said.append(
            f"Without looking at the pictures, {percent(blind['overall']['score'])} can be had"
        )
    said.append(
        f"{meta['questions']:,} questions on {meta['scenes']:,} scenes of the split "
        f"&ldquo;{escape(str(meta['split']))}&rdquo;; intervals are 95 %, drawn over scenes"
    )
    return ". ".join(said) + "."


def _tiles(results: Mapping[str, Any]) -> str:
    rows, meta = results["rows"], results["meta"]
    student = rows.get(meta.get("student") or "", {})
    tiles: list[tuple[str, str]] = []
    kept = student.get("retention", {}).get("overall")
    if kept and kept["score"] is not None:
        tiles.append((percent(kept["score"]), "of the teacher's accuracy kept"))
    if kept and kept["above_blind"] is not None:
        tiles.append((percent(kept["above_blind"]), "of its seeing kept (above blind)"))
    sizes = meta.get("parameters") or {}
    large, small = sizes.get(meta.get("teacher")), sizes.get(meta.get("student"))
    if large and small:
        tiles.append((f"{large / small:.2f}&times;", "smaller than the teacher"))
    metrics = student.get("metrics", {})
    if "depth" in metrics and "none" in metrics["depth"]:
        tiles.append((percent(metrics["depth"]["none"]["delta1"]), "of depth within 25 % (metric)"))
    if "fact_f1" in metrics:
        tiles.append((f"{metrics['fact_f1']['score']:.2f}", "fact F1 of its descriptions"))
    cells = "".join(f'<div class="tile"><b>{n}</b><span>{t}</span></div>' for n, t in tiles)
    return f'<div class="tiles">{cells}</div>' if tiles else ""
