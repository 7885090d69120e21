"""A run's folder and its log; imports no torch.

``settings.json`` is written first and fingerprints the run, ``log.jsonl`` gets a line per step and
per evaluation, ``result.json`` is written last. The rest of the folder is ``checkpoint.py``'s.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from stillroom.records import BadInputError
from stillroom.training.config import TrainConfig

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run came to. ``best`` is the smallest value of the run's ``best_by``."""

    # Steps done; fewer than asked for if the run stopped early.
    steps: int
    stopped_early: bool
    # Without an evaluation there is no best: the weights are then the last.
    best: float | None
    best_step: int
    # Everything the evaluation at ``best_step`` said.
    metrics: dict[str, float] = field(default_factory=dict)
    # Training time over all sittings, evaluations included.
    seconds: float = 0.0
    # Steps in which nothing was labelled, so that no weight changed.
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A folder that is known to hold this run and no other."""

    path: Path
    # Set if the run had already been finished.
    finished: TrainResult | None

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """All that a killed run goes on from."""
        return self.path / "checkpoint.pt"

    @property
    def shards(self) -> Path:
        """The same where every process writes its part (fsdp)."""
        return self.path / "checkpoint"

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.path / "best.safetensors"

    def finish(self, result: TrainResult) -> None:
        """Write down that there is nothing left to do."""
        _write_atomically(self.path / "result.json", _as_text(asdict(result)))


def open_run(out: Path, *, config: TrainConfig, settings: Mapping[str, Any]) -> RunFolder:
    """The folder of this run: new, or of equal settings and then gone on with.

    ``settings`` is JSON-able and names all else that shapes the run: recipe, data, labels.
    Callers with preparations that can fail call ``refuse_other_run`` first and leave opening to
    ``train``, so that a run that never began takes no folder.

    Raises:
        BadInputError: ``out`` holds something else; nothing was touched.
    """
    refuse_other_run(out, config=config, settings=settings)
    path = out / "settings.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, _as_text(_record(config, settings)))
    return RunFolder(path=out, finished=_read_result(out))


def refuse_other_run(out: Path, *, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Nothing where ``open_run`` would open the folder; touches no file.

    Raises:
        BadInputError: ``out`` holds something else.
    """
    path = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise BadInputError(f"{out} is a file, a folder is needed. Choose another --out.")
    if path.exists():
        ours = _of_today(_read_json(path, out))
        difference = _first_difference(ours, _record(config, settings))
        if difference:
            raise BadInputError(
                f"{out} holds a run with other settings ({difference}). Choose another --out."
            )
    elif out.exists() and any(not file.name.endswith(".partial") for file in out.iterdir()):
        raise BadInputError(f"{out} is not empty and holds no run. Choose another --out.")


def _record(config: TrainConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What ``settings.json`` holds, as it is read back."""
    record = {"version": VERSION, "train": asdict(config), "settings": dict(settings)}
    return dict(json.loads(_as_text(record)))


def read_result(out: Path) -> TrainResult:
    """What a finished run came to. Raises BadInputError if it is not finished."""
    result = _read_result(out)
    if result is None:
        raise BadInputError(f"{out} holds no finished run; give the same command again to go on")
    return result


class RunLog:
    """Appends to ``log.jsonl``; begins by cutting off what the checkpoint does not know of."""

    def __init__(self, path: Path, *, keep_bytes: int) -> None:
        # Append mode creates the file; truncating to the checkpoint makes steps appear once.
        self._file = path.open("ab")
        try:
            _claim(self._file, path.parent)
        except BadInputError:
            self._file.close()
            raise
        self._file.truncate(keep_bytes)

    def write(self, row: Mapping[str, Any]) -> None:
        """One line, out of the process at once: a kill can tear only the last."""
        self._file.write((json.dumps(_finite(row)) + "\n").encode())
        self._file.flush()

    def sync(self) -> int:
        """Bytes that are safely on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def read_log(path: Path, *, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's ``log.jsonl``, all or those of one kind ("step", ...), in order.

    A step has: step, steps, loss (weighted total), unweighted (sum of the terms), terms, metrics,
    labelled (positions by name), weights, sigmas, grad_norm (before clipping), grad_norms (by part
    of the model), lr, weighting_lr (where a weighting learns), scenes_per_s, eta_s; the first one's
    terms are those of the weights as they began. An eval has: step, metrics, best, seconds. An
    epoch has the means of its steps: epoch (from 1), step (its last), steps (how many), terms,
    metrics. A resume, by another number of processes, has: step, before, processes.
    What was not finite reads as None. A torn last line, of a run that is going on, is left out.
    """
    file = path / "log.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise BadInputError(f"{path} holds no log.jsonl; is it the folder of a run?")
    # What follows the last line end is empty or torn.
    lines = file.read_bytes().split(b"\n")[:-1]
    try:
        rows = [json.loads(line) for line in lines]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{file} is damaged: not every line is JSON") from error
    return [row for row in rows if kind is None or row["kind"] == kind]


def step_line(row: Mapping[str, Any]) -> str:
    """A step for people: ``step 00120/02000 | loss 1.842 | text 1.310 | 412 scenes/s | ...``."""
    parts = [f"step {row['step']:05d}/{row['steps']:05d}"]
    parts.append("nothing labelled" if row["loss"] is None else f"loss {row['loss']:.3f}")
    parts += [f"{name} {value:.3f}" for name, value in {**row["terms"], **row["metrics"]}.items()]
    parts += [f"{row['scenes_per_s']:.3g} scenes/s", f"eta {row['eta_s'] / 60:.1f}m"]
    return " | ".join(parts)


def _claim(file: BinaryIO, out: Path) -> None:
    """Hold ``file`` until this process ends, however it ends; refuse if another holds it."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        # A record lock and not flock: a worker that outlives a killed parent must not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BadInputError(
            f"another process is training in {out}. Wait for it, or choose another --out."
        ) from error


def _read_result(out: Path) -> TrainResult | None:
    path = out / "result.json"
    if not path.exists():
        return None
    try:
        return TrainResult(**_read_json(path, out))
    except TypeError as error:
        raise BadInputError(f"{path} is not a result of this version of stillroom") from error


def _read_json(path: Path, out: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{path} is damaged. Choose another --out than {out}.") from error
    if not isinstance(record, dict):
        raise BadInputError(f"{path} is damaged. Choose another --out than {out}.")
    return record


def _of_today(record: dict[str, Any]) -> dict[str, Any]:
    """A run begun before there was some setting of ``TrainConfig`` had what is now its default; but
    a weighting that learns then had the model's learning rate and schedule."""
    known = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
    settings = record.get("settings")
    config = settings.get("config") if isinstance(settings, dict) else None
    for holder in (record, config):
        if isinstance(holder, dict) and isinstance(holder.get("train"), dict):
            then = dict(holder["train"])
            if _weighting_learns(config):
                for name in ("learning_rate", "schedule"):
                    then.setdefault(f"weighting_{name}", then.get(name, known.get(name)))
            holder["train"] = json.loads(_as_text(known)) | then
    return record


def _weighting_learns(config: object) -> bool:
    losses = config.get("losses") if isinstance(config, dict) else None
    return isinstance(losses, dict) and losses.get("weighting") == "uncertainty"


def _as_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def _first_difference(ours: object, given: object, where: str = "") -> str:
    """ "train.steps: 10 there, 20 now", or nothing if both are equal."""
    if isinstance(ours, dict) and isinstance(given, dict):
        for key in sorted(ours.keys() | given.keys()):
            name = f"{where}.{key}" if where else key
            found = _first_difference(ours.get(key), given.get(key), name)
            if found:
                return found
        return ""
    return "" if ours == given else f"{where}: {_short(ours)} there, {_short(given)} now"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(value: Any) -> Any:
    """Strict JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as sink:
        sink.write(text)
        sink.flush()
        os.fsync(sink.fileno())
    os.replace(partial, path)
