"""The report's sections as HTML; each is empty where its material is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillroom.evaluate import report_tables as tables
from stillroom.evaluate.depth_metrics import alignments_of, depth_errors, mean_errors, resized
from stillroom.evaluate.items import ItemStore
from stillroom.evaluate.report_figures import depth_figure, photo, training_figure
from stillroom.evaluate.report_tables import percent
from stillroom.evaluate.run import seen_by, shown_depth, shown_scenes
from stillroom.records import FAMILIES, Answerer, Scene, SceneGeometry
from stillroom.scenes.store import SceneStore

_VIEWS_IN_A_CARD = 6


class Capture(TypedDict, total=False):
    """What the report shows of a real capture; whoever ran the models hands it over.

    ``answers`` hold one mapping per question: "question", then a name and a text per answerer.
    """

    title: str
    statement: str
    check: Sequence[str]
    scene: Scene
    geometry: SceneGeometry | None
    answers: Sequence[Mapping[str, str]]
    log: Path


class Items:
    """The kept answers of teacher and student, by question."""

    def __init__(self, scene_ids: list[str], rows: dict[str, dict[str, dict[str, Any]]]) -> None:
        self.scene_ids = scene_ids
        self.rows = rows

    @classmethod
    def read(cls, out: Path, meta: Mapping[str, Any]) -> Items:
        """From ``out/items.parquet``; empty where there is none."""
        path = out / "items.parquet"
        if not path.is_file():
            return cls([], {})
        table = pq.read_table(path)
        rows = {}
        for part in ("teacher", "student"):
            lines = table.filter(pc.field("model") == (meta.get(part) or "")).to_pylist()
            rows[part] = {line["question_id"]: line for line in lines}
        return cls(list(dict.fromkeys(table["scene_id"].to_pylist())), rows)


def scores_section(results: Mapping[str, Any]) -> str:
    rows = results["rows"]
    text = (
        '<p class="note">Share of correct answers against the truth; below it the 95 % interval '
        "and the number of questions. The dashed tick in each bar is the blind row.</p>"
    )
    four, others = (tables.families_of(rows, four=which) for which in (True, False))
    if four:
        text += tables.score_table(results, four)
    if others:
        text += (
            "<h3>Further tasks</h3><p class='note'>Choices are shares of correct answers, numbers "
            "mean relative accuracy (MRA), descriptions ROUGE-1 against the best rendering.</p>"
        )
        text += "".join(
            tables.score_table(results, others[start : start + 6])
            for start in range(0, len(others), 6)
        )
    margins = tables.margin_table(results)
    if margins:
        text += (
            "<h3>Hard and clear cases</h3><p class='note'>Accuracy in the hardest, the middle and "
            f"the clearest third of each family's margin.</p>{margins}"
        )
    return text


def retention_section(results: Mapping[str, Any]) -> str:
    families = tables.families_of(results["rows"], four=True)
    table = tables.retention_table(results, families)
    beside = tables.relative_table(results, families)
    if beside:
        beside = (
            "<h3>Against the truth | against the teacher</h3><p class='note'>On the right the "
            "teacher's answers count as the truth, as distillation papers print it: a student that "
            f"copies its teacher's mistakes gains there.</p>{beside}"
        )
    return table and (
        "<p>Student score over teacher score on the same questions, both against the truth. A "
        "guesser keeps part of any teacher too, so <i>above blind</i> says what share of the "
        "teacher's lead over the blind row is kept: (student &minus; blind) / (teacher &minus; "
        f"blind).</p>{table}{beside}"
    )


def text_section(results: Mapping[str, Any]) -> str:
    table = tables.text_table(results)
    return table and (
        '<p class="note">ROUGE (F1, with precision P and recall R) against the best rendering of '
        "the truth, corpus BLEU, and F1 over the stated facts (objects, attributes, relations); "
        f"fractions.</p>{table}"
    )


def training_section(log: Path | None) -> str:
    figure = training_figure(log) if log is not None else None
    return _captioned(figure, "From the run's log; training terms are means of neighbouring steps.")


def answers_section(items: Items, store: SceneStore | None) -> str:
    """Cards with pictures, question, truth, teacher and student."""
    chosen = _chosen(items.rows.get("student", {}), rng=np.random.default_rng(0))
    if store is None or not chosen:
        return ""
    cards = []
    for line in chosen:
        scene = store.scene(line["scene_id"])
        taught = items.rows["teacher"].get(line["question_id"])
        wide = " whole" if line["scorer"].startswith("rouge") else ""
        said = f"<dt>truth</dt><dd>{escape(line['truth'])}</dd>"
        said += _said("teacher", taught) if taught else ""
        said += _said("student" if taught else "answer", line)
        cards.append(
            f'<div class="card{wide}">'
            f'<div class="family">{tables.family_name(line["family"])}</div>'
            f'<div class="asked">{escape(line["question"])}</div>{_options(line)}{_views(scene)}'
            f'<dl class="said">{said}</dl></div>'
        )
    return (
        '<p class="note">Drawn by a fixed seed: for each family one question that the student got '
        "right and one that it got wrong, where there are both, then one of each further kind. So "
        "wrong answers are as many here as right ones, whatever the scores above.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _chosen(lines: Mapping[str, Any], *, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One right and one wrong answer per family, one of each other family, at most twelve."""
    drawn = [lines[key] for key in rng.permutation(sorted(lines)).tolist()]
    drawn = [line for line in drawn if line["score"] is not None]
    chosen: list[dict[str, Any]] = []
    for family in FAMILIES:
        for right in (True, False):
            fit = [x for x in drawn if x["family"] == family and (x["score"] >= 0.5) == right]
            chosen += fit[:1]
    others = {line["family"]: line for line in drawn if line["family"] not in FAMILIES}
    ordered = sorted(others, key=lambda family: (family != "description", family))
    return (chosen + [others[family] for family in ordered])[:12]


def _said(who: str, line: Mapping[str, Any]) -> str:
    if line["scorer"].startswith(("option", "vsi-letter")):
        right = line["score"] >= 0.5
        mark = f'<span class="mark {"right" if right else "wrong"}">{"✓" if right else "✗"}</span>'
        note = ""
    else:
        name = "ROUGE-1" if line["scorer"].startswith("rouge") else "score"
        mark, note = "", f' <span class="note">({name} {line["score"]:.2f})</span>'
    text = escape(line["answer"]) or "<i>(nothing)</i>"
    return f"<dt>{who}</dt><dd>{mark}{text}{note}</dd>"


def _options(line: Mapping[str, Any]) -> str:
    """The options of a lettered question; the others say theirs in the question."""
    if not line["scorer"].startswith("vsi-letter"):
        return ""
    return f'<div class="note">{"<br>".join(escape(o) for o in line["options"])}</div>'


def _views(scene: Scene, *, large: bool = False) -> str:
    images = "".join(
        f'<img src="{photo(view.rgb)}" alt="{escape(view.name, quote=True)}">'
        for view in scene.views[:_VIEWS_IN_A_CARD]
    )
    return f'<div class="views{" large" if large else ""}">{images}</div>'


def depth_section(
    results: Mapping[str, Any],
    items: Items,
    store: SceneStore | None,
    kept: ItemStore,
    student: Callable[[], Answerer] | None,
) -> str:
    meta = results["meta"]
    figures = ""
    if store is not None and items.scene_ids:
        seed = (meta.get("seeds") or {}).get("evaluation", 0)
        row = results["rows"].get(meta.get("student")) or {}
        metric = "none" in row.get("metrics", {}).get("depth", {"none": None})
        unit = "metres as predicted (no alignment)"
        if not metric:
            unit = "the student's depth has no scale: its median is brought to the measured one"
        answerer: Answerer | None = None
        for scene_id in shown_scenes(items.scene_ids, seed=seed):
            predicted = kept.depth_map(meta.get("student") or "", scene_id)
            scene = store.scene(scene_id)
            if predicted is None and student is not None:
                answerer = answerer or student()
                session = answerer.open(scene)
                ask = getattr(session, "geometry", None)
                geometry = ask() if callable(ask) else None
                if geometry is not None and geometry.depth is not None:
                    predicted = shown_depth(seen_by(session, scene), geometry)
            if predicted is not None:
                figure = depth_figure(
                    scene.views, predicted, truth_name="true depth", predicted_name="predicted"
                )
                figures += _captioned(figure, f"Scene {scene_id}, {unit}.")
    table = tables.depth_table(results)
    note = (
        '<p class="note">Errors per picture over measured pixels, then the mean over pictures; '
        "&delta;k is the share within a factor of 1.25<sup>k</sup>. Scenes shown are drawn by "
        "seed.</p>"
    )
    return (note + table + figures) if table or figures else ""


def capture_section(capture: Capture | None) -> str:
    if capture is None:
        return ""
    text = f"<p>{escape(capture.get('title', ''))}</p>"
    text += f'<div class="plain">{escape(capture.get("statement", ""))}</div>'
    scene = capture.get("scene")
    if scene is not None:
        text += _views(scene, large=True)
    if capture.get("check"):
        lines = "<br>".join(escape(line) for line in capture["check"])
        text += f"<h3>What its geometry says</h3><p class='note'>{lines}</p>"
    answers = capture.get("answers") or ()
    if answers:
        heads = "".join(f"<th>{escape(name)}</th>" for name in answers[0])
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line.values()) + "</tr>"
            for line in answers
        )
        text += (
            f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
            "</table></div>"
        )
    if "log" in capture:
        figure = training_figure(capture["log"])
        text += _captioned(figure, "The few steps of distilling on this capture.")
    geometry = capture.get("geometry")
    if scene is not None and geometry is not None and geometry.depth is not None:
        text += _capture_depth(scene, geometry)
    return text


def _capture_depth(scene: Scene, geometry: SceneGeometry) -> str:
    depth = shown_depth(scene, geometry)
    figure = depth_figure(
        scene.views, depth, truth_name="sensor depth", predicted_name="student's depth"
    )
    said = []
    names = {"none": "as it is", "median": "median scaled"}
    for alignment in alignments_of(geometry.depth_unit):
        pictures = [
            errors
            for view, guess in zip(scene.views, depth, strict=True)
            if view.depth is not None
            and (
                errors := depth_errors(
                    resized(guess, *view.depth.shape), view.depth, alignment=alignment
                )
            )
        ]
        if pictures:
            mean = mean_errors(pictures)
            said.append(
                f"{names[alignment]}: RMSE {mean['rmse']:.2f} m, AbsRel {mean['abs_rel']:.2f}, "
                f"&delta;1 {percent(mean['delta1'])} ({len(pictures)} pictures)"
            )
    return _captioned(figure, "The student's depth beside the sensor's. " + "; ".join(said) + ".")


def _captioned(address: str | None, caption: str) -> str:
    if address is None:
        return ""
    alt = escape(caption, quote=True)
    return f'<figure><img src="{address}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'
