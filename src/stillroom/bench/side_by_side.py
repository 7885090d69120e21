"""Arms one after another, or several at once in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from stillroom.bench.arm import ArmJob, run_arm
from stillroom.records import BadInputError
from stillroom.teachers.label_run import threads_for, use_threads
from stillroom.training.handed import TrainingDiverged

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

#: How often running arms are looked at [s].
WATCH_S = 0.5


def run_all(
    jobs: Sequence[ArmJob],
    processes: int,
    failed: dict[str, str],
    ended: Callable[[], object],
    progress: Progress | None,
) -> None:
    """Run the jobs that are not done; ``failed`` gets a reason for each that does not end well."""
    left = [job for job in jobs if not job.finished]
    done = len(jobs) - len(left)

    def end(job: ArmJob, reason: str) -> None:
        nonlocal done
        done += not reason
        if reason:
            failed[job.name] = reason
            logger.warning("%s failed: %s", job.name, reason)
        ended()
        if progress is not None:
            progress(done, len(jobs))

    if progress is not None:
        progress(done, len(jobs))
    if processes == 1:
        for job in left:
            end(job, _in_this_process(job))
    else:
        _side_by_side(left, processes, end)


def _in_this_process(job: ArmJob) -> str:
    """The reason why an arm failed; empty if it did not."""
    try:
        run_arm(job)
    except (BadInputError, TrainingDiverged) as error:
        return str(error)
    return ""


def _side_by_side(
    jobs: Sequence[ArmJob], processes: int, end: Callable[[ArmJob, str], None]
) -> None:
    """Each job in a process of its own, so many at once; a crash of one leaves the others."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(jobs), list[tuple[ArmJob, BaseProcess, Connection]]()
    threads = threads_for(processes)
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                receiver, sender = context.Pipe(duplex=False)
                job = waiting.pop(0)
                process: BaseProcess = context.Process(
                    target=_process, args=(job, threads, os.getpid(), sender), daemon=True
                )
                process.start()
                sender.close()
                running.append((job, process, receiver))
            wait([process.sentinel for _, process, _ in running], timeout=WATCH_S)
            for entry in [entry for entry in running if entry[1].exitcode is not None]:
                running.remove(entry)
                end(entry[0], _last_words(entry[1].exitcode, entry[2]))
    finally:
        for _, process, _ in running:
            process.terminate()
            process.join()


def _last_words(exitcode: int | None, receiver: Connection) -> str:
    """Why a process ended; empty where it did what it was to do."""
    try:
        if receiver.poll():
            return str(receiver.recv())
    except EOFError:
        pass
    if exitcode == 0:
        return ""
    return f"its process ended with {exitcode} (killed, or out of memory?)"


def _process(job: ArmJob, threads: int, parent: int, sender: Connection) -> None:
    """One arm in a process of its own. Leaves when its parent has died: it goes on next time."""
    # Ctrl-C reaches the parent too, which ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_threads(threads)

    def watch(done: int, total: int) -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        run_arm(job, watch)
    except (BadInputError, TrainingDiverged) as error:
        sender.send(str(error))
        raise SystemExit(1) from None
    except Exception as error:
        sys.stderr.write(traceback.format_exc())
        sender.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
