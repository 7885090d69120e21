"""Who labels: this process, several of this machine, or the actors of a Ray cluster.

An executor starts workers and watches them; which shard is whose is settled by leases in the store
(``label.work``), so that it makes no difference how many there are, where, or when one dies.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from stillroom.records import BadInputError
from stillroom.teachers.label import Job, work

#: How often progress is looked at while others work [s].
WATCH_S = 0.5

#: ``run(job, shards, watch)``: label what is left in that many shards, calling ``watch`` often.
Executor = Callable[[Job, int, Callable[[], None]], None]


def executor(*, workers: int | None, ray: str | None) -> Executor:
    """What runs a job; without a number of workers it is one, with Ray what the cluster holds.

    Raises:
        BadInputError: no workers, or Ray is asked for and not installed.
    """
    if workers is not None and workers < 1:
        raise BadInputError(f"--workers must be at least 1, got {workers}")
    if ray is not None:
        from stillroom.teachers.label_ray import RayActors, require_ray

        require_ray()
        return RayActors(address=ray, workers=workers)
    return here if workers is None or workers == 1 else Processes(workers)


def here(job: Job, shards: int, watch: Callable[[], None]) -> None:
    """Label in this process."""
    work(job, watch)


@dataclass(frozen=True)
class Processes:
    """Labels in several processes of this machine, one teacher each, cores shared out evenly."""

    workers: int

    def __call__(self, job: Job, shards: int, watch: Callable[[], None]) -> None:
        """Start, watch and end them.

        Raises:
            BadInputError: what a worker refuses, or all workers were killed.
        """
        count = min(self.workers, shards)
        if count == 1:
            work(job, watch)
            return
        context = multiprocessing.get_context("spawn")
        threads = threads_for(count)
        running: list[tuple[BaseProcess, Connection]] = []
        for _ in range(count):
            receiver, sender = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=_process, args=(job, threads, os.getpid(), sender), daemon=True
            )
            process.start()
            sender.close()
            running.append((process, receiver))
        try:
            _wait_for(running, watch)
        finally:
            for process, _ in running:
                process.terminate()
                process.join()


def _wait_for(running: list[tuple[BaseProcess, Connection]], watch: Callable[[], None]) -> None:
    left, killed = list(running), 0
    while left:
        wait([process.sentinel for process, _ in left], timeout=WATCH_S)
        watch()
        for entry in list(left):
            process, receiver = entry
            if process.exitcode is None:
                continue
            left.remove(entry)
            kind, text = _last_words(receiver)
            if kind == "bad input":
                raise BadInputError(text)
            if kind == "crash":
                raise RuntimeError(f"a labelling worker failed:\n{text}")
            killed += process.exitcode != 0
    if killed == len(running):
        raise BadInputError(
            f"all {killed} workers were killed (out of memory?); fewer --workers need less, and "
            "the same command goes on where they stopped"
        )


def _last_words(receiver: Connection) -> tuple[str, str]:
    try:
        if receiver.poll():
            kind, text = receiver.recv()
            return kind, text
    except EOFError:
        pass
    return "", ""


def _process(job: Job, threads: int, parent: int, sender: Connection) -> None:
    """A worker process. Leaves when its parent has died: nobody would hear of its errors."""
    # Ctrl-C reaches the parent too, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_threads(threads)

    def report() -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        work(job, report)
    except BadInputError as error:
        sender.send(("bad input", str(error)))
        raise SystemExit(2) from None
    except Exception:
        sender.send(("crash", traceback.format_exc()))
        raise SystemExit(1) from None


def threads_for(workers: int) -> int:
    """Threads of each of several workers on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def use_threads(count: int) -> None:
    """Let torch compute with so many threads in this process."""
    import torch

    torch.set_num_threads(count)
