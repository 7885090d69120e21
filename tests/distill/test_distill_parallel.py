"""Two processes distil what one does, also as ``torchrun -m stillroom distill ...``.

Run as a script, this file is one of two processes that talk over gloo.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_slot_supervision import ALONE, BESIDE, config, slot_gradient
from tiny_world import TINY, run
from two_gloo import both

from stillroom.distill.config import LossConfig
from stillroom.students.encoders.vggt_load import load_vggt
from stillroom.students.session import StudentAnswerer
from stillroom.training.runlog import read_log

CONFIG = replace(
    TINY,
    train=replace(TINY.train, steps=3, scenes_per_step=4, micro_batches=2, save_every=2),
    student=replace(TINY.student, detection_queries=4, detection_width=32),
    # Every term that these labels can teach.
    losses=LossConfig(detection=True, spatial=True, multi_view=True),
    # As mini_cpu has it.
    slots=replace(TINY.slots, supervision="extra"),
)
# Convolutions learn, whose gradients may lie in another order than their weights.
DEPTH_HEAD = replace(
    TINY,
    train=replace(
        TINY.train,
        steps=10,
        scenes_per_step=4,
        micro_batches=2,
        learning_rate=1e-3,
        evaluate_every=0,
        device="cpu",
    ),
    losses=LossConfig(depth_head=True, multi_view=True),
)
FLAGS = {
    "student.hidden-size": 16,
    "student.layers": 1,
    "student.heads": 2,
    "student.intermediate-size": 32,
    "student.vision-grid": 2,
    "student.detection-queries": 4,
    "student.detection-width": 32,
    "slots.count": 2,
    "questions-per-scene": 4,
    "description-share": CONFIG.description_share,
    "other-share": CONFIG.other_share,
    "validation-scenes": CONFIG.validation_scenes,
    "train.steps": 3,
    "train.scenes-per-step": 4,
    "train.learning-rate": CONFIG.train.learning_rate,
    "train.evaluate-every": CONFIG.train.evaluate_every,
    "train.save-every": 2,
    "train.device": "cpu",
}


def both_do(world: Path, out: Path) -> None:
    """What each of the two processes does."""
    for supervision in ("answer", "extra"):
        asked = config(BESIDE, supervision, micro_batches=4, parallel="ddp")
        found = slot_gradient(world, out / supervision, asked)
        if os.environ["RANK"] == "0":
            torch.save(found, out / f"{supervision}.pt")
    shared = replace(DEPTH_HEAD, train=replace(DEPTH_HEAD.train, parallel="ddp"))
    run(world, out / "depth-head", shared)


@pytest.fixture(scope="module")
def two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave; they are started once for all."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("two")
    both(__file__, world, out)
    return out


def test_two_ddp_processes_give_slots_the_gradient_of_the_answer_alone(
    world: Path,
    two: Path,
    tmp_path: Path,
) -> None:
    alone = slot_gradient(world, tmp_path / "run", config(ALONE))
    torch.testing.assert_close(torch.load(two / "answer.pt"), alone, atol=1e-6, rtol=0)
    assert (torch.load(two / "extra.pt") - alone).abs().max() > 1e-3


def test_ten_steps_with_a_trained_depth_head_have_the_loss_of_one_process(
    world: Path,
    two: Path,
    tmp_path: Path,
) -> None:
    run(world, tmp_path / "one", DEPTH_HEAD)
    ours, theirs = (read_log(home, kind="step") for home in (two / "depth-head", tmp_path / "one"))
    assert len(ours) == 10
    assert [row["loss"] for row in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-5)
    for row, other in zip(ours, theirs, strict=True):
        assert row["terms"] == pytest.approx(other["terms"], abs=1e-5)
    # All of it learns, so that a wrong update would show.
    start = load_vggt(world / "encoder", heads=("depth_head",)).depth_head.state_dict()
    student = StudentAnswerer.from_folder(tmp_path / "one" / "student").student
    moved = {
        name: (value.float() - start[name].bfloat16().float()).abs().max()
        for name, value in student.encoder.depth_head.state_dict().items()
    }
    assert min(moved.values()) > 3e-4, moved


SWITCHES = ("detection", "spatial", "multi-view")


def torchrun(world: Path, out: Path, parallel: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stillroom", "distill", "mini_cpu"]
    command += ["--scenes", str(world / "scenes"), "--labels", str(world / "labels")]
    command += ["--out", str(out), "--encoder", str(world / "encoder")]
    command += [f"--{name}={value}" for name, value in FLAGS.items()]
    command += [f"--losses.{name}" for name in SWITCHES]
    command += ["--train.parallel", parallel, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_distils_as_one_process_does(
    world: Path,
    tmp_path: Path,
    parallel: str,
) -> None:
    out = tmp_path / "two"
    done = torchrun(world, out, parallel)
    assert done.returncode == 0, done.stderr
    # One process speaks, writes the log and makes the features.
    assert done.stdout.count("after 3 steps") == 1
    assert len(list((out / "features").glob("features-*"))) == 1
    run(world, tmp_path / "one", replace(CONFIG, train=replace(CONFIG.train, device="cpu")))
    ours, theirs = (read_log(home, kind="step") for home in (out, tmp_path / "one"))
    assert {"detection_class", "spatial_views", "multi_view"} <= set(ours[0]["terms"])
    assert [row["loss"] for row in ours] == pytest.approx([r["loss"] for r in theirs], abs=1e-5)
    students = [
        StudentAnswerer.from_folder(home / "student").student.state_dict()
        for home in (out, tmp_path / "one")
    ]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], atol=2e-2, rtol=0)
    again = torchrun(world, out, parallel)
    assert again.returncode == 0
    assert again.stdout.count("after 3 steps") == 1
    refused = torchrun(world, out, parallel, "--train.seed", "7")
    assert refused.returncode != 0
    assert (
        f"stillroom: {out} holds a run with other settings (settings.config.train.seed"
        in refused.stderr
    )
    assert "stillroom (process 1): the first process stopped" in refused.stderr


if __name__ == "__main__":
    torch.set_num_threads(1)
    both_do(Path(sys.argv[1]), Path(sys.argv[2]))
