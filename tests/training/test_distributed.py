"""Two processes over gloo train the tiny model as one does, whole (ddp) and in shards (fsdp)."""

import json
import logging
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import two_processes
from safetensors.torch import load_file
from test_resume import assert_same_run
from two_processes import CONFIG

from stillroom.records import BadInputError
from stillroom.training.distributed import join
from stillroom.training.runlog import read_log


def alone(out: Path, parallel: str = "none", stop: int | None = None) -> None:
    """The same training by this process, up to ``stop``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    two_processes.job(out.parent, f"{parallel}:{out.name}" + (f":{stop}" if stop else ""))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of finished and of stopped runs; two processes are started once for all."""
    out = tmp_path_factory.mktemp("runs")
    alone(out / "one")
    alone(out / "sheltered-one")
    alone(out / "grows", "fsdp", stop=5)
    whole = ["ddp:ddp", "ddp:ddp-resumed:5", "ddp:ddp-resumed", "ddp:ddp-shrinks:5"]
    whole += ["ddp:sheltered-ddp"]
    cut = ["fsdp:fsdp", "fsdp:fsdp-resumed:5", "fsdp:fsdp-resumed", "fsdp:fsdp-shrinks:5"]
    said = two_processes.train(out, *whole, *cut, "fsdp:grows")
    (out / "said.json").write_text(json.dumps(said))
    return out


def same_but_for_rounding(out: Path, one: Path, within: float) -> None:
    for kind in ("step", "eval"):
        ours, theirs = read_log(out, kind=kind), read_log(one, kind=kind)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for row, other in zip(ours, theirs, strict=True):
            assert row["metrics"] == pytest.approx(other["metrics"], abs=100 * within)
            if kind == "step":
                assert row["loss"] == pytest.approx(other["loss"], abs=within)
                assert row["terms"] == pytest.approx(other["terms"], abs=within)
                assert row["grad_norms"] == pytest.approx(other["grad_norms"], abs=10 * within)
                assert row["labelled"] == other["labelled"]
    ours, theirs = (load_file(run / "best.safetensors") for run in (out, one))
    for name in ours.keys() - {"seen"}:  # counts the calls of one process
        np.testing.assert_allclose(ours[name], theirs[name], atol=100 * within, err_msg=name)


def test_two_ddp_processes_train_as_one(runs: Path) -> None:
    skipped = [row["step"] for row in read_log(runs / "ddp", kind="step") if row["loss"] is None]
    assert skipped == [two_processes.UNLABELLED + 1]
    same_but_for_rounding(runs / "ddp", runs / "one", within=1e-6)


def test_two_ddp_processes_shelter_parameters_as_one_does(runs: Path) -> None:
    rows, plain = (read_log(runs / name, kind="step") for name in ("sheltered-one", "one"))
    norms = [row["grad_norms"].get("norm") for row in rows]
    # Weights are equal at first; what the norm learns from is not.
    assert rows[0]["loss"] == plain[0]["loss"]
    assert 0 < norms[0] != plain[0]["grad_norms"]["norm"]
    # Without depth in the whole step nothing moves it, momentum neither.
    assert norms[two_processes.WITHOUT_DEPTH] == 0
    assert rows[two_processes.WITHOUT_DEPTH]["terms"].keys() == {"text"}
    same_but_for_rounding(runs / "sheltered-ddp", runs / "sheltered-one", within=1e-6)


def test_fsdp_on_two_processes_gives_the_loss_of_one_within_1e_5(runs: Path) -> None:
    assert len(read_log(runs / "fsdp", kind="step")) == 10
    same_but_for_rounding(runs / "fsdp", runs / "one", within=1e-5)


@pytest.mark.parametrize("way", ["one", "ddp", "fsdp"])
def test_a_weighting_steps_at_its_own_learning_rate(runs: Path, way: str) -> None:
    first, second = read_log(runs / way, kind="step")[:2]
    assert (first["lr"], first["weighting_lr"]) == (CONFIG.learning_rate, 1e-2)
    # AdamW's first step is as long as the learning rate.
    assert abs(math.log(second["weights"]["all"] / first["weights"]["all"])) == pytest.approx(
        1e-2, rel=1e-4
    )


def test_two_ddp_processes_that_stop_go_on_bit_for_bit(runs: Path) -> None:
    assert_same_run(runs / "ddp-resumed", runs / "ddp")


def test_shards_that_stop_go_on_bit_for_bit(runs: Path) -> None:
    resumed, calm = runs / "fsdp-resumed", runs / "fsdp"
    assert (resumed / "best.safetensors").read_bytes() == (calm / "best.safetensors").read_bytes()
    timed = ("scenes_per_s", "eta_s", "seconds")
    logs = [
        [{name: value for name, value in row.items() if name not in timed} for row in rows]
        for rows in (read_log(resumed), read_log(calm))
    ]
    assert logs[0] == logs[1]
    assert [file.name for file in (resumed / "checkpoint").iterdir()] == ["step-00000010"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_two_processes_began_one_ends(
    runs: Path, parallel: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = runs / f"{parallel}-shrinks"
    with caplog.at_level(logging.WARNING, logger="stillroom.training"):
        alone(out, parallel)
    assert "by 2 processes up to step 3 and goes on with 1" in caplog.text
    assert read_log(out, kind="resume") == [
        {"kind": "resume", "step": 3, "before": 2, "processes": 1}
    ]
    same_but_for_rounding(out, runs / "one", within=1e-5)


def test_what_one_process_began_two_end(runs: Path) -> None:
    assert read_log(runs / "grows", kind="resume") == [
        {"kind": "resume", "step": 3, "before": 1, "processes": 2}
    ]
    same_but_for_rounding(runs / "grows", runs / "one", within=1e-5)


def test_one_process_speaks_for_all(runs: Path) -> None:
    first, second = json.loads((runs / "said.json").read_text())
    assert "by 1 processes up to step 3 and goes on with 2" in first
    # torch has its own word in every process: it cannot know that a term may be off.
    # So has torchao, which transformers imports, of the GPU parts that are not here.
    theirs = re.compile(r"\[rank1\]:\[W|.*/torchao/_C_|W\d+ .*torch/utils/_pytree\.py")
    assert [line for line in second.splitlines() if not theirs.match(line)] == []


def test_processes_that_would_train_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(BadInputError, match=r"2 processes were started.*--train\.parallel ddp"):
        join(CONFIG)


def test_portions_that_cannot_be_shared_evenly_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadInputError, match=r"3 processes cannot share 4 portions.*multiple of 3"):
        join(replace(CONFIG, parallel="ddp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInputError, match="no CUDA device"):
        join(replace(CONFIG, device="cuda"))
    assert join(replace(CONFIG, device="auto")).device == torch.device("cpu")


def torchrun(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", two_processes.__file__, str(out)]
    return subprocess.Popen([*command, "ddp:run::40"], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """40 steps = 17, kill -9 of the second process, 23: bit for bit what 40 in one go are."""
    assert torchrun(tmp_path / "calm").wait(timeout=600) == 0
    started = torchrun(tmp_path / "killed")
    log = tmp_path / "killed" / "run" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_bytes().count(b'"kind": "step"') < 17:
        assert started.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    subprocess.run(["kill", "-9", (tmp_path / "killed" / "pid-1").read_text()], check=True)
    assert started.wait(timeout=300) not in (0, -signal.SIGKILL)
    assert read_log(log, kind="step")[-1]["step"] < 40
    assert torchrun(tmp_path / "killed").wait(timeout=600) == 0
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "calm" / "run")
