"""The rows of the log as curves elsewhere."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run

from stillroom.records import BadInputError
from stillroom.training.handed import Progress
from stillroom.training.runlog import read_log
from stillroom.training.trackers import curves


class StoppedError(BaseException):
    """Ends a run abruptly."""


def test_curves_are_the_numbers_of_a_row(tmp_path: Path) -> None:
    tiny_run.run(tmp_path)
    step = read_log(tmp_path, kind="step")[0]
    assert curves(step).keys() == {
        *("loss", "unweighted", "grad_norm", "lr", "weighting_lr", "scenes_per_s"),
        "weights/all",
        *("terms/text", "terms/depth", "metrics/accuracy"),
        *("labelled/text", "labelled/depth", "labelled/accuracy"),
        *("grad_norms/embed", "grad_norms/norm", "grad_norms/depth", "grad_norms/weighting"),
    }
    assert curves(step)["terms/text"] == step["terms"]["text"]
    evaluation = read_log(tmp_path, kind="eval")[0]
    assert curves(evaluation)["eval/metrics/text_ce"] == evaluation["metrics"]["text_ce"]
    epoch = read_log(tmp_path, kind="epoch")[0]
    assert curves(epoch).keys() == {
        *("epoch/terms/text", "epoch/terms/depth", "epoch/metrics/accuracy")
    }
    assert curves({"kind": "step", "step": 1, "loss": None}) == {}


@pytest.mark.parametrize("track", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, track: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    config = replace(tiny_run.CONFIG, track=track)
    with pytest.raises(BadInputError, match=rf"needs {track}: pip install 'stillroom\[track\]'"):
        tiny_run.run(tmp_path, config=config)
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_every_step_once_after_a_stop(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise StoppedError

    config = replace(tiny_run.CONFIG, track="tensorboard")
    with pytest.raises(StoppedError):
        tiny_run.run(tmp_path, config=config, progress=stop)
    tiny_run.run(tmp_path, config=config)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_log(tmp_path, kind="step")
    for name, expected in (
        ("loss", [row["loss"] for row in rows]),
        ("grad_norms/norm", [row["grad_norms"]["norm"] for row in rows]),
    ):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [row["step"] for row in rows]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected)
    assert [scalar.step for scalar in events.Scalars("eval/metrics/text_ce")] == [3, 6, 9, 12]


def test_trackio_gets_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    tiny_run.run(tmp_path / "mine", config=replace(tiny_run.CONFIG, track="trackio"))
    logged = SQLiteStorage.get_logs("stillroom", "mine")
    losses = [row["loss"] for row in logged if "loss" in row]
    assert losses == [row["loss"] for row in read_log(tmp_path / "mine", kind="step")]
