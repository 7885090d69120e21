"""A probe for people: ``PROBE.html``, a plot of what is read by layer, and attention on photos."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure

from stillroom.bench.tables import Table
from stillroom.evaluate.report import html_page
from stillroom.evaluate.report_figures import COLOURS, FAINT, STYLE, address_of
from stillroom.evaluate.report_tables import meta_table
from stillroom.scenes.store import write_atomically


@dataclass(frozen=True, kw_only=True)
class AttentionPicture:
    """Attention of every slot over the photos of one scene, for one question."""

    scene_id: str
    question: str
    photos: Sequence[UInt8[np.ndarray, "h w 3"]]
    attention: Float[np.ndarray, "k views rows columns"]


def write_report(
    record: Mapping[str, Any], pictures: Sequence[AttentionPicture], out: Path
) -> list[Path]:
    """Write the page, the plot and a contact sheet per picture into ``out``."""
    files = {"probe.png": level_plot(record)}
    files |= {f"attention_{n}.png": sheet(picture) for n, picture in enumerate(pictures)}
    for name, content in files.items():
        write_atomically(out / name, content)
    page = _page(record, files, pictures)
    write_atomically(out / "PROBE.html", page.encode())
    return [*(out / name for name in files), out / "PROBE.html"]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """The best layer of every property and representation, then all layers, then attention."""
    return [best_table(record), *level_tables(record), attention_table(record)]


def best_table(record: Mapping[str, Any]) -> Table:
    """Each property at the layer where the slots tell most of it."""
    rows = []
    for task, found in record["scores"].items():
        slots = found["levels"]["slots"]
        level = int(np.argmax([one["score"]["value"] for one in slots]))
        for name, levels in found["levels"].items():
            rows.append([f"{task} ({level})", name, *_cells(levels[level], found)])
    note = (
        "The layer in brackets is the one at which the slots score best, 0 being what is read in; "
        "the other rows are of the same layer. Selectivity is how far the score lies above always "
        "saying the same, less how far the control does [in brackets what always saying the same "
        "has there]."
    )
    head = ["property (layer)", "from", *_HEAD]
    return Table(title="What can be read", note=note, head=head, rows=rows)


_HEAD = ("score", "always the same", "control task", "selectivity", "mean error", "n")


def level_tables(record: Mapping[str, Any]) -> list[Table]:
    """A table of all layers per property."""
    return [
        Table(
            title=f"All layers: {task}",
            head=["layer", "from", *_HEAD],
            rows=[
                [str(level), name, *_cells(one, found)]
                for name, levels in found["levels"].items()
                for level, one in enumerate(levels)
            ],
        )
        for task, found in record["scores"].items()
    ]


def _cells(one: Mapping[str, Any], task: Mapping[str, Any]) -> list[str]:
    kind = "accuracy" if task["classes"] else "R²"
    error = one["error"]
    return [
        f"{kind} {_interval(one['score'])}",
        f"{one['guess']:.3f}",
        f"{_interval(one['control'])} [{one['control_guess']:.3f}]",
        _interval(one["selectivity"]),
        "-" if error is None else f"{_interval(error)} {task['unit']}",
        f"{one['n']} (learnt from {one['trained_on']})",
    ]


def _interval(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def attention_table(record: Mapping[str, Any]) -> Table:
    """Where each slot looks, mean over layers, heads and questions."""
    held = record["attention"]
    rows = []
    for row in held["slots"] if held else ():
        named = row["on_things_named"]
        photos = " ".join(f"{100 * part:.0f}" for part in row["by_photo"])
        rows.append(
            [
                str(row["slot"]),
                f"{100 * row['on_photos']['score']:.1f} % ({100 * row['on_photos']['low']:.1f} to "
                f"{100 * row['on_photos']['high']:.1f})",
                f"{row['entropy_nats']:.2f}",
                photos,
                "-"
                if named is None
                else f"{named['score']:.2f} ({named['low']:.2f} to {named['high']:.2f})",
            ]
        )
    note = ""
    if held:
        note = (
            f"Mean over layers, heads and {held['questions']} questions on {held['scenes']} "
            f"scenes. Spread: entropy over the cells; {held['even_entropy_nats']:.2f} nats are "
            "even. Things named: attention on their cells over what their area would get; 1 is "
            "indifference."
        )
    head = ["slot", "of its attention on photos", "spread [nats]", "by photo, %", "things named"]
    return Table(title="Where the slots look", note=note, head=head, rows=rows)


def level_plot(record: Mapping[str, Any]) -> bytes:
    """Score by layer of every property, its control dotted; a PNG."""
    scores = record["scores"]
    with rc_context(STYLE):
        columns = min(3, len(scores))
        lines = -(-len(scores) // columns)
        figure = Figure(figsize=(3.5 * columns, 2.7 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis in grid[len(scores) :]:
            axis.set_axis_off()
        for axis, (task, found) in zip(grid, scores.items(), strict=False):
            for number, (name, levels) in enumerate(found["levels"].items()):
                colour, x = COLOURS[number], range(len(levels))
                for part, style in (("score", "o-"), ("control", ":")):
                    y = [one[part]["value"] for one in levels]
                    label = name if part == "score" else None
                    axis.plot(x, y, style, color=colour, label=label, linewidth=1.4, markersize=3)
            guess = found["levels"]["slots"][0]["guess"]
            axis.axhline(guess, color=FAINT, linewidth=0.8)
            axis.set(
                title=task,
                xlabel="layer",
                ylabel="accuracy" if found["classes"] else "R²",
                xticks=list(x),
            )
            if not found["classes"]:
                axis.set_ylim(bottom=max(-0.3, axis.get_ylim()[0]))
        grid[0].legend(fontsize=6.5, frameon=False)
        return _png(figure)


def sheet(picture: AttentionPicture) -> bytes:
    """Photos, and below them a row for every slot with its attention laid over; a PNG.

    Each slot has its own scale, so that a faint one can be seen; its share on every photo stands
    in the corner.
    """
    slots, views = picture.attention.shape[:2]
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(1.35 * views + 0.5, 1.35 * (slots + 1) + 0.5), layout="constrained"
        )
        axes = figure.subplots(slots + 1, views, squeeze=False)
        figure.suptitle(f"{picture.question}\nscene {picture.scene_id}", fontsize=9)
        for view, rgb in enumerate(picture.photos):
            axes[0, view].imshow(rgb)
            grey = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2) / 255
            extent = (0, rgb.shape[1], rgb.shape[0], 0)
            for slot in range(slots):
                seen, axis = picture.attention[slot], axes[slot + 1, view]
                axis.imshow(0.4 + 0.6 * grey, extent=extent)
                axis.imshow(
                    seen[view],
                    cmap="inferno",
                    alpha=0.6,
                    vmin=0,
                    vmax=float(seen.max()),
                    extent=extent,
                    interpolation="nearest",
                )
                axis.set_title(
                    f"{100 * seen[view].sum() / seen.sum():.0f} %", fontsize=6.5, color=FAINT, pad=1
                )
        for row, line in enumerate(axes):
            line[0].set_ylabel("photo" if row == 0 else f"slot {row}", fontsize=8)
            for axis in line:
                axis.set(xticks=[], yticks=[])
        return _png(figure)


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})
    return sink.getvalue()


def _page(
    record: Mapping[str, Any], files: Mapping[str, bytes], pictures: Sequence[AttentionPicture]
) -> str:
    best, *others, looked = tables(record)
    plot = _figure(files["probe.png"], "Score by layer; dotted: the control task; grey: a guess.")
    sheets = "".join(
        _figure(files[f"attention_{number}.png"], f"{picture.question} Mean over heads and layers.")
        for number, picture in enumerate(pictures)
    )
    what = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>"
        for name, text in record["representations"].items()
    )
    sections = [
        ("read", best.title, f"<ul>{what}</ul>{best.html()}{plot}"),
        ("look", looked.title, looked.html() + sheets),
        ("layers", "All layers", "".join(f"<h3>{t.title}</h3>{t.html()}" for t in others)),
        ("making", "How this was made", meta_table(record["meta"])),
    ]
    meta = record["meta"]
    lead = (
        f"Linear probes of {record['name']}, learnt from {meta['scenes']['train']} scenes of the "
        f"split 'train', scored on {meta['scenes'][meta['split']]} of {meta['split']!r}. "
        "What a probe reads is there; that the answer uses it is not said: stillroom ablate slots "
        "asks that."
    )
    return html_page(f"What the slots of {record['name']} hold", escape(lead), sections)


def _figure(picture: bytes, caption: str) -> str:
    alt = escape(caption, quote=True)
    return (
        f'<figure><img src="{address_of("image/png", picture)}" alt="{alt}">'
        f"<figcaption>{alt}</figcaption></figure>"
    )
