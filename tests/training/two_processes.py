"""One of several processes that train ``tiny_run`` together; started as torchrun would start it.

``python two_processes.py OUT JOB...`` runs several jobs one after the other, so that a test pays
for the start once. A job is ``KIND:NAME[:STOP[:STEPS]]``: how the processes share the work, the
folder within OUT, the step before which all of them stop abruptly, and how many steps there are.
Where NAME begins with "sheltered", the norm learns from depth alone, and one step has none.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import tiny_run
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from stillroom.training.data_order import rows_at
from stillroom.training.handed import Sheltered

# Four portions a step and ten rows: epochs end within steps, and processes get unequal labels.
CONFIG = replace(tiny_run.CONFIG, steps=10, micro_batches=4, evaluate_every=4, save_every=3)
# A step (from 0) in which no process has a label.
UNLABELLED = 6
# Of sheltered jobs, one in which nothing labels depth.
WITHOUT_DEPTH = 4


class Layer(GradientCheckpointingLayer):
    """What FSDP cuts and gathers as one: a layer as transformers' language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(5, 8), torch.nn.Linear(8, 5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Its input and what an MLP makes of it."""
        return hidden + self.outer(self.inner(hidden).relu())


def make_model() -> tiny_run.TinyModel:
    """The tiny model with such a layer, the same weights each time."""
    model = tiny_run.make_model()
    model.layer = Layer()
    return model


class StoppedError(BaseException):
    """Ends the training abruptly."""


def start(out: Path, *jobs: str, processes: int = 2) -> list[subprocess.Popen[str]]:
    """The processes, under way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, __file__, str(out), *jobs],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def train(out: Path, *jobs: str, processes: int = 2) -> list[str]:
    """Train to the end; what each process wrote to standard error."""
    started = start(out, *jobs, processes=processes)
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    return said


def job(out: Path, word: str) -> None:
    """One job, see above."""
    kind, name, stop, steps, *_ = [*word.split(":"), "", ""]
    config = replace(CONFIG, parallel=kind, steps=int(steps or CONFIG.steps))
    model = make_model()
    sheltered = None
    if name.startswith("sheltered"):
        terms, others = frozenset({"depth"}), frozenset({"text"})
        sheltered = Sheltered(parameters=tuple(model.norm.parameters()), terms=terms, others=others)

    def batch_at(step: int, micro: int) -> dict[str, torch.Tensor]:
        if steps:
            time.sleep(0.02)
        if kind == "fsdp" and "RANK" in os.environ:
            assert isinstance(model.layer, FSDPModule)
            assert {type(value) for value in model.layer.parameters()} == {DTensor}
        if stop and step == int(stop):
            raise StoppedError
        batch = tiny_run.make_batch(rows_at(step, micro, config=config, rows=tiny_run.ROWS))
        if step == UNLABELLED:
            nothing = torch.zeros_like(batch["text_valid"])
            batch |= {"text_valid": nothing, "depth_valid": nothing}
        if sheltered is not None and step == WITHOUT_DEPTH:
            batch |= {"depth_valid": torch.zeros_like(batch["depth_valid"])}
        return batch

    try:
        tiny_run.run(out / name, config=config, model=model, batch_at=batch_at, sheltered=sheltered)
    except StoppedError:
        return
    # Whole again, wherever it was trained: the callers save it.
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
    assert model.out.weight is model.embed.weight
    tiny_run.make_step(model.eval())(tiny_run.make_batch([1, 2]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    home = Path(sys.argv[1])
    home.mkdir(exist_ok=True)
    (home / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    for given in sys.argv[2:]:
        job(home, given)
