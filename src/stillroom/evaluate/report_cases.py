"""The report's qualitative section: best, median and worst cases of a student, after table V.

Descriptions are ranked by their overlap with the teacher's, scenes by how many of the four
families' questions the student answers as its teacher does. Every case is a rank, not a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stillroom.evaluate.qualitative import CASES, RANKED_BY
from stillroom.evaluate.report_figures import photo
from stillroom.records import FAMILIES, Scene
from stillroom.scenes.store import SceneStore

#: Photos of a case.
_PHOTOS = 6
#: Questions of a scene that are shown.
_MOST_QUESTIONS = 12

Lines = Mapping[str, Mapping[str, Any]]


def cases_section(
    results: Mapping[str, Any], student: Lines, teacher: Lines, store: SceneStore | None
) -> str:
    """Cases and figures of the student row; empty without a teacher to compare with.

    ``student`` and ``teacher`` are their items by question id.
    """
    row = results["rows"].get(results["meta"].get("student") or "", {})
    against = row.get("metrics", {}).get("against_teacher", {})
    return _descriptions(against, store) + _answers(student, teacher, store)


def _descriptions(against: Mapping[str, Any], store: SceneStore | None) -> str:
    if "agreement" not in against:
        return ""
    cards = "".join(
        _card(
            f"{case['case']}: ROUGE-1 {case['rouge1']:.2f}",
            case["question"],
            _scene(store, case["scene_id"]),
            [("teacher", escape(case["teacher"])), ("student", escape(case["student"]))],
            _figures(case),
        )
        for case in against["cases"]
    )
    return (
        "<h3>Descriptions</h3><p class='note'>The best, the median and the worst of all "
        f"descriptions by {escape(RANKED_BY)}.</p><div class='cards'>{cards}</div>"
        + agreement_table(against["agreement"])
    )


def _figures(case: Mapping[str, Any]) -> str:
    meteor = f" &middot; meteor-1.5 {case['meteor']:.2f}" if "meteor" in case else ""
    return (
        f"P {case['precision']:.2f} &middot; R {case['recall']:.2f} &middot; BLEU-1 "
        f"{case['bleu1']:.2f}{meteor} &middot; {case['words']} words, teacher "
        f"{case['teacher_words']}"
    )


#: What the table of agreement shows: its name, the figure, and what it means.
AGREEMENT = (
    ("ROUGE-1", "f1", "overlap with the teacher's text"),
    ("precision", "precision", "of what the student says, said by the teacher too"),
    ("recall", "recall", "of what the teacher says, said by the student too"),
    ("BLEU-1", "bleu1", "with its penalty for short texts"),
    ("length ratio", "length_ratio", "words of the student over words of the teacher"),
    ("ROUGE-1 per word", "per_word", "overlap over words said"),
    ("the teacher's own", "teacher_per_word", "1 over its words: what a copy would have"),
)


def agreement_table(agreement: Mapping[str, Any]) -> str:
    """Macro and corpus figures side by side, as HTML."""
    body = ""
    for title, name, meaning in AGREEMENT:
        macro, corpus = agreement["macro"][name], agreement["corpus"][name]
        body += (
            f"<tr><th class='rowname'>{title}<small>{escape(meaning)}</small></th>"
            f"<td class='number'><b>{macro['score']:.4f}</b><span class='ci'>{macro['low']:.4f} to "
            f"{macro['high']:.4f} &middot; n {macro['n']}</span></td>"
            f"<td class='number'><b>{corpus:.4f}</b></td></tr>"
        )
    words = agreement["words"]
    return (
        "<h3>How much is said</h3><p class='note'>Macro: of each text, then the mean. Corpus: of "
        "all words together. They differ, and neither follows from the other. A student that says "
        f"little is precise and recalls little: it says {words['student']:.1f} words, its teacher "
        f"{words['teacher']:.1f}.</p><div class='wide'><table><thead><tr><th></th><th>macro</th>"
        f"<th>corpus</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _answers(student: Lines, teacher: Lines, store: SceneStore | None) -> str:
    ranked = ranked_scenes(student, teacher)
    if not ranked:
        return ""
    cards = ""
    for name, (scene_id, keys, share) in case_scenes(ranked).items():
        lines = "".join(
            f"<tr><td>{escape(student[key]['question'])}</td><td>{escape(student[key]['truth'])}"
            f"</td><td>{escape(teacher[key]['answer'])}</td>"
            f"<td>{_mark(agrees(student[key], teacher[key]))}{escape(student[key]['answer'])}"
            "</td></tr>"
            for key in keys[:_MOST_QUESTIONS]
        )
        table = (
            "<div class='wide'><table><thead><tr><th>question</th><th>truth</th><th>teacher</th>"
            f"<th>student</th></tr></thead><tbody>{lines}</tbody></table></div>"
        )
        title = f"{name}: {100 * share:.0f} % of {len(keys)} as the teacher says"
        cards += _card(title, "", _scene(store, scene_id), [], table)
    return (
        "<h3>Answers</h3><p class='note'>The best, the median and the worst scene by the share of "
        "the four families' questions that the student answers as its teacher does.</p>"
        f"<div class='cards'>{cards}</div>"
    )


def ranked_scenes(student: Lines, teacher: Lines) -> list[tuple[str, list[str], float]]:
    """(scene, its questions of the four families, share answered alike), most alike first."""
    by_scene: dict[str, list[str]] = {}
    for key, line in student.items():
        if line["family"] in FAMILIES and key in teacher:
            by_scene.setdefault(line["scene_id"], []).append(key)
    found = [
        (scene_id, keys, sum(agrees(student[k], teacher[k]) for k in keys) / len(keys))
        for scene_id, keys in by_scene.items()
    ]
    return sorted(found, key=lambda one: (-one[2], one[0]))


def case_scenes(
    ranked: Sequence[tuple[str, list[str], float]],
) -> dict[str, tuple[str, list[str], float]]:
    """Best, median and worst, each scene once."""
    places = dict(zip(CASES, (0, (len(ranked) - 1) // 2, len(ranked) - 1), strict=True))
    taken: dict[str, tuple[str, list[str], float]] = {}
    for name, place in places.items():
        if ranked[place] not in taken.values():
            taken[name] = ranked[place]
    return taken


def agrees(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> bool:
    """Whether both answers were understood to mean the same."""
    return student["parsed"] is not None and student["parsed"] == teacher["parsed"]


def _mark(right: bool) -> str:
    return f'<span class="mark {"right" if right else "wrong"}">{"✓" if right else "✗"}</span>'


def _scene(store: SceneStore | None, scene_id: str) -> Scene | None:
    return None if store is None else store.scene(scene_id)


def _card(
    title: str, asked: str, scene: Scene | None, said: Sequence[tuple[str, str]], below: str
) -> str:
    """A case over the whole width; ``said`` and ``below`` are HTML already."""
    views = "" if scene is None else _photos(scene)
    pairs = "".join(f"<dt>{who}</dt><dd>{text or '<i>(nothing)</i>'}</dd>" for who, text in said)
    listed = f'<dl class="said">{pairs}</dl>' if said else ""
    question = f'<div class="asked">{escape(asked)}</div>' if asked else ""
    return (
        f'<div class="card whole"><div class="family">{escape(title)}</div>{question}{views}'
        f'{listed}<div class="note">{below}</div></div>'
    )


def _photos(scene: Scene) -> str:
    images = "".join(
        f'<img src="{photo(view.rgb)}" alt="{escape(view.name, quote=True)}">'
        for view in scene.views[:_PHOTOS]
    )
    return f'<div class="views">{images}</div>'
