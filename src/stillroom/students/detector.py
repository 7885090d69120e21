"""The things of a scene as oriented boxes: a set of guesses read from the connector's tokens.

Set prediction as in DETR (Carion et al. 2020, section 3): a few learned queries look at all tokens
of all views and each other, and each says one thing or none. No anchors, no suppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.geometry.poses import rotation_z
from stillroom.records import OrientedBox

#: Numbers of a box: centre in view0 [m], log edge lengths [log m], sine and cosine of twice the
#: yaw in view0. Twice, since a box turned by half a turn is the same box.
BOX_NUMBERS = 8
#: Where the guesses start: ahead of the first camera, at the height of a table, half a metre large.
START = (0.0, 2.5, 0.5, -0.7, -0.7, -0.7, 0.0, 1.0)
#: Channels of an attention head.
HEAD_WIDTH = 32
#: Share of the guesses that start out as things: with a rare class at even odds, the first steps
#: would teach nothing but "none" (Lin et al. 2017, section 4.1).
PRIOR = 0.05


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What every query says: logits over none (0) and the kinds (from 1), and ``BOX_NUMBERS``."""

    logits: Float[Tensor, "b q k"]
    box: Float[Tensor, "b q 8"]


class Detector(nn.Module):
    """Queries that cross-attend to the connector's tokens; one thing or none from each."""

    def __init__(
        self, hidden_size: int, *, queries: int, width: int, layers: int, kinds: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.reduce = nn.Linear(hidden_size, width)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                width // HEAD_WIDTH,
                dim_feedforward=2 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.last_norm = nn.LayerNorm(width)
        self.kind = nn.Linear(width, kinds + 1)
        self.inner = nn.Linear(width, width)
        self.box = nn.Linear(width, BOX_NUMBERS)
        self.reset_parameters()

    def forward(self, cells: Float[Tensor, "b v c d"]) -> Detections:
        """Guesses about each scene; their order means nothing."""
        seen = self.reduce(self.norm(cells.flatten(1, 2)))
        states = self.queries.expand(len(cells), -1, -1)
        for layer in self.layers:
            states = layer(states, seen)
        states = self.last_norm(states)
        box = self.box(nn.functional.gelu(self.inner(states)))
        return Detections(logits=self.kind(states), box=box)

    def reset_parameters(self) -> None:
        """Start values: queries far apart, every box at ``START``, most of them none."""
        nn.init.normal_(self.queries)
        nn.init.normal_(self.kind.weight, std=0.02)
        nn.init.zeros_(self.kind.bias)
        others = self.kind.out_features - 1
        with torch.no_grad():
            self.kind.bias[0] = float(np.log(others * (1 - PRIOR) / PRIOR))
            self.box.bias.copy_(torch.tensor(START))
        nn.init.normal_(self.box.weight, std=0.02)


def found_boxes(
    said: Detections, kinds: Sequence[str], *, least_score: float
) -> tuple[tuple[tuple[str, OrientedBox], ...], tuple[float, ...]]:
    """The things of one scene (a batch of one) in view0, surest first, and how sure: 0 to 1.

    A guess counts where its likeliest kind has at least ``least_score``.
    """
    probs = said.logits[0].float().softmax(dim=-1)[:, 1:]
    best = probs.max(dim=-1)
    boxes = said.box[0].double().cpu().numpy()
    kept = [int(i) for i in best.values.argsort(descending=True) if best.values[i] >= least_score]
    found = tuple((kinds[int(best.indices[i])], oriented_box(boxes[i])) for i in kept)
    return found, tuple(float(best.values[i]) for i in kept)


def box_numbers(
    center: Float[np.ndarray, "*n 3"], size: Float[np.ndarray, "*n 3"], yaw: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 8"]:
    """``BOX_NUMBERS`` of upright boxes: centre and edge lengths in metres, yaw in radians."""
    turn = np.stack([np.sin(2 * yaw), np.cos(2 * yaw)], axis=-1)
    return np.concatenate([center, np.log(size), turn], axis=-1)


def oriented_box(numbers: Float[np.ndarray, "8"]) -> OrientedBox:
    """The box that eight numbers mean; its yaw lies within a quarter turn either way."""
    yaw = 0.5 * float(np.arctan2(numbers[6], numbers[7]))
    return OrientedBox(center=numbers[:3], size=np.exp(numbers[3:6]), rotation=rotation_z(yaw))
