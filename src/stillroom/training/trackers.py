"""Curves elsewhere: the rows of ``log.jsonl`` for TensorBoard or trackio, both optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stillroom.records import BadInputError

#: Parts of a row that are where and when, not how well.
_NO_CURVES = ("kind", "step", "steps", "epoch", "eta_s")


@runtime_checkable
class Sink(Protocol):
    """Takes the rows of a run as they come; see ``runlog.read_log`` for what is in them."""

    def write(self, row: Mapping[str, Any]) -> None:
        """One row."""
        ...

    def close(self) -> None:
        """No more rows will come."""
        ...


def check_tracker(track: str) -> None:
    """Refuse, with a BadInputError, a tracker whose package is not installed."""
    if track != "none" and importlib.util.find_spec(track) is None:
        raise BadInputError(f"--train.track {track} needs {track}: pip install 'stillroom[track]'")


def open_tracker(track: str, out: Path, *, step: int) -> Sink | None:
    """The tracker of a run that goes on after ``step``; None for "none"."""
    if track == "none":
        return None
    return TensorBoard(out, step=step) if track == "tensorboard" else Trackio(out)


def curves(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name: ``loss``, ``terms/text``, ``eval/metrics/answer_ce``,
    ``epoch/terms/text``."""
    prefix = f"{row['kind']}/" if row["kind"] in ("eval", "epoch") else ""
    found: dict[str, float] = {}
    for name, value in row.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, number in parts:
            if name not in _NO_CURVES and number is not None:
                found[prefix + (f"{name}/{inner}" if inner else name)] = float(number)
    return found


class TensorBoard:
    """Event files in ``out/tensorboard``; what was written after the checkpoint is hidden."""

    def __init__(self, out: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Its numbers at its step."""
        for name, value in curves(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write out what is held back."""
        self._writer.close()


class Trackio:
    """A run of trackio's project "stillroom", named after the folder."""

    def __init__(self, out: Path) -> None:
        import trackio

        name = out.resolve().name
        self._run = trackio.init(project="stillroom", name=name, resume="allow", embed=False)

    def write(self, row: Mapping[str, Any]) -> None:
        """Its numbers at its step."""
        self._run.log(curves(row), step=row["step"])

    def close(self) -> None:
        """Hand over what is held back."""
        self._run.finish()
