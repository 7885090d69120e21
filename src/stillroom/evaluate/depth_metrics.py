"""Depth errors of one picture, under a named alignment.

Formulae: specs/benchmarks.md section 9. Metres in, metres out; the deltas, AbsRel and the log
errors have no unit. Means over pictures are means of these per-picture values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from stillroom.records import DepthUnit

Alignment = Literal["none", "median", "scale", "scale_shift"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
#: What a table shows, with "none" and "median".
DEPTH_ERRORS = ("rmse", "mae", "abs_rel", "delta1", "delta2", "delta3")

# Depth that a prediction is lifted to before logs and ratios are taken [m].
_SMALLEST = 1e-6


def comparable(
    predicted: Float[np.ndarray, "*shape"], target: Float[np.ndarray, "*shape"]
) -> Bool[np.ndarray, "*shape"]:
    """Where both are known: the target measured (> 0) and the prediction a finite number."""
    return (target > 0) & np.isfinite(target) & np.isfinite(predicted)


def align(
    predicted: Float[np.ndarray, "n"], target: Float[np.ndarray, "n"], alignment: Alignment
) -> Float[np.ndarray, "n"]:
    """The prediction brought to the target's scale [m]; "none" leaves it.

    "median" matches the medians, "scale" and "scale_shift" are least squares in depth.
    """
    if alignment == "none":
        return predicted
    scale, shift = fitted(predicted, target, alignment)
    return scale * predicted + shift


def fitted(
    predicted: Float[np.ndarray, "n"], target: Float[np.ndarray, "n"], alignment: Alignment
) -> tuple[float, float]:
    """Scale and shift [m] that ``align`` applies."""
    if alignment == "none":
        return 1.0, 0.0
    if alignment == "median":
        # A map of zeros has no scale to find and stays as wrong as it is.
        median = float(np.median(predicted))
        return (float(np.median(target)) / median if median > 0 else 1.0), 0.0
    if alignment == "scale":
        square = float(predicted @ predicted)
        return (float(predicted @ target) / square if square > 0 else 1.0), 0.0
    design = np.stack([predicted, np.ones_like(predicted)], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, target, rcond=None)
    return float(scale), float(shift)


def alignments_of(unit: DepthUnit) -> tuple[Alignment, ...]:
    """The alignments that a table shows: depth without a scale is never taken as metres."""
    return ("none", "median") if unit == "metre" else ("median",)


def median_scaled(
    predicted: Float[np.ndarray, "h w"], target: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "h w"]:
    """A map brought to the target's metres by the medians, as it is where nothing is measured."""
    wide = resized(predicted, *target.shape)
    valid = comparable(wide, target)
    if not valid.any():
        return predicted
    scale, _ = fitted(wide[valid].astype(np.float64), target[valid].astype(np.float64), "median")
    return predicted * predicted.dtype.type(scale)


def depth_errors(
    predicted: Float[np.ndarray, "*shape"],
    target: Float[np.ndarray, "*shape"],
    *,
    alignment: Alignment,
) -> dict[str, float] | None:
    """Errors over the measured pixels (target > 0, m), or None where nothing was measured.

    delta_k is the share with max(p/t, t/p) strictly below 1.25^k; silog has variance factor 0.5.
    """
    valid = comparable(predicted, target)
    if not valid.any():
        return None
    truth = target[valid].astype(np.float64)
    aligned = align(predicted[valid].astype(np.float64), truth, alignment)
    difference = aligned - truth
    positive = np.maximum(aligned, _SMALLEST)
    ratio = np.maximum(positive / truth, truth / positive)
    log_difference = np.log(positive) - np.log(truth)
    log_square = float(np.mean(log_difference**2))
    silog_square = log_square - 0.5 * float(np.mean(log_difference)) ** 2
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "mae": float(np.mean(np.abs(difference))),
        "abs_rel": float(np.mean(np.abs(difference) / truth)),
        "sq_rel": float(np.mean(difference**2 / truth)),
        "rmse_log": float(np.sqrt(log_square)),
        "log10": float(np.mean(np.abs(log_difference))) / float(np.log(10.0)),
        "silog": float(np.sqrt(max(silog_square, 0.0))),
        "delta1": float(np.mean(ratio < 1.25)),
        "delta2": float(np.mean(ratio < 1.25**2)),
        "delta3": float(np.mean(ratio < 1.25**3)),
    }


def mean_errors(pictures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over pictures of each error."""
    if not pictures:
        raise ValueError("no picture had measured depth: a mean over nothing has no value")
    return {name: float(np.mean([one[name] for one in pictures])) for name in pictures[0]}


def resized(depth: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """A depth map at another size by bilinear sampling at pixel centres (+0.5), metres kept."""
    source_height, source_width = depth.shape
    if (source_height, source_width) == (height, width):
        return depth
    top, bottom, down = _sampling(source_height, height)
    left, right, across = _sampling(source_width, width)
    wide = depth[:, left] * (1 - across) + depth[:, right] * across
    return wide[top] * (1 - down[:, None]) + wide[bottom] * down[:, None]


def _sampling(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbour of each target pixel, and the share of the upper one."""
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = place.astype(int)
    return lower, np.minimum(lower + 1, source - 1), place - lower
