"""Keys and values of a row, in memory that is taken once and written as the row grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Rows that grow get room in steps of so many tokens.
STEP = 64


class KeyValues:
    """Keys and values by layer, ``[1 heads room d]`` each; the first ``length`` positions count.

    Growing beyond the room takes new memory and copies; with enough room nothing is ever copied.
    Of a layer both are one piece of memory, keys first.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._both: list[Tensor] = []

    @classmethod
    def of(
        cls, layers: Sequence[tuple[Float[Tensor, "1 heads n d"], Tensor]], room: int
    ) -> KeyValues:
        """A copy of what has been read, with room for ``room`` positions in all."""
        made = cls(room)
        for keys, values in layers:
            made._take(keys, values)
        made.length = layers[0][0].shape[2] if layers else 0
        return made

    def put(
        self,
        layer: int,
        keys: Float[Tensor, "1 heads q d"],
        values: Float[Tensor, "1 heads q d"],
        *,
        seen: int | None = None,
        at: Int[Tensor, "q"] | None = None,
    ) -> tuple[Float[Tensor, "1 heads l d"], Float[Tensor, "1 heads l d"]]:
        """Write new positions behind the others; what they may look at, themselves last.

        With ``seen`` that is the first so many positions and the new ones. ``at`` says the places
        by a tensor, so that no length has to be known on the host; then all of the room is given
        back, and a mask has to tell what counts. The row is longer only after ``grow``.
        """
        if layer == len(self.keys):
            self._take(keys[:, :, :0], values[:, :, :0])
        if at is not None:
            self.keys[layer].index_copy_(2, at, keys)
            self.values[layer].index_copy_(2, at, values)
            return self.keys[layer], self.values[layer]
        end = self.length + keys.shape[2]
        self.reserve(end)
        all_keys, all_values = self.keys[layer], self.values[layer]
        count = end - self.length
        all_keys.narrow(2, self.length, count).copy_(keys)
        all_values.narrow(2, self.length, count).copy_(values)
        if seen is None or seen == self.length:
            return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)
        return (
            torch.cat([all_keys[:, :, :seen], keys], dim=2),
            torch.cat([all_values[:, :, :seen], values], dim=2),
        )

    def append(
        self, layer: int, both: Float[Tensor, "1 2 heads 1 d"]
    ) -> tuple[Float[Tensor, "1 heads l d"], Float[Tensor, "1 heads l d"]]:
        """``put`` for one position behind a row that has been read, key and value at once."""
        end = self.length + 1
        self.reserve(end)
        self._both[layer].narrow(3, self.length, 1).copy_(both)
        return self.keys[layer].narrow(2, 0, end), self.values[layer].narrow(2, 0, end)

    def lend(self) -> KeyValues:
        """A row that begins as this one does and is written into the room behind it."""
        row = KeyValues(self.room)
        row.length, row._both = self.length, list(self._both)
        row.keys, row.values = list(self.keys), list(self.values)
        return row

    def grow(self, count: int) -> None:
        """So many positions have been written in every layer."""
        self.length += count

    def reserve(self, room: int) -> None:
        """Room for at least so many positions."""
        if room <= self.room:
            return
        room = max(room, self.room * 5 // 4)
        self.room = -(-room // STEP) * STEP
        kept = list(self.layers())
        self.keys, self.values, self._both = [], [], []
        for keys, values in kept:
            self._take(keys, values)

    def layers(self) -> list[tuple[Float[Tensor, "1 heads l d"], Float[Tensor, "1 heads l d"]]]:
        """What counts of every layer; views, not copies."""
        return [
            (keys[:, :, : self.length], values[:, :, : self.length])
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def select(self, places: Int[Tensor, "l"]) -> KeyValues:
        """A row of these positions alone, with as much room behind them as there is here."""
        kept = [(keys[:, :, places], values[:, :, places]) for keys, values in self.layers()]
        return KeyValues.of(kept, len(places) + self.room - self.length)

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def _take(self, keys: Tensor, values: Tensor) -> None:
        # Zeros: where all of the room is looked at, what is masked out must still be a number.
        both = keys.new_zeros(1, 2, keys.shape[1], self.room, keys.shape[3])
        self._both.append(both)
        for parts, what, held in ((self.keys, keys, both[:, 0]), (self.values, values, both[:, 1])):
            held[:, :, : what.shape[2]] = what
            parts.append(held)


def head_width(config: Any) -> int:
    """Channels of each head of a language model; not always its width over its heads."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def side_by_side(rows: Sequence[KeyValues], room: int) -> KeyValues:
    """The positions of several rows in one, with room for ``room`` in all."""
    joined = [
        tuple(torch.cat(parts, dim=2) for parts in zip(*layers, strict=True))
        for layers in zip(*(row.layers() for row in rows), strict=True)
    ]
    return KeyValues.of(joined, room)  # type: ignore[arg-type]  # pairs, by their making
