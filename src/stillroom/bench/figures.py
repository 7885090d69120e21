"""Figures of a latency record: size and time side by side, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.bench.latency import STAGES

#: Colours that stay apart in grey and for the colour-blind.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee")


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """``latency.png``, ``stages.png`` and, where something was swept, ``sweep.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_sides(record, folder / "latency.png"), _stages(record, folder / "stages.png")]
    if record["models"]["student"]["sweep"]:
        drawn.append(_sweep(record, folder / "sweep.png"))
    return drawn


def _plots(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * columns, 3.2), layout="constrained")
    return figure, figure.subplots(1, columns)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    return file


def _sides(record: Mapping[str, Any], file: Path) -> Path:
    """Parameters, weights, cold and warm question: the teacher's beside the student's."""
    models = record["models"]
    panels = {
        "parameters, millions": lambda one: one["parameters"] / 1e6,
        "weights, MB": lambda one: one["weight_bytes"] / 1e6,
        "cold question, ms": lambda one: one["cold"]["total_ms"]["median"],
        "warm question, ms": lambda one: one["warm"]["total_ms"]["median"],
    }
    figure, axes = _plots(len(panels))
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        heights = [value(one) for one in models.values()]
        bars = axis.bar(list(models), heights, color=_COLOURS[: len(heights)])
        axis.bar_label(bars, [f"{height:,.3g}" for height in heights])
        ratio = heights[0] / heights[1]
        axis.set_title(f"{title}\n{ratio:.2f}x", fontsize=10)
        axis.margins(y=0.15)
    return _save(figure, file)


def _stages(record: Mapping[str, Any], file: Path) -> Path:
    """Where a cold question's time goes."""
    figure, axis = _plots(1)
    for place, one in enumerate(record["models"].values()):
        left = 0.0
        for stage, colour in zip(STAGES, _COLOURS, strict=False):
            width = one["cold"][f"{stage}_ms"]["median"]
            label = stage if place == 0 else None
            axis.barh(place, width, left=left, color=colour, label=label)
            left += width
    axis.set_yticks(range(len(record["models"])), list(record["models"]))
    axis.set_xlabel("cold question, ms")
    axis.legend(fontsize=8)
    return _save(figure, file)


def _sweep(record: Mapping[str, Any], file: Path) -> Path:
    """Time over the number of photos, and over the number of questions at once."""
    figure, axes = _plots(2)
    titles = {"views": "cold question, photos", "batch": "warm, questions at once"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for (name, one), colour in zip(record["models"].items(), _COLOURS, strict=False):
            found = [entry for entry in one["sweep"] if key in entry]
            counts = [entry[key] for entry in found]
            times = [entry["total_ms"]["median"] for entry in found]
            axis.plot(counts, times, marker="o", color=colour, label=name)
        axis.set(xlabel=title, ylabel="ms", ylim=(0, None))
        if axis.lines and len(axis.lines[0].get_xdata()):
            axis.legend(fontsize=8)
    return _save(figure, file)
