"""Pictures of the report as ``data:`` addresses: photos, depth beside depth, training curves."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from stillroom.evaluate.depth_metrics import resized
from stillroom.records import View

INK, FAINT, GRID = "#24292e", "#6b7280", "#e4e1da"
COLOURS = ("#1f6f8b", "#c2702b", "#6a8f3c", "#8a5a9e", "#b2453f", "#4c5d73", "#a38a2c", "#3d9a8b")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.fonttype": "none",
    # Equal inputs give equal bytes.
    "svg.hashsalt": "stillroom",
}
#: Photos are shown no taller than this: a report should open quickly [pixels].
_PHOTO_HEIGHT = 160
_VIEWS_SHOWN = 4


def photo(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    """A photo as a JPEG, made smaller where it is taller than the report shows it."""
    image = Image.fromarray(rgb)
    if image.height > _PHOTO_HEIGHT:
        width = max(1, round(image.width * _PHOTO_HEIGHT / image.height))
        image = image.resize((width, _PHOTO_HEIGHT), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=88)
    return address_of("image/jpeg", sink.getvalue())


def depth_figure(
    views: Sequence[View],
    predicted: Float[np.ndarray, "views h w"],
    *,
    truth_name: str,
    predicted_name: str,
) -> str | None:
    """Photo, measured depth, predicted depth and their difference, one column a view [m].

    Measured and predicted share one colour scale. None where no view has measured depth.
    """
    columns = [
        (view, view.depth, predicted[i])
        for i, view in enumerate(views)
        if view.depth is not None and view.depth_valid.any()
    ]
    columns = [columns[i] for i in _spread(len(columns), _VIEWS_SHOWN)]
    if not columns:
        return None
    maps = [_shown_maps(truth, guess) for _, truth, guess in columns]
    known = np.concatenate([truth[np.isfinite(truth)] for truth, _ in maps])
    near, far = np.percentile(known, [1, 99])
    spread = max(0.05, float(np.nanpercentile([_p95(t, p) for t, p in maps], 75)))
    aspect = maps[0][0].shape[0] / maps[0][0].shape[1]
    with rc_context({**STYLE, "axes.grid": False}):
        size = 1.55
        figure = Figure(
            figsize=(size * len(columns) + 1.1, 4 * size * aspect + 0.3), layout="constrained"
        )
        # The last column is for the colour bars, so that pictures stand under each other.
        grid = figure.add_gridspec(4, len(columns) + 1, width_ratios=[1.0] * len(columns) + [0.05])
        axes = np.array(
            [[figure.add_subplot(grid[r, c]) for c in range(len(columns))] for r in range(4)]
        )
        for column, ((view, _, _), (truth, guess)) in enumerate(zip(columns, maps, strict=True)):
            axes[0, column].imshow(view.rgb)
            axes[0, column].set_title(view.name, fontsize=7.5, fontweight="normal", color=FAINT)
            scale = {"cmap": "viridis_r", "vmin": near, "vmax": max(far, near + 1e-3)}
            shared = axes[1, column].imshow(truth, **scale)
            axes[2, column].imshow(guess, **scale)
            off = axes[3, column].imshow(guess - truth, cmap="RdBu", vmin=-spread, vmax=spread)
        names = ("photo", truth_name, predicted_name, "predicted minus\nmeasured")
        for row, name in enumerate(names):
            axes[row, 0].set_ylabel(name, fontsize=8)
            for axis in axes[row]:
                _bare(axis)
        figure.colorbar(shared, cax=figure.add_subplot(grid[1:3, -1]), label="depth [m]")
        figure.colorbar(off, cax=figure.add_subplot(grid[3, -1]), label="[m]")
        return _jpeg(figure)


#: Names side by side under a panel of curves.
_NAMES_A_LINE = 2


def training_figure(log: Path) -> str | None:
    """Curves of a run's ``log.jsonl``: terms, held-out loss, held-out shares; None if it is empty.

    Numbers under "terms" of training steps, and under "metrics" of evaluations, are drawn under
    their own names, whatever they are. Means of whole epochs are dots on the terms; what an
    evaluation says of scenes trained on ("train.NAME") is a dashed line beside NAME.
    """
    rows = _log_rows(log)
    epochs = _series([row for row in rows if row.get("kind") == "epoch"], "terms", least=1)
    steps = [row for row in rows if "terms" in row and row.get("kind") != "epoch"]
    evaluations = [row for row in rows if "terms" not in row and "metrics" in row]
    trained = _series(steps, "terms")
    held_out = _series(evaluations, "metrics")
    shares = {name: xy for name, xy in held_out.items() if is_share(name)}
    losses = {name: xy for name, xy in held_out.items() if name not in shares}
    panels = [
        ("training terms (not weighted)", {n: _smooth(xy) for n, xy in trained.items()}, ""),
        ("held-out losses", losses, "o"),
        ("held-out accuracy", shares, "o"),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    with rc_context(STYLE):
        lines = max(-(-len(curves) // _NAMES_A_LINE) for _, curves, _ in panels)
        figure = Figure(figsize=(3.6 * len(panels), 2.6 + 0.14 * lines), layout="constrained")
        for axis, (title, curves, mark) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _curves(axis, title, curves, mark, epochs if curves is panels[0][1] else {})
        sink = io.BytesIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return address_of("image/svg+xml", sink.getvalue())


#: Before the names of metrics on scenes that were trained on.
_SEEN = "train."


def _curves(
    axis: Axes,
    title: str,
    curves: Mapping[str, tuple[Any, Any]],
    mark: str,
    means: Mapping[str, tuple[Any, Any]],
) -> None:
    """Curves of one panel; ``means`` are dots on those of the same names."""
    names = list(dict.fromkeys(name.removeprefix(_SEEN) for name in curves))
    positive = all((np.asarray(y) > 0).all() for _, y in curves.values())
    largest = [float(np.max(y)) for _, y in curves.values()]
    for name, (x, y) in curves.items():
        seen, bare = name.startswith(_SEEN), name.removeprefix(_SEEN)
        colour = COLOURS[names.index(bare) % len(COLOURS)]
        # Shares are under "right.FAMILY" in the log; the title says what they are.
        label = bare.removeprefix("right.") + (" (trained on)" if seen else "")
        style = "--" if seen else mark + "-"
        axis.plot(x, y, style, color=colour, label=label, linewidth=1.4, markersize=2.5)
        if name in means:
            axis.plot(*means[name], "o", color=colour, markersize=3.5, markeredgecolor="white")
    # Terms of very different size cannot share a straight scale.
    if positive and max(largest) > 20 * min(largest):
        axis.set_yscale("log")
    axis.set_title(title)
    axis.set_xlabel("step")
    # Below the curves, which a long list of names would hide.
    axis.legend(
        fontsize=6.5,
        frameon=False,
        ncols=min(_NAMES_A_LINE, len(curves)),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        columnspacing=1.0,
        handlelength=1.4,
    )


def _shown_maps(
    truth: Float[np.ndarray, "h w"], predicted: Float[np.ndarray, "h2 w2"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Both maps on the truth's pixels, thinned where they are large; unmeasured is NaN."""
    step = max(1, truth.shape[0] // 240)
    guess = resized(predicted.astype(np.float64), *truth.shape)[::step, ::step]
    measured = truth.astype(np.float64)[::step, ::step]
    return np.where(measured > 0, measured, np.nan), guess


def _p95(truth: Float[np.ndarray, "h w"], predicted: Float[np.ndarray, "h w"]) -> float:
    off = np.abs(predicted - truth)
    return float(np.percentile(off[np.isfinite(off)], 95)) if np.isfinite(off).any() else np.nan


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` positions, evenly from the first to the last."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _log_rows(log: Path) -> list[dict[str, Any]]:
    """Whole lines of a log; a torn last one, of a run that is going on, is left out."""
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1] if line.strip()]


def _series(
    rows: Sequence[Mapping[str, Any]], key: str, *, least: int = 2
) -> dict[str, tuple[Any, Any]]:
    """{name: (steps, values)} of every number under ``key`` that is there ``least`` times."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row[key].items():
            if isinstance(value, int | float) and np.isfinite(value):
                x, y = found.setdefault(name, ([], []))
                x.append(row["step"])
                y.append(value)
    return {name: (np.array(x), np.array(y)) for name, (x, y) in found.items() if len(x) >= least}


def is_share(name: str) -> bool:
    """Whether a metric of a distillation or of an encoder's training is a share of right ones."""
    name = name.removeprefix(_SEEN)
    return name.startswith("right.") or any(word in name for word in ("accuracy", "delta1"))


def _smooth(xy: tuple[Any, Any]) -> tuple[Any, Any]:
    """Means of equal stretches, at most 120 of them: single steps are noise."""
    x, y = xy
    pieces = min(len(x), 120)
    means = [np.array([part.mean() for part in np.array_split(v, pieces)]) for v in (x, y)]
    return means[0], means[1]


def _jpeg(figure: Figure) -> str:
    """Photos and smooth maps: a tenth of a PNG, and the few words stay sharp enough."""
    sink = io.BytesIO()
    figure.savefig(sink, format="jpeg", dpi=130, pil_kwargs={"quality": 90})
    return address_of("image/jpeg", sink.getvalue())


def address_of(kind: str, data: bytes) -> str:
    """A file as a ``data:`` address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
