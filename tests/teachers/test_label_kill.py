"""``stillroom label`` killed again and again: no row lost, doubled or torn, workers or not."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stillroom import api
from stillroom.teachers.label_check import problems, status
from stillroom.teachers.label_merge import alike
from stillroom.teachers.label_ray import _share
from stillroom.teachers.label_store import open_labels
from stillroom.testing import FixedTeacher, tiny_store

#: The command with its registry's one teacher replaced, so that its pace is known.
COMMAND = """
import sys, functools
from pathlib import Path
from stillroom.records import SIGNALS
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher

scenes, out, pause, workers, ray = sys.argv[1:6]
label_scenes(Path(scenes), functools.partial(FixedTeacher, pause_s=float(pause)), Path(out),
             teacher={"name": "fixed"}, signals=SIGNALS, scenes_per_part=1,
             workers=int(workers), ray=ray or None)
"""


def command(scenes: Path, out: Path, pause_s: float, *, workers: int = 1, ray: str = "") -> list:
    words = [scenes, out, pause_s, workers, ray]
    return [sys.executable, "-c", COMMAND, *(str(word) for word in words)]


def everything(out: Path) -> dict[str, list[object]]:
    """All tensors of all rows, by question id."""
    store, found = open_labels(out), {}
    for scene_id in store.scene_ids():
        features = store.scene_features(scene_id)
        assert features is not None
        for one in store.labels(scene_id):
            assert one.question_id not in found, "a row stands twice"
            assert one.topk_logits is not None
            assert one.attention is not None
            found[one.question_id] = [
                one.answer,
                one.topk_logits.tolist(),
                one.attention.tolist(),
                features.pooled.tolist(),
            ]
    return found


def done(out: Path) -> int:
    return status(out)["scenes"] if (out / "manifest.json").exists() else 0


def kill_often(tmp_path: Path, *, kills: int, scenes: int, pause_s: float, seed: int) -> None:
    """Label with ``kills`` kills, the i-th when a drawn share of the scenes is done.

    Shares are drawn over the whole run and sorted; a delay drawn within the time of a scene lets
    the kill fall anywhere between two parts: while a scene is read, a file written, a shard joined.
    """
    store = tiny_store(tmp_path / "scenes", scenes=scenes, questions=2)
    subprocess.run(command(store, tmp_path / "calm", 0.0), check=True)
    rng = np.random.default_rng(seed)
    seen: list[int] = []
    out = tmp_path / "killed"
    # A kill after the last scene would find nobody: the draw ends before.
    for goal in np.sort(rng.integers(0, scenes - 4, kills)):
        process = subprocess.Popen(command(store, out, pause_s))
        while process.poll() is None and done(out) < goal:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 2 * pause_s)))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(done(out))
        print(f"kill {len(seen)} of {kills}: {seen[-1]} of {scenes} scenes done")
    assert seen == sorted(seen), "a finished scene was lost"
    assert seen[0] < scenes / 2, "no kill came early"
    subprocess.run(command(store, out, 0.0), check=True)
    assert problems(out, scenes=[store]) == []
    assert everything(out) == everything(tmp_path / "calm")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        p.name for p in (tmp_path / "calm").iterdir()
    )


def test_six_kills_leave_no_row_lost_doubled_or_torn(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=6, scenes=24, pause_s=0.02, seed=1)


@pytest.mark.slow
def test_two_hundred_kills_leave_no_row_lost_doubled_or_torn(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=200, scenes=400, pause_s=0.02, seed=2)


# The command itself, with the shipped teacher. --------------------------------------------------


def rooms(folder: Path, count: int) -> Path:
    api.make_scenes(folder, count=count, seed=3, questions=13, workers=1)
    return folder


def real(scenes: Path, out: Path, workers: int) -> list[str]:
    words = ["label", scenes, "--teacher", "teacher_mini", "--out", out, "--workers", workers]
    words += ["--scenes-per-part", 1]
    return [sys.executable, "-m", "stillroom", *(str(word) for word in words)]


def assert_rows_alike(one: Path, two: Path) -> None:
    """Every row once in both, with equal answers, and numbers equal up to rounding."""
    first, second = open_labels(one), open_labels(two)
    assert first.scene_ids() == second.scene_ids()
    for scene_id in first.scene_ids():
        ours, theirs = first.labels(scene_id), second.labels(scene_id)
        assert len(ours) == len(theirs) > 0
        assert all(map(alike, ours, theirs))


@pytest.mark.slow
def test_two_workers_say_what_one_says_up_to_rounding(tmp_path: Path) -> None:
    store = rooms(tmp_path / "rooms", 3)
    for workers in (1, 2):
        subprocess.run(real(store, tmp_path / str(workers), workers), check=True)
        assert problems(tmp_path / str(workers), scenes=[store]) == []
    assert_rows_alike(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "workers"), [(20, 1), (4, 2)])
def test_the_real_command_is_killed_and_no_row_is_lost(
    kills: int, workers: int, tmp_path: Path
) -> None:
    count = 12
    store = rooms(tmp_path / "rooms", count)
    out, rng = tmp_path / "killed", np.random.default_rng(4)
    subprocess.run(real(store, tmp_path / "calm", 1), check=True)
    at = killed = 0
    for number, goal in enumerate(np.sort(rng.integers(0, count - 1, kills))):
        process = subprocess.Popen(real(store, out, workers))
        while process.poll() is None and done(out) < goal:
            time.sleep(0.002)
        # While scenes are labelled, and for the first goal while the teacher is loaded.
        time.sleep(float(rng.uniform(0, 4.0 if goal == 0 else 0.1)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        before, at = at, done(out)
        print(f"kill {number + 1} of {kills}, {workers} workers: {at} of {count} scenes done")
        assert at >= before, "a finished scene was lost"
    assert killed >= kills / 2, "most ended before they could be killed"
    subprocess.run(real(store, out, workers), check=True)
    assert problems(out, scenes=[store]) == []
    assert_rows_alike(out, tmp_path / "calm")


def worker_pids(out: Path) -> set[int]:
    """Processes that hold a lease, as their lock files say."""
    found = set()
    for lock in (out / "leases").glob("*.lock"):
        try:
            found.add(json.loads(lock.read_text())["pid"])
        except (ValueError, FileNotFoundError):
            continue
    return found


def kill_one_of_two(tmp_path: Path, *, ray: str = "") -> None:
    """Two workers; one is killed in the middle, the rest is done without the user's help."""
    store = tiny_store(tmp_path / "scenes", scenes=16, questions=2)
    subprocess.run(command(store, tmp_path / "one", 0.0), check=True)
    out = tmp_path / "two"
    process = subprocess.Popen(command(store, out, 0.2, workers=2, ray=ray))
    deadline = time.monotonic() + 300
    while done(out) < 4 or len(worker_pids(out)) < 2:
        assert process.poll() is None, "it ended before a worker could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim = min(worker_pids(out) - {process.pid})
    os.kill(victim, signal.SIGKILL)
    at = done(out)
    print(f"worker {victim} killed at {at} of 16 scenes")
    assert at < 16
    assert process.wait(timeout=300) == 0
    assert problems(out, scenes=[store]) == []
    assert everything(out) == everything(tmp_path / "one")


def test_a_killed_process_costs_only_its_rows(tmp_path: Path) -> None:
    kill_one_of_two(tmp_path)


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([{"CPU": 16.0}], 2, (2, {"num_cpus": 8.0})),
        ([{"CPU": 3.0}], 2, (2, {"num_cpus": 1.0})),
        ([{"CPU": 2.0}], 4, (4, {"num_cpus": 0.5})),
        ([{"CPU": 16.0, "GPU": 2.0}], 2, (2, {"num_cpus": 8.0, "num_gpus": 1.0})),
        # More workers than GPUs would wait for one for ever.
        ([{"CPU": 16.0, "GPU": 2.0}], 5, (2, {"num_cpus": 8.0, "num_gpus": 1.0})),
        # An actor has its place on one machine, whatever the cluster has together.
        ([{"CPU": 1.0}, {"CPU": 1.0}], 1, (1, {"num_cpus": 1.0})),
        ([{"CPU": 8.0}, {"CPU": 3.0}], 3, (3, {"num_cpus": 3.0})),
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 2.0}], 2, (2, {"num_cpus": 2.0, "num_gpus": 1.0})),
        ([{}, {"CPU": 2.0}], 1, (1, {"num_cpus": 2.0})),
        # Nobody says how many: one per GPU, or per eight CPUs of a machine.
        ([{"CPU": 16.0, "GPU": 2.0}] * 2, None, (4, {"num_cpus": 8.0, "num_gpus": 1.0})),
        ([{"CPU": 16.0}, {"CPU": 2.0}], None, (2, {"num_cpus": 8.0})),
        ([{"CPU": 1.0}, {"CPU": 1.0}], None, (2, {"num_cpus": 1.0})),
    ],
)
def test_a_cluster_is_shared_out_so_that_every_actor_finds_a_place(
    nodes: list[dict[str, float]], workers: int | None, share: tuple[int, dict[str, float]]
) -> None:
    assert _share(nodes, workers, shards=100) == share


HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed: pip install 'stillroom[ray]'")
def test_a_killed_ray_worker_costs_only_its_rows(tmp_path: Path) -> None:
    kill_one_of_two(tmp_path, ray="local")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed: pip install 'stillroom[ray]'")
def test_what_a_ray_worker_refuses_is_one_sentence(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "scenes", scenes=4)
    words = [sys.executable, "-m", "stillroom", "label", store, "--teacher", "truth"]
    words += ["--out", tmp_path / "out", "--ray"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    # Before it a busy machine may say that Ray is started once more.
    *_, last = done.stderr.strip().splitlines()
    assert "the teacher truth has answers alone" in last
    assert done.stderr.count("stillroom: ") == 1
    assert "Traceback" not in done.stderr


#: Labels on a cluster of two machines with a CPU each; with "busy" both are taken.
CLUSTER = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from stillroom.records import BadInputError
from stillroom.teachers import label_ray
from stillroom.teachers.label import label_scenes
from stillroom.testing import FixedTeacher

scenes, out, workers, busy = sys.argv[1:5]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
if busy:
    label_ray.START_S = 5.0
    holders = [ray.remote(num_cpus=1)(label_ray._Actor).remote() for _ in range(2)]
    ray.get([holder.here.remote() for holder in holders])
try:
    done = label_scenes(Path(scenes), FixedTeacher, Path(out), teacher={"name": "fixed"},
                        signals=("answers",), ray=cluster.address, scenes_per_part=1,
                        workers=int(workers) if workers else None)
    print("labelled", done)
except BadInputError as error:
    print("refused:", error)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="ray is not installed: pip install 'stillroom[ray]'")
@pytest.mark.parametrize(
    ("workers", "busy", "said"),
    [
        ("1", "", "labelled 4"),
        ("", "", "labelled 4"),
        ("1", "busy", "refused: no Ray actor found a place in 5 s: one needs 1 CPU on one machine"),
    ],
)
def test_actors_find_a_place_on_two_small_machines_or_say_why_not(
    workers: str, busy: str, said: str, tmp_path: Path
) -> None:
    store = tiny_store(tmp_path / "scenes", scenes=4)
    words = [sys.executable, "-c", CLUSTER, str(store), str(tmp_path / "out"), workers, busy]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert said in done.stdout, (done.stdout, done.stderr)


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_way_to_install_it_is_named(tmp_path: Path) -> None:
    from stillroom.records import BadInputError
    from stillroom.teachers.label import label_scenes

    store = tiny_store(tmp_path / "scenes", scenes=2)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[ray\]'"):
        label_scenes(
            store,
            FixedTeacher,
            tmp_path / "out",
            teacher={"name": "fixed"},
            signals=("answers",),
            ray="local",
        )
    assert not (tmp_path / "out").exists()
