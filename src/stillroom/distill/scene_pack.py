"""Arrays of scenes on disk: each scene's made once, by whichever run asks first; memory-mapped.

``HOME/FORM/`` holds the scenes whose arrays have one form (dtypes and shapes, ``form.json``):
``NAME.bin`` has an array's rows end to end, ``scenes`` the id of each row, a line each. Rows are
only ever added, and an id is written when its row has reached the disk: what a killed process
leaves behind the last id is written over, and who reads sees whole rows at any moment.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.records import BadInputError, content_hash
from stillroom.scenes.store import write_atomically

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
#: Arrays of some scenes by name, a row a scene.
Make = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
#: By array: its dtype and the shape of a row.
Form = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ScenePack:
    """All scenes of one form that there were when it was opened; row i is ``scene_ids[i]``."""

    scene_ids: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


def packed(
    home: Path,
    scene_ids: Sequence[str],
    make: Make,
    *,
    at_once: int,
    progress: Progress | None = None,
) -> ScenePack:
    """A pack that holds ``scene_ids`` and maybe others; what is missing is made, some at a time.

    Several processes may do this at once with any scenes: one makes some while others wait, and
    what one has made another does not make again.

    Raises:
        BadInputError: the scenes' arrays are of several forms.
    """
    home.mkdir(parents=True, exist_ok=True)
    shelves = _Shelves(home)
    shelves.look()
    while missing := [one for one in scene_ids if one not in shelves.place]:
        with alone(home / ".lock"):
            # Another process may have been here while this one waited.
            shelves.look()
            chosen = [one for one in missing if one not in shelves.place][:at_once]
            if chosen:
                shelves.add(chosen, make(chosen))
        shelves.require_one_form(scene_ids)
        if chosen and progress is not None:
            progress(sum(one in shelves.place for one in scene_ids), len(scene_ids))
    shelves.require_one_form(scene_ids)
    return shelves.open(shelves.place[scene_ids[0]])


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for, and that a killed one lets go."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another run makes %s; waiting for it", lock.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Shelves:
    """What lies in a pack's folder, form by form, as far as it has been looked at."""

    def __init__(self, home: Path) -> None:
        self.home = home
        #: By scene: the folder of its form.
        self.place: dict[str, str] = {}
        self._ids: dict[str, list[str]] = {}
        # Bytes of each ``scenes`` that have been read: whole lines.
        self._read: dict[str, int] = {}
        self._forms: dict[str, Form] = {}

    def look(self) -> None:
        """Read what was added since."""
        for file in sorted(self.home.glob("*/form.json")):
            name = file.parent.name
            if name not in self._forms:
                self._forms[name] = {
                    array: (dtype, tuple(shape))
                    for array, (dtype, shape) in json.loads(file.read_text()).items()
                }
                self._ids[name], self._read[name] = [], 0
            listed = file.with_name("scenes")
            if not listed.exists():
                continue
            with listed.open("rb") as source:
                source.seek(self._read[name])
                whole, end, _ = source.read().rpartition(b"\n")
            added = whole.decode().split()
            self._read[name] += len(whole) + len(end)
            self._ids[name] += added
            self.place |= dict.fromkeys(added, name)

    def add(self, scene_ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Rows behind those that are there; only who holds the lock may do this."""
        form = {name: (array.dtype.str, array.shape[1:]) for name, array in arrays.items()}
        text = json.dumps(form, sort_keys=True)
        name = content_hash([text])
        folder = self.home / name
        if name not in self._forms:
            write_atomically(folder / "form.json", text.encode())
            self.look()
        rows = len(self._ids[name])
        for array_name, array in arrays.items():
            _write_at(folder / f"{array_name}.bin", rows * array[0].nbytes, array.tobytes())
        lines = "".join(f"{scene_id}\n" for scene_id in scene_ids)
        _write_at(folder / "scenes", self._read[name], lines.encode())
        self.look()

    def require_one_form(self, scene_ids: Sequence[str]) -> None:
        """Raise BadInputError unless those of the scenes that are here are of one form."""
        there = [one for one in scene_ids if one in self.place]
        first = self.place[there[0]]
        for scene_id in there:
            if self.place[scene_id] != first:
                mine, other = self._forms[self.place[scene_id]], self._forms[first]
                name = next(name for name in other if mine.get(name) != other[name])
                raise BadInputError(
                    f"scene {scene_id} has {name} of shape {mine[name][1]}, scene {there[0]} "
                    f"{other[name][1]}; distil on scenes of one kind"
                )

    def open(self, name: str) -> ScenePack:
        """The arrays of one form, mapped as far as they were looked at."""
        ids = self._ids[name]
        arrays = {
            array: np.memmap(
                self.home / name / f"{array}.bin",
                dtype=np.dtype(dtype),
                mode="r",
                shape=(len(ids), *shape),
            )
            for array, (dtype, shape) in self._forms[name].items()
        }
        return ScenePack(tuple(ids), arrays)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """``data`` from ``offset`` on and nothing behind it, on disk when this returns."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(offset)
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
