import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch

from stillroom.records import BadInputError
from stillroom.training import checkpoint
from stillroom.training.handed import Progress
from stillroom.training.optim import make_optimizer
from stillroom.training.runlog import open_run, read_log


class Killed(BaseException):
    """Ends a run in this process as abruptly as an exception can."""


def assert_same_run(out: Path, undisturbed: Path) -> None:
    """Equal weights, optimizer, best and log, bit for bit; times may differ."""
    ours, theirs = tiny_run.arrays(out), tiny_run.arrays(undisturbed)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert (out / "best.safetensors").read_bytes() == (
        undisturbed / "best.safetensors"
    ).read_bytes()
    timed = ("scenes_per_s", "eta_s", "seconds")
    logs = [
        [{name: value for name, value in row.items() if name not in timed} for row in rows]
        for rows in (read_log(out), read_log(undisturbed))
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One thread, as in the runs that are killed: sums over threads may round differently.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed")
    tiny_run.run(out)
    torch.set_num_threads(threads)
    return out


def start(out: Path, pause: float, steps: int = 12) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("tiny_run.py")
    return subprocess.Popen([sys.executable, str(script), str(out), str(pause), str(steps)])


def test_kill_9_on_the_way_gives_the_undisturbed_run(tmp_path: Path, undisturbed: Path) -> None:
    # 12 steps over 10 rows, 4 a step: the kills lie on both sides of epoch boundaries.
    for lines in (2, 10):
        process = start(tmp_path, 0.2)
        deadline = time.monotonic() + 120
        log = tmp_path / "log.jsonl"
        while not log.exists() or log.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if lines == 2:
            with pytest.raises(BadInputError, match="another process is training"):
                tiny_run.run(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "result.json").exists()
    assert start(tmp_path, 0).wait(timeout=120) == 0
    assert_same_run(tmp_path, undisturbed)


def test_40_steps_are_17_steps_kill_9_and_23_steps(tmp_path: Path) -> None:
    # 4 of 10 rows a step: the 17th step is in the 7th epoch, the last save before it too.
    process = start(tmp_path / "killed", 0.1, steps=40)
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b'"kind": "step"') < 17:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 17 <= read_log(log, kind="step")[-1]["step"] < 40
    config = replace(tiny_run.CONFIG, steps=40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("killed", "calm"):
        assert tiny_run.run(tmp_path / name, config=config)[0].steps == 40
    torch.set_num_threads(threads)
    assert_same_run(tmp_path / "killed", tmp_path / "calm")


@pytest.mark.parametrize("at", range(1, 13))
def test_a_run_that_dies_after_any_step_goes_on_exactly(
    tmp_path: Path, undisturbed: Path, at: int
) -> None:
    def die(progress: Progress) -> None:
        if progress.step == at:
            raise Killed

    with pytest.raises(Killed):
        tiny_run.run(tmp_path, progress=die)
    tiny_run.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize("at", range(12))
def test_a_run_that_dies_before_any_file_takes_its_place_goes_on_exactly(
    tmp_path: Path, undisturbed: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = 0

    def die(source: Path, target: Path) -> None:
        nonlocal moves
        if moves == at:
            raise Killed
        moves += 1
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", die)
        with pytest.raises(Killed):
            tiny_run.run(tmp_path)
    tiny_run.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_torn_last_line_is_neither_read_nor_kept(tmp_path: Path, undisturbed: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.step == 5:
            raise Killed

    with pytest.raises(Killed):
        tiny_run.run(tmp_path, progress=die)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(b'{"kind": "step", "st')
    assert read_log(tmp_path)[-1]["step"] == 5
    tiny_run.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_returns_at_once_with_the_best_weights(tmp_path: Path) -> None:
    result, model, _ = tiny_run.run(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def never(step: int, micro: int) -> dict[str, torch.Tensor]:
        raise AssertionError("a finished run asks for no data")

    again, other, _ = tiny_run.run(tmp_path, batch_at=never)
    assert again == result
    assert torch.equal(other.norm.weight, model.norm.weight)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    folder = open_run(tmp_path, config=tiny_run.CONFIG, settings={"recipe": "tiny"})
    assert folder.finished == result


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_other_settings_is_refused_and_left_alone(
    tmp_path: Path, finished: bool
) -> None:
    def die(progress: Progress) -> None:
        if not finished and progress.step == 5:
            raise Killed

    if finished:
        tiny_run.run(tmp_path, progress=die)
    else:
        with pytest.raises(Killed):
            tiny_run.run(tmp_path, progress=die)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = replace(tiny_run.CONFIG, learning_rate=0.01)
    with pytest.raises(BadInputError, match=r"other settings \(train.learning_rate: 0.05 there"):
        tiny_run.run(tmp_path, config=other)
    with pytest.raises(BadInputError, match=r"settings\.recipe.*Choose another --out"):
        tiny_run.run(tmp_path, settings={"recipe": "large"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("weighting", ["uncertainty", "static"])
def test_a_weighting_that_learnt_at_the_models_rate_is_another_run(
    tmp_path: Path, weighting: str
) -> None:
    """Begun before it had a rate of its own."""
    settings = {"config": {"losses": {"weighting": weighting}}}
    open_run(tmp_path, config=tiny_run.CONFIG, settings=settings)
    file = tmp_path / "settings.json"
    record = json.loads(file.read_text())
    for name in ("weighting_learning_rate", "weighting_schedule"):
        del record["train"][name]
    file.write_text(json.dumps(record))
    if weighting == "static":
        open_run(tmp_path, config=tiny_run.CONFIG, settings=settings)
        return
    with pytest.raises(BadInputError, match=r"train.weighting_learning_rate: 0.05 there"):
        open_run(tmp_path, config=tiny_run.CONFIG, settings=settings)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInputError, match="holds no run"):
        tiny_run.run(tmp_path)
    with pytest.raises(BadInputError, match="is a file"):
        tiny_run.run(tmp_path / "thesis.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.safetensors"])
def test_a_damaged_file_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    tiny_run.run(tmp_path)
    if name == "checkpoint.pt":
        (tmp_path / "result.json").unlink()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match=name):
        tiny_run.run(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tiny_run.run(tmp_path)
    with pytest.raises(BadInputError, match="of another model"):
        checkpoint.load_weights(torch.nn.Linear(2, 2), tmp_path / "best.safetensors")


@pytest.mark.parametrize("parallel", ["none", "fsdp"])
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, parallel: str) -> None:
    config = replace(tiny_run.CONFIG, parallel=parallel)
    for out, model in ((tmp_path / "a", tiny_run.make_model()), (tmp_path / "b", wider())):
        with pytest.raises(Killed):
            tiny_run.run(out, config=config, model=model, progress=die_at_5)
    # Someone moved the files of one run into the folder of another.
    name = "checkpoint.pt" if parallel == "none" else "checkpoint"
    (tmp_path / "b" / name).rename(tmp_path / "moved")
    (tmp_path / "a" / name).rename(tmp_path / "b" / name)
    with pytest.raises(BadInputError, match=r"of another model: .*depth\.bias.*Choose another"):
        tiny_run.run(tmp_path / "b", config=config, model=wider())


def wider() -> tiny_run.TinyModel:
    """Another recipe's model: what it says of depth has two numbers."""
    model = tiny_run.make_model()
    model.depth = torch.nn.Linear(5, 2)
    return model


def die_at_5(progress: Progress) -> None:
    if progress.step == 5:
        raise Killed


@pytest.mark.parametrize("name", ["position.json", ".metadata"])
def test_a_damaged_checkpoint_in_shards_is_named(tmp_path: Path, name: str) -> None:
    config = replace(tiny_run.CONFIG, parallel="fsdp")
    with pytest.raises(Killed):
        tiny_run.run(tmp_path, config=config, progress=die_at_5)
    [saved] = (tmp_path / "checkpoint").iterdir()
    (saved / name).write_bytes((saved / name).read_bytes()[:20])
    with pytest.raises(BadInputError, match="step-00000004 is damaged"):
        tiny_run.run(tmp_path, config=config)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(Killed):
        tiny_run.run(tmp_path, progress=die_at_5)
    path = tmp_path / "settings.json"
    record = json.loads(path.read_text())
    for name in ("parallel", "precision", "device", "compile"):
        del record["train"][name]
    record["train"]["device"] = "cpu"
    path.write_text(json.dumps(record))
    tiny_run.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_tied_parameter_is_saved_once_and_stays_tied(tmp_path: Path) -> None:
    model = tiny_run.make_model()
    assert "embed.weight" in checkpoint.trained_state(model)
    assert "out.weight" not in checkpoint.trained_state(model)
    checkpoint.save_weights(model, tmp_path / "w.safetensors")
    other = tiny_run.TinyModel()
    checkpoint.load_weights(other, tmp_path / "w.safetensors")
    assert other.out.weight is other.embed.weight
    assert torch.equal(other.out.weight, model.out.weight)


def test_a_checkpoint_with_other_groups_of_parameters_is_refused(tmp_path: Path) -> None:
    """As versions wrote it in which a weighting had no learning rate of its own."""
    model, weighting = tiny_run.make_model(), tiny_run.LearnedWeight()
    trained = torch.nn.ModuleDict({"model": model, "weighting": weighting})
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(
        path,
        trained=trained,
        optimizer=make_optimizer(trained, config=tiny_run.CONFIG),
        position=checkpoint.Position(),
    )
    now = make_optimizer(model, config=tiny_run.CONFIG, weighting=weighting)
    with pytest.raises(BadInputError, match=r"other groups of parameters.*another --out"):
        checkpoint.load_checkpoint(path, trained=trained, optimizer=now)
