"""Progress for people: a bar on a terminal, nothing elsewhere; one process speaks for all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


def process_number() -> int:
    """Which of the processes that torchrun started this is; 0 is the first, or the only one."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that exists only on a terminal."""
    if process_number() or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
