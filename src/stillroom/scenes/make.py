"""Make a folder of rooms: in parallel, resumable, the same bytes however it is run.

Rooms are independent, so a shard of 50 is the unit of work: it is written by rename when whole,
and a run that was killed makes only the shards that are missing. What was asked for lies in
``making.json`` until the folder is finished, then in ``manifest.json``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import get_args

from stillroom.records import SPLITS, BadInputError, Question, Scene, Split
from stillroom.scenes.rooms import Density, draw_rooms
from stillroom.scenes.store import (
    read_manifest,
    shard_path,
    write_atomically,
    write_manifest,
    write_shard,
)

#: Rooms in a shard unless said otherwise.
SHARD = 50
#: Three of each family and a description.
LEAST_QUESTIONS = 13
#: Rooms drawn for one place before giving up; a plain room needs two or three.
MAX_DRAWS = 200
#: Grows when the same seed makes other rooms than before.
WORLD_VERSION = 3

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Ask = Callable[..., list[Question] | None]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for; two runs with equal wishes write equal bytes."""

    count: int
    seed: int
    density: Density
    questions: int
    split: Split | None
    shard_size: int = SHARD
    world: int = WORLD_VERSION

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range((self.count + self.shard_size - 1) // self.shard_size)

    def rooms(self, shard: int) -> range:
        """Indices of the rooms of one shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


def make_scenes(
    out: Path,
    *,
    count: int,
    seed: int,
    density: Density = "plain",
    questions: int = 24,
    split: Split | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ask: Ask | None = None,
    shard_size: int = SHARD,
) -> bool:
    """Make rooms 0 to ``count`` of ``seed`` with their questions; False if all were there already.

    ``workers`` processes (all cores if None); ``progress`` gets rooms done and rooms in all.
    ``ask`` makes the questions of a room, or None where a room cannot carry them; it must be
    importable by name (``stillroom.scenes.questions.ask_room`` if None).

    Raises:
        BadInputError: an argument is out of range, or ``out`` holds something else.
    """
    out = Path(out)
    wish = Wish(
        count=count,
        seed=seed,
        density=density,
        questions=questions,
        split=split,
        shard_size=shard_size,
    )
    _check(wish, workers)
    if _finished(out, wish):
        return False
    missing = [number for number in wish.shards if not shard_path(out, "scenes", number).exists()]
    done = count - sum(len(wish.rooms(number)) for number in missing)
    if progress is not None:
        progress(done, count)
    for number in _make_shards(out, wish, missing, workers or os.cpu_count() or 1, ask):
        done += len(wish.rooms(number))
        if progress is not None:
            progress(done, count)
    write_manifest(out, asdict(wish))
    (out / "making.json").unlink()
    return True


def _check(wish: Wish, workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise BadInputError(f"--workers must be at least 1, got {workers}")
    if wish.count < 1:
        raise BadInputError(f"--count must be at least 1, got {wish.count}")
    if wish.seed < 0:
        raise BadInputError(f"--seed must be 0 or more, got {wish.seed}")
    if wish.questions < LEAST_QUESTIONS:
        raise BadInputError(
            f"--questions must be at least {LEAST_QUESTIONS} (3 of each of the four families and a "
            f"description), got {wish.questions}"
        )
    if wish.density not in get_args(Density):
        raise BadInputError(f"--density must be plain or furnished, got {wish.density!r}")
    if wish.split is not None and wish.split not in SPLITS:
        raise BadInputError(f"--split must be one of {', '.join(SPLITS)}, got {wish.split!r}")


def _finished(out: Path, wish: Wish) -> bool:
    """Whether the folder holds all that is wished; else it is made ready for the rest."""
    settings = asdict(wish)
    if (out / "manifest.json").exists():
        if read_manifest(out)["settings"] != settings:
            raise _other(out)
        (out / "making.json").unlink(missing_ok=True)
        return True
    begun = out / "making.json"
    if begun.exists():
        if json.loads(begun.read_text()) != settings:
            raise _other(out)
        for path in out.rglob(".*"):
            if _partial(path):
                path.unlink()
        return False
    if out.exists() and (not out.is_dir() or any(not _partial(path) for path in out.iterdir())):
        raise BadInputError(f"{out} holds other files; choose another --out or an empty folder")
    write_atomically(begun, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
    return False


def _partial(path: Path) -> bool:
    """Whether a killed run left this half-written file."""
    return path.name.startswith(".") and path.suffix[1:].isdigit()


def _other(out: Path) -> BadInputError:
    return BadInputError(f"{out} holds rooms made with other settings; choose another --out")


def _make_shards(
    out: Path, wish: Wish, shards: list[int], workers: int, ask: Ask | None
) -> Iterator[int]:
    """Make shards, yielding the number of each when it is on disk."""
    workers = min(workers, len(shards))
    if workers <= 1:
        for number in shards:
            yield _make_shard(out, wish, number, ask)
        return
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )
        with pool:
            jobs = [pool.submit(_make_shard, out, wish, number, ask) for number in shards]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within use one thread; numpy reads these when it is imported there."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Let this process die when its parent is killed, not wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_shard(out: Path, wish: Wish, shard: int, ask: Ask | None) -> int:
    scenes: list[Scene] = []
    questions: list[Question] = []
    for index in wish.rooms(shard):
        scene, asked = make_one(wish, index, ask)
        scenes.append(scene)
        questions += asked
    write_shard(out, shard, scenes, questions)
    return shard


def make_one(wish: Wish, index: int, ask: Ask | None = None) -> tuple[Scene, list[Question]]:
    """Room ``index`` with its questions: the first draw that can carry them."""
    if ask is None:
        from stillroom.scenes.questions import ask_room

        ask = ask_room
    rooms = draw_rooms(wish.seed, index, density=wish.density, split=wish.split)
    for _ in range(MAX_DRAWS):
        scene, rng = next(rooms)
        asked = ask(scene, count=wish.questions, rng=rng)
        if asked is not None:
            return scene, asked
    raise BadInputError(
        f"room {index} of seed {wish.seed}: {MAX_DRAWS} draws in a row could not carry "
        f"{wish.questions} questions; ask for fewer with --questions"
    )
