"""Making a folder of rooms: same bytes in any number of processes, resumable after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillroom.records import BadInputError, Question, Scene, asked
from stillroom.scenes.make import Wish, make_one, make_scenes
from stillroom.scenes.rooms import draw_rooms
from stillroom.scenes.store import open_store

WISH = {"count": 3, "seed": 7, "questions": 13, "shard_size": 1}


def ask_little(scene: Scene, *, count: int, rng: np.random.Generator) -> list[Question] | None:
    """Some questions that depend on the draw; no room with an even number of things is taken."""
    if len(scene.objects) % 2 == 0:
        return None
    numbers = rng.integers(0, 1000, count)
    return [replace(asked(scene.scene_id, f"How far is {n}?"), family="test") for n in numbers]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / "one"
    assert make_scenes(out, workers=1, ask=ask_little, **WISH)
    return out


def test_a_finished_folder_is_a_store_with_its_questions(made: Path) -> None:
    store = open_store(made)
    assert len(store.scene_ids()) == 3
    assert all(len(store.questions(scene_id)) == 13 for scene_id in store.scene_ids())
    assert store.manifest["settings"]["seed"] == 7
    assert sorted(path.name for path in made.iterdir()) == ["manifest.json", "questions", "scenes"]


def test_two_processes_write_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    assert make_scenes(tmp_path / "two", workers=2, ask=ask_little, **WISH)
    assert contents(tmp_path / "two") == contents(made)


def test_a_room_that_cannot_be_asked_about_is_drawn_again(made: Path) -> None:
    rooms = open_store(made).iter_scenes()
    assert all(len(room.objects) % 2 == 1 for room in rooms)
    wish = Wish(count=60, seed=7, density="plain", questions=13, split=None)
    refusals = []
    for index in range(3):
        first = next(draw_rooms(7, index))[0]
        kept, _ = make_one(wish, index, ask_little)
        refusals.append(len(first.objects) % 2 == 0)
        assert (kept.scene_id != first.scene_id) == refusals[-1]
    assert any(refusals)


def test_the_same_command_on_a_finished_folder_touches_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert make_scenes(made, workers=1, ask=ask_little, **WISH) is False
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"count": 4}, {"questions": 14}, {"split": "test"}]
)
def test_other_settings_on_the_same_folder_are_refused(made: Path, change: dict) -> None:
    before = contents(made)
    with pytest.raises(BadInputError, match="other settings"):
        make_scenes(made, workers=1, ask=ask_little, **(WISH | change))
    assert contents(made) == before


def test_other_settings_on_an_unfinished_folder_are_refused(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "w", workers=1, ask=ask_little, progress=stop, **WISH)
    before = contents(tmp_path / "w")
    with pytest.raises(BadInputError, match="other settings"):
        make_scenes(tmp_path / "w", workers=1, ask=ask_little, **(WISH | {"seed": 8}))
    assert contents(tmp_path / "w") == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInputError, match="other files"):
        make_scenes(tmp_path, workers=1, ask=ask_little, **WISH)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "--count"),
        ({"seed": -1}, "--seed"),
        ({"questions": 5}, "--questions"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        make_scenes(tmp_path / "w", workers=1, ask=ask_little, **(WISH | change))
    assert not (tmp_path / "w").exists()


def test_a_split_that_is_named_holds_all_rooms(tmp_path: Path) -> None:
    wish = WISH | {"count": 1, "split": "val"}
    make_scenes(tmp_path / "w", workers=1, ask=ask_little, **wish)
    assert len(open_store(tmp_path / "w").scene_ids("val")) == 1


_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_make import WISH, ask_little
from stillroom.scenes.make import make_scenes
if __name__ == "__main__":
    make_scenes(Path(sys.argv[1]), workers=int(sys.argv[3]), ask=ask_little, **WISH)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    made: Path, tmp_path: Path, workers: str
) -> None:
    out = tmp_path / "killed"
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    command = [sys.executable, str(script), str(out), str(Path(__file__).parent), workers]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not list(out.glob("scenes/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = contents(out)
    assert any(name.startswith("scenes/") for name in kept)
    # A process killed while writing leaves such a file.
    (out / "scenes" / ".00001.parquet.4242").write_bytes(b"half")
    make_scenes(out, workers=1, ask=ask_little, **WISH)
    assert contents(out) == contents(made)
