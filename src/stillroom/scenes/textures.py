"""Reflectance at a point of a painted solid, from the point's place in the solid's own frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int

from stillroom.scenes import paints
from stillroom.scenes.paints import Paints

Weights = Float32[np.ndarray, "n"]
Points = Float32[np.ndarray, "n 3"]
Periods = Float32[np.ndarray, "n"]


def reflectance(
    table: Paints, solid: Int[np.ndarray, "n"], local: Float32[np.ndarray, "n 3"]
) -> Float32[np.ndarray, "n 3"]:
    """Linear reflectance of hits on ``solid`` at ``local`` [m] from the solid's middle."""
    colour = table.colour[solid]
    texture = table.texture[solid]
    for number, weigh in _WEIGHTS.items():
        hit = np.flatnonzero(texture == number)
        if hit.size:
            rows = solid[hit]
            weight = weigh(local[hit], table.period[rows])[:, None]
            colour[hit] += weight * (table.second[rows] - colour[hit])
    return colour


def _noise(cells: Points) -> Weights:
    """A number in 0..1 per integer cell, the same on every machine."""
    i = cells.astype(np.int64)
    mixed = (i[:, 0] * 73856093) ^ (i[:, 1] * 19349663) ^ (i[:, 2] * 83492791)
    return (((mixed * 2654435761) >> 8) & 0xFFFF).astype(np.float32) / np.float32(0xFFFF)


def _cloth(q: Points, period: Periods) -> Weights:
    return 0.6 * _noise(np.floor(q / period[:, None]))


def _wood(q: Points, period: Periods) -> Weights:
    turn = np.float32(2 * np.pi) / period
    rings = np.sin(turn * (q[:, 1] + q[:, 2]) + 2.0 * np.sin(0.25 * turn * q[:, 0]))
    return 0.4 * np.abs(rings) ** 3


def _stripes(q: Points, period: Periods) -> Weights:
    # Across x + y, so that the stripes show on the front, the sides and the top alike.
    return (np.floor((q[:, 0] + q[:, 1]) / period + 0.5) % 2).astype(np.float32)


def _checks(q: Points, period: Periods) -> Weights:
    cell = np.floor(q / period[:, None] + 0.5)
    return (cell.sum(axis=1) % 2).astype(np.float32)


def _planks(q: Points, period: Periods) -> Weights:
    row = np.floor(q[:, 1] / period)
    along = q[:, 0] / (6 * period) + np.float32(0.37) * row
    piece = np.floor(along)
    tone = 0.6 * _noise(np.stack([row, piece, np.zeros_like(row)], axis=1))
    gap = (np.abs(q[:, 1] / period - row - 0.5) > 0.47) | (np.abs(along - piece - 0.5) > 0.493)
    return np.where(gap, np.float32(1.0), tone).astype(np.float32)


def _tiles(q: Points, period: Periods) -> Weights:
    cell = q[:, :2] / period[:, None]
    joint = (np.abs(cell - np.round(cell)) < 0.03).any(axis=1)
    return np.where(joint, np.float32(1.0), 0.12 * _noise(np.floor(q / period[:, None])))


def _panes(q: Points, period: Periods) -> Weights:
    across = np.abs(q / period[:, None] - np.round(q / period[:, None]))
    bar = (across[:, [0, 2]] > 0.45).any(axis=1) & (np.abs(q[:, 1]) < 1.0)
    return bar.astype(np.float32)


def _painting(q: Points, period: Periods) -> Weights:
    hills = period * (0.5 * np.sin(2.2 * q[:, 0] / period) - 0.2)
    return (q[:, 2] < hills).astype(np.float32)


_WEIGHTS: dict[int, Callable[[Points, Periods], Weights]] = {
    paints.CLOTH: _cloth,
    paints.WOOD: _wood,
    paints.STRIPES: _stripes,
    paints.CHECKS: _checks,
    paints.PLANKS: _planks,
    paints.TILES: _tiles,
    paints.PANES: _panes,
    paints.PAINTING: _painting,
}
